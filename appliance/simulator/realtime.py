"""The simulator's time where it is everybody's: events come when they are due, as nearly as the operating system can do that."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Final

from appliance.simulator.clock import Call, Event

_SOON_NS: Final = 500_000  # earlier than timers can tell
_LATE_NS: Final = 100_000_000  # beyond it what should have been is given up, and time is what it is


class RealClock:
    """``CLOCK_MONOTONIC``. While an event is seen to, it is the time at which that was due: lateness does not add up from step to step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due_ns: int | None = None
        self._events: list[tuple[int, int, Event]] = []
        self._number = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def now_ns(self) -> int:
        return time.monotonic_ns() if self._due_ns is None else self._due_ns

    def at(self, when_ns: int, call: Call) -> Event:
        """See ``clock.Timer.at``. The loop's own timers would come out of order: they are as late as a millisecond, each by itself."""
        event = Event(call)
        heapq.heappush(self._events, (max(when_ns, self.now_ns), next(self._number), event))
        if self._events[0][2] is event and self._due_ns is None:
            self._arm()
        return event

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._events[0][0] * 1e-9, self._fire) if self._events else None

    def _fire(self) -> None:
        """All that is due by now, or so soon that no timer could tell; what lies beyond comes in a later turn of the loop."""
        until_ns = time.monotonic_ns() + _SOON_NS
        while self._events and self._events[0][0] <= until_ns:
            when_ns, _, event = heapq.heappop(self._events)
            if not event.cancelled:
                self._see_to(event, when_ns)
        self._arm()

    def _see_to(self, event: Event, when_ns: int) -> None:
        now_ns = time.monotonic_ns()
        self._due_ns = when_ns if now_ns - when_ns < _LATE_NS else now_ns
        try:
            event.call()
        except Exception as error:  # a fault in one must not be the end of all others
            self._loop.call_exception_handler(
                {"message": "an event of the simulated engine failed", "exception": error}
            )
        finally:
            self._due_ns = None
