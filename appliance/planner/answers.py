"""How long answers take on an engine that also computes prompts. Pure.

A step in which a prompt is computed is the longer for it, and all that decode on that engine wait. For them a prompt is an
interruption, so the time to decode an answer is a busy period that begins with the answer's own steps, w. If each of the λ prompts per
second delays by X, how many there are has Borel's and Tanner's distribution; where there are many, the time is distributed as the first
passage of a drifting Brownian motion, an inverse Gaussian of mean w/(1 − λX) and variance λE[X²]w/(1 − λX)³.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

_FEW: Final = 30.0  # interruptions of one answer, up to which they are counted one by one
_MOST_TIMES: Final = 400


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Being decoded on an engine whose other prompts interrupt it."""

    token_s: float  # per token, without interruptions
    crowd: float  # squared coefficient of variation of that, as more or fewer decode beside it
    per_s: float  # interruptions per second
    before_s: float  # of its own prompt's step: who comes then interrupts at once
    turns: int  # engines that take turns in getting requests
    delay_s: float  # by each, mean
    spread: float  # squared coefficient of variation of that
    burst: float  # and of the gaps between them

    def in_time(self, tokens: float, target_s: float) -> float:
        """How likely so many tokens take at most so long each."""
        if tokens < 1:
            return 1.0
        own_s = tokens * self.token_s
        free, first_s = max(0.02, 1 - self.per_s * self.delay_s), self._first_s(own_s)
        if self.per_s * first_s / free > _FEW:
            interruptions = self.per_s * self.delay_s**2 * (self.burst + self.spread) * first_s / free**3
            variance = interruptions + self.crowd * (own_s / free) ** 2
            return in_time(tokens * target_s, self.mean_s(tokens), variance)
        return self._few_in_time(own_s, tokens * target_s)

    def itl_s(self, lengths: Sequence[float]) -> float:
        """Mean of answers' mean times per token."""
        times = [self.mean_s(tokens - 1) / (tokens - 1) for tokens in lengths if tokens >= 2]
        return sum(times) / len(times) if times else self.token_s

    def mean_s(self, tokens: float) -> float:
        """Seconds for so many."""
        own_s, free = tokens * self.token_s, max(0.02, 1 - self.per_s * self.delay_s)
        return own_s + self.per_s * self._first_s(own_s) * self.delay_s / free

    def _first_s(self, own_s: float) -> float:
        """In which interruptions come that none brings with it. After its own request, those of others have their turn on other engines:
        of N requests in this time, this one gets N/turns, rounded down.
        """
        came = self.turns * self.per_s * (own_s + self.before_s)
        turned = (self.turns - 1) / 2
        rounded = turned * -math.expm1(-came / turned) if turned else 0.0
        return max(1e-6 * own_s, (came - rounded) / (self.turns * self.per_s))

    def _few_in_time(self, own_s: float, until_s: float) -> float:
        """By how many times it is interrupted, with w, in which the first interruptions come: Borel's and Tanner's distribution,
        P(n) = λw(λ(w + nX))^(n−1)/n! · e^(−λ(w + nX)) (Haight and Breuer, 1960).
        """
        found, first_s = 0.0, self._first_s(own_s)
        for times in range(_MOST_TIMES):
            expected = self.per_s * (first_s + times * self.delay_s)
            logarithm = math.log(self.per_s * first_s) + (times - 1) * math.log(expected) - math.lgamma(times + 1)
            all_s = own_s + times * self.delay_s
            deviation_s = math.hypot(math.sqrt(times * self.spread) * self.delay_s, math.sqrt(self.crowd) * all_s)
            found += math.exp(logarithm - expected) * _normal((until_s - all_s) / max(1e-9, deviation_s))
            if all_s > until_s + 4 * deviation_s:
                break
        return min(1.0, found)


def in_time(target: float, mean: float, variance: float) -> float:
    """How likely an inverse Gaussian is below it (Chhikara and Folks, 1989). Nearly no variance: a step."""
    if variance <= (1e-6 * mean) ** 2:
        return 1.0 if mean <= target else 0.0
    shape = mean**3 / variance
    root = math.sqrt(shape / target)
    power = 2 * shape / mean
    late = _normal(-root * (target / mean + 1))
    return min(1.0, _normal(root * (target / mean - 1)) + (math.exp(power) * late if power < 600 and late > 0 else 0.0))


def _normal(at: float) -> float:
    return 0.5 * math.erfc(-at / math.sqrt(2))
