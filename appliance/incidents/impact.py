"""How many are hurt at one moment. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from appliance.records import LATELY_S, NodeSnapshot

_FAILING_S: Final = 5.0  # over which failures are a share of what ended
_BACK_S: Final = 30.0  # how far back an incident may begin before it is opened


class Impact:
    """Is given each snapshot. ``share``: of those that are hurt now; ``late``: first tokens that came late, ever, about."""

    def __init__(self) -> None:
        self._past: deque[tuple[NodeSnapshot, float]] = deque()  # with what had come late by then
        self.late = 0.0

    def fold(self, snapshot: NodeSnapshot) -> float | None:
        """The share of first tokens or tokens that are late, or of requests that fail; None where nothing tells."""
        if self._past:
            self.late += late_s(snapshot) * max(0.0, snapshot.uptime_s - self._past[-1][0].uptime_s)
        self._past.append((snapshot, self.late))
        while snapshot.uptime_s - self._past[0][0].uptime_s > _BACK_S:
            self._past.popleft()
        shares = [*late_shares(snapshot), *self._failing(snapshot)]
        return max(shares, default=None)

    def at(self, time: float) -> tuple[float, int]:
        """What had come late and what had failed at a time, as far as it is remembered."""
        known = [(late, one.requests.failed_here) for one, late in self._past if one.time <= time]
        first = (self._past[0][1], self._past[0][0].requests.failed_here)
        return known[-1] if known else first

    def _failing(self, now: NodeSnapshot) -> list[float]:
        before = next(one for one, _ in self._past if now.uptime_s - one.uptime_s <= _FAILING_S)
        failed = now.requests.failed_here - before.requests.failed_here
        ended = failed + now.requests.ok - before.requests.ok
        return [failed / ended] if ended > 0 else []


def late_shares(now: NodeSnapshot) -> list[float]:
    """Of first tokens, and of the tokens after these. While nobody gets a first token and somebody waits for too long, all are late."""
    shares = []
    if now.lately is not None and now.lately.ttft_late is not None:
        shares.append(now.lately.ttft_late)
    elif (now.queue.oldest_s or 0.0) > now.slo_ttft_s:
        shares.append(1.0)
    timed = [(one.itl_late, one.output_tokens_s) for one in now.engines if one.itl_late is not None]
    tokens = sum(rate or 0.0 for _, rate in timed)
    if tokens:
        shares.append(sum(late * (rate or 0.0) for late, rate in timed) / tokens)
    return shares


def late_s(now: NodeSnapshot) -> float:
    """First tokens that come late, per second."""
    if now.lately is None or now.lately.ttft_late is None:
        return 0.0
    return now.lately.ttft_late * now.lately.first_tokens / LATELY_S
