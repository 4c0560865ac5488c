"""The simulator's time where it is everybody's: events come when they are due, as nearly as the operating system can do that."""

from __future__ import annotations

import asyncio
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

    @property
    def now_ns(self) -> int:
        return time.monotonic_ns() if self._due_ns is None else self._due_ns

    def at(self, when_ns: int, call: Call) -> Event:
        """See ``clock.Timer.at``."""
        event = Event(call)
        if when_ns - time.monotonic_ns() < _SOON_NS:
            self._loop.call_soon(self._fire, when_ns, event)
        else:
            self._loop.call_at(when_ns * 1e-9, self._fire, when_ns, event)
        return event

    def _fire(self, when_ns: int, event: Event) -> None:
        if event.cancelled:
            return
        now_ns = time.monotonic_ns()
        self._due_ns = when_ns if now_ns - when_ns < _LATE_NS else now_ns
        try:
            event.call()
        finally:
            self._due_ns = None
