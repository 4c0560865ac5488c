"""Verdicts that stay: what was seen once is no verdict yet, and what is over is gone soon."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from appliance.diagnosis.finding import Finding
from appliance.diagnosis.judge import MISSING, Judgement, judge
from appliance.diagnosis.readings import WINDOW_S
from appliance.records import NodeSnapshot, Verdict

_SEEN_FOR_S: Final = 1.0  # the same cause of the same engine, until it is said
_CHANGED_FOR_S: Final = 2.5  # another one, until it takes the place of what was said
_MOVED_FOR_S: Final = 5.0  # the same cause of another engine
_FADES: Final = 0.5  # for each second in which something else is seen
_MOST_S: Final = 10.0
_UNKNOWN_FOR_S: Final = 4.0  # somebody is hurt and nothing tells why, until that is said
_WELL_FOR_S: Final = 2.0  # nobody is hurt, until it is over
_WELL_STILL_S: Final = 6.0  # the same, while what was said is still there: soon somebody will be hurt again

Key = tuple[str, str]


class Diagnoser:
    """Is given each snapshot, and says what holds the node back. Time is the snapshots' ``uptime_s``: no clock that somebody can set."""

    def __init__(self, share: float) -> None:
        """``share``: of requests that must meet the targets."""
        self._share = share
        self._window: deque[NodeSnapshot] = deque()
        self._verdict: Verdict | None = None
        self._said: Key | None = None
        self._seen: dict[Key, float] = {}  # for how long each has been seen; what is not seen fades
        self._unseen_s = 0.0  # for how long it was other causes that were seen
        self._otherwise_s = self._tick_s = 0.0
        self._well_since: float | None = None
        self._over_s = -math.inf  # when the last verdict ended

    def __call__(self, snapshot: NodeSnapshot) -> Verdict:
        """The verdict as of this snapshot."""
        now = snapshot.uptime_s
        if self._window and now < self._window[-1].uptime_s:
            self._window.clear()  # it is of another node, or another life of it
            self._over_s = -math.inf
        self._tick_s = min(now - self._window[-1].uptime_s, _SEEN_FOR_S) if self._window else 0.0
        self._window.append(snapshot)
        while now - self._window[0].uptime_s > WINDOW_S:
            self._window.popleft()
        standing = self._verdict if self._said is not None else None
        judgement = judge(self._window, self._share, standing=standing, over_s=self._over_s)
        self._verdict = self._steady(judgement, snapshot)
        return self._verdict

    def _steady(self, judgement: Judgement, snapshot: NodeSnapshot) -> Verdict:
        if judgement.hurt is None:
            return self._is_well(judgement, snapshot)
        self._well_since = None
        key = _key(judgement.finding)
        self._see(key)
        if key == self._said and self._verdict is not None:
            self._unseen_s = 0.0
            return self._again(judgement, self._verdict)
        self._unseen_s += self._tick_s
        stale = self._said is not None and self._unseen_s >= _MOST_S  # others took turns, none of them for long
        if not stale and self._seen[key] < self._needed_s(key, judgement.finding):
            return self._verdict or _ok(snapshot.time)
        self._said, self._unseen_s = key, 0.0
        self._seen = {key: self._seen[key]}  # to come back, others must be seen for as long again
        return _said(judgement, snapshot.time - self._seen[key])

    def _again(self, judgement: Judgement, verdict: Verdict) -> Verdict:
        """The same bottleneck. Which of several engines has most of it, or whether others are idle, is told anew only when it lasts."""
        same = _form(judgement.finding) == (verdict.cause, verdict.engine)
        self._otherwise_s = 0.0 if same else self._otherwise_s + self._tick_s
        if not same and self._otherwise_s < _MOVED_FOR_S:
            return verdict
        self._otherwise_s = 0.0
        return _said(judgement, verdict.since)

    def _see(self, key: Key | None) -> None:
        faded_s = _FADES * self._tick_s
        self._seen = {
            other: seen_s - faded_s if other != key else min(_MOST_S, seen_s + self._tick_s)
            for other, seen_s in self._seen.items()
            if other == key or seen_s > faded_s
        }
        if key is not None:
            self._seen.setdefault(key, 0.0)

    def _needed_s(self, key: Key, finding: Finding | None) -> float:
        if finding is None:
            return _UNKNOWN_FOR_S if self._said is None else 2 * _UNKNOWN_FOR_S
        if self._said is not None and self._said[0] == key[0]:
            return _MOVED_FOR_S
        if finding.cause in _OF_PROCESSES:
            return 0.0 if finding.confidence >= _CERTAIN else _SEEN_FOR_S
        if finding.cause in _OF_THE_PLAN:
            return _UNKNOWN_FOR_S
        return _SEEN_FOR_S if self._said is None else _CHANGED_FOR_S

    def _is_well(self, judgement: Judgement, snapshot: NodeSnapshot) -> Verdict:
        self._well_since = snapshot.uptime_s if self._well_since is None else self._well_since
        self._see(None)
        if self._said is not None and self._verdict is not None:
            if snapshot.uptime_s - self._well_since < (_WELL_STILL_S if judgement.lasts else _WELL_FOR_S):
                return self._verdict
            self._said, self._seen, self._over_s = None, {}, snapshot.uptime_s
        return self._rest(judgement, snapshot.time)

    def _rest(self, judgement: Judgement, time: float) -> Verdict:
        """Nobody is hurt. An engine that was given up long ago is still missing: that is said, and makes nothing else be said sooner."""
        before, missing = self._verdict, judgement.finding
        same = before is not None and (before.cause, before.engine) == _form(missing)
        if before is not None and same and (missing is not None or before.state == "ok"):
            return before if missing is None else _said(judgement, before.since)
        return _ok(time) if missing is None else _said(judgement, time)


_NOTHING: Final[Key] = ("", "")


_SAME: Final = {"pool_imbalance": "saturated", "prefill_saturated": "saturated", "decode_saturated": "saturated"}
"""Whether others have little to do meanwhile changes what to do, and is no other bottleneck."""


_OF_PROCESSES: Final = ("engine_hung", "engine_crashed")
"""What is seen of processes, and not told from times."""
_CERTAIN: Final = 0.99  # confidence: that a process has ended need not be seen for a while


_OF_THE_PLAN: Final = ("disaggregation_not_worth_it",)
"""What is predicted of the traffic, and just as true a while ago: it waits for a cause that can be seen."""


_SHARED: Final = ("prefill_budget_small", "long_prompt_blocking", "handoff_decode_admission")
"""All engines of a role have these: which of them has most of it for a moment is no other bottleneck."""


def _key(finding: Finding | None) -> Key:
    """What makes it another verdict."""
    if finding is None:
        return _NOTHING
    if finding.cause in _SAME:
        return _SAME[finding.cause], finding.stage
    if finding.cause in _SHARED:
        return finding.cause, finding.stage
    return finding.cause, ("/".join(finding.link) if finding.link else finding.engines[0] if finding.engines else "")


def _form(finding: Finding | None) -> tuple[str | None, str | None]:
    """How the verdict would say it."""
    if finding is None:
        return None, None
    return finding.cause, finding.engines[0] if finding.engines else None


def _ok(now: float) -> Verdict:
    return Verdict(state="ok", summary="No bottleneck: requests are answered within their targets.", since=now)


def _said(judgement: Judgement, since: float) -> Verdict:
    finding, hurt = judgement.finding, judgement.hurt or MISSING
    if finding is None:
        return Verdict(
            state="unknown",
            summary=f"Something holds the node back ({hurt}), and nothing that is measured tells what.",
            since=since,
        )
    return Verdict(
        state="bottleneck",
        summary=f"{finding.sentence} {hurt[:1].upper()}{hurt[1:]}.",
        since=since,
        engine=finding.engines[0] if finding.engines else None,
        engines=finding.engines,
        link=finding.link,
        stage=finding.stage,
        cause=finding.cause,
        confidence=finding.confidence,
        evidence=finding.evidence,
        action=finding.action,
        expected_gain=finding.gain,
        next=judgement.next.sentence if judgement.next else None,
    )
