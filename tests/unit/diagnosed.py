"""Snapshots of nodes that are late, and what is said of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from appliance.diagnosis.judge import judge
from appliance.records import (
    Better,
    GpuSnapshot,
    HostReading,
    Lately,
    NodeSnapshot,
    QueueSnapshot,
)

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

replace = msgspec.structs.replace


def late(at_s: float, depth: int = 40, slowdown: float = 1.0, busy: float = 1.0) -> NodeSnapshot:
    """Two engines that are busy all of the time, and a queue that is too long."""
    prefill = made.engine("e0", busy=busy, slowdown=slowdown, waiting=3, max_running=64, token_budget=8192)
    decode = made.engine("e1", made.Role.DECODE, busy=0.9, slowdown=1.0, running=30, max_running=64)
    queue = QueueSnapshot(depth=depth, capacity=1024, oldest_s=5.0 if depth else None)
    return replace(made.node((prefill, decode), 0, queue=queue), time=at_s, uptime_s=at_s)


def window(
    slowdown: float = 1.2, host: HostReading | None = None, gpus: Sequence[GpuSnapshot] = ()
) -> list[NodeSnapshot]:
    """The late node, whose prefill engine is slow, with these readings."""
    found = []
    for n in range(5):
        snapshot = late(100 + n / 2, slowdown=slowdown)
        engines = (replace(snapshot.engines[0], host=host), *snapshot.engines[1:])
        found.append(replace(snapshot, engines=engines, gpus=tuple(gpus)))
    return found


def cause(snapshots: list[NodeSnapshot]) -> str:
    finding = judge(snapshots, 0.95).finding
    assert finding is not None
    return finding.cause


def said(snapshots: list[NodeSnapshot]) -> str:
    finding = judge(snapshots, 0.95).finding
    assert finding is not None
    return " ".join([finding.sentence, finding.action.sentence, *(one.sentence for one in finding.evidence)])


def gpu(index: int, engine: str, clock_mhz: float, *reasons: str, **readings: Any) -> GpuSnapshot:
    uuid = f"GPU-{index}"
    return GpuSnapshot(
        index=index, uuid=uuid, name="H100", engine=engine, clock_mhz=clock_mhz, clock_max_mhz=1980.0,
        clock_reasons=reasons, **readings,
    )  # fmt: skip


def wait(at_s: float, first_tokens: int, share: float, slowdown: float | None = None, **more: object) -> NodeSnapshot:
    """A node of which so many first tokens have come lately, a share of them late."""
    lately = Lately(first_tokens=first_tokens, ttft_late=share, ttft_s=1.0)
    engines = (made.engine("e0", busy=1.0, waiting=2, slowdown=slowdown), made.engine("e1", made.Role.DECODE))
    queue = QueueSnapshot(depth=2, capacity=1024, oldest_s=0.5)
    return replace(made.node(engines, 0, queue=queue, lately=lately), time=at_s, uptime_s=at_s, **more)


BETTER = Better(layout="2b", load_falls=0.3, good_rises=0.4, rate_grows=0.5, aggregated=True)
