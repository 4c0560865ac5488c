"""Something is not as quick as it should be: an engine that is gone or slow, an API process, a link. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from appliance.diagnosis import advice
from appliance.diagnosis.finding import Finding, first, ms, share
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, EngineState, Evidence

_SLOW: Final = 1.08  # times what steps take: beyond noise and drift, where GPUs or cores tell of a reason
_SLOW_FOR_NO_REASON: Final = 1.3  # where they do not
_SLOW_LINK: Final = 1.5
_WORKING: Final = 0.2
_STARVED: Final = 0.08  # of the time waiting for a core
_API_FULL: Final = 0.7
_DOWN: Final = (EngineState.HUNG, EngineState.SUSPECT, EngineState.BACKOFF, EngineState.FAILED)


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
            f"tokens wait {ms(worst.api_delay_s)} in it while the engine itself takes as long as ever."
        ),
        confidence=0.9,
        engines=first(worst, found),
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
                sentence=f"From a first token to its bytes it takes {ms(worst.api_delay_s)}.",
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
    end = next((one for one in signs.engines if one.name == (common if several else worst.consumer)), None)
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
                sentence=f"A request waits {ms(moving)} for its KV.",
            ),
        ),
        action=advice.no_work(end, signs, "see to the link") if end else Action(sentence="See to the link."),
        gain=share(moving * (1 - 1 / (worst.slowdown or 1.0)), sum(signs.stages.values())),
    )


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
    return Finding(
        cause=f"{stage}_straggler_{kind}",
        stage=stage,
        sentence=f"{worst.name} takes {worst.slowdown:.1f} times as long for its steps as it should: {why}.",
        confidence=0.95 if trouble or starved else 0.6,
        engines=first(worst, found),
        evidence=tuple(evidence),
        action=advice.less_work(
            worst,
            signs,
            worst.slowdown,
            f"see to its GPU ({trouble})"
            if trouble
            else "give its processes cores of their own"
            if kind == "cpu"
            else "look at what else runs on its GPU",
        ),
        gain=1 - 1 / worst.slowdown,
    )


def _is_slow(engine: Engine, others: Sequence[Engine]) -> bool:
    rest = [other.slowdown for other in others if other is not engine and _alike(other, engine)]
    usual = max(1.0, statistics.median(rest)) if rest else 1.0
    told = engine.gpu_trouble is not None or engine.core_delay >= _STARVED
    return engine.slowdown > (_SLOW if told else _SLOW_FOR_NO_REASON) * usual


def _slow_stage(engine: Engine, signs: Signs) -> str:
    if engine.prefills and engine.decodes:
        return "decode" if signs.itl_late > signs.ttft_late else "prefill"
    return "prefill" if engine.prefills else "decode"


def _stage(engine: Engine) -> str:
    return "prefill" if engine.prefills else "decode"


def _alike(one: Engine, other: Engine) -> bool:
    return one.now.role is other.now.role
