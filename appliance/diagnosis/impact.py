"""Whether anybody is hurt, by the owner's own targets. Pure.

No engine is blamed here: an engine that is busy, or slow, and that nobody waits for, holds nothing back.
"""

from __future__ import annotations

import math
from typing import Final

from appliance.diagnosis.signs import ALLOWED, Signs

_ENOUGH: Final = 500
_SOME: Final = 3  # of which one alone tells nothing
_HELD: Final = 0.25  # of the target of first tokens
_CHANCE: Final = 2e-4
_CHANCE_WHERE_SLOW: Final = 0.02
_GROWING: Final = 0.3  # requests per second, by which a queue grows


def impact(read: Signs, share: float, standing: bool, slow: bool = False) -> str | None:
    """Who suffers, in words.

    Args:
        share: of requests that must be in time.
        standing: a verdict does, and less keeps it up than it takes to come to it.
        slow: an engine plainly is; so somebody is likely to be hurt, and fewer tell.
    """
    allowed = max(ALLOWED, 1 - share)
    chance = _CHANCE_WHERE_SLOW if slow else _CHANCE
    now = read.now
    if read.waits_too_long:
        return f"requests wait for {now.queue.oldest_s or 0:.1f} s before anything is done"
    late = [share for count, share in read.firsts if _beyond_chance(share, count, allowed, chance)]
    ttft_late, itl_late = (read.ttft_late_now, read.itl_late_now) if standing else (read.ttft_late, read.itl_late)
    if ttft_late > allowed and (late or standing):
        return f"{ttft_late:.0%} of the first tokens come later than {now.slo_ttft_s:g} s"
    if itl_late > (1 if standing else 2) * allowed:
        pace_s = max(engine.itl_now_s if standing else engine.itl_s for engine in read.engines)
        return _of_pace(itl_late, pace_s, now.slo_itl_s)
    missed = read.missed_now if standing else read.missed
    if missed > allowed and (
        standing or any(_beyond_chance(share, count, allowed, chance) for count, share in read.answers)
    ):
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


def _of_pace(late: float, pace_s: float, target_s: float) -> str:
    pace, target = f"{pace_s * 1e3:.1f} ms after each other", f"{target_s * 1e3:g} ms"
    if pace_s > target_s:
        return f"{late:.0%} of the tokens come {pace}, where {target} is the target"
    return f"tokens come {pace} in the mean, where {target} is the target: about half of the answers miss it"


def _beyond_chance(late: float, count: int, allowed: float, chance: float) -> bool:
    """So many of so few would hardly come late if no more did than is allowed (the binomial's tail). Of very many, a part tells as much."""
    count = min(count, _ENOUGH)
    seen = round(late * count)
    below = sum(math.comb(count, k) * allowed**k * (1 - allowed) ** (count - k) for k in range(seen))
    return seen >= _SOME and 1 - below < chance
