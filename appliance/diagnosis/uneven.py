"""There is enough, but it is not spread well: over engines, or over what they have in their caches. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from appliance.diagnosis import advice
from appliance.diagnosis.finding import Finding, do, first, load
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, Evidence

_UNEVEN: Final = 1.5
_LEAST_LOAD: Final = 0.3  # of its capacity: less is never too much
_HARDLY_ANY: Final = 0.01  # of its capacity
_SLOW: Final = 1.3  # times what steps take
_MORE: Final = 1.3  # times the requests that are usual
_WARM_S: Final = 60.0  # from an engine's start
_MISSED: Final = 0.15  # of the prompt tokens
_AS_MUCH: Final = 0.7  # of what it found at its best: rates go up and down by themselves


def favoured(signs: Signs) -> Finding | None:
    """One engine has far more to do than its like, because routing gives it more."""
    return _skew(signs, by_weight=True)


def skew(signs: Signs) -> Finding | None:
    """One engine has far more to do than its like, and is not slower."""
    return _skew(signs, by_weight=False)


def _skew(signs: Signs, *, by_weight: bool) -> Finding | None:
    for stage, pool in (("prefill", signs.prefill), ("decode", signs.decode)):
        if len(pool) < 2:
            continue
        loads = {engine.name: load(engine, stage) for engine in pool}
        most = max(pool, key=lambda engine: loads[engine.name])
        others = [engine for engine in pool if engine is not most]
        rest = statistics.median(loads[engine.name] for engine in others)
        usual = statistics.median(engine.now.weight for engine in others)
        heavier = most.now.weight >= _UNEVEN * usual
        if heavier and any(map(_is_slow, others)):  # and has less for that
            continue
        least = 0.0 if heavier and signs.is_behind(most) else _LEAST_LOAD
        if loads[most.name] < max(_UNEVEN * rest, least) or ((rest > 0.7 or by_weight) and not heavier):
            continue
        return _uneven(most, pool, loads[most.name], rest, stage, usual if heavier else None)
    return None


def _is_slow(engine: Engine) -> bool:
    return engine.slowdown >= _SLOW or engine.gpu_trouble is not None


def _uneven(
    most: Engine, pool: Sequence[Engine], its: float, rest: float, stage: str, usual_weight: float | None
) -> Finding:
    """``usual_weight``: of the others, where it is less."""
    times = its / max(rest, _HARDLY_ANY)
    heavy = (
        ""
        if usual_weight is None
        else f", for routing prefers it: its weight is {most.now.weight:g}, that of others {usual_weight:g}"
    )
    return Finding(
        cause="routing_skew",
        stage=stage,
        sentence=f"{most.name} has {times:.1f} times the work of its like{heavy}.",
        confidence=0.7 if usual_weight is None else 0.9,
        engines=(most.name,),
        evidence=(
            Evidence(
                measured=its,
                expected=rest,
                unit="of its capacity",
                sentence=f"{most.name} is {its:.0%} loaded, the others {rest:.0%}.",
            ),
        ),
        action=advice.even_out(most, pool, times),
    )


def times(skewed: Finding) -> float:
    """The work of the others, that the engine of such a finding has."""
    told = skewed.evidence[0]
    return told.measured / max(told.expected or 0.0, _HARDLY_ANY)


def cache(signs: Signs) -> Finding | None:
    """Less of the prompts is found in the prefix cache than by others, or than before, and no more is asked."""
    before, length = signs.arrivals_before_s, signs.prompt_tokens_before
    more = before is not None and signs.arrivals_s > _MORE * before
    if length and (signs.prompt_tokens or 0.0) > _MORE * length:
        return None  # other prompts come than before
    fell = [
        engine
        for engine in signs.prefill
        if (usual := _usual_hits(engine, signs, more)) and _missed(engine, usual) and not _finds_as_much(engine)
    ]
    if not fell:
        return None
    worst = max(fell, key=lambda engine: (_usual_hits(engine, signs, more) or 0.0) - (engine.hits or 0.0))
    hits, usual = worst.hits or 0.0, _usual_hits(worst, signs, more) or 0.0
    return Finding(
        cause="cache_miss_storm",
        stage="prefill",
        sentence=(
            f"{do(fell, 'finds', 'find')} {hits:.0%} of prompts in the prefix cache where {usual:.0%} is usual: "
            "no more is asked than before, but there is more to compute."
        ),
        confidence=0.85,
        engines=first(worst, fell),
        evidence=(
            Evidence(
                measured=hits,
                expected=usual,
                unit="of prompt tokens",
                sentence=f"The prefix cache of {worst.name} hits {hits:.0%} where {usual:.0%} is usual.",
            ),
        ),
        action=Action(
            sentence="Keep conversations on the engine that has their beginning, or give prefill engines more KV.",
            setting="[engine] kv_cache_bytes",
        ),
    )


def _usual_hits(engine: Engine, signs: Signs, more: bool) -> float | None:
    """What its like find now; where it has none, what it found before, unless more is asked by now."""
    others = [other.hits for other in signs.prefill if other is not engine and other.hits is not None]
    filling = engine.now.in_state_s < _WARM_S  # its cache has only begun to, and that of others not
    usual = [statistics.median(others)] if others and not filling else []
    if engine.hits_before is not None and not more:
        usual.append(engine.hits_before)
    return max(usual, default=None)


def _finds_as_much(engine: Engine) -> bool:
    """As before, though it is a smaller share of what is asked: others ask, too, whose prompts nobody has seen yet."""
    found, before = engine.found_s, engine.found_before_s
    return found is not None and bool(before) and found >= _AS_MUCH * (before or 0.0)


def _missed(engine: Engine, usual: float) -> bool:
    return engine.hits is not None and usual - engine.hits > _MISSED and engine.hits < 0.7 * usual
