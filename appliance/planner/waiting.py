"""How long prompts wait for engines that take several of them at once. Pure.

A step takes all prompts that wait, up to its token budget, and many take less time together than one by one: so a pool serves the faster
the more wait, and is busy long before it is saturated. Requests in the pool are therefore a birth–death chain whose rate of service
depends on their number; the time of a step is that of the batch at that number. Services and gaps are not exponential: in heavy traffic
the number's tail falls as if ln ρ were divided by (ca² + cs²)/2, their squared coefficients of variation (Kingman, 1961), so each
ratio of the chain is raised to the power 2/(ca² + cs²). With batches of one this is M/G/c; DistServe's formula (OSDI '24, section 3.1),
TTFT = D + RD²/(2(1 − RD)), is its case of one engine, equal prompts and no batching.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

_MOST: Final = 4_000  # requests in a pool that are looked at
_NEGLIGIBLE: Final = -20.0  # logarithm, against the likeliest
_FINE: Final = 32  # of the states beyond one for each engine, so many parts of their number are told apart
_LEVEL: Final = 1e-9  # logarithm of a ratio that is 1
_REGULAR: Final = 0.1  # ca² + cs² of what is as regular as can be


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of ``engines`` and what comes to it. ``batch_s``: of a step with so many prompts."""

    rate_s: float
    engines: int
    most: float  # prompts in a step; below 1 where one takes several steps
    batch_s: Callable[[float], float]
    burst: float  # squared coefficient of variation of the gaps between them
    spread: float  # and of their lengths
    idle_s: float = 0.0  # that the step under way has still to go where no prompt is in it


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of it. ``shares``: how likely so many seconds are, until a mean prompt is computed."""

    load: float
    mean_s: float
    shares: tuple[tuple[float, float], ...]

    def within(self, target_s: float, offsets_s: Sequence[float]) -> float:
        """Share that is done in time, of prompts that take so much longer or less than a mean one."""
        return sum(self._within(target_s - offset_s) for offset_s in offsets_s) / len(offsets_s)

    def _within(self, target_s: float) -> float:
        """Each state stands for times around it: a share of one that is nearly in time is."""
        return sum(share * min(1.0, max(0.0, 0.5 + (target_s - at_s) / (at_s or 1.0))) for at_s, share in self.shares)


class _States(msgspec.Struct, frozen=True):
    """Neighbours in the chain, taken for one: ``number`` in the pool, in their middle, and how likely they are together, up to a factor."""

    number: float
    weight: float


def waits(line: Line) -> Waits:
    """Of a pool in the long run; where more comes than it can do, nobody is served in time."""
    load = line.rate_s * line.batch_s(line.most) / (line.engines * line.most)
    if load >= 1:
        return Waits(load=load, mean_s=math.inf, shares=())
    states = _balanced(line, _states(line))
    total = math.fsum(state.weight for state in states)
    times = [(_until_done_s(line, state.number), state.weight / total) for state in states]
    return Waits(load=load, mean_s=math.fsum(at_s * share for at_s, share in times), shares=tuple(times))


def _states(line: Line) -> list[_States]:
    """The chain: each number up to as many as there are engines alone, then the more together the more there are.

    Few may be less likely than more, where steps of few can't keep up.
    """
    power = 2 / max(_REGULAR, line.burst + line.spread)
    logarithm = highest = 0.0  # of the last state so far; of all
    found = [(0.0, 0.0)]
    number = 1
    while number < _MOST:
        count = 1 + max(0, number - line.engines) // _FINE
        middle = number + (count - 1) / 2
        ratio = math.log(line.rate_s / _service_s(line, middle)) * (1.0 if number <= line.engines else power)
        found.append((middle, logarithm + _logarithm_of_sum(ratio, count)))
        logarithm += count * ratio
        highest = max(highest, logarithm)
        number += count
        if number > line.engines and ratio < 0 and logarithm < highest + _NEGLIGIBLE:
            break
    peak = max(weight for _, weight in found)
    return [_States(middle, math.exp(weight - peak)) for middle, weight in found]


def _logarithm_of_sum(ratio: float, count: int) -> float:
    """Of so many states, each likelier than the one before by ``ratio``, a logarithm too; the one before the first has weight 1."""
    steep = abs(ratio)
    largest = ratio * (count if ratio > 0 else 1)
    return largest + math.log(math.expm1(-steep * count) / math.expm1(-steep) if steep > _LEVEL else count)


def _balanced(line: Line, states: list[_States]) -> list[_States]:
    """States in which all engines work, so much likelier that as many leave as come: raising ratios to a power has changed that."""
    few, many = states[: line.engines], states[line.engines :]
    coming, going = math.fsum(_flow(line, state) for state in few), -math.fsum(_flow(line, state) for state in many)
    times = coming / going if coming > 0 and going > 0 else 1.0
    return [*few, *(_States(state.number, times * state.weight) for state in many)]


def _flow(line: Line, state: _States) -> float:
    return state.weight * (line.rate_s - (_service_s(line, state.number) if state.number else 0.0))


def _batch(line: Line, each: float) -> float:
    """Prompts in the step under way, of an engine that has so many: between steps about as many have come as were in the last one."""
    return min(line.most, max(1.0, each / 2))


def _service_s(line: Line, number: float) -> float:
    """Prompts per second of a pool with so many."""
    each = max(1.0, number / line.engines)
    batch = _batch(line, each)
    return min(number, line.engines) * batch / line.batch_s(batch)


def _until_done_s(line: Line, before: float) -> float:
    """For one that finds so many in the pool: what is left of the step under way, and the steps until it is done with those before it.

    Whoever comes until the next step begins is in it, too, as far as the budget goes: a step is over for all of its prompts at once.
    """
    if before < line.engines:
        return line.idle_s + line.batch_s(min(1.0, line.most)) / min(1.0, line.most)
    each = before / line.engines
    batch = _batch(line, each)
    left_s = line.batch_s(batch) / 2 * (1 + line.spread / max(1.0, batch))  # long steps are met more often
    place = max(0.0, each - batch) + 1
    together = place + line.rate_s / line.engines * left_s
    if together <= line.most:
        return left_s + line.batch_s(together)
    steps = place / line.most + max(0.0, 1 - 1 / line.most) / 2  # that are begun until it is done, mean
    return left_s + max(1.0, steps) * line.batch_s(line.most)
