"""What a pool of engines makes of the traffic: engines that only prefill, that only decode, and that do both. Pure.

Decoding: whoever decodes gets a token in every step, and steps take the longer the more do. So the number that decodes at once is a fixed
point, n = rate · output tokens · step(n). Around it the number varies as in a processor-sharing queue whose speed depends on its number
(insensitive to the answers' distribution): its variance is that of a Poisson number, n, divided by 1 − e, e being by how many per cent
steps get longer where n is a per cent larger. ``answers.py`` says how answers fare whose engine computes prompts, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec

from appliance.planner.answers import Answers, in_time
from appliance.planner.node import Clock, Engines, Lengths
from appliance.planner.waiting import Line, Waits, waits
from appliance.records import Role

_ROUNDS: Final = 60
_CLOSE: Final = 1e-4
_WITHIN_LIFE: Final = 0.74
"""Of the variance, left of a mean over a request's life: 2/e, as numbers change within about a life."""
_MANY: Final = 4.0  # prompts in a step: of these a tenth of one is little
_KV_FULL: Final = 0.95  # beyond it requests wait for blocks


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """How one engine decodes. ``at_once`` None: there is no end to it. ``itl_s`` is a mean."""

    at_once: float | None
    itl_s: float
    itl_share: float  # of requests whose mean time per output token is within the target
    kv_load: float


class Decoders:
    """Engines that only decode."""

    def __init__(self, clock: Clock, engines: Engines, count: int, lengths: Lengths) -> None:
        self._engines, self._count, self._lengths = engines, count, lengths
        self._most = _most(engines, Role.DECODE, lengths)
        self._step_s = lru_cache(None)(lambda number: clock.seconds((), number, number * lengths.context))

    @property
    def most_rate_s(self) -> float:
        """With all places taken."""
        return self._rate_s(self._most)

    def rate_in_time_s(self, target_s: float) -> float:
        """At which the mean time from token to token is the target, or all places are taken. 0 where one sequence alone is late."""
        if self._step_s(1.0) > target_s:
            return 0.0
        return self._rate_s(_largest(lambda number: self._step_s(number) <= target_s, self._most))

    def at(self, rate_s: float, target_s: float) -> Decoding:
        """In the steady state."""
        per_s, lengths, step_s = rate_s / self._count, self._lengths, self._step_s
        number = _settled(lambda number: per_s * lengths.answer * step_s(beside(number, self._count)), self._most)
        if number is None:
            kv_load = _kv(self._engines, self._most, lengths)
            return Decoding(at_once=None, itl_s=step_s(self._most), itl_share=0.0, kv_load=kv_load)
        at = beside(number, self._count)
        slope_s = (step_s(1.1 * at) - step_s(at)) / (0.1 * at)
        grows = min(0.95, number * slope_s / step_s(at))
        variance = _WITHIN_LIFE * slope_s**2 * varies(number, self._count) / (1 - grows)
        return Decoding(
            at_once=number,
            itl_s=step_s(at),
            itl_share=in_time(target_s, step_s(at), variance),
            kv_load=_kv(self._engines, number, lengths),
        )

    def _rate_s(self, number: float) -> float:
        return self._count * number / (self._lengths.answer * self._step_s(number))


class Prefillers:
    """Engines that only prefill. ``burst``: coefficient of variation of the gaps between requests."""

    def __init__(self, clock: Clock, engines: Engines, count: int, lengths: Lengths, burst: float) -> None:
        self._count = count
        self._most = engines.settings[Role.PREFILL].token_budget / lengths.prompt
        self._burst, self._spread = burst**2, lengths.spread
        self._batch_s = lru_cache(None)(lambda prompts: clock.seconds(lengths.batch(prompts)))

    @property
    def most_rate_s(self) -> float:
        """With all steps full."""
        return self._count * self._most / self._batch_s(self._most)

    def waits(self, rate_s: float) -> Waits:
        """Of prompts, until they are computed."""
        line = Line(
            rate_s=rate_s,
            engines=self._count,
            most=self._most,
            batch_s=lambda prompts: self._batch_s(_roughly(prompts) or self._most),
            burst=self._burst,
            spread=self._spread,
        )
        return waits(line)


class Mixing(msgspec.Struct, frozen=True):
    """An engine that does both, in its steady state."""

    number: float  # that decode
    itl_s: float
    prompts: float  # in a step that has any
    step_s: float  # of such a step
    alone_s: float  # of one that has none


class Both:
    """Engines that prefill and decode in the same steps."""

    def __init__(self, clock: Clock, engines: Engines, count: int, lengths: Lengths, burst: float) -> None:
        self._clock, self._lengths, self._count, self._burst = clock, lengths, count, burst
        self._engines = engines
        self._budget = engines.settings[Role.BOTH].token_budget
        self.most = _most(engines, Role.BOTH, lengths)
        self._mixed_s = lru_cache(None)(self._step_s)

    @property
    def most_rate_s(self) -> float:
        """With all places taken and as many prompts in each step as answers end in it, or as the budget allows."""
        prompts = min(self.most_prompts(self.most), self.most / self._lengths.answer)
        return self._count * prompts / self.mixed_s(prompts, self.most)

    def rate_in_time_s(self, target_s: float) -> float:
        """At which the mean time from token to token is the target, or more can't be done. 0 where one sequence alone is late."""
        if self.mixed_s(0.0, 1.0) > target_s:
            return 0.0

        def in_time(rate_s: float) -> bool:
            found = self.settled(rate_s)
            return found is not None and self._answers(found, rate_s).itl_s(self._lengths.answers) <= target_s

        return _largest(in_time, self.most_rate_s)

    def at(self, rate_s: float, target_s: float) -> Decoding:
        """In the steady state."""
        found, lengths = self.settled(rate_s), self._lengths.answers
        if found is None:
            itl_s = self.mixed_s(self.most_prompts(self.most), self.most)
            kv_load = _kv(self._engines, self.most, self._lengths)
            return Decoding(at_once=None, itl_s=itl_s, itl_share=0.0, kv_load=kv_load)
        answers = self._answers(found, rate_s)
        return Decoding(
            at_once=found.number,
            itl_s=answers.itl_s(lengths),
            itl_share=sum(answers.in_time(tokens - 1, target_s) for tokens in lengths) / len(lengths),
            kv_load=_kv(self._engines, found.number, self._lengths),
        )

    def most_prompts(self, number: float) -> float:
        """Of a step in which so many decode."""
        return max(1.0, self._budget - number) / self._lengths.prompt

    def mixed_s(self, prompts: float, number: float) -> float:
        return self._mixed_s(_roughly(prompts) if prompts > 0.1 else prompts, max(1.0, round(number, 1)))

    def settled(self, rate_s: float) -> Mixing | None:
        """None where there is no steady state: more comes than it can do."""
        per_s = rate_s / self._count
        if rate_s >= self.most_rate_s:
            return None
        alone_s = self.mixed_s(0.0, 1.0)
        found = Mixing(0.0, alone_s, min(1.0, self.most_prompts(0.0)), 0.0, alone_s)
        for _ in range(_ROUNDS):
            after = self._next(found, per_s)
            if after is None or after.number > self.most:
                return None
            if abs(after.number - found.number) <= _CLOSE * max(1.0, found.number):
                return after
            found = after
        return found

    def _next(self, at: Mixing, per_s: float) -> Mixing | None:
        with_it = beside(at.number, self._count)
        alone_s = self.mixed_s(0.0, with_it)
        expected = per_s * at.itl_s  # prompts that come within a step
        most = self.most_prompts(at.number)
        prompts = min(most, expected / -math.expm1(-expected) if expected > 1e-9 else 1.0)
        step_s = self.mixed_s(prompts, with_it)
        mixing = per_s * step_s / prompts
        if mixing >= 1.0 and prompts >= most:
            return None
        mixing = min(1.0, mixing)
        itl_s = 1 / (mixing / step_s + (1 - mixing) / alone_s)
        delay_s = (step_s - alone_s) / prompts
        at_once_s = per_s * step_s / min(1.0, prompts) * delay_s / max(0.02, 1 - per_s * delay_s)
        return Mixing(per_s * (self._lengths.answer * itl_s + at_once_s), itl_s, prompts, step_s, alone_s)

    def _answers(self, at: Mixing, rate_s: float) -> Answers:
        """That are decoded there."""
        alone_s, number = at.alone_s, at.number
        slope_s = (self.mixed_s(at.prompts, 1.1 * number) - self.mixed_s(at.prompts, number)) / (0.1 * number)
        grows = min(0.95, number * slope_s / at.itl_s)
        return Answers(
            token_s=alone_s,
            crowd=_WITHIN_LIFE * (slope_s / alone_s) ** 2 * varies(number, self._count) / (1 - grows),
            per_s=rate_s / self._count,
            before_s=at.step_s / min(1.0, at.prompts),
            turns=self._count,
            delay_s=(at.step_s - alone_s) / at.prompts,
            spread=self._lengths.spread,
            burst=self._burst**2,
        )

    def waits(self, rate_s: float) -> Waits:
        """Of prompts, until they are computed, and the first token with them."""
        found = self.settled(rate_s)
        number = self.most if found is None else found.number
        return waits(
            Line(
                rate_s=rate_s,
                engines=self._count,
                most=self.most_prompts(number),
                batch_s=lambda prompts: self.mixed_s(prompts, number),
                burst=self._burst**2,
                spread=self._lengths.spread,
                idle_s=self.mixed_s(0.0, number) / 2 if number >= 1 else 0.0,
            )
        )

    def _step_s(self, prompts: float, number: float) -> float:
        lengths = self._lengths
        return self._clock.seconds(lengths.batch(prompts) if prompts else (), number, number * lengths.context)


def varies(number: float, count: int) -> float:
    """Variance of the number that decodes on one of so many engines, which is so many on average.

    All engines together have a Poisson number, which is shared out, as each request goes where the fewest are; answers that end make it
    uneven again, by about one.
    """
    return number / count + (1 - 1 / count) * min(number, 1.0)


def beside(number: float, count: int) -> float:
    """How many decode where a sequence does, itself included: engines with more of them have more that see them."""
    return max(1.0, number + varies(number, count) / number) if number > 0 else 1.0


def _roughly(prompts: float) -> float:
    """Prompts in a step, off by a percent or so: steps' times are asked for again and again, and most of them are known then."""
    return round(prompts, 2 if prompts < _MANY else 1)


def _most(engines: Engines, role: Role, lengths: Lengths) -> float:
    """Sequences that one engine decodes at once: as its places and its KV allow."""
    return max(1.0, min(engines.settings[role].places, _KV_FULL * engines.kv_tokens / lengths.context))


def _kv(engines: Engines, number: float, lengths: Lengths) -> float:
    return number * lengths.context / engines.kv_tokens


def _settled(after: Callable[[float], float], most: float) -> float | None:
    """The least fixed point of what grows, from below; None where it is beyond ``most``."""
    number = 0.0
    for _ in range(_ROUNDS):
        new = after(number)
        if new > most:
            return None
        if new - number <= _CLOSE * max(1.0, number):
            return new
        number = new
    return number


def _largest(fits: Callable[[float], bool], most: float) -> float:
    """Up to which it fits; a thousandth of ``most`` if nothing does."""
    if fits(most):
        return most
    low, high = most / 1000, most
    for _ in range(14):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
