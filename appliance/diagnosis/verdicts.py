"""Verdicts that stay: what was seen once is no verdict yet, and what is over is gone soon."""

from __future__ import annotations

from collections import deque
from typing import Final

from appliance.diagnosis import signs
from appliance.diagnosis.finding import Finding
from appliance.diagnosis.judge import Judgement, judge
from appliance.records import NodeSnapshot, Verdict

_SEEN_FOR_S: Final = 1.0  # the same cause of the same engine, until it is said
_CHANGED_FOR_S: Final = 2.5  # another one, until it takes the place of what was said
_UNKNOWN_FOR_S: Final = 4.0  # somebody is hurt and nothing tells why, until that is said
_WELL_FOR_S: Final = 5.0  # nobody is hurt, until it is over

Key = tuple[str, str]


class Diagnoser:
    """Is given each snapshot, and says what holds the node back."""

    def __init__(self, share: float) -> None:
        """``share``: of requests that must meet the targets."""
        self._share = share
        self._window: deque[NodeSnapshot] = deque()
        self._verdict: Verdict | None = None
        self._said: Key | None = None
        self._candidate: Key | None = None
        self._candidate_since = 0.0
        self._well_since: float | None = None

    def __call__(self, snapshot: NodeSnapshot) -> Verdict:
        """The verdict as of this snapshot."""
        if self._window and snapshot.time < self._window[-1].time:
            self._window.clear()  # somebody has set the clock back
        self._window.append(snapshot)
        while snapshot.time - self._window[0].time > signs.WINDOW_S:
            self._window.popleft()
        judgement = judge(self._window, self._share, standing=self._said is not None)
        self._verdict = self._steady(judgement, snapshot.time)
        return self._verdict

    def _steady(self, judgement: Judgement, now: float) -> Verdict:
        if judgement.hurt is None:
            return self._is_well(now)
        self._well_since = None
        finding = judgement.finding
        key = _key(finding)
        if key != self._candidate:
            self._candidate, self._candidate_since = key, now
        seen_s = now - self._candidate_since
        if key == self._said and self._verdict is not None:
            return _said(judgement, self._verdict.since)
        needed_s = _SEEN_FOR_S if self._said is None else _CHANGED_FOR_S
        if finding is None:
            needed_s = max(needed_s, _UNKNOWN_FOR_S)
        if seen_s < needed_s:
            return self._verdict or _ok(now)
        self._said = key
        return _said(judgement, self._candidate_since)

    def _is_well(self, now: float) -> Verdict:
        self._well_since = now if self._well_since is None else self._well_since
        self._candidate = None
        if self._said is not None and now - self._well_since < _WELL_FOR_S and self._verdict is not None:
            return self._verdict
        if self._said is not None or self._verdict is None:
            self._said = None
            return _ok(now)
        return self._verdict


_NOTHING: Final[Key] = ("", "")


_SAME: Final = {"pool_imbalance": "saturated", "prefill_saturated": "saturated", "decode_saturated": "saturated"}
"""Whether others have little to do meanwhile changes what to do, and is no other bottleneck."""


def _key(finding: Finding | None) -> Key:
    """What makes it another verdict."""
    if finding is None:
        return _NOTHING
    if finding.cause in _SAME:
        return _SAME[finding.cause], finding.stage
    return finding.cause, ("/".join(finding.link) if finding.link else finding.engines[0] if finding.engines else "")


def _ok(now: float) -> Verdict:
    return Verdict(state="ok", summary="No bottleneck: requests are answered within their targets.", since=now)


def _said(judgement: Judgement, since: float) -> Verdict:
    finding, hurt = judgement.finding, judgement.hurt or ""
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
