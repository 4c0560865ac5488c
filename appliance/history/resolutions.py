"""How finely history is kept and for how long, and which grid answers a question best. Pure."""

from __future__ import annotations

import math
from typing import Final

import msgspec

TICK: Final = 0  # every snapshot; in memory only
TICKS_S: Final = 600.0  # they are kept for
SLOTS: Final = (10, 60, 600)  # seconds; each is made of the one before it
FINEST_DAYS: Final = 2.0  # the slots of 10 s are kept; the others as long as is set
DAY_S: Final = 86_400.0
_LEAST_S: Final = 1.0


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Since when there is anything, by resolution. Unix seconds."""

    tick_s: float  # between two snapshots
    ticks_since: float
    days: float

    def since(self, resolution: int, now: float) -> float:
        """A resolution's oldest time."""
        if resolution == TICK:
            return max(self.ticks_since, now - TICKS_S)
        return now - DAY_S * (min(FINEST_DAYS, self.days) if resolution == SLOTS[0] else self.days)


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """``count`` steps from ``begin``, each a multiple of the resolution that it is made of, and each beginning at a multiple of itself.

    So a grid does not move while time goes on: what is asked for again is the same, but for what is new.
    """

    resolution: int
    begin: float
    step_s: float
    count: int

    @property
    def end(self) -> float:
        return self.begin + self.count * self.step_s


def grid(since: float, until: float, points: int, kept: Kept, now: float) -> Grid:
    """The coarsest resolution with a value in each of the points, of those that reach back so far; at most ``points`` steps."""
    ideal_s = (until - since) / points
    reaching = [one for one in (TICK, *SLOTS) if kept.since(one, now) <= since] or [SLOTS[-1]]
    fitting = [one for one in reaching if _apart_s(one, kept) <= ideal_s]
    resolution = fitting[-1] if fitting else reaching[0]
    unit_s = _apart_s(resolution, kept)
    step_s = unit_s * max(1, math.ceil(ideal_s / unit_s))
    while _count(since, until, step_s) > points:  # the first step begins before ``since``
        step_s += unit_s
    return Grid(
        resolution=resolution,
        begin=math.floor(since / step_s) * step_s,
        step_s=step_s,
        count=_count(since, until, step_s),
    )


def _count(since: float, until: float, step_s: float) -> int:
    return max(1, math.ceil(until / step_s) - math.floor(since / step_s))


def _apart_s(resolution: int, kept: Kept) -> float:
    """Such steps have a value each: snapshots come a little later than they should."""
    least_s = max(_LEAST_S, math.ceil(2 * kept.tick_s))
    if resolution == TICK:
        return least_s
    return resolution * math.ceil(least_s / resolution)
