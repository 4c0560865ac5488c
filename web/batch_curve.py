"""The prefill batch curve of an engine: how fast steps of each size are, and the smallest that saturates it. Pure."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Final

from appliance.records import EngineSnapshot, KneeReading, Role, StepReading
from web import plot, words
from web.contexts import Context
from web.plot import Axis, DrawnContext, PlotContext

_PURE: Final = 0.05  # decode tokens per prompt token, as for the knee
_SMALLEST: Final = 8  # tokens
_MARKS: Final = 400
_HEADROOM: Final = 1.1  # above the highest rate
_ROUND: Final = 64  # what a budget is set to is a multiple of it
_WORTH: Final = 0.05


class BatchCurveContext(Context, frozen=True, kw_only=True):
    """One engine in ``curves.html``."""

    name: str
    plot: PlotContext | None
    sentence: str
    advice: str | None
    setting: str | None
    odd: bool  # the budget that is set is no good one
    budget: str | None  # that is set


class CurvesContext(Context, frozen=True, kw_only=True):
    """``curves.html``."""

    curves: tuple[BatchCurveContext, ...]


def curve(engine: EngineSnapshot, knee: KneeReading, steps: Sequence[StepReading]) -> BatchCurveContext:
    """What is known of it."""
    sentence, advice, setting = _said(engine, knee)
    return BatchCurveContext(
        name=engine.name,
        plot=_plot(engine, knee, [one for one in steps if _usable(one)], sentence),
        sentence=sentence,
        advice=advice,
        setting=setting,
        odd=setting is not None,
        budget=None if engine.token_budget is None else words.count(engine.token_budget),
    )


def _plot(engine: EngineSnapshot, knee: KneeReading, pure: Sequence[StepReading], sentence: str) -> PlotContext | None:
    """Tokens per second by tokens of a step; None where nothing is known of either."""
    seen = [(float(one.prompt_tokens), one.prompt_tokens / one.seconds) for one in pure]
    points = [*seen, *((float(tokens), rate) for tokens, rate in knee.curve)]
    budget = engine.token_budget
    x = plot.around([size for size, _ in points] + ([budget] if budget and points else []))
    if x is None:
        return None
    y = Axis(0.0, _HEADROOM * max(rate for _, rate in points))
    line = plot.line([(x.x(tokens), y.y(rate)) for tokens, rate in knee.curve])
    at_budget = plot.line([(x.x(budget), 0), (x.x(budget), plot.HEIGHT)]) if budget else ""
    marks = plot.uprights((x.x(size), y.y(rate)) for size, rate in seen[-_MARKS:])
    drawn = (("steps-prompt", marks), ("as-expected", line), ("budget", at_budget))
    return PlotContext(
        label=f"Prompt tokens per second against prompt tokens of a step, of {engine.name}. {sentence}",
        x_name="prompt tokens in the step",
        y_name="prompt tokens/s",
        x_ticks=plot.x_ticks(x, [(value, words.count(round(value))) for value in x.ticks()]),
        y_ticks=plot.y_ticks(y, [(value, words.number(value)) for value in y.ticks()]),
        drawn=tuple(DrawnContext(kind=kind, d=d) for kind, d in drawn if d),
        band=plot.knee_band(x, knee),
    )


def _usable(step: StepReading) -> bool:
    return step.prompt_tokens >= _SMALLEST and step.seconds > 0 and step.decode_tokens <= _PURE * step.prompt_tokens


def _said(engine: EngineSnapshot, knee: KneeReading) -> tuple[str, str | None, str | None]:
    """A sentence, advice and setting."""
    if knee.tokens is None:
        return f"Its knee is not known yet: {(knee.missing or 'no steps have been seen').rstrip('.')}.", None, None
    sentence = (
        f"Steps of {knee.tokens:,} prompt tokens (95 % interval: {knee.low or 0:,} to {knee.high or 0:,}) reach nine tenths of "
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
            f"Its budget of {budget:,} is too small: more tokens in a step would bring {words.percent(gain)} more per second.",
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
