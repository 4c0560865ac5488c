"""Every split of the node's engines and the aggregated layout, predicted for a demand; and which to take. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.planner.layouts import Aggregated, Layout, Split
from appliance.planner.node import Engines, Targets, Unknown
from appliance.records import Better, Demand, Plan, Predicted

_NARROWED: Final = 9  # times that the interval of the highest rate is halved
_WORTH: Final = 0.10  # by which the load must fall for a change


def layouts(engines: Engines) -> list[tuple[int, int]]:
    """Engines that prefill and that decode; of the aggregated layout, which is last, none are for one alone."""
    return [(prefill, engines.count - prefill) for prefill in range(1, engines.count)] + [(0, 0)]


def name(prefill: int, decode: int, engines: Engines) -> str:
    """As ``[topology] layout`` takes it."""
    return named(prefill, decode if prefill else engines.count, engines.tensor_parallel, engines.tensor_parallel)


def named(prefill: int, decode: int, prefill_size: int, decode_size: int) -> str:
    """The same, of engines of two sizes; where none prefills, the others do both."""
    layout = f"{prefill}p{decode}d" if prefill else f"{decode}b"
    if prefill and prefill_size != decode_size:
        return f"{layout}@tp{prefill_size}:tp{decode_size}"
    return layout + (f"@tp{decode_size}" if decode_size > 1 else "")


def plans(demand: Demand, engines: Engines, targets: Targets) -> tuple[Plan, ...]:
    """All of them, in the order of ``layouts``."""
    return tuple(plan(demand, engines, targets, prefill, decode) for prefill, decode in layouts(engines))


def plan(demand: Demand, engines: Engines, targets: Targets, prefill: int, decode: int) -> Plan:
    """One layout."""
    if not prefill:
        return _plan(name(0, 0, engines), demand, targets, lambda: Aggregated(demand, engines, targets))
    prefilling, decoding = (msgspec.structs.replace(engines, count=count) for count in (prefill, decode))
    return between(demand, prefilling, decoding, targets, name(prefill, decode, engines))


def between(demand: Demand, prefilling: Engines, decoding: Engines, targets: Targets, layout: str) -> Plan:
    """A split over two pools, which need not be alike: ``decoding`` tells how long hand-offs take."""
    return _plan(layout, demand, targets, lambda: Split(demand, prefilling, decoding, targets))


def _plan(layout: str, demand: Demand, targets: Targets, make: Callable[[], Layout]) -> Plan:
    try:
        found = _predicted(demand, targets, make())
    except Unknown as unknown:
        return Plan(layout=layout, feasible=False, reason=str(unknown))
    reason = _why_not(found, targets)
    return Plan(layout=layout, feasible=reason is None, reason=reason, predicted=found)


def choose(plans: Sequence[Plan]) -> Plan | None:
    """The one to take: that which meets the targets at the highest rate. Nearly always it is also that with the least load, if one meets
    the targets at all; but where each is late for another reason, loads say little. ``docs/planner.md`` has the scores of both.
    """
    known = [plan for plan in plans if plan.predicted is not None]
    return max(known, key=lambda plan: plan.most_rate_s, default=None)


def advice(now: Plan, plans: Sequence[Plan]) -> Better | None:
    """What to change to, if that is clearly better: by more than a tenth of the load, and by more than steps' times may be off."""
    best = choose(plans)
    if best is None or best.layout == now.layout or best.predicted is None or now.predicted is None:
        return None
    before, after = now.predicted, best.predicted
    falls = 1 - before.most_rate_s / after.most_rate_s if after.most_rate_s > 0 else 0.0
    if falls <= max(_WORTH, after.error or 0.0, before.error or 0.0):
        return None
    return Better(
        layout=best.layout,
        load_falls=falls,
        good_rises=after.good - before.good,
        rate_grows=after.most_rate_s / before.most_rate_s - 1 if before.most_rate_s > 0 else None,
        aggregated="b" in best.layout and "b" not in now.layout,
        fewer=tuple(stage for stage, count in _doing(best.layout).items() if count < _doing(now.layout)[stage]),
    )


def _doing(layout: str) -> dict[str, int]:
    """How many engines prefill and decode, of a layout as ``named`` writes it."""
    found = re.match(r"(?:(\d+)p)?(\d+)[bd]", layout)
    assert found is not None
    decode = int(found[2])
    return {"prefill": int(found[1] or decode), "decode": decode}


def _predicted(demand: Demand, targets: Targets, layout: Layout) -> Predicted:
    point, in_time_s = layout.at(demand.rate_s), layout.rate_in_time_s
    return Predicted(
        prefill_load=point.waits.load,
        decode_load=demand.rate_s / in_time_s if in_time_s > 0 else None,
        kv_load=point.decoding.kv_load,
        ttft_s=None if point.endless else point.ttft_s,
        ttft_share=0.0 if point.endless else point.ttft_share,
        itl_s=point.decoding.itl_s,
        itl_share=point.decoding.itl_share,
        good=point.good,
        goodput_s=point.good * demand.rate_s,
        most_rate_s=_highest(lambda rate_s: layout.at(rate_s).good >= targets.share, layout.most_rate_s),
        at_once=point.decoding.at_once,
        error=layout.error(point),
    )


def _highest(meets: Callable[[float], bool], most_s: float) -> float:
    """Requests per second; 0 where even a hundredth of what can be done is too much."""
    low, high = 0.0, most_s
    if not meets(most_s / 100):
        return 0.0
    for _ in range(_NARROWED):
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def _why_not(found: Predicted, targets: Targets) -> str | None:
    """In words; None where the targets are met."""
    if found.prefill_load >= 1:
        return f"more prompts come than can be computed: {found.prefill_load:.0%} of it"
    if found.at_once is None:
        return "more is to be decoded than there are places or KV for"
    if found.itl_share < targets.share:
        return f"{found.itl_s * 1e3:.0f} ms from token to token: {found.itl_share:.0%} of requests are within {targets.itl_s * 1e3:.0f} ms"
    if found.ttft_share < targets.share:
        return f"{found.ttft_share:.0%} of first tokens are within {targets.ttft_s:g} s"
    if found.good < targets.share:
        return f"{found.good:.0%} of requests meet both targets"
    return None
