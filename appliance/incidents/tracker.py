"""What is an incident: when it opens, what it is said to be, and when it is over. Pure: time comes with the snapshots.

Lengths of time are measured by the node's uptime, which nobody sets back; what is told of is in Unix seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from appliance.incidents.impact import Impact
from appliance.records import Change, Incident, IncidentState, NodeSnapshot, Said, Verdict, new_id

T = TypeVar("T")
UNKNOWN_S: Final = 10.0  # somebody is hurt and nothing tells why, until that is an incident
WELL_S: Final = 10.0  # until it is over
REOPENED_S: Final = 60.0  # the same thing, so soon after it was over, is the same incident
OTHER_S: Final = 60.0  # something else that stands for so long is an incident of its own
BEFORE_S: Final = 600.0  # changes so long before belong to it
STOPPED: Final = "open when the appliance ended"
_WELL: Final = "requests are answered within their targets again"
_OTHER: Final = "something else holds the node back"
_WORSE: Final = 0.1  # of severity, that is worth telling
_MOST: Final = 200  # verdicts, and changes, of one incident
_CHANGES: Final = 500  # remembered
_GONE: Final = ("engine_crashed", "engine_hung")
_SATURATED: Final = ("pool_imbalance", "prefill_saturated", "decode_saturated")
_SHARED: Final = (
    "prefill_budget_small",
    "long_prompt_blocking",
    "handoff_decode_admission",
)  # by all engines of a role

Thing = tuple[str, str]


class EventKind(StrEnum):
    """What has become of an incident."""

    OPENED = "opened"
    UPDATED = "updated"  # it is said to be something else, or is worse
    CLOSED = "closed"


class Event(msgspec.Struct, frozen=True):
    """``incident`` is as it is after it."""

    kind: EventKind
    incident: Incident


class Tracker:
    """Is given each snapshot with what has changed; at most one incident is open at a time."""

    def __init__(
        self, slo_share: float, *, taken: Collection[str] = (), changes: Collection[Change] = (), run: str = ""
    ) -> None:
        """``taken``: ids that there are already. ``changes``: of before the start. ``run``: what ids end in until ``know`` was told."""
        self._slo_share = slo_share
        self._run = run
        self._taken = set(taken)
        self._changes: deque[Change] = deque(changes, maxlen=_CHANGES)
        self._impact = Impact()
        self._spell: _Spell | None = None  # the last one, open or over
        self._next: _Next | None = None  # while something else stands than what was told of the open one
        self._unknown_from: float | None = None  # uptimes
        self._well_from: tuple[float, float] | None = None  # with Unix time
        self._closed_at: float | None = None

    def know(self, taken: Collection[str], changes: Collection[Change]) -> None:
        """The same, of a file that could be read only later."""
        self._run = ""
        self._taken |= set(taken)
        self._changes = deque([*changes, *self._changes], maxlen=_CHANGES)

    @property
    def open(self) -> Incident | None:
        """The one that is open, if one is."""
        spell = self._spell
        return spell.incident if spell is not None and spell.incident.state is IncidentState.OPEN else None

    def fold(self, snapshot: NodeSnapshot, changes: Sequence[Change] = ()) -> list[Event]:
        """What has become of incidents."""
        self._changes.extend(changes)
        severity = self._impact.fold(snapshot)
        verdict = snapshot.verdict
        if verdict is None:
            return []
        if self.open is None or self._spell is None:
            return self._look(snapshot, verdict, severity)
        events = self._go_on(self._spell, snapshot, verdict, severity, changes)
        if self.open is None and verdict.state != "ok":  # it was something else
            events += self._look(snapshot, verdict, severity)
        return events

    def end(self, snapshot: NodeSnapshot) -> list[Event]:
        """The appliance ends, and with it what is open."""
        if self.open is None or self._spell is None:
            return []
        return [self._close(self._spell, snapshot, snapshot.time, STOPPED)]

    def _look(self, snapshot: NodeSnapshot, verdict: Verdict, severity: float | None) -> list[Event]:
        """None is open: does one begin?"""
        if verdict.state != "unknown":
            self._unknown_from = None
        elif self._unknown_from is None:
            self._unknown_from = snapshot.uptime_s
        waited_s = snapshot.uptime_s - self._unknown_from if self._unknown_from is not None else UNKNOWN_S
        if verdict.state == "ok" or waited_s < UNKNOWN_S:
            return []
        self._well_from = self._unknown_from = None
        if self._is_back(snapshot, verdict) and self._spell is not None:
            closed = self._spell.incident.closed or 0.0
            self._spell.reopen([one for one in self._changes if one.time > closed])
        else:
            self._spell = self._new(snapshot, min(verdict.since, snapshot.time))  # it has been seen for a while by now
            self._name(self._spell)
        self._spell.fold(snapshot, verdict, severity, self._impact)
        self._spell.told()
        return [Event(EventKind.OPENED, self._spell.incident)]

    def _is_back(self, snapshot: NodeSnapshot, verdict: Verdict) -> bool:
        spell, at = self._spell, self._closed_at
        return (
            spell is not None
            and at is not None
            and snapshot.uptime_s - at <= REOPENED_S
            and thing(verdict) in spell.stood
        )

    def _go_on(
        self,
        spell: _Spell,
        snapshot: NodeSnapshot,
        verdict: Verdict,
        severity: float | None,
        changes: Sequence[Change],
    ) -> list[Event]:
        before = spell.incident
        spell.note(changes)
        if (passed := self._pass_on(spell, snapshot, verdict, severity, changes)) is not None:
            return passed
        if verdict.state == "ok":
            self._well_from = self._well_from or (snapshot.uptime_s, snapshot.time)
            spell.fold(snapshot, verdict, None, self._impact)
            if snapshot.uptime_s - self._well_from[0] >= WELL_S:
                return [self._close(spell, snapshot, self._well_from[1], _WELL)]
            return []
        if self._well_from is not None and verdict.state == "bottleneck" and thing(verdict) not in spell.stood:
            return [self._close(spell, snapshot, self._well_from[1], _OTHER)]
        self._well_from = None
        spell.fold(snapshot, verdict, severity, self._impact)
        return [Event(EventKind.UPDATED, spell.incident)] if _differs(before, spell.incident) else []

    def _pass_on(
        self,
        spell: _Spell,
        snapshot: NodeSnapshot,
        verdict: Verdict,
        severity: float | None,
        changes: Sequence[Change],
    ) -> list[Event] | None:
        """Something else has stood so long that it is an incident of its own, from when it was first said; None until then."""
        if verdict.state != "ok" and spell.is_still(thing(verdict)):
            self._next = None
            return None
        if self._next is None:
            if verdict.state != "bottleneck":
                return None
            self._next = _Next(self._new(snapshot, snapshot.time), spell.incident)
        else:
            self._next.spell.note(changes)
        following, before = self._next.spell, self._next.before
        following.fold(snapshot, verdict, severity if verdict.state != "ok" else None, self._impact)
        if verdict.state != "bottleneck" or following.longest_s < OTHER_S:
            return None
        spell.incident = before
        closed = self._close(spell, snapshot, following.incident.opened, _OTHER)
        self._name(following)
        following.told()
        self._spell = following
        return [closed, Event(EventKind.OPENED, following.incident)]

    def _close(self, spell: _Spell, snapshot: NodeSnapshot, time: float, ended: str) -> Event:
        self._closed_at, self._well_from, self._next = snapshot.uptime_s, None, None
        spell.close(time, ended)
        return Event(EventKind.CLOSED, spell.incident)

    def _name(self, spell: _Spell) -> None:
        id = new_id(spell.incident.opened, self._taken, run=self._run)
        self._taken.add(id)
        spell.incident = replace(spell.incident, id=id)

    def _new(self, snapshot: NodeSnapshot, opened: float) -> _Spell:
        """Without an id yet."""
        incident = Incident(
            id="",
            opened=opened,
            changes=tuple(one for one in self._changes if abs(opened - one.time) <= BEFORE_S)[-_MOST:],
            simulated=snapshot.simulated,
            version=snapshot.version,
            model=snapshot.model,
            topology=snapshot.topology,
            slo_ttft_s=snapshot.slo_ttft_s,
            slo_itl_s=snapshot.slo_itl_s,
            slo_share=self._slo_share,
        )
        return _Spell(incident, self._impact.at(opened))


class _Spell:
    """One incident, and what it takes to tell what it is."""

    def __init__(self, incident: Incident, before: tuple[float, int]) -> None:
        """``before``: what had come late and had failed when it began."""
        self.incident = incident
        self.stood: dict[Thing, float] = {}  # seconds
        self._worst: dict[Thing, tuple[float, Verdict]] = {}
        self._last: dict[Thing, Verdict] = {}
        self._before = before
        self._seen_at: float | None = None  # uptime
        self._standing: Thing | None = None
        self._told: Thing = _UNKNOWN

    @property
    def longest_s(self) -> float:
        """For how long that has stood which has stood the longest, of what is known."""
        return max((stood_s for one, stood_s in self.stood.items() if one != _UNKNOWN), default=0.0)

    def told(self) -> None:
        """Its owner is told what it is said to be now."""
        self._told = self._main()

    def is_still(self, what: Thing) -> bool:
        """It is what its owner was told. Where nothing was known, what comes to be known is that, too."""
        if self._told == _UNKNOWN:
            self._told = what
        return what == self._told or (what[0] == self._told[0] and what[0] in _SHARED)

    def reopen(self, changes: Sequence[Change]) -> None:
        """``changes``: since it was closed."""
        self._seen_at = None
        self.note([one for one in changes if one not in self.incident.changes])
        self.incident = replace(
            self.incident,
            state=IncidentState.OPEN,
            closed=None,
            ended=None,
            reopened=self.incident.reopened + 1,
        )

    def close(self, time: float, ended: str) -> None:
        closed = max(time, self.incident.opened)
        self.incident = replace(self.incident, state=IncidentState.CLOSED, closed=closed, ended=ended)

    def note(self, changes: Sequence[Change]) -> None:
        if changes:
            self.incident = replace(self.incident, changes=_bounded((*self.incident.changes, *changes)))

    def fold(self, snapshot: NodeSnapshot, verdict: Verdict, severity: float | None, impact: Impact) -> None:
        """A verdict that stands now; ``severity`` None where nobody is hurt by it."""
        passed_s = 0.0 if self._seen_at is None else snapshot.uptime_s - self._seen_at
        self._seen_at = snapshot.uptime_s
        self._say(snapshot, verdict)
        late, failed = self._before
        self.incident = replace(
            self.incident,
            late=round(impact.late - late),
            failed=max(0, snapshot.requests.failed_here - failed),
            severity=max((one for one in (self.incident.severity, severity) if one is not None), default=None),
        )
        if verdict.state != "ok":
            self._hurt(verdict, severity or 0.0, passed_s)

    def _say(self, snapshot: NodeSnapshot, verdict: Verdict) -> None:
        """Verdicts that are new; of one that goes on its words change with each snapshot."""
        what = _OK if verdict.state == "ok" else thing(verdict)
        if what != self._standing:
            self._standing = what
            said = Said(
                time=snapshot.time,
                state=verdict.state,
                summary=verdict.summary,
                engine=verdict.engine,
                link=verdict.link,
                cause=verdict.cause,
            )
            self.incident = replace(self.incident, verdicts=_bounded((*self.incident.verdicts, said)))

    def _hurt(self, verdict: Verdict, severity: float, passed_s: float) -> None:
        what = thing(verdict)
        self.stood[what] = self.stood.get(what, 0.0) + passed_s
        self._last[what] = verdict
        if what not in self._worst or severity > self._worst[what][0]:
            self._worst[what] = (severity, verdict)
        main = self._main()
        worst, last = self._worst[main][1], self._last[main]
        self.incident = replace(
            self.incident,
            engine=worst.engine,
            engines=worst.engines,
            link=worst.link,
            stage=worst.stage,
            cause=worst.cause,
            summary=worst.summary,
            evidence=worst.evidence,
            action=last.action,
            expected_gain=last.expected_gain,
            next=last.next,
        )

    def _main(self) -> Thing:
        """What explains it best: an engine that was gone, else the first of those that stood long. What comes of a cause comes later,
        and may outlast it: a queue is still there when the engine is back; and what is known says more than what is not."""
        known = [one for one in self.stood if one != _UNKNOWN] or [*self.stood]
        gone = [one for one in known if one[0] in _GONE]
        longest_s = max(self.stood[one] for one in known)
        return gone[0] if gone else next(one for one in known if self.stood[one] >= longest_s / 2)


class _Next(msgspec.Struct, frozen=True):
    """What may become an incident of its own: all since the open one's was last said; ``before``: the open one until then."""

    spell: _Spell
    before: Incident


_OK: Final[Thing] = ("ok", "")
_UNKNOWN: Final[Thing] = ("", "")


def thing(verdict: Verdict) -> Thing:
    """What makes it the same thing: cause, and where. Who else has little to do beside what is saturated does not matter."""
    if verdict.cause is None:
        return _UNKNOWN
    if verdict.cause in _SATURATED:
        return "saturated", verdict.stage or ""
    return verdict.cause, "/".join(verdict.link) if verdict.link else verdict.engine or ""


def _differs(before: Incident, after: Incident) -> bool:
    """By what is worth telling at once."""
    worse = (after.severity or 0.0) >= (before.severity or 0.0) + _WORSE
    return worse or (before.engine, before.link, before.cause) != (after.engine, after.link, after.cause)


def _bounded(some: tuple[T, ...]) -> tuple[T, ...]:
    """How it began, and the latest."""
    return some if len(some) <= _MOST else some[: _MOST // 2] + some[-_MOST // 2 :]
