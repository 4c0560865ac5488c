"""How right the verdicts of played cases were. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from bench.diagnosis.cases import FAULT_S, ONSET_S
from bench.diagnosis.play import Played, Said

_IMPACT: Final = 0.10  # of the goodput: what costs less is no injection, but a hard negative


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """One case. Times are seconds from the onset."""

    node: str
    name: str
    seed: int
    severity: float | None
    lost: float  # share of the goodput
    engine_right: bool
    cause_right: bool
    said: str  # the verdict that stood longest while it lasted
    sentence: str
    diagnosed_s: float | None  # until the right one was said first
    cleared_s: float | None  # from its end until the node was well
    flaps: int

    @property
    def impactful(self) -> bool:
        return self.lost >= _IMPACT


def score(played: Played, without: Played) -> Scored:
    """``without``: the same traffic with nothing done to it."""
    case, end_s = played.case, ONSET_S + FAULT_S
    before = sum(without.good[int(ONSET_S) : int(end_s)])
    after = sum(played.good[int(ONSET_S) : int(end_s)])
    if case.surge is not None:  # what the surge itself asked counts, too
        before = sum(played.asked[int(ONSET_S) : int(end_s)])
    during = _while(played.said, ONSET_S, end_s)
    longest = max(during, key=during.__getitem__, default=("ok", None, None))
    first = next((said.at_s for said in played.said if said.at_s > ONSET_S and _right(played, said)), None)
    over = [said for said in played.said if said.at_s >= ONSET_S]
    well = next((said.at_s for said in reversed(over) if said.state == "ok"), None)
    return Scored(
        node=case.node,
        name=case.name,
        seed=case.seed,
        severity=case.fault.severity if case.fault else None,
        lost=1 - after / before if before else 0.0,
        engine_right=longest[1] in case.engines,
        cause_right=longest[2] in case.causes,
        said=" ".join(str(part) for part in longest),
        sentence=next(
            (said.summary for said in reversed(played.said) if (said.state, said.engine, said.cause) == longest), ""
        ),
        diagnosed_s=None if first is None else first - ONSET_S,
        cleared_s=None if well is None else max(0.0, well - end_s),
        flaps=max(0, len(over) - 2),
    )


def _right(played: Played, said: Said) -> bool:
    return said.cause in played.case.causes and said.engine in played.case.engines


Key = tuple[str, str | None, str | None]


def _while(said: Sequence[Said], begin_s: float, end_s: float) -> Counter[Key]:
    """Seconds for which each verdict but ``ok`` stood."""
    found: Counter[Key] = Counter()
    for number, one in enumerate(said):
        until = said[number + 1].at_s if number + 1 < len(said) else math.inf
        overlap = min(until, end_s) - max(one.at_s, begin_s)
        if overlap > 0 and one.state != "ok":
            found[one.state, one.engine, one.cause] += round(overlap * 1000)
    return found


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share (Wilson, 1927)."""
    if not of:
        return 0.0, 1.0
    share = right / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)
