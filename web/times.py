"""Moments of a day, and axes of time. Pure; the time of day is the server's."""

from __future__ import annotations

import time
from typing import Final

from web import words
from web.contexts import Context

_STEPS_S: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800)
_DAY_S: Final = 86_400
_TICKS: Final = 6


class TickContext(Context, frozen=True, kw_only=True):
    """A moment on an axis. ``x`` in percent."""

    x: str
    label: str


class Span:
    """From one moment to another, as wide as there is room."""

    def __init__(self, start: float, end: float) -> None:
        """Unix seconds; at least a second apart."""
        self.start = start
        self.end = max(end, start + 1.0)

    def x(self, moment: float) -> float:
        """0 to 100; what lies outside is put on the edge."""
        return max(0.0, min(100.0, 100 * (moment - self.start) / (self.end - self.start)))

    def ticks(self) -> tuple[TickContext, ...]:
        """A few round moments."""
        length_s = self.end - self.start
        step_s = next((step for step in _STEPS_S if length_s / step <= _TICKS), _STEPS_S[-1])
        away_s = time.localtime(self.start).tm_gmtoff
        first = (self.start + away_s) // step_s * step_s - away_s
        moments = [first + number * step_s for number in range(1, _TICKS + 2)]
        return tuple(
            TickContext(x=f"{self.x(moment):.2f}%", label=_label(moment, step_s))
            for moment in moments
            if 2 <= self.x(moment) <= 91 and moment < self.end
        )


def _label(moment: float, step_s: float) -> str:
    if step_s >= _DAY_S:
        return date(moment)
    return clock(moment) if step_s < 60 else clock(moment)[:5]


def clock(moment: float) -> str:
    """14:32:07."""
    return time.strftime("%H:%M:%S", time.localtime(moment))


def date(moment: float) -> str:
    """26 Nov."""
    return time.strftime("%d %b", time.localtime(moment)).lstrip("0")


def day(moment: float, now: float) -> str:
    """today, yesterday, 26 Nov."""
    then, today = time.localtime(moment), time.localtime(now)
    if then[:3] == today[:3]:
        return "today"
    return "yesterday" if then[:3] == time.localtime(now - _DAY_S)[:3] else date(moment)


def iso(moment: float) -> str:
    """For ``<time datetime>``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def offset(moment: float, origin: float) -> str:
    """How long before or after: −12 s, +3 min."""
    apart_s = moment - origin
    return f"{'−' if apart_s < 0 else '+'}{words.age(abs(apart_s))}"  # noqa: RUF001: a minus sign
