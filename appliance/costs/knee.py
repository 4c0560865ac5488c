"""The smallest prefill batch that saturates an engine, from the steps that it makes. Pure.

A step's time is flat while weights are read, and grows with its tokens once multiplying takes longer; the engine's rate rises and then
stays. More tokens in a step than it takes to get there only delay. The **knee** is the smallest batch with nine tenths of the highest rate.

``max(a, b·n)`` is the textbook's line. Neither part hides the other wholly, so that measured knees lie at two to four times its bend. What
is fitted here is any convex line over n: the sum of a start, a ramp (experts that are touched), hinges one octave apart, attention and
reading KV, none of them negative, by least squares on the relative errors of medians. Which shape it has is the steps' to say.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

SATURATED: Final = 0.9  # of the highest rate
ADVISED_GAIN: Final = 0.05
_PURE: Final = 0.05  # decode tokens per prompt token: of steps with more the time is not the prompt's
_SMALLEST: Final = 8  # tokens: what is smaller ends a prompt that came from elsewhere
_PER_OCTAVE: Final = 4  # groups
_LEAST_STEPS: Final = 3  # in a group: of two, a median is not robust
_COUNTED: Final = 32  # steps, after which a group weighs no more
_LEAST_GROUPS: Final = 6
_LEAST_OCTAVES: Final = 3.0
_RISES: Final = 1.035  # over the last octave: then the highest rate has not been seen
_RAMP: Final = 128.0  # tokens, by which all experts have been touched
_FIRST_HINGE: Final = 128
_GRID: Final = 16  # points per octave
_TRIALS: Final = 100  # resampled
_SURE: Final = 0.8  # of them show a limit, or there is none
_SWEEPS: Final = 400  # of the solver
_SETTLED: Final = 1e-9


class StepSeen(msgspec.Struct, frozen=True):
    """One step. ``context_tokens``: as in ``channel.Step``, what its requests have by its end, all together."""

    prompt_tokens: int
    decode_tokens: int
    context_tokens: int
    seconds: float


class Curve(msgspec.Struct, frozen=True):
    """What a step with fresh prompts takes, between the least and the most tokens that were seen."""

    weights: tuple[float, ...]
    hinges: tuple[int, ...]
    least: int
    most: int

    def seconds(self, tokens: float) -> float:
        """Of a step with so many prompt tokens and nothing else; beyond what was seen it is a guess."""
        return _dot(self.weights, _figures(tokens, tokens, self.hinges))

    def rate(self, tokens: float) -> float:
        """Prompt tokens per second, of steps with so many."""
        return tokens / self.seconds(tokens)


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """``low`` to ``high`` has the knee with 95 %, as far as chance goes."""

    tokens: int
    low: int
    high: int
    tokens_s: float  # at the knee
    best_tokens_s: float
    limit_tokens: int | None  # beyond it the rate is under nine tenths again (attention); None: not seen
    steps: int  # that it is known from
    curve: Curve


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """``budget``: of tokens per step, that should be set. ``gain``: of the rate, at the interval's lower end."""

    budget: int
    gain: float
    why: str


def usable(step: StepSeen) -> bool:
    """It prefills, and hardly decodes."""
    return step.prompt_tokens >= _SMALLEST and step.seconds > 0 and step.decode_tokens <= _PURE * step.prompt_tokens


def find(steps: Iterable[StepSeen], chance: random.Random, trials: int = _TRIALS) -> Knee | None:
    """None where the steps do not cover what is needed; ``missing`` says what that is.

    Steps of all kinds may be among them: those that hardly decode count, and outliers are outvoted. ``chance`` is for the interval.
    """
    groups = _grouped(steps)
    curve = _fitted([_middle(group) for group in groups])
    if curve is None or _lacking(groups, curve):
        return None
    rates = _rates(curve)
    tokens, best = _knee(rates), max(rates.values())
    tried = [found for _ in range(trials) if (found := _tried(groups, chance)) is not None]
    spread = sorted(map(_knee, tried))
    limits = [_limit(others) for others in tried if max(others) >= curve.most]  # of those that have seen as much
    limited = sum(limit is not None for limit in limits) > _SURE * len(limits)
    return Knee(
        tokens=tokens,
        low=min(tokens, _quantile(spread, 0.025, tokens)),
        high=max(tokens, _quantile(spread, 0.975, tokens)),
        tokens_s=curve.rate(tokens),
        best_tokens_s=best,
        limit_tokens=_limit(rates) if limited else None,
        steps=sum(map(len, groups)),
        curve=curve,
    )


def missing(steps: Iterable[StepSeen]) -> str | None:
    """What is lacking for ``find`` to find it, in words; None: nothing."""
    groups = _grouped(steps)
    return _lacking(groups, _fitted([_middle(group) for group in groups]))


def advice(knee: Knee, budget: int) -> Advice | None:
    """What to set instead of ``budget``, if that is sure to bring something."""
    if budget < knee.low:
        gain = knee.curve.rate(knee.low) / knee.curve.rate(max(budget, 1)) - 1
        why = f"steps of {budget:,} tokens do not saturate the engine, which takes {knee.tokens:,}"
        return Advice(budget=_round(knee.tokens), gain=gain, why=why) if gain > ADVISED_GAIN else None
    if knee.limit_tokens is not None and budget > knee.limit_tokens:
        why = f"steps of more than {knee.limit_tokens:,} tokens do no more per second, and make others wait"
        return Advice(budget=_round(knee.tokens), gain=0.0, why=why)
    return None


def ttft_s(curve: Curve, budget: int, prompt_tokens: float, requests_s: float) -> float | None:
    """Mean time to first token with steps of up to ``budget`` tokens; None if more comes than can be done.

    For prompts of at least one step this is DistServe's D + RD²/(2(1 − RD)) (Zhong et al., OSDI 2024, equation 1; an M/D/1 queue), with D
    what all of a prompt's steps take. Shorter prompts share a step with whatever has come during the one before: they wait for the rest of
    that one, and for others only as far as full steps hardly keep up, the less the more prompts a full step has.
    """
    full = _best_batch(curve, budget)
    load = requests_s * prompt_tokens / curve.rate(full)
    if load >= 1:
        return None
    step_s = _prompt_s(curve, _usual_batch(curve, budget, prompt_tokens, requests_s), prompt_tokens)
    rest_s = min(1.0, requests_s * step_s) * step_s / 2
    shared = max(1.0, full / prompt_tokens)
    backlog_s = load * load * _prompt_s(curve, full, prompt_tokens) / (2 * (1 - load) * shared)
    return step_s + rest_s + backlog_s


def _best_batch(curve: Curve, budget: int) -> float:
    """Within the budget. (Where the rate falls with larger ones that is by attention, which several prompts in a step have less of.)"""
    return max((*(tokens for tokens in _rates(curve) if tokens <= budget), float(budget)), key=curve.rate)


def _prompt_s(curve: Curve, batch: float, prompt_tokens: float) -> float:
    """What all of a prompt's steps take, where each has so many tokens."""
    return curve.seconds(batch) * max(1.0, prompt_tokens / batch)


def _usual_batch(curve: Curve, budget: int, prompt_tokens: float, requests_s: float) -> float:
    """Of a step: as much as comes during a step, at least a prompt, at most the budget."""
    batch = min(prompt_tokens, budget)
    for _ in range(64):
        grown = min(float(budget), max(batch, requests_s * prompt_tokens * curve.seconds(batch)))
        if grown <= batch * 1.001:
            break
        batch = grown
    return batch


# ---- the fit

_Group = list[StepSeen]


def _grouped(steps: Iterable[StepSeen]) -> list[_Group]:
    """Of like size, and with like context before them; in order of size."""
    found: dict[tuple[int, int], _Group] = defaultdict(list)
    for step in steps:
        if usable(step):
            tokens = step.prompt_tokens + step.decode_tokens
            ratio = max(1.0, step.context_tokens / tokens)
            found[int(_PER_OCTAVE * math.log2(tokens)), int(2 * math.log2(ratio))].append(step)
    return [group for _, group in sorted(found.items()) if len(group) >= _LEAST_STEPS]


def _middle(group: Sequence[StepSeen]) -> tuple[float, float, float, int]:
    """Tokens, context, seconds and number: of the steps of a group, the one in the middle."""
    tokens = statistics.median([step.prompt_tokens + step.decode_tokens for step in group])
    context = statistics.median([step.context_tokens for step in group])
    # Sizes differ a little within a group: time per token differs less than time.
    token_s = statistics.median([step.seconds / (step.prompt_tokens + step.decode_tokens) for step in group])
    return tokens, context, token_s * tokens, len(group)


def _figures(tokens: float, context: float, hinges: Sequence[int]) -> tuple[float, ...]:
    """Starting; touching experts; multiplying; the bends; reading KV; attention."""
    bends = [max(0.0, tokens - hinge) * 1e-3 for hinge in hinges]
    return (1.0, min(tokens, _RAMP) / _RAMP, tokens * 1e-3, *bends, context * 1e-5, tokens * context * 1e-8)


def _fitted(points: Sequence[tuple[float, float, float, int]]) -> Curve | None:
    if not points:
        return None
    least, most = min(point[0] for point in points), max(point[0] for point in points)
    hinges = tuple(_FIRST_HINGE << place for place in range(16) if least < _FIRST_HINGE << place < most)
    size = len(hinges) + 5
    products, targets = [[0.0] * size for _ in range(size)], [0.0] * size
    for tokens, context, seconds, count in points:
        weight = min(count, _COUNTED)
        row = [value / seconds for value in _figures(tokens, context, hinges)]
        for place, value in enumerate(row):
            targets[place] += weight * value
            line = products[place]
            for other, another in enumerate(row):
                line[other] += weight * value * another
    return Curve(tuple(_not_negative(products, targets)), hinges, round(least), round(most))


def _not_negative(products: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Least squares without negative weights, one weight after the other (Franc et al., 2005)."""
    size = len(targets)
    weights, slopes = [0.0] * size, [-target for target in targets]
    for _ in range(_SWEEPS):
        moved = 0.0
        for place in range(size):
            own = products[place][place]
            if own <= 0:
                continue
            new = max(0.0, weights[place] - slopes[place] / own)
            change = new - weights[place]
            if change:
                weights[place] = new
                moved = max(moved, change * change * own)
                line = products[place]
                slopes = [slope + change * value for slope, value in zip(slopes, line, strict=True)]
        if moved < _SETTLED:
            break
    return weights


# ---- what is read off it


def _rates(curve: Curve) -> dict[float, float]:
    """By tokens, over all that was seen."""
    points = max(2, int(_GRID * math.log2(max(2.0, curve.most / curve.least))))
    grid = [curve.least * (curve.most / curve.least) ** (place / points) for place in range(points)]
    return {tokens: curve.rate(tokens) for tokens in (*grid, float(curve.most))}


def _knee(rates: dict[float, float]) -> int:
    wanted = SATURATED * max(rates.values())
    before: tuple[float, float] | None = None
    for tokens, rate in rates.items():
        if rate >= wanted:
            if before is None:
                return round(tokens)
            share: float = (wanted - before[1]) / (rate - before[1])
            return round(before[0] * math.pow(tokens / before[0], share))
        before = tokens, rate
    raise AssertionError("the highest rate is one of them")


def _limit(rates: dict[float, float]) -> int | None:
    wanted = SATURATED * max(rates.values())
    last = next(tokens for tokens, rate in reversed(rates.items()) if rate >= wanted)
    return None if last == max(rates) else round(last)


def _lacking(groups: Sequence[_Group], curve: Curve | None) -> str | None:
    if curve is None:
        return f"no {_LEAST_STEPS} steps of like size have been seen that prefill and hardly decode"
    octaves = math.log2(curve.most / curve.least)
    sizes = {int(_PER_OCTAVE * math.log2(_middle(group)[0])) for group in groups}
    seen = f"only steps of {curve.least:,} to {curve.most:,} tokens have been seen"
    if octaves < _LEAST_OCTAVES:
        return f"{seen}: the largest must have eight times as many as the smallest"
    if len(sizes) < _LEAST_GROUPS:
        return f"{seen}, in {len(sizes)} sizes: it takes {_LEAST_GROUPS}"
    rates = _rates(curve)
    if curve.rate(curve.most) > _RISES * curve.rate(curve.most / 2):
        return f"the rate still rises at {curve.most:,} tokens, the most that a step has had: the knee lies beyond what was seen"
    if next(iter(rates.values())) >= SATURATED * max(rates.values()):
        return f"steps of {curve.least:,} tokens, the least that was seen, saturate the engine already"
    return None


def _tried(groups: Sequence[_Group], chance: random.Random) -> dict[float, float] | None:
    """The rates, had other groups been seen, and in them other steps."""
    chosen = chance.choices(groups, k=len(groups))
    curve = _fitted([_middle(chance.choices(group, k=len(group))) for group in chosen])
    return None if curve is None or curve.most <= curve.least else _rates(curve)


def _quantile(values: Sequence[int], share: float, default: int) -> int:
    return values[round(share * (len(values) - 1))] if values else default


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _round(tokens: int) -> int:
    """Up, to a figure that one would write down."""
    return math.ceil(tokens / 64) * 64
