"""What a step takes on the hardware at hand, learnt from the steps that engines make.

A step's time is nearly linear in a few figures of its batch; which line is learnt by weighted least squares, old steps counting less and
less (``line.py``). A batch unlike those that were seen has no expectation, rather than a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.costs.line import Fit, KeptFit

FORM: Final = 3
"""Of the figures. With others, what was kept of a fit means something else."""
_FIGURES: Final = 9
_FEW: Final = 7  # of them, by which it is told who is slow; of a mixture of experts, by all
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
_SIGMAS: Final = 3.0  # of an estimate's error, beyond which it is not the estimate that is wrong
Chunk = tuple[float, float]


class KeptModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a model knows. ``most``: of prompts' tokens, sequences, and context in one step. ``first``: see ``StepModel.establish``."""

    fit: KeptFit
    most: tuple[float, float, float]
    first: KeptFit | None = None
    established: float | None = None  # Unix seconds


class StepModel:
    """Of all engines that run one model on like hardware with like arguments.

    What was learnt serves two questions. Who is slow is told only by batches like those that were seen, and by few figures, so that one
    that has grown because the engine is slow is still like them (``expected_s``). A plan asks about others, too, by all figures, and is
    told how far off the answer may be (``estimate``).
    """

    def __init__(self, kept: KeptModel | None = None, experts: bool = False) -> None:
        """``kept``: of an earlier process. ``experts``: it runs a mixture of them. Raises ``ValueError`` if it can't be that."""
        self._few = _FIGURES if experts else _FEW
        self._first: Fit | None = None  # what was usual
        self.established: float | None = None
        """When what it knew was taken as usual, in Unix seconds."""
        self._tried = kept is not None
        self.forget()
        if kept is not None:
            self._fit.take(kept.fit)
            self._most = list(map(_counted, kept.most))
            self.established = kept.established
            self._first = self._of(kept.first) if kept.first is not None else None

    def forget(self) -> None:
        """Know nothing any more: it was learnt from an engine that is not well."""
        self._fit = Fit(_FIGURES, self._few)
        self._most = [1.0, 1.0, 1.0]
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
            fit=self._fit.kept(),
            most=(self._most[0], self._most[1], self._most[2]),
            first=first,
            established=self.established,
        )

    def establish(self, unix_s: float) -> None:
        """What it knows now bounds what it may come to expect: from now on, steps that get slower and slower, each day by too little to be
        told from noise, are learnt up to ``_CREEP`` only, and beyond that they are slow.
        """
        self._first, self.established = self._of(self._fit.kept()), unix_s
        self._now_s = self._first_s = 0.0

    def _of(self, kept: KeptFit) -> Fit:
        fit = Fit(_FIGURES, self._few)
        fit.take(kept)
        return fit

    def learn(
        self, prompt_tokens: int, decode_tokens: int, context_tokens: int, seconds: float, attended: int = 0
    ) -> None:
        """A step that took so long, on an engine that is well. Of what it computed: as ``channel.Step`` has it."""
        figures = _figures(prompt_tokens, decode_tokens, context_tokens, attended)
        self._fit.learn(figures, seconds)
        if self._first is not None and self._fit.learnt % _COMPARED == 0:
            self._compare(self._first, figures)
        batch = prompt_tokens, decode_tokens, context_tokens
        self._most = [max(most, figure) for most, figure in zip(self._most, batch, strict=True)]

    def _compare(self, first: Fit, figures: Sequence[float]) -> None:
        now_s, first_s = self._fit.expected(figures), first.expected(figures, familiar=True)
        if now_s is not None and first_s is not None:
            self._now_s, self._first_s = _FADES * self._now_s + now_s, _FADES * self._first_s + first_s

    def expected_s(
        self, prompt_tokens: int, decode_tokens: int, context_tokens: int, attended: int = 0
    ) -> float | None:
        """None for a batch unlike those that were seen."""
        figures = _figures(prompt_tokens, decode_tokens, context_tokens, attended)
        now_s = self._fit.expected(figures)
        first_s = self._first.expected(figures, familiar=True) if self._first is not None else None
        if now_s is None or first_s is None:
            return now_s if now_s is not None else first_s
        return min(now_s, _CREEP * first_s)

    def at_most_s(self, prompt_tokens: int, decode_tokens: int, context_tokens: int, attended: int = 0) -> float | None:
        """Of a batch of which nothing is expected: what it takes at the very most, on an engine that is well. None where it is larger than
        any that was seen, in prompts, sequences or context: there the line may bend.
        """
        batch = prompt_tokens, decode_tokens, context_tokens
        if any(figure > most for figure, most in zip(batch, self._most, strict=True)):
            return None
        found = self._fit.estimate(_figures(*batch, attended))
        return None if found is None else found[0] * (1 + _SIGMAS * math.hypot(_LEAST_ERROR, found[1]))

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
        new, seen = sum(new for new, _ in chunks), sum(new + before for new, before in chunks)
        attended = sum(new * (before + (new + 1) / 2) for new, before in chunks)
        found = self._fit.estimate(_figures(new, sequences, seen + context, attended))
        return None if found is None else (found[0], math.hypot(_LEAST_ERROR, found[1]))


def _counted(most: float) -> float:
    """Raises ``ValueError`` for what is no number of tokens."""
    if not math.isfinite(most) or most < 1:
        raise ValueError("its largest step has no tokens")
    return most


def _figures(prompt_tokens: float, decode_tokens: float, context_tokens: float, attended: float) -> tuple[float, ...]:
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
        attended * 1e-8,
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
