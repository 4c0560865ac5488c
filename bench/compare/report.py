"""Two trees' figures beside each other, as Markdown. Pure.

Ratios are taken round by round, so that what slows the whole machine for a while stays out of them. Whether they say anything is told by
ranks, in which one strange round counts for no more than its place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import msgspec

from bench.compare.measures import MORE_IS_BETTER
from bench.report import spread, table

ALLOWED: Final = 1.05  # times what it was, at the median, until it is called worse
CHANCE: Final = 0.01
"""That of two trees which are alike this one comes to stand as far above the other, or as far below."""
ENOUGH: Final = 5
"""Rounds, to call anything better or worse: with four, even ranges that lie apart are more likely than ``CHANCE``."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of both: figures by their names, which end with their unit."""

    this: dict[str, float] = {}
    that: dict[str, float] = {}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    this: str
    that: str
    machine: dict[str, str]
    rounds: tuple[Round, ...]

    @property
    def names(self) -> list[str]:
        """Of the figures that both have."""
        return list(dict.fromkeys(name for one in self.rounds for name in one.this if name in one.that))


def worse(report: Report) -> list[str]:
    """The figures that are, beyond what is allowed at the median and what chance does (``_outcome``)."""
    return [name for name in report.names if _outcome(report, name) == _WORSE]


def markdown(report: Report) -> str:
    machine = "; ".join(f"{name} {value}" for name, value in report.machine.items())
    rows = [
        [
            name,
            spread(one.this[name] for one in _both(report, name)),
            spread(one.that[name] for one in _both(report, name)),
            spread(ratios(report, name), digits=2),
            _outcome(report, name),
        ]
        for name in report.names
    ]
    return (
        f"# {report.this} against {report.that}\n\n{machine}.\n\n"
        f"{len(report.rounds)} rounds, both in turn. Figures are medians (min–max), ratios taken round by round. What is called better "
        f"or worse is so by more than {ALLOWED - 1:.0%} at the median, of {ENOUGH} rounds at least, and so clearly that of two "
        f"trees which are alike one would come to stand as far above the other once in {1 / CHANCE:.0f} times.\n\n"
        + table(["", report.this, report.that, "ratio", ""], rows)
    )


def ratios(report: Report, name: str) -> list[float]:
    """This tree's over the other's."""
    return [one.this[name] / one.that[name] for one in _both(report, name) if one.that[name] > 0]


_WORSE: Final = "**worse**"


def _outcome(report: Report, name: str) -> str:
    found = ratios(report, name)
    if len(found) < ENOUGH:
        return ""
    these, those = zip(*((one.this[name], one.that[name]) for one in _both(report, name)), strict=True)
    middle = statistics.median(found)
    more = middle > ALLOWED and _chance(these, those) <= CHANCE
    less = middle < 1 / ALLOWED and _chance(those, these) <= CHANCE
    if not more and not less:
        return ""
    return "better" if more == name.startswith(MORE_IS_BETTER) else _WORSE


def _chance(high: Sequence[float], low: Sequence[float]) -> float:
    """That two of a kind come to stand as far apart: Mann and Whitney's U, exact, one-sided; equals count against it."""
    crossed = sum(one <= other for one in high for other in low)
    ways = sum(_ways(len(high), len(low), count) for count in range(crossed + 1))
    return ways / math.comb(len(high) + len(low), len(high))


@cache
def _ways(high: int, low: int, crossed: int) -> int:
    """Orders of so many of both in which so many pairs stand the wrong way round."""
    if crossed < 0:
        return 0
    if not high or not low:
        return int(crossed == 0)
    return _ways(high - 1, low, crossed - low) + _ways(high, low - 1, crossed)


def _both(report: Report, name: str) -> Sequence[Round]:
    return [one for one in report.rounds if _has(one.this, name) and _has(one.that, name)]


def _has(figures: Mapping[str, float], name: str) -> bool:
    return name in figures
