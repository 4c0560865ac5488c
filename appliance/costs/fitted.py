"""What a step takes on the hardware at hand, learnt from the steps that engines make.

A step's time is nearly linear in a few figures of its batch; which line is learnt by weighted least squares, old steps counting less and
less. Errors count relative to what was *expected*: relative to what was measured, one step that was much too short would count more than
all others, and the line would lie below the mean by as much as there is noise. A batch unlike those that were seen has no expectation,
rather than a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Final

import msgspec

FORM: Final = 2
"""Of the figures. With others, what was kept of a fit means something else."""
_RIDGE: Final = 1e-6  # of each figure's own weight: enough to solve for what has not varied yet
_SOLVED_AFTER: Final = 100  # learnt, until the line is looked for again
_HALF_LIFE: Final = 20_000  # learnt, after which one counts half
_LEVERAGE: Final = 0.05  # of one batch on its own expectation: beyond it nothing like it has been seen
_RESCALED_AT: Final = 1e12
_MOST: Final = 5.0  # times what is expected, that one case is taken for
_LEAST: Final = 0.25  # of the median, that an error counts relative to while nothing is expected yet
_AGAIN: Final = 3  # times that the first line is looked for, each time with the weights that follow from the last one
_FIGURES: Final = 9
_FEW: Final = 7  # of them, by which it is told who is slow
_YOUNG: Final = 1_000  # steps, before which a model knows too little to say who is well
_SURE: Final = 50_000  # steps, after which it knows what is usual here
_CREEP: Final = 1.05  # times what was usual first, that it may come to expect
_COMPARED: Final = 10  # steps learnt, of which one is compared with what was usual first
_FADES: Final = 0.998  # from one of these to the next
_DOUBLED: Final = (
    0.05  # error of an estimate for twice as much as was seen, where a line is known; both as bench.split has it
)
_GUESSED: Final = 0.15  # the same where none is
_LOST: Final = 0.10  # of the line's own error: then it says nothing, and what is twice as much is taken to take
# twice as long where it is prompts, and where it is sequences between nothing more (weights) and that (KV, experts).
_GROWS: Final = 0.3  # exponent
_LEAST_ERROR: Final = 0.03
Chunk = tuple[float, float]


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

    def expected(self, x: Sequence[float]) -> float | None:
        """None where too little like it has been seen."""
        if self._line is None:
            return None
        y = self._line.at(x)
        return y if y is not None and self._line.spread(x) * self._scale / (y * y) <= _LEVERAGE else None

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


class KeptModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a model knows. ``most``: tokens of prompts, and sequences, of the largest steps. ``first``: see ``StepModel.establish``."""

    fit: KeptFit
    most: tuple[float, float]
    first: KeptFit | None = None
    established: float | None = None  # Unix seconds


class StepModel:
    """Of all engines that run one model on like hardware with like arguments.

    What was learnt serves two questions. Who is slow is told only by batches like those that were seen, and by few figures, so that one
    that has grown because the engine is slow is still like them (``expected_s``). A plan asks about others, too, by all figures, and is
    told how far off the answer may be (``estimate``).
    """

    def __init__(self, kept: KeptModel | None = None) -> None:
        """``kept``: of an earlier process. Raises ``ValueError`` if it can't be that."""
        self._first: Fit | None = None  # what was usual
        self.established: float | None = None
        """When what it knew was taken as usual, in Unix seconds."""
        self._tried = kept is not None
        self.forget()
        if kept is not None:
            self._fit.take(kept.fit)
            self._most = list(map(_counted, kept.most))
            self.established = kept.established
            self._first = _fit_of(kept.first) if kept.first is not None else None

    def forget(self) -> None:
        """Know nothing any more: it was learnt from an engine that is not well."""
        self._fit = Fit(_FIGURES, _FEW)
        self._most = [1.0, 1.0]
        self._first, self.established = None, None
        self._now_s = self._first_s = 0.0  # that steps like the latest take, by what it knows now, and knew then

    @property
    def young(self) -> bool:
        """It knows too little to say who is well."""
        return not self._tried and self._fit.learnt < _YOUNG

    @property
    def sure(self) -> bool:
        """It knows enough to be what steps are compared with from then on."""
        return self._fit.learnt >= _SURE

    @property
    def noise(self) -> float | None:
        """Of a step around what is expected, relative: a standard deviation."""
        return self._fit.noise

    @property
    def learnt(self) -> int:
        return self._fit.learnt

    @property
    def drift(self) -> float | None:
        """Times what steps like the latest took at first, that they take now; None where nothing is established."""
        return self._now_s / self._first_s if self._first_s else None

    def kept(self) -> KeptModel:
        """All that it knows, for a later process."""
        first = self._first.kept() if self._first is not None else None
        return KeptModel(
            fit=self._fit.kept(), most=(self._most[0], self._most[1]), first=first, established=self.established
        )

    def establish(self, unix_s: float) -> None:
        """What it knows now bounds what it may come to expect: from now on, steps that get slower and slower, each day by too little to be
        told from noise, are learnt up to ``_CREEP`` only, and beyond that they are slow.
        """
        self._first, self.established = _fit_of(self._fit.kept()), unix_s
        self._now_s = self._first_s = 0.0

    def learn(self, prompt_tokens: int, decode_tokens: int, context_tokens: int, seconds: float) -> None:
        """A step that took so long, on an engine that is well."""
        figures = _of_sums(prompt_tokens, decode_tokens, context_tokens)
        self._fit.learn(figures, seconds)
        if self._first is not None and self._fit.learnt % _COMPARED == 0:
            self._compare(self._first, figures)
        self._most = [max(self._most[0], prompt_tokens), max(self._most[1], decode_tokens)]

    def _compare(self, first: Fit, figures: Sequence[float]) -> None:
        now_s, first_s = self._fit.expected(figures), first.expected(figures)
        if now_s is not None and first_s is not None:
            self._now_s, self._first_s = _FADES * self._now_s + now_s, _FADES * self._first_s + first_s

    def expected_s(self, prompt_tokens: int, decode_tokens: int, context_tokens: int) -> float | None:
        """None for a batch unlike those that were seen."""
        figures = _of_sums(prompt_tokens, decode_tokens, context_tokens)
        now_s = self._fit.expected(figures)
        first_s = self._first.expected(figures) if self._first is not None else None
        if now_s is None or first_s is None:
            return now_s if now_s is not None else first_s
        return min(now_s, _CREEP * first_s)

    def estimate(self, chunks: Sequence[Chunk], sequences: float, context: float) -> tuple[float, float] | None:
        """Seconds, and their standard deviation, relative; also of a batch unlike those that were seen. None while nothing is known.

        Args:
            chunks: of prompts: tokens computed in this step, and tokens of the same prompt that were there before.
            sequences: that decode.
            context: tokens that these attend to, all together.
        """
        prompts = max(1.0, sum(new for new, _ in chunks) / self._most[0])
        decodes = max(1.0, sequences / self._most[1])
        beyond = max(prompts, decodes)
        found = self._at(chunks, sequences, context)
        if beyond > 1 and (found is None or found[1] > _LOST):
            fewer = [(new / prompts, before / prompts) for new, before in chunks]
            found = self._at(fewer, sequences / decodes, context / decodes)
            times = prompts if chunks else decodes**_GROWS
            return None if found is None else (found[0] * times, math.hypot(found[1], _GUESSED * math.log2(beyond)))
        return None if found is None else (found[0], math.hypot(found[1], _DOUBLED * math.log2(beyond)))

    def _at(self, chunks: Sequence[Chunk], sequences: float, context: float) -> tuple[float, float] | None:
        """A step says only the sums of its chunks, whose product is more than they attend to, each to itself; and what was learnt is of
        steps with one chunk and with several. So the attention is taken to be half-way between.
        """
        new, seen = sum(new for new, _ in chunks), sum(new + before for new, before in chunks)
        attention = (new * seen + sum(new * (new + before) for new, before in chunks)) / 2
        found = self._fit.estimate(_figures(new, sequences, seen + context, attention))
        return None if found is None else (found[0], math.hypot(_LEAST_ERROR, found[1]))


def _fit_of(kept: KeptFit) -> Fit:
    fit = Fit(_FIGURES, _FEW)
    fit.take(kept)
    return fit


def _counted(most: float) -> float:
    """Raises ``ValueError`` for what is no number of tokens."""
    if not math.isfinite(most) or most < 1:
        raise ValueError("its largest step has no tokens")
    return most


def _of_sums(prompt_tokens: float, decode_tokens: float, context_tokens: float) -> tuple[float, ...]:
    """Of a step as engines tell of it."""
    return _figures(prompt_tokens, decode_tokens, context_tokens, prompt_tokens * context_tokens)


def _figures(prompt_tokens: float, decode_tokens: float, context_tokens: float, attention: float) -> tuple[float, ...]:
    """The few: starting; weights against products (two bends); reading KV; attention of prompts; what any prompt costs besides.

    And experts, of which ever more are read: n tokens touch about 1 − e^(−n/32) of them where each goes to one of 32, 1 − e^(−n/10) where
    to one of ten.
    """
    tokens = prompt_tokens + decode_tokens
    return (
        1.0,
        tokens * 1e-3,
        max(0.0, tokens - 512) * 1e-3,
        max(0.0, tokens - 2048) * 1e-3,
        context_tokens * 1e-5,
        attention * 1e-8,
        1.0 if prompt_tokens else 0.0,
        -math.expm1(-tokens / 32),
        -math.expm1(-tokens / 10),
    )


class CopyModel:
    """Of hand-offs between engines on like links: their time by their bytes."""

    def __init__(self) -> None:
        self._fit = Fit(2)

    @property
    def learnt(self) -> int:
        return self._fit.learnt

    def learn(self, size_bytes: int, seconds: float) -> None:
        """A hand-off that took so long, on a link that is well."""
        self._fit.learn((1.0, size_bytes * 1e-9), seconds)

    def expected_s(self, size_bytes: int) -> float | None:
        """None for a size unlike those that were seen."""
        return self._fit.expected((1.0, size_bytes * 1e-9))

    def estimate(self, size_bytes: float) -> tuple[float, float] | None:
        """Also of a size unlike those that were seen: seconds, and their standard deviation, relative."""
        return self._fit.estimate((1.0, size_bytes * 1e-9))
