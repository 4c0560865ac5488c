"""One look at the node: is anybody hurt, and what by. Pure.

The order of the tests matters: an engine that is not there, or a link that is slow, makes queues that look like saturation further up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.diagnosis import crowded, layout, prompts, signs, slow, uneven
from appliance.diagnosis.finding import Finding
from appliance.diagnosis.signs import Signs
from appliance.records import NodeSnapshot

Test = Callable[[Signs], Finding | None]
TESTS: Final[tuple[Test, ...]] = (
    slow.supervisor,
    slow.frontend,
    slow.slow_link,
    slow.straggler,
    uneven.favoured,
    crowded.kv_full,
    prompts.kv_pinned,
    crowded.no_places,
    prompts.long_prompts,
    prompts.budget_small,
    uneven.skew,
    uneven.cache,
    layout.not_worth_it,
    prompts.prefill_saturated,
    crowded.decode_saturated,
)
_SOME: Final = 3  # of which one alone tells nothing
_HELD: Final = 0.25  # of the target of first tokens
_CHANCE: Final = 2e-4
_GROWING: Final = 0.3  # requests per second, by which a queue grows


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """``hurt``: in words, who suffers; None if nobody does. ``finding``: why; None if that can't be told."""

    hurt: str | None
    finding: Finding | None = None
    next: Finding | None = None


def judge(window: Sequence[NodeSnapshot], share: float, *, standing: bool = False) -> Judgement:
    """Of snapshots, oldest first. ``share``: of requests that must meet the targets. ``standing``: a verdict does, and less keeps it up."""
    read = signs.read(window)
    gone, hurt = slow.down(read), impact(read, share, standing)
    if hurt is None:
        return Judgement(hurt=None if gone is None else "an engine is missing", finding=gone)
    found = [finding for test in TESTS if (finding := test(read)) is not None]
    if gone is not None:  # what happens now, before what was given up long ago
        found.insert(len(found) if slow.is_old(read) else 0, gone)
    return Judgement(hurt=hurt, finding=found[0] if found else None, next=found[1] if len(found) > 1 else None)


def impact(read: Signs, share: float, standing: bool) -> str | None:
    """Who suffers, in words. ``share``: of requests that must be in time."""
    allowed = max(0.02, 1 - share)
    now = read.now
    if read.waits_too_long:
        return f"requests wait for {now.queue.oldest_s or 0:.1f} s before anything is done"
    late = [share for count, share in read.firsts if _beyond_chance(share, count, allowed)]
    if read.ttft_late > allowed and (late or standing):
        return f"{read.ttft_late:.0%} of the first tokens come later than {now.slo_ttft_s:g} s"
    if read.itl_late > (1 if standing else 2) * allowed:
        return f"{read.itl_late:.0%} of the tokens come at a pace of more than {now.slo_itl_s * 1e3:g} ms each"
    if (
        held := max((engine.api_delay_s for engine in read.engines if engine.api_full), default=0.0)
    ) > _HELD * now.slo_ttft_s:
        return f"tokens that are made wait for {held:.1f} s in an API process"
    if read.failed >= _SOME and read.failing > allowed:
        return f"{read.failing:.0%} of the requests fail"
    if read.queue_growth_s > _GROWING and (now.queue.oldest_s or 0.0) > now.slo_ttft_s / 2:  # soon it will be too late
        return f"the queue grows by {read.queue_growth_s:.1f} requests per second"
    return None


def _beyond_chance(late: float, count: int, allowed: float) -> bool:
    """So many of so few would hardly come late if no more did than is allowed (the binomial's tail)."""
    seen = round(late * count)
    below = sum(math.comb(count, k) * allowed**k * (1 - allowed) ** (count - k) for k in range(seen))
    return seen >= _SOME and 1 - below < _CHANCE
