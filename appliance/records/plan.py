"""What is asked of the node, and what its layouts would make of it."""

from __future__ import annotations

import math

import msgspec


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the node, over the last minute.

    Lengths are quantiles: as many equally likely values, the least first; at least one each, and all above 0.
    """

    rate_s: float  # requests per second
    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    burstiness: float = 1.0  # coefficient of variation of the gaps between requests; 1: Poisson
    hit_share: float = 0.0  # of prompt tokens, found in a prefix cache


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """How a layout would serve a demand. Loads are ρ: shares of what can be done, above 1 where more is asked."""

    prefill_load: float
    decode_load: (
        float | None
    )  # 1: the mean time from token to token is the target, or all places are taken. None: one alone is late
    kv_load: float  # of one engine's KV, that those which decode take
    ttft_s: float | None  # means; None where a queue would grow without end
    ttft_share: float  # within the target
    itl_s: float
    itl_share: float  # of requests whose mean time per output token is within the target
    good: float  # share that meets both targets
    goodput_s: float  # of these, requests per second
    most_rate_s: float  # requests per second at which the share of ``[slo]`` meets both targets
    at_once: float | None  # sequences that an engine decodes at the same time, mean
    error: float | None = None  # of the times of such steps, relative: a standard deviation

    @property
    def load(self) -> float:
        """The highest."""
        decode_load = math.inf if self.decode_load is None else self.decode_load
        return max(self.prefill_load, decode_load, self.kv_load)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One layout of the node's engines for a demand. ``feasible``: the targets are met; else ``reason`` says why not."""

    layout: str
    feasible: bool
    reason: str | None = None
    predicted: Predicted | None = None  # None where nothing can be

    @property
    def most_rate_s(self) -> float:
        """Requests per second within the targets; 0 where nothing is predicted."""
        return self.predicted.most_rate_s if self.predicted else 0.0


class Better(msgspec.Struct, frozen=True, kw_only=True):
    """Another layout of the same engines, that would serve the traffic of the last minute clearly better. All of it is predicted."""

    layout: str
    load_falls: float  # share, of what is asked against the highest rate that meets the targets
    good_rises: float  # points of the share that meets both targets
    rate_grows: float | None  # share of the highest rate; None where there was none
    aggregated: bool  # it does without splitting, and this one does not
    fewer: tuple[str, ...] = ()  # of "prefill" and "decode", what fewer engines do in it than now


class Plans(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted for each layout of the node's engines. ``time`` is in Unix seconds; ``reason`` says why there is nothing."""

    time: float
    now: str  # the layout that there is
    best: str | None = None
    demand: Demand | None = None
    layouts: tuple[Plan, ...] = ()
    reason: str | None = None
