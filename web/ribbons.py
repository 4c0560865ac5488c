"""What flows between the stations of the map, as shapes: wide where much flows. Pure geometry.

Shares of what flows through a gap are linear: an engine that does twice as much as its like has a ribbon twice as wide. How wide they
are together tells the magnitude: a step for each power of ten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

WIDTH: Final = 100.0  # of a gap, in the drawing's own units: it is stretched to what there is
ROW: Final = 132.0  # height of an engine's card, in CSS pixels; static/app.css has it too
SPACE: Final = 12.0  # between two of them
_LEAST_HEIGHT: Final = 2 * ROW + SPACE
_STEP: Final = 9.0  # pixels for each power of ten
_STEPS: Final = 6
_THIN: Final = 1.5

Flows = Mapping[tuple[str, str], float]
"""What flows from where to where, in any unit; 0 is drawn as a thin line."""


class Ribbon(msgspec.Struct, frozen=True, kw_only=True):
    """One of them."""

    source: str
    target: str
    path: str  # of an SVG, filled
    empty: bool  # nothing flows


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """All ribbons between two columns of stations."""

    height: float
    ribbons: tuple[Ribbon, ...]


def height(columns: Sequence[int]) -> float:
    """Of the map: as high as its highest column."""
    return max([_LEAST_HEIGHT, *(count * (ROW + SPACE) - SPACE for count in columns)])


def middles(names: Sequence[str], whole: float) -> dict[str, float]:
    """Where the cards of a column have their middles, from the top."""
    first = (whole - (len(names) * (ROW + SPACE) - SPACE)) / 2 + ROW / 2
    return {name: first + number * (ROW + SPACE) for number, name in enumerate(names)}


def gap(sources: Mapping[str, float], targets: Mapping[str, float], flows: Flows, whole: float) -> Gap:
    """``sources``, ``targets``: where each station has its middle."""
    wide = {pair: _wide(flow, flows) for pair, flow in flows.items()}
    starts = _stacked(sources, wide, 0)
    ends = _stacked(targets, wide, 1)
    ribbons = tuple(
        Ribbon(
            source=source,
            target=target,
            path=_path(starts[source, target], ends[source, target], wide[source, target]),
            empty=not flow,
        )
        for (source, target), flow in flows.items()
    )
    return Gap(height=whole, ribbons=ribbons)


def _wide(flow: float, flows: Flows) -> float:
    total = sum(flows.values())
    if not flow or not total:
        return _THIN
    steps = min(_STEPS, max(1, 1 + math.floor(math.log10(max(1.0, total)))))
    return max(_THIN, flow / total * steps * _STEP)


def _stacked(
    middles: Mapping[str, float], wide: Mapping[tuple[str, str], float], end: int
) -> dict[tuple[str, str], float]:
    """The upper edge of each ribbon where it leaves, or arrives: side by side, around the station's middle."""
    found = {}
    for name, middle in middles.items():
        here = [pair for pair in wide if pair[end] == name]
        top = middle - sum(wide[pair] for pair in here) / 2
        for pair in here:
            found[pair] = top
            top += wide[pair]
    return found


def _path(start: float, end: float, wide: float) -> str:
    """From the left edge to the right one, with a bend in the middle."""
    half = WIDTH / 2
    return (
        f"M0 {start:.1f}C{half:g} {start:.1f} {half:g} {end:.1f} {WIDTH:g} {end:.1f}V{end + wide:.1f}"
        f"C{half:g} {end + wide:.1f} {half:g} {start + wide:.1f} 0 {start + wide:.1f}Z"
    )
