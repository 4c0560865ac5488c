"""The prefill batch curve of an engine: how fast steps of each size are, and the smallest that saturates it. Pure."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Final

from appliance.records import EngineSnapshot, KneeReading, Role, StepReading
from web import words
from web.contexts import Context

_PURE: Final = 0.05  # decode tokens per prompt token, as for the knee
_SMALLEST: Final = 8  # tokens
_DOTS: Final = 400
_ROUND: Final = 64  # what a budget is set to is a multiple of it
_WORTH: Final = 0.05


class DotContext(Context, frozen=True, kw_only=True):
    """One step; in percent of the picture."""

    x: str
    y: str


class GridContext(Context, frozen=True, kw_only=True):
    """A line of the grid, and what it says."""

    at: str
    label: str


class BatchCurveContext(Context, frozen=True, kw_only=True):
    """One engine in ``curves.html``. Positions in percent; ``line`` is a path in a box of 1000 by 1000."""

    name: str
    drawn: bool
    sentence: str
    advice: str | None
    setting: str | None
    odd: bool  # the budget that is set is no good one
    dots: tuple[DotContext, ...]
    line: str | None
    low_x: str | None
    width: str | None  # of the interval
    knee_x: str | None
    budget_x: str | None
    budget: str
    columns: tuple[GridContext, ...]
    rows: tuple[GridContext, ...]
    spoken: str


class CurvesContext(Context, frozen=True, kw_only=True):
    """``curves.html``."""

    curves: tuple[BatchCurveContext, ...]


class _Scales:
    """Tokens of a step on a logarithmic axis, tokens per second on a straight one."""

    def __init__(self, sizes: Sequence[float], rates: Sequence[float]) -> None:
        self.first = math.floor(math.log2(min(sizes)))
        self.last = max(self.first + 1, math.ceil(math.log2(1.05 * max(sizes))))
        self.top = 1.1 * max(rates)

    def x(self, tokens: float) -> float:
        return 100 * (math.log2(tokens) - self.first) / (self.last - self.first)

    def y(self, rate: float) -> float:
        return 100 * (1 - rate / self.top)

    def columns(self) -> tuple[GridContext, ...]:
        every = 2 if self.last - self.first > 6 else 1
        powers = range(self.first + 1, self.last, every)
        return tuple(GridContext(at=f"{self.x(2**power):.1f}%", label=f"{2**power:,}") for power in powers)

    def rows(self) -> tuple[GridContext, ...]:
        step = 10 ** math.floor(math.log10(self.top))
        step = next(size for size in (step / 5, step / 2, step, 2 * step) if self.top / size <= 5 or size == 2 * step)
        count = int(self.top / step)
        return tuple(
            GridContext(at=f"{self.y(step * number):.1f}%", label=words.number(step * number))
            for number in range(1, count + 1)
        )


def curve(engine: EngineSnapshot, knee: KneeReading, steps: Sequence[StepReading]) -> BatchCurveContext:
    """What is known of it."""
    pure = [one for one in steps if _usable(one)]
    sizes = [float(one.prompt_tokens) for one in pure] + [float(tokens) for tokens, _ in knee.curve]
    rates = [one.prompt_tokens / one.seconds for one in pure] + [rate for _, rate in knee.curve]
    sentence, advice, setting = _said(engine, knee)
    if not sizes:
        return _undrawn(engine, sentence)
    budget = engine.token_budget
    scales = _Scales([*sizes, *([budget] if budget else [])], rates)
    low, high = knee.low, knee.high
    return BatchCurveContext(
        name=engine.name,
        drawn=True,
        sentence=sentence,
        advice=advice,
        setting=setting,
        odd=setting is not None,
        dots=tuple(_dot(one, scales) for one in pure[-_DOTS:]),
        line=_path(knee, scales),
        low_x=None if low is None else f"{scales.x(low):.2f}%",
        width=None if low is None or high is None else f"{max(0.3, scales.x(high) - scales.x(low)):.2f}%",
        knee_x=None if knee.tokens is None else f"{scales.x(knee.tokens):.2f}%",
        budget_x=None if not budget else f"{scales.x(budget):.2f}%",
        budget=words.count(budget),
        columns=scales.columns(),
        rows=scales.rows(),
        spoken=f"Prompt tokens per second against prompt tokens of a step, of {engine.name}. {sentence}",
    )


def _usable(step: StepReading) -> bool:
    return step.prompt_tokens >= _SMALLEST and step.seconds > 0 and step.decode_tokens <= _PURE * step.prompt_tokens


def _dot(step: StepReading, scales: _Scales) -> DotContext:
    return DotContext(x=f"{scales.x(step.prompt_tokens):.2f}%", y=f"{scales.y(step.prompt_tokens / step.seconds):.2f}%")


def _path(knee: KneeReading, scales: _Scales) -> str | None:
    points = [f"{10 * scales.x(tokens):.1f} {10 * scales.y(rate):.1f}" for tokens, rate in knee.curve]
    return f"M{'L'.join(points)}" if points else None


def _said(engine: EngineSnapshot, knee: KneeReading) -> tuple[str, str | None, str | None]:
    """A sentence, advice and setting."""
    if knee.tokens is None:
        return f"Its knee is not known yet: {(knee.missing or 'no steps have been seen').rstrip('.')}.", None, None
    sentence = (
        f"Steps of {knee.tokens:,} prompt tokens (95% interval: {knee.low or 0:,} to {knee.high or 0:,}) reach nine tenths of "
        f"the highest rate, {words.number(knee.best_tokens_s)} tokens/s, by {words.count(knee.steps)} steps."
    )
    return sentence, *_advice(engine, knee)


def _advice(engine: EngineSnapshot, knee: KneeReading) -> tuple[str | None, str | None]:
    """Only where it is sure to bring something: as ``pd-appliance tune`` has it."""
    budget = engine.token_budget
    if budget is None or knee.tokens is None:
        return None, None
    section = "engine.prefill" if engine.role is Role.PREFILL else "engine"
    to_set = max(_ROUND, round(knee.tokens / _ROUND) * _ROUND)
    setting = f'[{section}] args = ["--max-num-batched-tokens", "{to_set}"]'
    if knee.low is not None and budget < knee.low and (gain := _gain(budget, knee)) > _WORTH:
        return (
            f"Its budget of {budget:,} is too small: more tokens in a step would bring {gain:.0%} more per second.",
            setting,
        )
    if knee.limit_tokens is not None and budget > knee.limit_tokens:
        return (
            f"Its budget of {budget:,} is too large: steps of more than {knee.limit_tokens:,} tokens do no more per second, "
            "and make others wait.",
            setting,
        )
    return f"Its budget of {budget:,} needs no change.", None


def _gain(budget: int, knee: KneeReading) -> float:
    """Of the rate, at the interval's lower end; by the line."""
    before, after = _rate(knee, budget), _rate(knee, knee.low or budget)
    return after / before - 1 if before and after else 0.0


def _rate(knee: KneeReading, tokens: int) -> float | None:
    """By the line; beyond its ends, that of its ends."""
    if not knee.curve:
        return None
    sizes = [math.log2(size) for size, _ in knee.curve]
    at = min(max(math.log2(max(1, tokens)), sizes[0]), sizes[-1])
    if len(sizes) == 1:
        return knee.curve[0][1]
    place = min(max(1, bisect.bisect_left(sizes, at)), len(sizes) - 1)
    share = (at - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
    return knee.curve[place - 1][1] * (1 - share) + knee.curve[place][1] * share


def _undrawn(engine: EngineSnapshot, sentence: str) -> BatchCurveContext:
    return BatchCurveContext(
        name=engine.name,
        drawn=False,
        sentence=sentence,
        advice=None,
        setting=None,
        odd=False,
        dots=(),
        line=None,
        low_x=None,
        width=None,
        knee_x=None,
        budget_x=None,
        budget=words.count(engine.token_budget),
        columns=(),
        rows=(),
        spoken="",
    )
