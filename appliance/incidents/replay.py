"""What the diagnoser of this version says of what another node saw, beside what was said then. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec
from msgspec.structs import replace

from appliance.diagnosis.readings import WINDOW_S
from appliance.diagnosis.verdicts import Diagnoser
from appliance.incidents.bundle import Bundle
from appliance.records import NodeSnapshot, Verdict

_GAP_S: Final = 2.5  # between snapshots: some are missing, unless the ticks are that long
_LATER_S: Final = 1.2  # a verdict that comes so much earlier or later is the same
_FROM_START_S: Final = 5.0  # of uptime: nothing was before

Key = tuple[str, str | None, tuple[str, str] | None, str | None]


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot. ``judged``: the diagnoser has seen here what it saw then; ``same``: it says the same."""

    time: float
    recorded: Verdict
    replayed: Verdict
    judged: bool
    same: bool


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """``changes``: the moments at which something else was said, by the one or the other."""

    snapshots: int
    judged: int
    same: int  # of those
    changes: tuple[Moment, ...]

    @property
    def agrees(self) -> bool | None:
        """None where nothing could be judged."""
        return self.same == self.judged if self.judged else None


def replay(bundle: Bundle) -> Replay:
    """Run all snapshots through the diagnoser."""
    row = [one for one in bundle.snapshots if one.verdict is not None]
    diagnose = Diagnoser(bundle.header.slo_share or 0.95)
    replayed = [diagnose(replace(one, verdict=None)) for one in row]
    whole = complete(row)
    moments = [_moment(row, replayed, whole, number) for number in range(len(row))]
    judged = [one for one in moments if one.judged]
    return Replay(
        snapshots=len(row),
        judged=len(judged),
        same=sum(one.same for one in judged),
        changes=tuple(one for number, one in enumerate(moments) if number == 0 or _new(moments[number - 1], one)),
    )


def complete(row: Sequence[NodeSnapshot]) -> list[bool]:
    """For each, whether all of the diagnoser's window before it is there."""
    gap_s = max(_GAP_S, 2.5 * _usual_gap_s(row))
    since_s = float("-inf") if row and row[0].uptime_s <= _FROM_START_S else None
    found, last = [], None
    for one in row:
        if last is not None and one.uptime_s - last > gap_s:
            since_s = last = None
        if since_s is None:
            since_s = one.uptime_s
        last = one.uptime_s
        found.append(one.uptime_s - since_s >= WINDOW_S)
    return found


def key(verdict: Verdict) -> Key:
    """What makes it another one."""
    return verdict.state, verdict.engine, verdict.link, verdict.cause


def words(verdict: Verdict) -> str:
    """``prefill_straggler_gpu of e1``."""
    if verdict.cause is None:
        return verdict.state
    where = " to ".join(verdict.link) if verdict.link else ", ".join(verdict.engines) or verdict.engine
    return f"{verdict.cause} of {where}" if where else verdict.cause


def _moment(row: Sequence[NodeSnapshot], replayed: Sequence[Verdict], whole: Sequence[bool], number: int) -> Moment:
    recorded = row[number].verdict
    assert recorded is not None
    said = key(replayed[number])
    near = {key(recorded)}
    for step in (-1, 1):
        other = number + step
        while 0 <= other < len(row) and abs(row[other].uptime_s - row[number].uptime_s) <= _LATER_S:
            if (verdict := row[other].verdict) is not None:
                near.add(key(verdict))
            other += step
    return Moment(
        time=row[number].time,
        recorded=recorded,
        replayed=replayed[number],
        judged=whole[number],
        same=said in near,
    )


def _new(before: Moment, after: Moment) -> bool:
    return (key(before.recorded), key(before.replayed)) != (key(after.recorded), key(after.replayed))


def _usual_gap_s(row: Sequence[NodeSnapshot]) -> float:
    gaps = sorted(later.uptime_s - earlier.uptime_s for earlier, later in pairwise(row))
    return gaps[len(gaps) // 4] if gaps else 0.0
