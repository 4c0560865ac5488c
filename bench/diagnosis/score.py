"""How right the verdicts of played cases were. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from appliance.supervisor.topology import parse
from bench.diagnosis.cases import FAULT_S, ONSET_S, Truth
from bench.diagnosis.nodes import NODES
from bench.diagnosis.play import Played, Said

_IMPACT: Final = 0.10  # of the goodput: what costs less is no injection, but a hard negative
_SERVES: Final = 0.9  # of the requests: a node that does no better by itself is not scored
_SOON_S: Final = 10.0  # from the first one hurt, until which nothing need have been said
_SETTLED_S: Final = 15.0  # after the onset, from which on advice that was followed has had time to help

Key = tuple[str, str | None, str | None]  # state, engine, cause


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """One case. Times are in seconds: ``diagnosed_s`` from the onset, ``cleared_s`` from its end.

    ``held_on_s``: from when clients were well again, which a queue that outlasts the fault puts off, until the verdict was gone.
    """

    node: str
    name: str
    seed: int
    severity: float | None
    lost: float  # share of the goodput
    engine_right: bool
    cause_right: bool  # and the engine
    said: str  # the verdict that stood longest while it lasted
    cause: str | None
    expected: str  # the first of the right causes
    causes: tuple[str, ...] = ()  # all of them
    sentence: str
    evidence: tuple[str, ...] = ()
    advice: str
    impact_s: float | None  # from the onset
    hurt_s: float | None = None  # from the impact to the end of the injection
    diagnosed_s: float | None  # until the right one was said first
    cleared_s: float | None  # from its end until nothing was said any more
    held_on_s: float | None = None
    recovered_s: float | None = None  # from its end, until clients were well again
    flaps: int
    second_right: bool | None = None  # of two faults: the one that stayed was named once the other was over
    rules: dict[str, bool] = {}  # whether they named the engine
    chance: float = 0.0  # that a random engine is right
    single: bool = True  # one engine alone is
    served: bool = True  # the node could serve its own traffic, when nothing was done to it
    good: float | None = None  # share of what was asked late in the fault
    good_before: float | None = None  # the same without the fault
    good_followed: float | None = None  # the same with the fault, where advice was followed
    orders: tuple[str, ...] = ()

    @property
    def impactful(self) -> bool:
        return self.served and self.lost >= _IMPACT

    @property
    def from_impact_s(self) -> float | None:
        """Until the right verdict, from when somebody was hurt; None if it never was said."""
        if self.diagnosed_s is None:
            return None
        return max(0.0, self.diagnosed_s - (self.impact_s or 0.0))


class Told(Protocol):
    """A case, simulated or not: what was done, and what is right to say of it."""

    @property
    def node(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def severity(self) -> float | None: ...
    @property
    def truths(self) -> tuple[Truth, ...]: ...


class Seen(Protocol):
    """A case that was played: what was said, and by second of it how many asked and were answered within the targets."""

    @property
    def case(self) -> Told: ...
    @property
    def said(self) -> tuple[Said, ...]: ...
    @property
    def good(self) -> tuple[int, ...]: ...
    @property
    def asked(self) -> tuple[int, ...]: ...
    @property
    def impact_s(self) -> float | None: ...
    @property
    def named(self) -> dict[str, str | None]: ...


def score(played: Played, without: Played, followed: Played | None = None) -> Scored:
    """``without``: the same traffic with nothing done to it. ``followed``: somebody did as was advised."""
    case, end_s = played.case, ONSET_S + FAULT_S
    before = total(without.asked if case.surge else without.good, ONSET_S, end_s)
    if case.surge is not None:  # what the surge itself asked counts, too
        before = total(played.asked, ONSET_S, end_s)
    after = total(played.good, ONSET_S, end_s)
    found = judged(played, ONSET_S, end_s, lost=1 - after / before if before else 0.0)
    recovered = None if played.recovered_s is None else max(0.0, played.recovered_s - end_s)
    cleared = found.cleared_s
    engines = {engine for truth in case.truths for engine in truth.engines}
    return msgspec.structs.replace(
        found,
        held_on_s=None if cleared is None or recovered is None else max(0.0, cleared - recovered),
        recovered_s=recovered,
        chance=len(engines) / len(parse(NODES[case.node].layout).places),
        served=serves(without),
        second_right=_second(played) if len(case.truths) > 1 else None,
        good=_share(played),
        good_before=_share(without) if case.surge is None else None,
        good_followed=_share(followed) if followed else None,
        orders=followed.orders if followed else (),
    )


def judged(played: Seen, onset_s: float, end_s: float, *, lost: float) -> Scored:
    """What was said while it lasted, against the truth. ``lost``: share of the goodput that it cost."""
    case, impact_s = played.case, played.impact_s
    during = _while(played, onset_s, end_s, quiet_from_s=(impact_s or onset_s) + _SOON_S)
    longest = max(during, key=during.__getitem__, default=("ok", None, None))
    said = next((one for one in reversed(played.said) if _key(one) == longest), None)
    at_onset = next(one for one in reversed(played.said) if one.at_s <= onset_s)
    later = next((one.at_s for one in played.said if one.at_s > onset_s and _right(case, one)), None)
    first = onset_s if _right(case, at_onset) else later
    over = [one for one in played.said if one.at_s >= onset_s]
    well = played.said[-1].at_s if played.said[-1].state == "ok" and over else None
    engines = {engine for truth in case.truths for engine in truth.engines}
    return Scored(
        node=case.node,
        name=case.name,
        seed=case.seed,
        severity=case.severity,
        lost=lost,
        engine_right=longest[1] in engines,
        cause_right=any(truth.is_said(longest[1], longest[2]) for truth in case.truths),
        said=" ".join(str(part) for part in longest),
        cause=longest[2] or longest[0],
        expected=case.truths[0].causes[0],
        causes=tuple(cause for truth in case.truths for cause in truth.causes),
        sentence=said.summary if said else "",
        evidence=said.evidence if said else (),
        advice=said.advice if said else "",
        impact_s=None if impact_s is None else impact_s - onset_s,
        hurt_s=None if impact_s is None else max(0.0, end_s - impact_s),
        diagnosed_s=None if first is None else first - onset_s,
        cleared_s=None if well is None else max(0.0, well - end_s),
        flaps=max(0, len(over) - 2),
        rules={rule: engine in engines for rule, engine in played.named.items()},
        single=len(engines) == 1,
    )


def serves(without: Played) -> bool:
    """Of what was asked when nothing was done, nearly all was answered in time."""
    asked = total(without.asked, ONSET_S, ONSET_S + FAULT_S)
    return total(without.good, ONSET_S, ONSET_S + FAULT_S) >= _SERVES * asked


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something was said of a node that nothing was done to. ``missed``: share of the requests around that time that missed the targets."""

    sentence: str
    missed: float

    @property
    def is_false(self) -> bool:
        """No more were late than ``[slo]`` allows."""
        return self.missed <= 0.05


def alarms(played: Seen) -> list[Alarm]:
    """By what clients saw from ten seconds before to five after."""
    return [
        Alarm(
            sentence=f"{played.case.node}, {played.case.name}, seed {played.case.seed}, at {said.at_s:.0f} s: {said.summary}",
            missed=_missed(played, said.at_s - 10, said.at_s + 5),
        )
        for said in played.said
        if said.state != "ok"
    ]


def _missed(played: Seen, from_s: float, to_s: float) -> float:
    asked = total(played.asked, max(0.0, from_s), to_s)
    return 1 - total(played.good, max(0.0, from_s), to_s) / asked if asked else 0.0


def _right(case: Told, said: Said) -> bool:
    return any(truth.is_said(said.engine, said.cause) for truth in case.truths)


def _second(played: Played) -> bool:
    """Whether the fault that stayed was what stood longest, from ten seconds after the end of the other."""
    until_s = played.case.faults[1].until_s or math.inf
    during = _while(played, ONSET_S + FAULT_S + 10, until_s, quiet_from_s=ONSET_S + FAULT_S + 10)
    _, engine, cause = max(during, key=during.__getitem__, default=("ok", None, None))
    return played.case.truths[1].is_said(engine, cause)


def _share(played: Played) -> float | None:
    """Of what was asked in the last part of the fault, that was answered within the targets."""
    asked = total(played.asked, ONSET_S + _SETTLED_S, ONSET_S + FAULT_S)
    return total(played.good, ONSET_S + _SETTLED_S, ONSET_S + FAULT_S) / asked if asked else None


def total(by_second: Sequence[int], from_s: float, to_s: float) -> int:
    """Of the seconds between."""
    return sum(by_second[int(from_s) : int(to_s)])


def _key(said: Said) -> Key:
    return said.state, said.engine, said.cause


def _while(played: Seen, begin_s: float, end_s: float, quiet_from_s: float) -> Counter[Key]:
    """Milliseconds for which each verdict stood; silence counts as one from ``quiet_from_s`` on, while clients were hurt."""
    found: Counter[Key] = Counter()
    said = played.said
    for number, one in enumerate(said):
        until = said[number + 1].at_s if number + 1 < len(said) else math.inf
        begin, end = max(one.at_s, quiet_from_s if one.state == "ok" else begin_s), min(until, end_s)
        lasted_s = _hurt_s(played, begin, end) if one.state == "ok" else end - begin
        if end > begin and lasted_s > 0:
            found[_key(one)] += round(lasted_s * 1000)
    return found


def _hurt_s(played: Seen, begin_s: float, end_s: float) -> float:
    """Seconds in which a tenth of those who had come lately was not answered in time; three at least."""
    found = 0.0
    for second in range(int(begin_s), min(math.ceil(end_s), len(played.asked))):
        came = total(played.asked, max(0, second - 2), second + 1)
        missed = came - total(played.good, max(0, second - 2), second + 1)
        if missed >= max(3, _IMPACT * came):
            found += max(0.0, min(end_s, second + 1) - max(begin_s, second))
    return found


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share (Wilson, 1927)."""
    if not of:
        return 0.0, 1.0
    share = right / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)
