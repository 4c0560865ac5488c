"""What the layouts of a case come to when they are played, and what is predicted for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.planner import split
from appliance.planner.measured import measured
from appliance.records import NodeSnapshot, Plan, Plans
from appliance.simulator.clock import VirtualClock
from appliance.simulator.node import SimulatedNode
from appliance.simulator.report import feed, run
from appliance.simulator.scenario import BLOCK_TOKENS, config, plans
from appliance.simulator.traffic import arrivals
from bench.split.cases import MODELS, Case, Predictable

_STEPS: Final = 3  # of the search for the highest rate, once it is between two
_WIDER: Final = 1.25
_FURTHEST: Final = 30.0  # times the guess
_LIVE_S: Final = 70  # for which a node has run when it is asked for a plan


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A layout, simulated. Means of what clients got."""

    layout: str
    good: float
    ttft_s: float | None
    itl_s: float | None
    most_rate_s: float | None = None  # None: not looked for


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """A case. ``ahead``: predicted by the cost model, of a node that is not there; ``live``: by a node that runs ``running``."""

    words: str
    seed: int
    rate_s: float
    share: float
    measured: tuple[Measured, ...]
    ahead: tuple[Plan, ...]
    running: str
    live: Plans


def play(case: Case, *, rates: bool = True) -> Played:
    """``rates``: look for the highest rate of each layout, which takes most of the time."""
    ahead = Predictable(case).plans()
    guesses = {plan.layout: plan.predicted.most_rate_s if plan.predicted else 0.0 for plan in ahead}
    running = random.Random(f"running {case.seed}").choice(case.layouts)
    found = [layout(case, one, guesses[one] if rates else None) for one in case.layouts]
    return Played(
        words=case.words,
        seed=case.seed,
        rate_s=case.scenario.traffic.rate,
        share=case.scenario.slo.share,
        measured=tuple(found),
        ahead=ahead,
        running=running,
        live=live(case, running),
    )


def layout(case: Case, name: str, guess_s: float | None) -> Measured:
    """At the case's own rate."""
    found = run(case.loaded, name)
    most_s = None if guess_s is None else most_rate_s(case, name, max(guess_s, case.scenario.traffic.rate / 20))
    return Measured(layout=name, good=found.good or 0.0, ttft_s=found.ttft_s, itl_s=found.tpot_s, most_rate_s=most_s)


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


def live(case: Case, layout: str) -> Plans:
    """Of a node that has run that layout for a minute, under other requests of the same kind."""
    node, window = after_a_minute(case, layout)
    return measured(window, *node.learnt("e0"), case.scenario.slo.share)


def after_a_minute(case: Case, layout: str) -> tuple[SimulatedNode, list[NodeSnapshot]]:
    """A node that serves the case, and its snapshots, a second apart."""
    clock, loaded = VirtualClock(), case.loaded
    origin_ns = clock.now_ns
    node = SimulatedNode(config(case.scenario), plans(loaded, layout), clock, lambda answered: None)
    feed(clock, node, list(arrivals(case.scenario.traffic, case.seed + 10**6, _LIVE_S, BLOCK_TOKENS, MODELS)))
    window = []
    for second in range(1, _LIVE_S + 1):
        clock.run(origin_ns + second * 10**9)
        window.append(node.snapshot())
    return node, window[-60:]


def chosen(plans: Sequence[Plan]) -> str | None:
    """Of these plans."""
    best = split.choose(plans)
    return best.layout if best else None
