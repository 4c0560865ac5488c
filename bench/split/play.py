"""What the layouts of a case come to when they are played: at its rate, and the highest rate that meets the targets."""

from __future__ import annotations

from typing import Final

import msgspec

from appliance.simulator.report import run
from bench.split.cases import Case

_STEPS: Final = 3  # of the search for the highest rate, after it is between two
_WIDER: Final = 1.25
_FURTHEST: Final = 30.0  # times the guess


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A layout, simulated. Means of what clients got."""

    layout: str
    good: float
    ttft_s: float | None  # median
    itl_s: float | None  # median of requests' means
    most_rate_s: float | None = None  # None: not looked for


def play(case: Case, layout: str) -> Measured:
    """At the case's own rate."""
    found = run(case.loaded, layout)
    return Measured(layout=layout, good=found.good or 0.0, ttft_s=found.ttft_p50_s, itl_s=found.tpot_p50_s)


def most_rate_s(case: Case, layout: str, guess_s: float) -> float:
    """The highest rate at which the share of ``[slo]`` meets both targets; the search begins at a guess, and believes nothing of it."""
    share = case.scenario.slo.share

    def meets(rate_s: float) -> bool:
        return (run(case.at(rate_s).loaded, layout).good or 0.0) >= share

    low = high = guess_s
    if meets(guess_s):
        while meets(high := low * _WIDER) and high < _FURTHEST * guess_s:
            low = high
    else:
        while not meets(low := high / _WIDER) and low > guess_s / _FURTHEST:
            high = low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
