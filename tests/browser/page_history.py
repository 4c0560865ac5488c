"""A made-up past of a node: days with a tide of traffic, an incident, a restart, and nothing while it was off."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace
from page_states import large

from appliance.config import TelemetryConfig
from appliance.history import database
from appliance.history.keeper import History
from appliance.history.samples import Seen, sample
from appliance.records import (
    STAGES,
    Change,
    ChangeKind,
    HandoffSnapshot,
    Incident,
    IncidentState,
    Lately,
    NodeSnapshot,
    QueueSnapshot,
    RequestCounts,
    Stage,
)

_SHARES = (0.3, 0.05, 0.4, 0.04, 0.08, 0.03, 0.1)  # of a time to first token, by stage
_BATCH_S = 300.0
HOUR = 3600.0
Spell = tuple[float, float]
CRUSHES: tuple[Spell, ...] = ((3 * HOUR + 600, 3 * HOUR),)
"""In seconds before the end, when too much was asked: from, until."""


def snapshot(time: float, until: float, engines: int = 8, crushes: Sequence[Spell] = CRUSHES) -> NodeSnapshot:
    """How the node was: most is asked in the afternoon, and in ``crushes`` too much."""
    dice = random.Random(int(time))
    tide = 0.55 + 0.4 * math.sin((time % 86_400 - 9 * HOUR) / 86_400 * math.tau) + dice.gauss(0, 0.03)
    crush = 1.0 if any(since > until - time > ended for since, ended in crushes) else 0.0
    load = max(0.02, tide + 0.3 * crush)
    ttft_s = 0.18 + 0.25 * load**3 + 3.1 * crush + abs(dice.gauss(0, 0.02))
    node = large(0)
    members = tuple(
        replace(
            node.engines[0],
            name=f"e{n}",
            prompt_tokens_s=110_000 * load / engines * 2 if n < engines / 2 else 0.0,
            output_tokens_s=0.0 if n < engines / 2 else 9000 * load / engines * 2,
            running=round(40 * load),
            waiting=round(30 * crush),
            kv_usage=min(
                0.99,
                max(0.02, 0.3 * load + (0.5 * load if n >= engines / 2 else 0) + dice.gauss(0, 0.04) + 0.2 * crush),
            ),
            itl_s=0.014 + 0.02 * load + 0.03 * crush,
            itl_late=min(1.0, 0.01 + 0.3 * crush),
        )
        for n in range(engines)
    )
    ended = 1 + round(60 * load)
    return replace(
        node,
        time=time,
        engines=members,
        queue=QueueSnapshot(depth=round(2 * load + 70 * crush), capacity=1024, oldest_s=0.1 + 3 * crush, in_flight=20),
        lately=Lately(
            first_tokens=ended,
            ttft_late=crush,
            ttft_s=ttft_s,
            stages=tuple(Stage(name, share * ttft_s) for name, share in zip(STAGES, _SHARES, strict=True)),
            ended=ended,
            good=0.99 - 0.6 * crush,
        ),
        requests=RequestCounts(total=int(time * 10) % 10**9),
        handoffs=HandoffSnapshot(count=int(time * 10) % 10**9),
        ttft_p99_s=3 * ttft_s,
    )


def off(time: float, until: float) -> bool:
    """Twelve hours before the end it was off for half an hour."""
    return 12 * HOUR < until - time < 12.5 * HOUR


def write(
    directory: Path,
    until: float,
    hours: float,
    apart_s: float = 30.0,
    engines: int = 8,
    crushes: Sequence[Spell] = CRUSHES,
) -> None:
    """The past, to a node's state directory."""
    kept = database.open_to_write(directory)
    batch, before = [], None
    for step in range(int(hours * HOUR / apart_s)):
        time = until - hours * HOUR + step * apart_s
        if off(time, until):
            continue
        now = snapshot(time, until, engines, crushes)
        batch.append(sample(Seen(now, before)))
        before = now
        if len(batch) * apart_s >= _BATCH_S:
            kept.add(batch)
            kept.roll_up()
            batch = []
    kept.add(batch)
    kept.roll_up()
    kept.close()


def history(directory: Path | None, now: float, tick_s: float = 0.5) -> History:
    """Of a node whose clock stands at ``now``."""
    return History(TelemetryConfig(tick_s=tick_s), directory, unix_s=lambda: now)


class Marks:
    """Implements ``web.ports.MarkView``: what happened in that past."""

    def __init__(self, until: float) -> None:
        back = until - 12 * HOUR
        self.changes = [
            Change(time=back - 1800, kind=ChangeKind.ENDED, engine="e1", sentence="e1 ended: killed by the kernel."),
            Change(time=back, kind=ChangeKind.STARTED, sentence="The appliance was started: Llama-3.3-70B as 4p4d."),
            Change(time=back + 20, kind=ChangeKind.READY, engine="e1", sentence="e1 is ready (life 1)."),
            Change(
                time=until - 5 * HOUR,
                kind=ChangeKind.ROLE,
                engine="e3",
                sentence="e3 got another role: prefill → decode.",
            ),
            Change(
                time=until - 600,
                kind=ChangeKind.WEIGHT,
                engine="e0",
                sentence="e0 got another weight in routing: 1 → 0.5.",
            ),
        ]
        self.incidents = [
            Incident(
                id="261126-0900",
                opened=until - 3 * HOUR - 590,
                closed=until - 3 * HOUR,
                state=IncidentState.CLOSED,
                cause="load_exceeds_capacity",
                summary="More is asked than the node can do: 72 requests wait. 96 % of the first tokens come later than 2 s.",
            )
        ]

    async def between(self, since: float, until: float, limit: int) -> tuple[Sequence[Change], Sequence[Incident]]:
        changes = [one for one in self.changes if since <= one.time < until]
        return changes, [one for one in self.incidents if one.opened < until and (one.closed or until) >= since]
