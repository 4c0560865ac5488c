"""How quickly requests leave the queue while others wait, as measured; and when a retry makes sense, which follows from it. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

_WINDOW_NS: Final = 60 * 1_000_000_000  # what is older says nothing about now
_ENOUGH_NS: Final = 2 * 1_000_000_000  # of waiting, to tell anything
_MOST: Final = 4096
_UNKNOWN_S: Final = 5.0
_SHORTEST_S, _LONGEST_S = 1.0, 60.0


class Pace:
    """Times are ``CLOCK_MONOTONIC`` nanoseconds. Only the time in which somebody waits counts: else nobody was kept back."""

    def __init__(self) -> None:
        self._since_ns: int | None = None  # when somebody began to wait
        self._taken_ns: deque[int] = deque(maxlen=_MOST)

    def waits(self, somebody: bool, now_ns: int) -> None:
        """Whether somebody waits now."""
        if not somebody:
            self._since_ns = None
            self._taken_ns.clear()
        elif self._since_ns is None:
            self._since_ns = now_ns

    def taken(self, now_ns: int) -> None:
        """A request has left the queue for an engine."""
        if self._since_ns is not None:
            self._taken_ns.append(now_ns)

    def retry_after_s(self, waiting: int, now_ns: int) -> float:
        """As long as those that wait now will take, within a second and a minute; a few seconds while nothing is known."""
        if self._since_ns is None:
            return _SHORTEST_S
        observed_ns = now_ns - self._since_ns
        while self._taken_ns and now_ns - self._taken_ns[0] > _WINDOW_NS:
            self._taken_ns.popleft()
        if observed_ns < _ENOUGH_NS and not self._taken_ns:
            return _UNKNOWN_S
        begin_ns = max(self._since_ns, now_ns - _WINDOW_NS)
        if len(self._taken_ns) == _MOST:
            begin_ns = self._taken_ns[0]
        each_s = max(now_ns - begin_ns, 1) * 1e-9 / max(len(self._taken_ns), 1)
        return min(max(waiting * each_s, _SHORTEST_S), _LONGEST_S)
