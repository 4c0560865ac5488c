"""A line through cases, by weighted least squares: old ones count less and less, and what nothing like it was seen of has no expectation.

Errors count relative to what was *expected*: relative to what was measured, one step that was much too short would count more than all
others, and the line would lie below the mean by as much as there is noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Final

import msgspec

_RIDGE: Final = 1e-6  # of each figure's own weight: enough to solve for what has not varied yet
_SOLVED_AFTER: Final = 100  # learnt, until the line is looked for again
_HALF_LIFE: Final = 20_000  # learnt, after which one counts half
_LEVERAGE: Final = 0.05  # of one batch on its own expectation: beyond it nothing like it has been seen
_FAMILIAR: Final = 10.0  # times the mean leverage, up to which many like it have been
_MEMORY: Final = 1 / math.log(2)  # half-lives, that what was learnt counts as much as all together
_RESCALED_AT: Final = 1e12
_MOST: Final = 5.0  # times what is expected, that one case is taken for
_LEAST: Final = 0.25  # of the median, that an error counts relative to while nothing is expected yet
_AGAIN: Final = 3  # times that the first line is looked for, each time with the weights that follow from the last one


class KeptFit(msgspec.Struct, frozen=True, kw_only=True):
    """All that a fit knows, its uncertainty included: ``products`` is the information matrix, ``noise`` what is left around the line."""

    products: tuple[tuple[float, ...], ...]
    targets: tuple[float, ...]
    weight: float  # of all cases together
    learnt: int
    noise: float | None = None  # for those who read the file; it follows from the rest


class _Line:
    """By the first figures of each case, or by all of them: what was learnt is the same."""

    def __init__(self, products: Sequence[Sequence[float]], targets: Sequence[float], size: int) -> None:
        rows = [
            [*row[:size], *(1.0 if place == number else 0.0 for place in range(size))]
            for number, row in enumerate(products[:size])
        ]
        for number, row in enumerate(rows):
            row[number] += _RIDGE * row[number] + 1e-12
        self._size = size
        self._inverse = _inverted(rows, size)
        self._factors = [sum(a * b for a, b in zip(row, targets[:size], strict=True)) for row in self._inverse]

    def at(self, x: Sequence[float]) -> float | None:
        """None where the line has left what can be."""
        y: float = sum(map(mul, self._factors, x))
        return y if y > 0 else None

    def spread(self, x: Sequence[float]) -> float:
        """How little like it was learnt."""
        rows = zip(x[: self._size], self._inverse, strict=True)
        spread: float = sum(value * sum(map(mul, row, x)) for value, row in rows if value)
        return spread

    def noise(self, targets: Sequence[float], total: float) -> float:
        """What it leaves, relative."""
        return math.sqrt(max(0.0, 1 - sum(map(mul, self._factors, targets)) / total))


class Fit:
    """``y`` as a weighted sum of figures ``x``. ``expected`` says nothing about an ``x`` unlike those learnt."""

    def __init__(self, size: int, few: int | None = None) -> None:
        """``few``: figures, the first ones, by which ``expected`` goes. Fewer reach further from what was seen before they say nothing."""
        self._size, self._few = size, few or size
        self._products = [[0.0] * size for _ in range(size)]
        self._targets = [0.0] * size
        self._weight = 1.0
        self._total = 0.0
        self._growth = 2 ** (1 / _HALF_LIFE)
        self._line: _Line | None = None  # by few figures
        self._full: _Line | None = None
        self._scale = 1.0  # weight of the newest, when the lines were found
        self._first: list[tuple[Sequence[float], float]] = []  # until there is a line
        self.learnt = 0

    def learn(self, x: Sequence[float], y: float) -> None:
        """One more case; ``y`` is above 0."""
        self.learnt += 1
        if self._line is None:
            self._first.append((x, y))
            if len(self._first) == _SOLVED_AFTER:
                self._begin()
            return
        usual = self._line.at(x) or y
        self._add(x, min(y, _MOST * usual), usual)
        if self.learnt % _SOLVED_AFTER == 0:
            self._solve()

    def _begin(self) -> None:
        """The first line."""
        median = sorted(y for _, y in self._first)[len(self._first) // 2]
        for _ in range(_AGAIN):
            line = self._line
            usual = [max((line.at(x) if line else None) or y, _LEAST * median) for x, y in self._first]
            self._products = [[0.0] * self._size for _ in range(self._size)]
            self._targets, self._total, self._weight = [0.0] * self._size, 0.0, 1.0
            for (x, y), about in zip(self._first, usual, strict=True):
                self._add(x, min(y, _MOST * about), about)
            self._solve()
        self._first = []

    def _add(self, x: Sequence[float], y: float, usual: float) -> None:
        weight = self._weight / (usual * usual)
        present = [(place, value) for place, value in enumerate(x) if value]  # of a step that only decodes, half
        for place, value in present:
            row, factor = self._products[place], weight * value
            for other, its in present:
                row[other] += factor * its
            self._targets[place] += factor * y
        self._total += weight * y * y
        self._weight *= self._growth

    def expected(self, x: Sequence[float], familiar: bool = False) -> float | None:
        """None where too little like it has been seen. ``familiar``: or not much."""
        if self._line is None:
            return None
        y = self._line.at(x)
        most = min(_LEVERAGE, _FAMILIAR * self._few / min(self.learnt, _MEMORY * _HALF_LIFE)) if familiar else _LEVERAGE
        return y if y is not None and self._line.spread(x) * self._scale / (y * y) <= most else None

    @property
    def noise(self) -> float | None:
        """Standard deviation of a case around what is expected, relative; None while there is no line."""
        return None if self._line is None else self._line.noise(self._targets, self._total)

    def kept(self) -> KeptFit:
        """All that it knows."""
        self._rescale()
        return KeptFit(
            products=tuple(map(tuple, self._products)),
            targets=tuple(self._targets),
            weight=self._total,
            learnt=self.learnt,
            noise=self.noise,
        )

    def take(self, kept: KeptFit) -> None:
        """Know that and nothing else. Raises ``ValueError`` for what no fit of this size can have known."""
        rows = [*kept.products, kept.targets]
        if len(rows) != self._size + 1 or any(len(row) != self._size for row in rows) or kept.learnt < _SOLVED_AFTER:
            raise ValueError(f"it is not a fit of {self._size} figures")
        if not all(map(math.isfinite, (*(value for row in rows for value in row), kept.weight))) or kept.weight <= 0:
            raise ValueError("it has figures that are no numbers")
        if any(row[place] < 0 for place, row in enumerate(kept.products)):
            raise ValueError("it has a square below 0")
        self._products, self._targets = [list(row) for row in kept.products], list(kept.targets)
        self._total, self._weight, self.learnt = kept.weight, 1.0, kept.learnt
        self._solve()

    def estimate(self, x: Sequence[float]) -> tuple[float, float] | None:
        """Also of an ``x`` unlike those learnt: what the line says, and its standard deviation there, relative.

        That is the noise times the root of the case's leverage. That the line may bend where nobody has been is not in it. None while
        there is no line, and where it is not above 0.
        """
        y = None if self._full is None else self._full.at(x)
        if self._full is None or y is None:
            return None
        noise = self._full.noise(self._targets, self._total)
        return y, noise * math.sqrt(max(0.0, self._full.spread(x) * self._scale)) / y

    def _solve(self) -> None:
        if self._weight > _RESCALED_AT:
            self._rescale()
        self._scale = self._weight
        self._full = _Line(self._products, self._targets, self._size)
        few = self._few
        self._line = self._full if few == self._size else _Line(self._products, self._targets, few)

    def _rescale(self) -> None:
        self._products = [[value / self._weight for value in row] for row in self._products]
        self._targets = [value / self._weight for value in self._targets]
        self._total /= self._weight
        self._weight = 1.0


def _inverted(rows: list[list[float]], size: int) -> list[list[float]]:
    """Gauss and Jordan, of rows that have the identity beside them."""
    for column in range(size):
        pivot = max(range(column, size), key=lambda number: abs(rows[number][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        top = rows[column]
        factor = 1 / top[column] if top[column] else 0.0
        rows[column] = top = [value * factor for value in top]
        for number, row in enumerate(rows):
            if number != column and row[column]:
                factor = row[column]
                rows[number] = [a - factor * b for a, b in zip(row, top, strict=True)]
    return [row[size:] for row in rows]
