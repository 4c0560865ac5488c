"""A split and an aggregated layout at any rate: first tokens, later tokens, and how far either can go. Pure."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from appliance.planner.node import Clock, Engines, Lengths, Targets
from appliance.planner.pools import Both, Decoders, Decoding, Prefillers
from appliance.planner.waiting import Waits
from appliance.records import Demand, Role

_UNTIL_FIRST: Final = 1.5
"""Steps of a decode engine until a first token: what is left of the one under way, and that which computes the last prompt token."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A layout at one rate."""

    waits: Waits
    decoding: Decoding
    ttft_s: float
    ttft_share: float

    @property
    def endless(self) -> bool:
        """More comes than can be done, and something grows for ever."""
        return self.waits.load >= 1 or self.decoding.at_once is None

    @property
    def good(self) -> float:
        """Share that meets both targets, as if the one had nothing to do with the other."""
        return 0.0 if self.endless else self.ttft_share * self.decoding.itl_share


class Layout(Protocol):
    """Engines that are given roles."""

    @property
    def most_rate_s(self) -> float:
        """Requests per second, whatever they have to wait for."""
        ...

    @property
    def rate_in_time_s(self) -> float:
        """At which the mean time from token to token is the target; 0 where one sequence alone is late."""
        ...

    def at(self, rate_s: float) -> Point: ...

    def error(self, point: Point) -> float | None:
        """How far off such steps may be."""
        ...


class Split:
    """Engines that prefill and engines that decode."""

    def __init__(self, demand: Demand, prefilling: Engines, decoding: Engines, targets: Targets) -> None:
        self._targets, self._lengths = targets, Lengths(demand)
        self._prefill_clock, self._decode_clock = Clock(prefilling.step), Clock(decoding.step)
        self._prefillers = Prefillers(
            self._prefill_clock, prefilling, prefilling.count, self._lengths, demand.burstiness
        )
        self._decoders = Decoders(self._decode_clock, decoding, decoding.count, self._lengths)
        copies = [_copy_s(decoding, tokens) for tokens in demand.prompt_tokens]
        alone = _alone_s(self._lengths, self._prefill_clock, prefilling.settings[Role.PREFILL].token_budget)
        self._offsets_s = [one_s + copy_s for one_s, copy_s in zip(alone, copies, strict=True)]

    @property
    def most_rate_s(self) -> float:
        return min(self._prefillers.most_rate_s, self._decoders.most_rate_s)

    @property
    def rate_in_time_s(self) -> float:
        return self._decoders.rate_in_time_s(self._targets.itl_s)

    def at(self, rate_s: float) -> Point:
        waits, decoding = self._prefillers.waits(rate_s), self._decoders.at(rate_s, self._targets.itl_s)
        offsets_s = [offset_s + _UNTIL_FIRST * decoding.itl_s for offset_s in self._offsets_s]
        return Point(
            waits=waits,
            decoding=decoding,
            ttft_s=waits.mean_s + sum(offsets_s) / len(offsets_s),
            ttft_share=waits.within(self._targets.ttft_s, offsets_s),
        )

    def error(self, point: Point) -> float | None:
        number = max(1.0, point.decoding.at_once or 1.0)
        prompts = self._prefill_clock.estimate(self._lengths.batch(1)).error
        decodes = self._decode_clock.estimate((), number, number * self._lengths.context).error
        return None if prompts is None or decodes is None else max(prompts, decodes)


class Aggregated:
    """Engines that do both."""

    def __init__(self, demand: Demand, engines: Engines, targets: Targets) -> None:
        self._targets, self._lengths, self._clock = targets, Lengths(demand), Clock(engines.step)
        self._pool = Both(self._clock, engines, engines.count, self._lengths, demand.burstiness)
        self._offsets_s = _alone_s(self._lengths, self._clock, engines.settings[Role.BOTH].token_budget)

    @property
    def most_rate_s(self) -> float:
        return self._pool.most_rate_s

    @property
    def rate_in_time_s(self) -> float:
        return self._pool.rate_in_time_s(self._targets.itl_s)

    def at(self, rate_s: float) -> Point:
        waits = self._pool.waits(rate_s)
        return Point(
            waits=waits,
            decoding=self._pool.at(rate_s, self._targets.itl_s),
            ttft_s=waits.mean_s,
            ttft_share=waits.within(self._targets.ttft_s, self._offsets_s),
        )

    def error(self, point: Point) -> float | None:
        number = max(1.0, point.decoding.at_once or 1.0)
        return self._clock.estimate(self._lengths.batch(1), number, number * self._lengths.context).error


def _alone_s(lengths: Lengths, clock: Clock, budget: int) -> list[float]:
    """By how much longer or less each prompt takes than all do on average, where there is no other."""
    pairs = zip(lengths.prompts, lengths.found, strict=True)
    times = [_chunked_s(tokens, found, clock, budget) for tokens, found in pairs]
    mean_s = sum(times) / len(times)
    return [time_s - mean_s for time_s in times]


def _chunked_s(tokens: float, found: float, clock: Clock, budget: int) -> float:
    seconds = 0.0
    while tokens > 0:
        seconds += clock.seconds([(min(tokens, budget), found)])
        tokens, found = tokens - budget, found + budget
    return seconds


def _copy_s(engines: Engines, tokens: float) -> float:
    """Nothing where it is not known: on one node it is hardly ever of weight."""
    found = engines.copy(tokens) if engines.copy is not None else None
    return found.seconds if found is not None else 0.0
