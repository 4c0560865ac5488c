"""Steps of an engine take longer than such steps do. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

from appliance.diagnosis import advice, uneven
from appliance.diagnosis.finding import Finding, first
from appliance.diagnosis.signs import TREND_S, Engine, Signs
from appliance.records import Evidence

_SLOW: Final = 1.08  # times what steps take: beyond noise and drift, where GPUs or cores tell of a reason
_SLOW_FOR_WANT_OF_CORES: Final = 1.15  # cores that are shared make steps uneven
SLOW_FOR_NO_REASON: Final = 1.3  # where they do not
_PLAINLY: Final = 1.5
_SLOWER: Final = 1.5  # where it is not known how slow
UNEXPLAINED: Final = 0.6  # confidence in an engine that is slow for no reason that can be read
_WORKING: Final = 0.2
_ALL_OF_THE_TIME: Final = 0.9
_CLEARLY_MORE: Final = 1.1
_CLEARLY_MORE_ANSWERS: Final = 1.5
_BY_CHANCE: Final = 3  # answers: so few end in some seconds, or do not, for no reason
_STARVED: Final = 0.08  # of the time waiting for a core
_THROTTLED: Final = 0.1  # of the time without any, for a quota that is used up
_LEAST_SHARE: Final = 0.05  # of its core, that is told from none
_HELD: Final = 0.25  # of the time to the first token, in one place
_NEARLY_FULL: Final = 0.9  # of KV
_NEARLY: Final = 0.75  # of the target for tokens


def straggler(signs: Signs) -> Finding | None:
    """Steps of one engine take longer than such steps do."""
    found = _slow_ones(signs)
    if not found:
        return None
    return _told(max(found, key=lambda engine: (_times(engine) - 1) * engine.busy), found, signs)


def plain(signs: Signs) -> bool:
    """An engine is slow, by much and for seconds, whoever may be hurt by it."""
    working = [engine for engine in signs.engines if engine.serves and engine.busy >= _WORKING]
    return any(min(engine.slowdown, engine.slowdown_before) >= _PLAINLY for engine in working)


def _slow_ones(signs: Signs) -> list[Engine]:
    """Those that others wait for, because they are slow."""
    candidates = [engine for engine in signs.engines if engine.serves and engine.busy >= _WORKING]
    skewed = uneven.favoured(signs)
    found = [
        engine
        for engine in candidates
        if _is_slow(engine, candidates) and _matters(engine, signs) and not _has_too_much(engine, skewed)
    ]
    if found and _too_much_anyway(signs):
        found = [engine for engine in found if not engine.prefills]
    if found and _too_many_to_decode(signs):
        found = [engine for engine in found if engine.prefills or not _has_no_room(engine)]
    return found


def _told(worst: Engine, found: Sequence[Engine], signs: Signs) -> Finding:
    stage, trouble = _slow_stage(worst, signs), worst.gpu_trouble
    starved = is_starved(worst)
    kind = "cpu" if not trouble and (starved or not worst.now.gpus) else "gpu"
    why = trouble or _why_starved(worst) or "nothing that its GPUs or its cores tell explains it"
    known = worst.now.slowdown is not None and worst.slowdown >= _times(worst)
    slower = (
        f"takes {worst.slowdown:.1f} times as long for its steps as it should"
        if known
        else f"is slow, by what its {'GPU says' if trouble else 'cores say'}"
    )
    evidence = [
        Evidence(
            measured=worst.slowdown,
            expected=1.0,
            unit="times",
            sentence=f"Steps of {worst.name} take {worst.slowdown:.2f} times as long as such steps do{_since(worst)}.",
        )
    ][:known]
    if trouble:
        evidence.append(Evidence(measured=1.0, expected=0.0, unit="", sentence=f"{trouble}."))
    evidence += _of_cores(worst)
    return Finding(
        cause=f"{stage}_straggler_{kind}",
        stage=stage,
        sentence=f"{_who(worst)} {slower}: {why}.",
        confidence=UNEXPLAINED if not (trouble or starved) else 0.95 if known else 0.7,
        engines=first(worst, found),
        evidence=tuple(evidence),
        action=advice.less_work(worst, signs, stage, _times(worst), _until(worst)),
        gain=1 - 1 / worst.slowdown if known else None,
    )


def _until(engine: Engine) -> str:
    """What is to be mended, in words."""
    if engine.gpu_trouble:
        return f"see to the GPU of {engine.name} ({engine.gpu_trouble})"
    if is_starved(engine):
        return _relief(engine)
    return f"look at what else runs on the {'GPU' if engine.now.gpus else 'cores'} of {engine.name}"


def _since(engine: Engine) -> str:
    """Since when that is known: a decline may be as old."""
    since = engine.now.usual_since
    return "" if since is None else f", as was learnt by {time.strftime('%Y-%m-%d', time.localtime(since))}"


def _who(engine: Engine) -> str:
    """With what it does, where engines do not all do the same."""
    return engine.name if engine.prefills and engine.decodes else f"{engine.name}, which {engine.stage}s,"


def is_starved(engine: Engine) -> bool:
    """Waiting for a core is the main sign; time in which there was none to be had is another."""
    return engine.core_delay >= _STARVED or engine.throttled >= _THROTTLED


def _why_starved(engine: Engine) -> str | None:
    if engine.throttled >= _THROTTLED:
        return f"its control group is out of CPU quota {engine.throttled:.0%} of the time"
    if engine.core_delay >= _STARVED:
        return f"its main loop waits for a core {engine.core_delay:.0%} of the time"
    return None


def _relief(engine: Engine) -> str:
    if engine.throttled >= _THROTTLED:
        return f"raise the CPU quota of the control group of {engine.name} (CPUQuota= of its unit, --cpus of its container)"
    return f"give the processes of {engine.name} cores of their own"


def _of_cores(engine: Engine) -> list[Evidence]:
    """What speaks for want of CPU time, and what with it."""
    found, host = [], engine.now.host
    if engine.core_delay >= _STARVED:
        found.append(_share_of(engine.core_delay, f"{engine.name}'s main loop could run and had no core", 0.01))
    if engine.throttled >= _THROTTLED:
        found.append(_share_of(engine.throttled, f"{engine.name}'s control group had used up its CPU quota", 0.0))
    if not found or host is None:
        return found
    if host.pressure is not None and host.pressure >= _STARVED:
        found.append(_share_of(host.pressure, f"Something around {engine.name} could run and had no core", None))
    if host.cores == 1:
        only = f"{engine.name}'s main loop may run on one core only."
        found.append(Evidence(measured=1.0, expected=None, unit="cores", sentence=only))
    return found


def _share_of(measured: float, what: str, expected: float | None) -> Evidence:
    return Evidence(
        measured=measured, expected=expected, unit="of the time", sentence=f"{what} {measured:.0%} of the time."
    )


def _is_slow(engine: Engine, others: Sequence[Engine]) -> bool:
    if engine.now.slowdown is None:  # steps like its latest have not been seen yet
        return engine.gpu_trouble is not None or _for_want_of_cores(engine) > SLOW_FOR_NO_REASON
    rest = [other.slowdown for other in others if other is not engine and _alike(other, engine)]
    usual = max(1.0, statistics.median(rest)) if rest else 1.0
    reason = engine.gpu_trouble is not None or is_starved(engine)
    if not reason:
        return engine.slowdown > SLOW_FOR_NO_REASON * usual
    least = _SLOW if engine.gpu_trouble is not None else _SLOW_FOR_WANT_OF_CORES
    return _times(engine) > least * (usual if usual < _SLOW else 1.0)  # all may be slow together, and excuse nobody


def _times(engine: Engine) -> float:
    """That its steps take as long as they should. What is computed on cores takes at least as long as it is kept from them."""
    for_want = _for_want_of_cores(engine)
    if engine.now.slowdown is None:
        return _SLOWER if engine.gpu_trouble is not None else for_want
    on_cores = not engine.now.gpus and for_want > SLOW_FOR_NO_REASON
    return max(engine.slowdown, for_want) if on_cores else engine.slowdown


def _for_want_of_cores(engine: Engine) -> float:
    """Times as long, if it works in all of the time in which it has a core."""
    return 1 / max(_LEAST_SHARE, 1 - max(engine.core_delay, engine.throttled))


def _matters(engine: Engine, signs: Signs) -> bool:
    """To those who are hurt: a slow engine that does its work in time is not what they wait for."""
    prompts = signs.ttft_late > 0 or signs.waits_too_long or signs.queue >= 1
    tokens = signs.is_behind(engine) or _paces_scatter(engine, signs) or engine.full or engine.kv >= _NEARLY_FULL
    waiting = engine.waiting + engine.fetching >= 1 or (prompts and _waits_for_decoding(signs))
    return (engine.prefills and prompts) or (engine.decodes and (tokens or waiting))


def _paces_scatter(engine: Engine, signs: Signs) -> bool:
    """Its tokens are in time on average, and those of many answers are not; and it is not first tokens that these miss."""
    return signs.is_of_pace and engine.itl_s > _NEARLY * signs.now.slo_itl_s


def _has_too_much(engine: Engine, skewed: Finding | None) -> bool:
    """Routing gives it more of the work than it is slow, and no GPU or quota slows it: what else is on its cores has as much more to do."""
    if skewed is None or skewed.engines != (engine.name,):
        return False
    return engine.gpu_trouble is None and engine.throttled < _THROTTLED and _times(engine) < uneven.times(skewed)


def _too_much_anyway(signs: Signs) -> bool:
    """More prompt tokens come than engines could compute that are all of the time at it, were none of them slow."""
    pool = signs.prefill
    if not pool or signs.prompt_tokens is None or min(engine.busy for engine in pool) < _ALL_OF_THE_TIME:
        return False
    could = sum(engine.prompt_tokens_s * max(1.0, _times(engine)) for engine in pool)
    found = [engine.hits for engine in pool if engine.hits is not None]
    computed = 1 - (sum(found) / len(found) if found else 0.0)
    return signs.arrivals_s * signs.prompt_tokens * computed > _CLEARLY_MORE * could > 0


def _too_many_to_decode(signs: Signs) -> bool:
    """More requests come than engines could finish, were none of them slow."""
    pool = [engine for engine in signs.decode if not engine.prefills]
    if not pool:
        return False
    ended = signs.ended_s * TREND_S
    could = (ended + _BY_CHANCE) * max(max(1.0, _times(engine)) for engine in pool)
    return ended + TREND_S * sum(engine.gathers_s for engine in pool) > _CLEARLY_MORE_ANSWERS * could


def _has_no_room(engine: Engine) -> bool:
    return engine.full or engine.kv >= _NEARLY_FULL


def _waits_for_decoding(signs: Signs) -> bool:
    """First tokens do, for a good part of their time: until a decode engine takes them, and makes a step."""
    after = signs.stages.get("decode_wait", 0.0) + signs.stages.get("first_step", 0.0)
    return after >= _HELD * sum(signs.stages.values()) > 0


def _slow_stage(engine: Engine, signs: Signs) -> str:
    if engine.prefills and engine.decodes:
        return "decode" if signs.itl_late > signs.ttft_late else "prefill"
    return engine.stage


def _alike(one: Engine, other: Engine) -> bool:
    return one.now.role is other.now.role
