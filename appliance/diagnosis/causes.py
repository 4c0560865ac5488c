"""A test for each cause: what speaks for it, and what to do. Pure; None where it is not so.

Thresholds are of two kinds: what is material to a request, and what is beyond the noise of a figure. They were chosen on the tuning
seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, EngineState, Evidence

SLOW: Final = 1.08  # times what steps take: beyond noise and drift, where GPUs or cores tell of a reason
SLOW_FOR_NO_REASON: Final = 1.3  # where they do not
_SLOW_LINK: Final = 1.5
_FULL: Final = 0.95  # of KV
_SATURATED: Final = 0.9  # of the time
_IDLE: Final = 0.3
_WORKING: Final = 0.2
_STARVED: Final = 0.08  # of the time waiting for a core
_API_FULL: Final = 0.7
_MORE: Final = 1.3  # times the requests that are usual
_MISSED: Final = 0.15  # of the prompt tokens
_UNEVEN: Final = 1.5
_FEWER: Final = 0.75
_LEAST_LOAD: Final = 0.3  # of its capacity: less is never too much
_DOWN: Final = (EngineState.HUNG, EngineState.SUSPECT, EngineState.BACKOFF, EngineState.FAILED)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One cause that holds. ``engines``: all that share it, the one that matters most first."""

    cause: str
    stage: str  # prefill | handoff | decode | frontend
    sentence: str
    confidence: float
    engines: tuple[str, ...] = ()
    link: tuple[str, str] | None = None
    evidence: tuple[Evidence, ...] = ()
    action: Action
    gain: float | None = None


# ---- an engine that is not there


def down(signs: Signs) -> Finding | None:
    """An engine hangs, or has ended, and is not back yet."""
    for engine in signs.engines:
        state, cause = engine.now.state, engine.now.cause or ""
        again = state is EngineState.STARTING and engine.now.restarts > 0
        if state not in _DOWN and not again:
            continue
        hung = state in (EngineState.HUNG, EngineState.SUSPECT) or "sign of life" in cause
        what = "makes no progress" if hung else "has ended"
        doing = "is being started again" if state is not EngineState.FAILED else "was given up"
        because = f": {cause}" if cause else ""
        return Finding(
            cause="engine_hung" if hung else "engine_crashed",
            stage=_stage(engine),
            sentence=f"{engine.name} {what}{because}, and {doing}.",
            confidence=0.99,
            engines=(engine.name,),
            evidence=(
                Evidence(
                    measured=engine.now.last_step_age_s or engine.now.in_state_s,
                    expected=1.0,
                    unit="s",
                    sentence=f"{engine.name} is {state.value} since {engine.now.in_state_s:.0f} s.",
                ),
            ),
            action=Action(
                sentence=f"Nothing, while {engine.name} is started again; its log says why it ended."
                if state is not EngineState.FAILED
                else f"Mend what its log says, then resume {engine.name}.",
                call=f"POST /api/engines/{engine.name}/resume" if state is EngineState.FAILED else None,
            ),
        )
    return None


# ---- between the engines


def frontend(signs: Signs) -> Finding | None:
    """An API process has no time for the tokens that its engine makes, or for the requests that it is sent."""
    found = [engine for engine in signs.engines if engine.serves and engine.api_busy >= _API_FULL]
    if not found:
        return None
    worst = max(found, key=lambda engine: (engine.api_busy, engine.api_delay_s))
    return Finding(
        cause="frontend_bound",
        stage="frontend",
        sentence=(
            f"The API process of {worst.name} is busy {worst.api_busy:.0%} of the time; "
            f"tokens wait {_ms(worst.api_delay_s)} in it while the engine itself takes as long as ever."
        ),
        confidence=0.9,
        engines=_first(worst, found),
        evidence=(
            Evidence(
                measured=worst.api_busy,
                expected=0.5,
                unit="of a core",
                sentence=f"{worst.name}'s API process had something to do {worst.api_busy:.0%} of the time.",
            ),
            Evidence(
                measured=worst.api_delay_s,
                expected=0.005,
                unit="s",
                sentence=f"From a first token to its bytes it takes {_ms(worst.api_delay_s)}.",
            ),
        ),
        action=Action(
            sentence=f"Give the API process of {worst.name} a core of its own; send token ids instead of text.",
            setting="[engine] args: --renderer-num-workers 4",
        ),
    )


def slow_link(signs: Signs) -> Finding | None:
    """Hand-offs over one link take longer than over others."""
    slow = [link for link in signs.now.links if (link.slowdown or 0.0) > _SLOW_LINK]
    moving = signs.stages.get("transfer", 0.0) + signs.stages.get("handoff_wait", 0.0)
    if not slow or not moving or moving < 0.1 * sum(signs.stages.values()):
        return None
    worst = max(slow, key=lambda link: link.slowdown or 0.0)
    rate = "" if worst.bytes_s is None else f" at {worst.bytes_s / 1e9:.1f} GB/s"
    ends = [name for link in slow for name in (link.producer, link.consumer)]
    common = max(sorted(set(ends)), key=ends.count)
    several = len(slow) > 1 and ends.count(common) == len(slow)
    return Finding(
        cause="handoff_link_slow",
        stage="handoff",
        sentence=(
            f"KV from {worst.producer} to {worst.consumer} is copied{rate}, "
            f"{worst.slowdown:.1f} times as slowly as over links that are well"
            + (f"; all links of {common} are slow." if several else ".")
        ),
        confidence=0.9,
        engines=(common,) if several else (worst.consumer, worst.producer),
        link=(worst.producer, worst.consumer),
        evidence=(
            Evidence(
                measured=worst.slowdown or 0.0,
                expected=1.0,
                unit="times",
                sentence=f"Hand-offs from {worst.producer} to {worst.consumer} take {worst.slowdown:.1f} times as long as they should.",
            ),
            Evidence(
                measured=moving,
                expected=None,
                unit="s",
                sentence=f"A request waits {_ms(moving)} for its KV.",
            ),
        ),
        action=Action(
            sentence=f"Take new work off {worst.consumer if several is False else common} until the link is mended.",
            call=f"POST /api/engines/{common if several else worst.consumer}/drain",
        ),
        gain=_share(moving * (1 - 1 / (worst.slowdown or 1.0)), sum(signs.stages.values())),
    )


def kv_full(signs: Signs) -> Finding | None:
    """Decode engines have no room for the KV of those that wait."""
    found = [
        engine
        for engine in signs.decode
        if engine.kv >= _FULL and (engine.waiting + engine.fetching >= 1 or engine.preemptions_s > 0)
    ]
    if not found:
        return None
    worst = _least_room(found)
    blocks = worst.now.kv_blocks_total or 0
    return Finding(
        cause="decode_kv_full",
        stage="decode",
        sentence=(
            f"The KV cache of {_names(found)} is full ({worst.kv:.0%}): {worst.waiting:.0f} requests wait for room, "
            f"and {worst.preemptions_s:.1f} per second are thrown out and computed again."
        ),
        confidence=0.9,
        engines=_first(worst, found),
        evidence=(
            Evidence(
                measured=worst.kv,
                expected=0.9,
                unit="of KV",
                sentence=f"{worst.kv:.1%} of {blocks:,} blocks are in use.",
            ),
            Evidence(
                measured=worst.preemptions_s,
                expected=0.0,
                unit="1/s",
                sentence=f"{worst.name} preempts {worst.preemptions_s:.1f} requests per second.",
            ),
        ),
        action=Action(
            sentence="Give decoding more KV: another decode engine, fp8 KV, or more memory.",
            setting="[topology] layout with one more decode engine, or [engine.decode] args: --kv-cache-dtype fp8",
        ),
    )


def _least_room(full: Sequence[Engine]) -> Engine:
    """Of those that are full: the one that is so with far fewer requests than others, or else the one for which most wait."""
    fewest = min(full, key=lambda engine: engine.running)
    if fewest.running < _FEWER * max(engine.running for engine in full):
        return fewest
    return max(full, key=lambda engine: (engine.waiting, engine.kv))


def no_places(signs: Signs) -> Finding | None:
    """Decode engines run as many as they may, and others wait."""
    found = [engine for engine in signs.decode if engine.full and engine.kv < _FULL]
    if not found or len(found) < len(signs.decode) or signs.queue + sum(engine.waiting for engine in found) < 1:
        return None
    worst = max(found, key=lambda engine: engine.running)
    places = worst.now.max_running or 0
    return Finding(
        cause="handoff_decode_admission",
        stage="handoff",
        sentence=f"All {places} places of {_names(found)} are taken, with {1 - worst.kv:.0%} of the KV still free: requests wait for one.",
        confidence=0.85,
        engines=_first(worst, found),
        evidence=(
            Evidence(
                measured=worst.running,
                expected=0.8 * places,
                unit="requests",
                sentence=f"{worst.running:.0f} of {places} places are taken.",
            ),
        ),
        action=Action(
            sentence="Raise the places of decode engines.",
            setting=f"[engine.decode] args: --max-num-seqs {2 * places}",
        ),
    )


# ---- an engine that is slower than its like


def straggler(signs: Signs) -> Finding | None:
    """Steps of one engine take longer than such steps do."""
    candidates = [engine for engine in signs.engines if engine.serves and engine.busy >= _WORKING]
    found = [engine for engine in candidates if _is_slow(engine, candidates)]
    if not found:
        return None
    worst = max(found, key=lambda engine: (engine.slowdown - 1) * engine.busy)
    stage, trouble = _slow_stage(worst, signs), worst.gpu_trouble
    starved = worst.core_delay >= _STARVED
    kind = "gpu" if trouble or not starved else "cpu"
    why = trouble or (
        f"its main loop waits for a core {worst.core_delay:.0%} of the time"
        if starved
        else "nothing that its GPUs or its cores tell explains it"
    )
    evidence = [
        Evidence(
            measured=worst.slowdown,
            expected=1.0,
            unit="times",
            sentence=f"Steps of {worst.name} take {worst.slowdown:.2f} times as long as such steps do.",
        )
    ]
    if trouble:
        evidence.append(Evidence(measured=1.0, expected=0.0, unit="", sentence=f"{trouble}."))
    if starved:
        evidence.append(
            Evidence(
                measured=worst.core_delay,
                expected=0.01,
                unit="of the time",
                sentence=f"{worst.name}'s main loop could run and had no core {worst.core_delay:.0%} of the time.",
            )
        )
    weight = round(worst.now.weight / worst.slowdown, 2)
    return Finding(
        cause=f"{stage}_straggler_{kind}",
        stage=stage,
        sentence=f"{worst.name} takes {worst.slowdown:.1f} times as long for its steps as it should: {why}.",
        confidence=0.95 if trouble or starved else 0.6,
        engines=_first(worst, found),
        evidence=tuple(evidence),
        action=Action(
            sentence=f"Give {worst.name} less of the work until that is mended"
            + (
                ", or drain it and see to its cooling." if kind == "gpu" else "; give its processes cores of their own."
            ),
            call=f'POST /api/engines/{worst.name}/weight {{"weight": {weight:g}}}',
        ),
        gain=1 - 1 / worst.slowdown,
    )


def _is_slow(engine: Engine, others: Sequence[Engine]) -> bool:
    rest = [other.slowdown for other in others if other is not engine and _alike(other, engine)]
    usual = max(1.0, statistics.median(rest)) if rest else 1.0
    told = engine.gpu_trouble is not None or engine.core_delay >= _STARVED
    return engine.slowdown > (SLOW if told else SLOW_FOR_NO_REASON) * usual


def _slow_stage(engine: Engine, signs: Signs) -> str:
    if engine.prefills and engine.decodes:
        return "decode" if signs.itl_late > signs.ttft_late else "prefill"
    return "prefill" if engine.prefills else "decode"


# ---- how work is spread


def skew(signs: Signs) -> Finding | None:
    """One engine has far more to do than its like, and is not slower."""
    for stage, pool in (("prefill", signs.prefill), ("decode", signs.decode)):
        if len(pool) < 2:
            continue
        loads = {engine.name: _load(engine, stage) for engine in pool}
        most = max(pool, key=lambda engine: loads[engine.name])
        rest = statistics.median(loads[engine.name] for engine in pool if engine is not most)
        weights = [engine.now.weight for engine in pool]
        favoured = most.now.weight >= _UNEVEN * statistics.median(weights)
        if loads[most.name] < max(_UNEVEN * rest, _LEAST_LOAD) or (rest > 0.7 and not favoured) or most.slowdown > SLOW:
            continue
        heavy = (
            f", for its weight in routing is {most.now.weight:g} and that of others {min(weights):g}"
            if favoured
            else ""
        )
        return Finding(
            cause="routing_skew",
            stage=stage,
            sentence=f"{most.name} has {loads[most.name] / max(rest, 0.01):.1f} times the work of its like{heavy}.",
            confidence=0.9 if favoured else 0.7,
            engines=(most.name,),
            evidence=(
                Evidence(
                    measured=loads[most.name],
                    expected=rest,
                    unit="of its capacity",
                    sentence=f"{most.name} is {loads[most.name]:.0%} loaded, the others {rest:.0%}.",
                ),
            ),
            action=Action(
                sentence="Give engines of one role equal weights.",
                call=f'POST /api/engines/{most.name}/weight {{"weight": {min(weights):g}}}',
            ),
        )
    return None


def _load(engine: Engine, stage: str) -> float:
    """Of its capacity: decode engines always make steps while they have anything."""
    if stage == "prefill":
        budget = engine.now.token_budget or 1
        return min(1.0, engine.busy) + engine.outstanding / budget
    return engine.running / (engine.now.max_running or 256)


def cache(signs: Signs) -> Finding | None:
    """Less of the prompts is found in the prefix cache than by others, or than before, and no more is asked."""
    before, length = signs.arrivals_before_s, signs.prompt_tokens_before
    more = before is not None and signs.arrivals_s > _MORE * before
    if length and (signs.prompt_tokens or 0.0) > _MORE * length:
        return None  # other prompts come than before
    fell = [
        engine for engine in signs.prefill if (usual := _usual_hits(engine, signs, more)) and _missed(engine, usual)
    ]
    if not fell:
        return None
    worst = max(fell, key=lambda engine: (_usual_hits(engine, signs, more) or 0.0) - (engine.hits or 0.0))
    hits, usual = worst.hits or 0.0, _usual_hits(worst, signs, more) or 0.0
    return Finding(
        cause="cache_miss_storm",
        stage="prefill",
        sentence=(
            f"{_names(fell)} finds {hits:.0%} of its prompts in the prefix cache where {usual:.0%} is usual: "
            "with no more requests it has more to compute."
        ),
        confidence=0.85,
        engines=_first(worst, fell),
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
    if others:
        return statistics.median(others)
    return None if more else engine.hits_before


def _missed(engine: Engine, usual: float) -> bool:
    return engine.hits is not None and usual - engine.hits > _MISSED and engine.hits < 0.7 * usual


# ---- too much of everything


def prefill_saturated(signs: Signs) -> Finding | None:
    """All engines that prefill do so all of the time."""
    pool = signs.prefill
    if not pool or min(engine.busy for engine in pool) < _SATURATED or signs.queue + sum(e.waiting for e in pool) < 1:
        return None
    others = [engine for engine in signs.decode if not engine.prefills]
    idle = (
        bool(others) and max(_load(engine, "decode") for engine in others) < _IDLE and max(e.kv for e in others) < _IDLE
    )
    rate = sum(engine.prompt_tokens_s for engine in pool)
    moved = _re_roled(signs, -1)
    return Finding(
        cause="pool_imbalance" if idle and len(others) > 1 else "prefill_saturated",
        stage="prefill",
        sentence=(
            f"{_names(pool)} prefill all of the time, {rate:,.0f} tokens/s, and {signs.queue:.0f} requests wait"
            + (f", while {_names(others)} have little to decode." if idle else ": more is asked than they can do.")
        ),
        confidence=0.85,
        engines=tuple(engine.name for engine in pool),
        evidence=(
            Evidence(
                measured=min(engine.busy for engine in pool),
                expected=0.75,
                unit="of the time",
                sentence=f"Prefill engines are busy {min(engine.busy for engine in pool):.0%} of the time or more.",
            ),
            Evidence(
                measured=signs.queue,
                expected=0.0,
                unit="requests",
                sentence=f"{signs.queue:.0f} requests wait, {signs.queue_growth_s:+.1f} per second.",
            ),
        ),
        action=Action(
            sentence="Let one more engine prefill" + (f", as in {moved}." if moved else ", or send fewer requests."),
            setting=f'[topology] layout = "{moved}"' if moved else None,
        ),
    )


def decode_saturated(signs: Signs) -> Finding | None:
    """Tokens come late because too many are decoded at once, and no engine is slower than it should be."""
    pool = [engine for engine in signs.decode if engine.itl_late > 0.1 and engine.slowdown <= SLOW]
    if not pool or signs.itl_late < 0.1:
        return None
    worst = max(pool, key=lambda engine: engine.now.itl_s or 0.0)
    itl_s = worst.now.itl_s or 0.0
    others = [engine for engine in signs.prefill if not engine.decodes]
    idle = bool(others) and max(engine.busy for engine in others) < _IDLE
    moved = _re_roled(signs, +1)
    return Finding(
        cause="pool_imbalance" if idle and len(others) > 1 else "decode_saturated",
        stage="decode",
        sentence=(
            f"{_names(pool)} decode {worst.running:.0f} requests at once and take {_ms(itl_s)} per token "
            f"where {_ms(signs.now.slo_itl_s)} is the target"
            + (f", while {_names(others)} have little to prefill." if idle else ": that is what so many take.")
        ),
        confidence=0.8,
        engines=_first(worst, pool),
        evidence=(
            Evidence(
                measured=itl_s,
                expected=signs.now.slo_itl_s,
                unit="s",
                sentence=f"{worst.name} takes {_ms(itl_s)} from token to token; {signs.itl_late:.0%} of all tokens are late.",
            ),
            Evidence(
                measured=worst.slowdown,
                expected=1.0,
                unit="times",
                sentence=f"Its steps take {worst.slowdown:.2f} times what such steps do: it is not slow, it has much to do.",
            ),
        ),
        action=Action(
            sentence="Let one more engine decode"
            + (f", as in {moved}" if moved else "")
            + ", or let fewer run at once.",
            setting=f'[topology] layout = "{moved}"'
            if moved
            else f"[engine.decode] args: --max-num-seqs {max(1, int(worst.running * 0.8))}",
        ),
    )


def _re_roled(signs: Signs, more_decode: int) -> str | None:
    """The layout with one engine's role changed."""
    prefill = sum(engine.prefills and not engine.decodes for engine in signs.engines)
    decode = sum(engine.decodes and not engine.prefills for engine in signs.engines)
    if prefill - more_decode < 1 or decode + more_decode < 1 or not signs.split or ":" in signs.now.topology:
        return None
    _, _, sizes = signs.now.topology.partition("@")
    return f"{prefill - more_decode}p{decode + more_decode}d" + (f"@{sizes}" if sizes else "")


# ---- words


def _first(worst: Engine, engines: Sequence[Engine]) -> tuple[str, ...]:
    return (worst.name, *(engine.name for engine in engines if engine is not worst))


def _names(engines: Sequence[Engine]) -> str:
    names = [engine.name for engine in engines]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _stage(engine: Engine) -> str:
    return "prefill" if engine.prefills else "decode"


def _alike(one: Engine, other: Engine) -> bool:
    return one.now.role is other.now.role
