"""KV takes too long from one engine to another, or does not come at all. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

from typing import Final

from appliance.diagnosis import advice
from appliance.diagnosis.finding import Finding, first, ms, share
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import LINKS_S, MOST_TIMES, Evidence, LinkSnapshot

_SLOW_LINK: Final = 1.5
_STUCK: Final = 3  # requests, whose KV does not come
_STUCK_S: Final = 10.0  # that one waits for it then
_FELT: Final = 0.05  # of the time to the first token
_NEARLY_FULL: Final = 0.9  # of KV


def slow_link(signs: Signs) -> Finding | None:
    """Hand-offs over one link take longer than over others."""
    slow = [link for link in signs.now.links if (link.slowdown or 0.0) > _SLOW_LINK]
    copying = signs.stages.get("transfer", 0.0)
    moving = copying + signs.stages.get("handoff_wait", 0.0)  # pulls wait for those before them
    if not slow:
        return None
    worst = max(slow, key=lambda link: link.slowdown or 0.0)
    if copying * (1 - 1 / (worst.slowdown or 1.0)) < _FELT * sum(signs.stages.values()):
        return None
    ends = [name for link in slow for name in (link.producer, link.consumer)]
    common = max(sorted(set(ends)), key=ends.count)
    several = len(slow) > 1 and ends.count(common) == len(slow)
    wanted = (common,) if several else (worst.consumer, worst.producer)
    ends_of = [one for name in wanted for one in signs.engines if one.name == name]
    return Finding(
        cause="handoff_link_slow",
        stage="handoff",
        sentence=f"KV from {worst.producer} to {worst.consumer} is copied {_how_slowly(worst, signs)}"
        + (f"; all links of {common} are slow." if several else "."),
        confidence=0.9,
        engines=(common,) if several else (worst.consumer, worst.producer),
        link=(worst.producer, worst.consumer),
        evidence=(
            Evidence(
                measured=worst.slowdown or 0.0,
                expected=1.0,
                unit="times",
                sentence=f"Hand-offs from {worst.producer} to {worst.consumer} take {_times(worst.slowdown or 1.0)} as long as they "
                "should.",
            ),
            Evidence(
                measured=moving,
                expected=None,
                unit="s",
                sentence=f"A request waits {ms(moving)} for its KV.",
            ),
        ),
        action=advice.off_link(ends_of, signs),
        gain=share(moving * (1 - 1 / (worst.slowdown or 1.0)), sum(signs.stages.values())),
    )


def _how_slowly(worst: LinkSnapshot, signs: Signs) -> str:
    """By rates, where they are known: how many times as long copies take is a mean of which none counts for more than so much."""
    well = [link.bytes_s for link in signs.now.links if link.bytes_s and (link.slowdown or 1.0) <= _SLOW_LINK]
    if worst.bytes_s is None or not well or max(well) < _SLOW_LINK * worst.bytes_s:
        return f"{_times(worst.slowdown or 1.0)} as slowly as over healthy links"
    return f"at {worst.bytes_s / 1e9:.1f} GB/s, where another link has {max(well) / 1e9:.1f}"


def _times(slowdown: float) -> str:
    """No single copy is taken for more than so much."""
    return f"{slowdown:.1f} times" if slowdown < 0.95 * MOST_TIMES else f"{MOST_TIMES:.0f} or more times"


def dead_link(signs: Signs) -> Finding | None:
    """Hardly any of the KV that an engine waits for comes, though it has room for it: by Little's law, each waits far too long."""
    found = [
        one for one in signs.engines if one.serves and not one.full and one.kv < _NEARLY_FULL and _fetches(one, signs)
    ]
    if not found:
        return None
    worst = max(found, key=lambda engine: engine.fetching)
    came_s = _come_s(worst, signs)
    return Finding(
        cause="handoff_link_slow",
        stage="handoff",
        sentence=f"{worst.name} waits for the KV of {worst.fetching:.0f} requests, of which "
        f"{f'{came_s:.1f} come per second' if came_s else f'none has come for {LINKS_S:.0f} s'}: the links to it stand still, or nearly.",
        confidence=0.8,
        engines=first(worst, found),
        evidence=(
            Evidence(
                measured=worst.fetching,
                expected=None,
                unit="requests",
                sentence=f"{worst.fetching:.0f} hand-offs to {worst.name} are under way; {came_s * LINKS_S:.0f} ended in the last "
                f"{LINKS_S:.0f} s.",
            ),
        ),
        action=advice.off_link([worst], signs),
    )


def _fetches(engine: Engine, signs: Signs) -> bool:
    """For ever, at the present pace."""
    return engine.fetching >= _STUCK and engine.fetching > _STUCK_S * _come_s(engine, signs)


def _come_s(engine: Engine, signs: Signs) -> float:
    """Hand-offs to it."""
    return sum(link.handoffs_s for link in signs.now.links if link.consumer == engine.name)
