"""Made-up snapshots of a node with two engines, for tests of incidents: each as it would follow the one before, half a second later."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from appliance.diagnosis.verdicts import Diagnoser
from appliance.incidents.changes import Changes
from appliance.incidents.tracker import Event, EventKind, Tracker
from appliance.records import Incident, Lately, NodeSnapshot, QueueSnapshot, RequestCounts, Role, Verdict

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

NOON = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
TICK_S = 0.5
OK = Verdict(state="ok", summary="No bottleneck.", since=NOON)
UNKNOWN = Verdict(state="unknown", summary="Nothing tells.", since=NOON)


def bottleneck(cause: str = "prefill_straggler_gpu", engine: str = "e0", **more: Any) -> Verdict:
    stage = cause.split("_")[0]
    found: dict[str, Any] = {"summary": f"{engine} is held back.", "engines": (engine,), "stage": stage, "since": NOON}
    return Verdict(state="bottleneck", cause=cause, engine=engine, **{**found, **more})


def snapshot(
    uptime_s: float,
    verdict: Verdict | None = OK,
    *,
    late: float | None = None,
    total: int = 0,
    failed: int = 0,
    refused: int = 0,
    clock_s: float | None = None,
    **more: Any,
) -> NodeSnapshot:
    """``refused``: of those that failed. ``clock_s``: of the clock on the wall, if not as it should be. A verdict stands since now."""
    now = NOON + (uptime_s if clock_s is None else clock_s)
    engines = more.pop("engines", (made.engine("e0"), made.engine("e1", Role.DECODE)))
    lately = None if late is None else Lately(first_tokens=30, ttft_late=late, ttft_s=1.0)
    requests = RequestCounts(total=total, ok=total - failed, failed=failed, refused=refused)
    node = made.node(engines, 0, requests=requests, lately=more.pop("lately", lately), **more)
    verdict = None if verdict is None else replace(verdict, since=now)
    return replace(node, time=now, uptime_s=uptime_s, verdict=verdict)


class Life:
    """A node's life, told in verdicts that each stand for some seconds."""

    def __init__(self, **more: Any) -> None:
        self.tracker = Tracker(0.95, **more)
        self.changes = Changes()
        self.events: list[Event] = []
        self.now_s = 0.0

    def live(self, seconds: float, verdict: Verdict = OK, **more: Any) -> Life:
        for _ in range(round(seconds / TICK_S)):
            self.see(snapshot(self.now_s, verdict, **more))
            self.now_s += TICK_S
        return self

    def see(self, one: NodeSnapshot) -> None:
        self.events += self.tracker.fold(one, self.changes.fold(one))

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    @property
    def last(self) -> Incident:
        return self.events[-1].incident


def told(events: Iterable[Event]) -> list[tuple[str, str]]:
    """What owners are told."""
    return [(one.kind.value, one.incident.id) for one in events if one.kind is not EventKind.UPDATED]


def crowded(uptime_s: float, *, depth: int, **more: Any) -> NodeSnapshot:
    """What the diagnoser itself calls ``prefill_saturated`` of e0 where ``depth`` is not 0."""
    prefill = made.engine("e0", busy=1.0, slowdown=1.0, waiting=3, outstanding_prompt_tokens=20_000, token_budget=8192)
    decode = made.engine("e1", Role.DECODE, busy=0.9, slowdown=1.0, running=30, max_running=64)
    queue = QueueSnapshot(depth=depth, capacity=1024, oldest_s=5.0 if depth else None)
    return snapshot(uptime_s, None, engines=(prefill, decode), queue=queue, **more)


def diagnosed(row: Sequence[NodeSnapshot]) -> list[NodeSnapshot]:
    """With the verdicts that the collector would put into them."""
    diagnose = Diagnoser(0.95)
    return [replace(one, verdict=diagnose(one)) for one in row]
