"""Time that passes as fast as it can be computed."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

Call = Callable[[], None]


class Event:
    """Something that is to happen."""

    __slots__ = ("call", "cancelled")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Timer(Protocol):
    """What the core needs of time: virtual here, real in ``realtime``."""

    @property
    def now_ns(self) -> int: ...

    def at(self, when_ns: int, call: Call) -> Event:
        """``call`` is called then; what is due at the same time in the order in which it was asked for."""
        ...


class VirtualClock:
    """Begins at 1 s, so that 0 can mean never."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self._events: list[tuple[int, int, Event]] = []
        self._number = itertools.count()

    def at(self, when_ns: int, call: Call) -> Event:
        event = Event(call)
        heapq.heappush(self._events, (max(when_ns, self.now_ns), next(self._number), event))
        return event

    def run(self, until_ns: int) -> None:
        """All that happens until then."""
        events = self._events
        while events and events[0][0] <= until_ns:
            self.now_ns, _, event = heapq.heappop(events)
            if not event.cancelled:
                event.call()
        self.now_ns = max(self.now_ns, until_ns)
