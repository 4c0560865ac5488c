"""One look at the node: is anybody hurt, and what by. Pure.

The order of the tests matters: an engine that is not there, or a link that is slow, makes queues that look like saturation further up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.diagnosis import bursts, crowded, frontends, gone, layout, links, prompts, readings, stragglers, uneven
from appliance.diagnosis.finding import Finding
from appliance.diagnosis.impact import impact
from appliance.diagnosis.lasting import lasts
from appliance.diagnosis.signs import ALLOWED, Signs
from appliance.diagnosis.starting import starting
from appliance.records import NodeSnapshot, Verdict

MISSING: Final = "an engine is missing"  # in the place of who is hurt, where nobody is
Test = Callable[[Signs], Finding | None]
TESTS: Final[tuple[Test, ...]] = (
    frontends.supervisor,
    frontends.frontend,
    links.slow_link,
    links.dead_link,
    stragglers.straggler,
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


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """``hurt``: in words, who suffers; None if nobody does. ``finding``: why; None if that can't be told.

    Where nobody is hurt, ``finding`` is an engine that was given up long ago.
    ``lasts``: nobody is hurt, and the cause that was said is there all the same.
    """

    hurt: str | None
    finding: Finding | None = None
    next: Finding | None = None
    lasts: bool = False


def judge(
    window: Sequence[NodeSnapshot], share: float, *, standing: Verdict | None = None, over_s: float = -math.inf
) -> Judgement:
    """Of snapshots, oldest first.

    Args:
        share: of requests that must meet the targets.
        standing: the verdict that does, if one does; less keeps it up than it takes to come to it.
        over_s: ``uptime_s`` when the last one ended.
    """
    read = readings.read(window)
    missing, hurt = gone.down(read), impact(read, share, standing is not None, stragglers.plain(read))
    old = missing is not None and gone.is_old(read)
    if hurt is None and (missing is None or old):
        return _well(read, missing, standing)
    if hurt is None:
        return Judgement(hurt=MISSING, finding=missing)
    holding = [finding for test in TESTS if (finding := test(read)) is not None and _explains(finding, read, share)]
    found = sorted(holding, key=lambda finding: _yields(finding, holding))
    if (missed := starting(read, found)) is not None:
        found.insert(0, missed)
    if missing is not None:  # what happens now, before what was given up long ago
        found.insert(len(found) if old else 0, missing)
    if (standing is None or not found) and bursts.is_slight(window, read, found, share, over_s):
        return _well(read, missing, standing)
    return Judgement(hurt=hurt, finding=found[0] if found else None, next=found[1] if len(found) > 1 else None)


def _well(read: Signs, missing: Finding | None, standing: Verdict | None) -> Judgement:
    return Judgement(hurt=None, finding=missing, lasts=standing is not None and lasts(standing, read))


def _yields(finding: Finding, found: Sequence[Finding]) -> bool:
    """An engine that is slow for no reason, while its cache misses: it makes steps that nobody has seen yet, and may not be slow at all."""
    missing = {name for one in found if one.cause == "cache_miss_storm" for name in one.engines}
    return bool(missing) and finding.confidence == stragglers.UNEXPLAINED and set(finding.engines) <= missing


def _explains(finding: Finding, read: Signs, share: float) -> bool:
    """Where first tokens are in time and tokens after them are not, engines that only prefill are not to blame, however busy."""
    pace_alone = read.itl_late > 0 and read.ttft_late <= max(ALLOWED, 1 - share) and not read.waits_too_long
    return not (pace_alone and read.split and finding.stage == "prefill")
