"""How quickly requests leave the queue, as measured; and when a retry makes sense, which follows from it. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

_REMEMBERED: Final = 128
_WINDOW_NS: Final = 60 * 1_000_000_000  # what is older says nothing about now
_SHORTEST_S, _LONGEST_S = 1.0, 60.0


class Pace:
    """Times are ``CLOCK_MONOTONIC`` nanoseconds."""

    def __init__(self) -> None:
        self._taken_ns: deque[int] = deque(maxlen=_REMEMBERED)

    def taken(self, now_ns: int) -> None:
        """A request has left the queue for an engine."""
        self._taken_ns.append(now_ns)

    def per_s(self, now_ns: int) -> float | None:
        """Requests a second, lately; None while too few have been taken to tell."""
        while self._taken_ns and now_ns - self._taken_ns[0] > _WINDOW_NS:
            self._taken_ns.popleft()
        if len(self._taken_ns) < 2 or now_ns <= self._taken_ns[0]:
            return None
        return (len(self._taken_ns) - 1) / ((now_ns - self._taken_ns[0]) * 1e-9)

    def retry_after_s(self, waiting: int, now_ns: int) -> float:
        """As long as those that wait now will take, within a second and a minute; a second where nothing is known."""
        rate = self.per_s(now_ns)
        if rate is None:
            return _SHORTEST_S
        return min(max(waiting / rate, _SHORTEST_S), _LONGEST_S)
