"""Plots as SVG, drawn here so that a page has them without any script. Pure.

A plot's plane is a box of 1000 by ``HEIGHT`` that the browser stretches sideways only: heights in it are pixels. Labels stand beside the
box, where nothing stretches them; marks are strokes whose width stays (``vector-effect``), so that a dot is round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from appliance.records import KneeReading
from web.contexts import Context

WIDTH: Final = 1000
HEIGHT: Final = 200
_TICK: Final = 4  # half the height of an upright mark
_MOST_STEPS: Final = 6  # of an even axis
_MANY_DECADES: Final = 2.2  # beyond them every power of ten is label enough


class TickContext(Context, frozen=True, kw_only=True):
    """A label on an axis, and its line. ``percent`` is of the way along the axis, for x; ``at`` in the box."""

    at: str
    percent: str
    label: str


class DrawnContext(Context, frozen=True, kw_only=True):
    """One path. ``kind``: what it is drawn like, a class."""

    kind: str
    d: str


class BandContext(Context, frozen=True, kw_only=True):
    """A range of x that is marked, in the box."""

    x: str
    width: str
    middle: str


class PlotContext(Context, frozen=True, kw_only=True):
    """``plot.html``."""

    label: str  # what it shows, in words, for whoever does not see it
    x_name: str
    y_name: str
    x_ticks: tuple[TickContext, ...]
    y_ticks: tuple[TickContext, ...]
    drawn: tuple[DrawnContext, ...]  # the later ones on top
    band: BandContext | None


class Axis(msgspec.Struct, frozen=True):
    """From ``low`` to ``high``, evenly or by logarithms."""

    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Of the way along it; what lies outside is put on the edge."""
        if self.logarithmic:
            length = math.log(self.high / self.low)
            part = math.log(max(value, self.low) / self.low)
        else:
            length, part = self.high - self.low, value - self.low
        return min(1.0, max(0.0, part / length))

    def x(self, value: float) -> float:
        return WIDTH * self.share(value)

    def y(self, value: float) -> float:
        return HEIGHT * (1 - self.share(value))

    def ticks(self) -> tuple[float, ...]:
        """A few round values."""
        return self._powers() if self.logarithmic else self._steps()

    def _powers(self) -> tuple[float, ...]:
        few = math.log10(self.high / self.low) > _MANY_DECADES
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [digit * 10.0**power for power in powers for digit in ((1,) if few else (1, 2, 5))]
        return tuple(value for value in found if self.low * 0.999 <= value <= self.high * 1.001)

    def _steps(self) -> tuple[float, ...]:
        step = _round_above((self.high - self.low) / _MOST_STEPS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(number * step for number in range(first, last + 1))


def around(values: Iterable[float]) -> Axis | None:
    """A logarithmic axis that holds them, from a round value to a round value; None for nothing above 0."""
    known = [value for value in values if value > 0]
    if not known:
        return None
    low, high = _round_below(min(known)), _round_above(max(known))
    return Axis(low, high if high > low else 2 * low, logarithmic=True)


def _round_below(value: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(digit * power for digit in (5, 2, 1) if digit * power <= value * 1.001)


def _round_above(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value * 0.999)


def dots(points: Iterable[tuple[float, float]]) -> str:
    """A path of dots: strokes of no length with round ends. Those on one another are one."""
    return "".join(f"M{x} {y}h0" for x, y in dict.fromkeys((round(x), round(y)) for x, y in points))


def uprights(points: Iterable[tuple[float, float]]) -> str:
    """A path of short upright strokes."""
    unique = dict.fromkeys((round(x), round(y)) for x, y in points)
    return "".join(f"M{x} {y - _TICK}v{2 * _TICK}" for x, y in unique)


def line(points: Sequence[tuple[float, float]]) -> str:
    """A path from point to point."""
    return "".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points))


def stairs(points: Sequence[tuple[float, float]]) -> str:
    """The same for what stays as it is until it changes."""
    return "".join(f"H{x:.1f}V{y:.1f}" if number else f"M{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points))


def knee_band(axis: Axis, knee: KneeReading | None) -> BandContext | None:
    """The smallest batch that saturates an engine, with its interval, on an axis of tokens."""
    if knee is None or knee.tokens is None:
        return None
    low, high = axis.x(knee.low or knee.tokens), axis.x(knee.high or knee.tokens)
    return BandContext(x=f"{low:.1f}", width=f"{max(1.0, high - low):.1f}", middle=f"{axis.x(knee.tokens):.1f}")


def x_ticks(axis: Axis, labels: Sequence[tuple[float, str]]) -> tuple[TickContext, ...]:
    return tuple(
        TickContext(at=f"{axis.x(value):.1f}", percent=f"{100 * axis.share(value):.2f}%", label=label)
        for value, label in labels
    )


def y_ticks(axis: Axis, labels: Sequence[tuple[float, str]]) -> tuple[TickContext, ...]:
    return tuple(
        TickContext(at=f"{axis.y(value):.1f}", percent=f"{100 * (1 - axis.share(value)):.2f}%", label=label)
        for value, label in labels
    )
