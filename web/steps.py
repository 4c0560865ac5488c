"""An engine's steps: how long they take by how much is in them, against what such steps take, and what saturates it. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from appliance.records import KneeReading, StepReading
from web import plot, words
from web.contexts import Context, slow
from web.plot import Axis, DrawnContext, PlotContext

_PER_OCTAVE: Final = 2  # sizes, of a line and of the table
_RATIO: Final = Axis(0.25, 4.0, logarithmic=True)
_RATIOS: Final = ((0.25, "¼"), (0.5, "½"), (1.0, "1"), (2.0, "2"), (4.0, "4"))
_LEAST_S: Final = 10.0  # that an axis of time is long
_ROWS: Final = 12
_Point = tuple[float, float]


class SizeContext(Context, frozen=True, kw_only=True):
    """Steps of like size: a row of the table."""

    kind: str
    tokens: str
    steps: str
    took: str
    expected: str
    ratio: str


class StepsContext(Context, frozen=True, kw_only=True):
    """``engine_steps.html``."""

    count: int
    which: str  # of them are shown
    durations: PlotContext | None
    ratios: PlotContext | None  # None while nothing is expected yet
    sizes: tuple[SizeContext, ...]
    knee: str  # what saturates it, in words, or why that is not known
    knee_known: bool
    ratio: str  # measured over expected, the median of the latest
    late: bool  # they take much longer than they should


def steps(readings: Sequence[StepReading], knee: KneeReading | None) -> StepsContext:
    """Of the latest steps, oldest first. ``knee``: None while it is not known yet whether there is one."""
    prompts = [one for one in readings if one.prompt_tokens]
    decodes = [one for one in readings if not one.prompt_tokens]
    ratio = _median_ratio(readings)
    return StepsContext(
        count=len(readings),
        which=_which(len(prompts), len(decodes)),
        durations=_durations(prompts, decodes, knee),
        ratios=_ratios(prompts, decodes),
        sizes=tuple(_rows("prompt", prompts) + _rows("decode", decodes)),
        knee=_knee(knee),
        knee_known=knee is not None and knee.tokens is not None,
        ratio=words.DASH if ratio is None else f"{ratio:.2f}",
        late=slow(ratio),
    )


def _which(prompts: int, decodes: int) -> str:
    if prompts and decodes:
        return f"the last {words.count(prompts)} with prompt tokens, the last {words.count(decodes)} without"
    return f"the last {words.count(prompts or decodes)}, all {'with' if prompts else 'without'} prompt tokens"


def tokens(step: StepReading) -> int:
    return step.prompt_tokens + step.decode_tokens


def _durations(
    prompts: Sequence[StepReading], decodes: Sequence[StepReading], knee: KneeReading | None
) -> PlotContext | None:
    both = [*prompts, *decodes]
    x = plot.around(map(tokens, both))
    y = plot.around(seconds for step in both for seconds in (step.seconds, step.expected_s or 0.0))
    if x is None or y is None:
        return None

    def at(step: StepReading) -> _Point:
        return x.x(tokens(step)), y.y(step.seconds)

    lines = [("expected-prompt", _expected(prompts)), ("expected-decode", _expected(decodes))]
    return PlotContext(
        label=_said(prompts, decodes),
        x_name="tokens in the step",
        y_name="duration",
        x_ticks=plot.x_ticks(x, [(value, words.count(round(value))) for value in x.ticks()]),
        y_ticks=plot.y_ticks(y, [(value, words.setting(value)) for value in y.ticks()]),
        drawn=(
            *_marks(at, prompts, decodes),
            *(
                DrawnContext(kind=kind, d=plot.line([(x.x(size), y.y(took)) for size, took in points]))
                for kind, points in lines
                if len(points) > 1
            ),
        ),
        band=plot.knee_band(x, knee),
    )


def _marks(
    at: Callable[[StepReading], _Point], prompts: Sequence[StepReading], decodes: Sequence[StepReading]
) -> tuple[DrawnContext, ...]:
    return (
        DrawnContext(kind="steps-decode", d=plot.dots(map(at, decodes))),
        DrawnContext(kind="steps-prompt", d=plot.uprights(map(at, prompts))),
    )


def _sized(readings: Sequence[StepReading]) -> list[list[StepReading]]:
    """Of like size, by size."""
    groups: dict[int, list[StepReading]] = defaultdict(list)
    for one in readings:
        groups[math.floor(_PER_OCTAVE * math.log2(tokens(one)))].append(one)
    return [group for _, group in sorted(groups.items())]


def _expected(readings: Sequence[StepReading]) -> list[_Point]:
    """The fitted model, where steps were made: by size, the median of what they should have taken with the context that they had."""
    found = []
    for group in _sized(readings):
        known = [(tokens(one), one.expected_s) for one in group if one.expected_s is not None]
        if known:
            found.append((statistics.median(size for size, _ in known), statistics.median(took for _, took in known)))
    return found


def _knee(knee: KneeReading | None) -> str:
    if knee is None:
        return "What saturates it is being looked for."
    if knee.tokens is None:
        return f"What saturates it is not known: {knee.missing or 'too little has been seen'}."
    low, high = words.count(knee.low), words.count(knee.high)
    limit = f" Beyond {words.count(knee.limit_tokens)} the rate falls again." if knee.limit_tokens else ""
    return (
        f"Prompt steps of {words.count(knee.tokens)} tokens saturate it ({low} to {high}, 95 %): "
        f"{words.number(knee.tokens_s)} of at most {words.number(knee.best_tokens_s)} prompt tokens/s.{limit}"
    )


def _said(prompts: Sequence[StepReading], decodes: Sequence[StepReading]) -> str:
    parts = [
        f"{words.several(len(group), f'{name} step')}, {words.duration(min(took))} to {words.duration(max(took))}"
        for name, group, took in (
            (name, group, [one.seconds for one in group]) for name, group in (("prompt", prompts), ("decode", decodes))
        )
        if group
    ]
    return f"Duration of steps by their tokens: {'; '.join(parts)}. The table below has the same by size."


# ---- measured over expected


def _ratios(prompts: Sequence[StepReading], decodes: Sequence[StepReading]) -> PlotContext | None:
    both = [one for one in (*prompts, *decodes) if one.expected_s and one.time is not None]
    if not both:
        return None
    last = max(one.time or 0.0 for one in both)
    length_s = max(_LEAST_S, last - min(one.time or 0.0 for one in both))
    x = Axis(-length_s, 0.0)

    def at(step: StepReading) -> _Point:
        return x.x((step.time or last) - last), _RATIO.y(step.seconds / (step.expected_s or step.seconds))

    known = [[one for one in group if one.expected_s and one.time is not None] for group in (prompts, decodes)]
    ratio = _median_ratio(both)
    return PlotContext(
        label=f"Measured over expected duration of the last {words.several(len(both), 'step')}: "
        f"{words.DASH if ratio is None else format(ratio, '.2f')} in the middle.",
        x_name="before the last step",
        y_name="times what is expected",
        x_ticks=plot.x_ticks(x, [(value, _back(-value)) for value in x.ticks()]),
        y_ticks=plot.y_ticks(_RATIO, _RATIOS),
        drawn=(
            *_marks(at, *known),
            DrawnContext(kind="as-expected", d=plot.line([(0, _RATIO.y(1.0)), (plot.WIDTH, _RATIO.y(1.0))])),
        ),
        band=None,
    )


def _back(seconds: float) -> str:
    """Ticks of an axis that is some minutes long at most."""
    return f"{abs(seconds):.0f} s" if seconds <= 180 else words.age(seconds)


def _median_ratio(readings: Sequence[StepReading]) -> float | None:
    known = [one.seconds / one.expected_s for one in readings if one.expected_s]
    return statistics.median(known) if known else None


# ---- the same as a table


def _rows(kind: str, readings: Sequence[StepReading]) -> list[SizeContext]:
    return [_row(kind, group) for group in _sized(readings)][-_ROWS:]


def _row(kind: str, group: Sequence[StepReading]) -> SizeContext:
    least, most = min(map(tokens, group)), max(map(tokens, group))
    expected = [one.expected_s for one in group if one.expected_s is not None]
    ratio = _median_ratio(group)
    return SizeContext(
        kind=kind,
        tokens=words.count(least) if least == most else f"{words.count(least)}–{words.count(most)}",
        steps=words.count(len(group)),
        took=words.duration(statistics.median(one.seconds for one in group)),
        expected=words.duration(statistics.median(expected) if expected else None),
        ratio=words.DASH if ratio is None else f"{ratio:.2f}",
    )
