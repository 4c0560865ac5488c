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
from appliance.diagnosis.lasting import lasts
from appliance.diagnosis.signs import Signs
from appliance.diagnosis.starting import starting
from appliance.records import NodeSnapshot, Verdict

Test = Callable[[Signs], Finding | None]
TESTS: Final[tuple[Test, ...]] = (
    slow.supervisor,
    slow.frontend,
    slow.slow_link,
    slow.dead_link,
    slow.straggler,
    uneven.favoured,
    crowded.kv_full,
    prompts.kv_pinned,
    crowded.no_places,
    prompts.long_prompts,
    prompts.long_steps,
    prompts.budget_small,
    uneven.skew,
    uneven.cache,
    prompts.prefill_saturated,
    crowded.decode_saturated,
    layout.not_worth_it,
)
_SOME: Final = 3  # of which one alone tells nothing
_HELD: Final = 0.25  # of the target of first tokens
_CHANCE: Final = 2e-4
_ALLOWED: Final = 0.02  # to be late, whatever is asked for
_GROWING: Final = 0.3  # requests per second, by which a queue grows


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """``hurt``: in words, who suffers; None if nobody does. ``finding``: why; None if that can't be told.

    ``lasts``: nobody is hurt, and the cause that was said is there all the same.
    """

    hurt: str | None
    finding: Finding | None = None
    next: Finding | None = None
    lasts: bool = False


def judge(window: Sequence[NodeSnapshot], share: float, *, standing: Verdict | None = None) -> Judgement:
    """Of snapshots, oldest first.

    Args:
        share: of requests that must meet the targets.
        standing: the verdict that does, if one does; less keeps it up than it takes to come to it.
    """
    read = signs.read(window)
    gone, hurt = slow.down(read), impact(read, share, standing is not None)
    if hurt is None and gone is None:
        return Judgement(hurt=None, lasts=standing is not None and lasts(standing, read))
    if hurt is None:
        return Judgement(hurt="an engine is missing", finding=gone)
    holding = [finding for test in TESTS if (finding := test(read)) is not None and _explains(finding, read, share)]
    found = sorted(holding, key=lambda finding: _yields(finding, holding))
    if (missed := starting(read, found)) is not None:
        found.insert(0, missed)
    if gone is not None:  # what happens now, before what was given up long ago
        found.insert(len(found) if slow.is_old(read) else 0, gone)
    return Judgement(hurt=hurt, finding=found[0] if found else None, next=found[1] if len(found) > 1 else None)


def impact(read: Signs, share: float, standing: bool) -> str | None:
    """Who suffers, in words. ``share``: of requests that must be in time."""
    allowed = max(_ALLOWED, 1 - share)
    now = read.now
    if read.waits_too_long:
        return f"requests wait for {now.queue.oldest_s or 0:.1f} s before anything is done"
    late = [share for count, share in read.firsts if _beyond_chance(share, count, allowed)]
    ttft_late, itl_late = (read.ttft_late_now, read.itl_late_now) if standing else (read.ttft_late, read.itl_late)
    if ttft_late > allowed and (late or standing):
        return f"{ttft_late:.0%} of the first tokens come later than {now.slo_ttft_s:g} s"
    if itl_late > (1 if standing else 2) * allowed:
        pace_s = max(engine.itl_now_s if standing else engine.itl_s for engine in read.engines)
        return f"{itl_late:.0%} of the tokens come {pace_s * 1e3:.1f} ms after each other, where {now.slo_itl_s * 1e3:g} ms is the target"
    missed = read.missed_now if standing else read.missed
    if missed > allowed and (standing or any(_beyond_chance(share, count, allowed) for count, share in read.answers)):
        return f"{missed:.0%} of the answers miss their targets"
    if (
        held := max((engine.api_delay_s for engine in read.engines if engine.api_full), default=0.0)
    ) > _HELD * now.slo_ttft_s:
        return f"tokens that are made wait for {held:.1f} s in an API process"
    if read.failed >= _SOME and read.failing > allowed:
        return f"{read.failing:.0%} of the requests fail"
    if read.queue_growth_s > _GROWING and (now.queue.oldest_s or 0.0) > now.slo_ttft_s / 2:  # soon it will be too late
        return f"the queue grows by {read.queue_growth_s:.1f} requests per second"
    return None


def _yields(finding: Finding, found: Sequence[Finding]) -> bool:
    """An engine that is slow for no reason, while its cache misses: it makes steps that nobody has seen yet, and may not be slow at all."""
    missing = {name for one in found if one.cause == "cache_miss_storm" for name in one.engines}
    return bool(missing) and finding.confidence == slow.UNEXPLAINED and set(finding.engines) <= missing


def _explains(finding: Finding, read: Signs, share: float) -> bool:
    """Where first tokens are in time and tokens after them are not, engines that only prefill are not to blame, however busy."""
    pace_alone = read.itl_late > 0 and read.ttft_late <= max(_ALLOWED, 1 - share) and not read.waits_too_long
    return not (pace_alone and read.split and finding.stage == "prefill")


def _beyond_chance(late: float, count: int, allowed: float) -> bool:
    """So many of so few would hardly come late if no more did than is allowed (the binomial's tail)."""
    seen = round(late * count)
    below = sum(math.comb(count, k) * allowed**k * (1 - allowed) ** (count - k) for k in range(seen))
    return seen >= _SOME and 1 - below < _CHANCE
