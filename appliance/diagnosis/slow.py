"""Something is not as quick as it should be: an engine that is gone or slow, an API process, a link. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

from appliance.diagnosis import advice
from appliance.diagnosis.finding import Finding, first, ms, share
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import LINKS_S, MOST_TIMES, Action, EngineState, Evidence, Order, OrderKind
from appliance.remedies.catalogue import advise

_SLOW: Final = 1.08  # times what steps take: beyond noise and drift, where GPUs or cores tell of a reason
_SLOW_FOR_WANT_OF_CORES: Final = 1.15  # cores that are shared make steps uneven
_SLOW_FOR_NO_REASON: Final = 1.3  # where they do not
_SLOWER: Final = 1.5  # where it is not known how slow
UNEXPLAINED: Final = 0.6  # confidence in an engine that is slow for no reason that can be read
_SLOW_LINK: Final = 1.5
_WORKING: Final = 0.2
_ALL_OF_THE_TIME: Final = 0.9
_CLEARLY_MORE: Final = 1.1
_STARVED: Final = 0.08  # of the time waiting for a core
_THROTTLED: Final = 0.1  # of the time without any, for a quota that is used up
_STUCK: Final = 3  # requests, whose KV does not come
_STUCK_S: Final = 10.0  # that one waits for it then
_FELT: Final = 0.05  # of the time to the first token
_HELD: Final = 0.25  # of it, in one place
_HELD_S: Final = 0.05  # beyond what busy cores make of it
_NEARLY_FULL: Final = 0.9  # of KV
_OLD_S: Final = 60.0
_CORE_FULL: Final = 0.9  # of the one core that the supervisor's event loop can use
_LATE_S: Final = 0.01  # its loop, where its core is full
_LATE_ANYWAY_S: Final = 0.1  # where it is not: it gets none
_DOWN: Final = (EngineState.HUNG, EngineState.SUSPECT, EngineState.BACKOFF, EngineState.FAILED)


def down(signs: Signs) -> Finding | None:
    """An engine hangs, or has ended, and is not back yet. One that was told to start again is not missed."""
    gone = [engine for engine in signs.engines if _is_gone(engine)]
    if not gone:
        return None
    engine = min(gone, key=lambda one: one.now.in_state_s)
    state, cause = engine.now.state, engine.now.cause or ""
    hung = "EngineCore has ended" not in cause if state is EngineState.SUSPECT else "sign of life" in cause
    hung = hung or state is EngineState.HUNG
    return Finding(
        cause="engine_hung" if hung else "engine_crashed",
        stage=_stage(engine),
        sentence=_gone(engine, cause),
        confidence=0.8 if state is EngineState.SUSPECT else 0.99,
        engines=first(engine, gone),
        evidence=(
            Evidence(
                measured=engine.now.last_step_age_s or engine.now.in_state_s,
                expected=1.0,
                unit="s",
                sentence=f"{engine.name} has been in state {state.value} for {engine.now.in_state_s:.0f} s.",
            ),
        ),
        action=_back(engine),
    )


def is_old(signs: Signs) -> bool:
    """What is gone was given up a while ago."""
    gone = [engine for engine in signs.engines if _is_gone(engine)]
    return all(one.now.state is EngineState.FAILED and one.now.in_state_s > _OLD_S for one in gone)


def _is_gone(engine: Engine) -> bool:
    again = engine.now.state is EngineState.STARTING and engine.now.restarts > 0 and bool(engine.now.cause)
    return engine.now.state in _DOWN or again


def _gone(engine: Engine, cause: str) -> str:
    state = engine.now.state
    because = f" ({cause})" if cause else ""
    if state is EngineState.SUSPECT and "EngineCore has ended" in cause:
        return f"{engine.name} has not been heard of{because}; nothing new is sent to it."
    if state is EngineState.SUSPECT:
        return f"{engine.name} has not been heard of for {engine.now.last_step_age_s or 0:.1f} s; nothing new is sent to it."
    if state is EngineState.HUNG:
        return f"{engine.name} makes no progress{because}, and is ended to be started again."
    if state is EngineState.FAILED:
        return f"{engine.name} has ended{because}, and was given up."
    return f"{engine.name} has ended{because}, and is being started again."


def _back(engine: Engine) -> Action:
    if engine.now.state is EngineState.FAILED:
        return advise(
            f"Mend what its log says, then resume {engine.name}.", Order(kind=OrderKind.RESUME, engine=engine.name)
        )
    if engine.now.state is EngineState.SUSPECT:
        return Action(sentence="Wait: if it stays silent, it is ended and started again by itself.")
    return Action(sentence=f"Nothing, while {engine.name} is started again; its log says why it ended.")


def frontend(signs: Signs) -> Finding | None:
    """An API process has no time for the tokens that its engine makes, or for the requests that it is sent; or it is not let run."""
    found = [
        engine for engine in signs.engines if engine.api_full and _waits(engine, signs) and not _has_no_core(engine)
    ]
    found = found or [engine for engine in signs.engines if _is_held_up(engine, signs)]
    if not found:
        return None
    worst = max(found, key=lambda engine: (engine.api_busy if engine.api_full else 0.0, engine.api_delay_s))
    return Finding(
        cause="frontend_bound",
        stage="frontend",
        sentence=(
            f"The API process of {worst.name} is busy {worst.api_busy:.0%} of the time; "
            f"tokens that the engine has made wait {ms(worst.api_delay_s)} in it."
        )
        if worst.api_full
        else (
            f"What {worst.name} has made waits {ms(worst.api_delay_s)} in its API process, "
            f"which runs only {worst.api_busy:.0%} of the time: something stops it."
        ),
        confidence=0.9 if worst.api_full else 0.7,
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
                sentence=f"From what the engine has made to its answer it takes {ms(worst.api_delay_s)}.",
            ),
        ),
        action=Action(
            sentence=f"Give the API process of {worst.name} a core of its own; send token ids instead of text.",
            setting="[engine] args: --renderer-num-workers 4",
        )
        if worst.api_full
        else Action(
            sentence=f"See what stops the API process of {worst.name} (pid {worst.now.pid}): signals, a debugger, a frozen control group."
        ),
    )


def _has_no_core(engine: Engine) -> bool:
    """Neither it nor its engine: what it has to do would be little, if others let it run."""
    return _starved(engine) and engine.api_starved > engine.api_busy / 2


def _is_held_up(engine: Engine, signs: Signs) -> bool:
    """It has little to do, and is late with it: for a good part of the time to the first token. (A slow engine is late everywhere.)"""
    long = engine.api_delay_s >= max(_HELD_S, _HELD * sum(signs.stages.values()))
    return engine.serves and long and engine.slowdown <= _SLOW_FOR_NO_REASON


def _waits(engine: Engine, signs: Signs) -> bool:
    """For long enough that somebody feels it. (Where nothing has begun lately, nothing tells.)"""
    ttft_s = sum(signs.stages.values())
    return not ttft_s or engine.api_delay_s >= min(_FELT * ttft_s, signs.now.slo_itl_s)


def supervisor(signs: Signs) -> Finding | None:
    """The supervisor itself, through which everything goes, has no time for it. No engine is to blame."""
    full = signs.supervisor_busy >= _CORE_FULL and signs.loop_delay_s >= _LATE_S
    if not full and signs.loop_delay_s < _LATE_ANYWAY_S:
        return None
    why = f"it needs {signs.supervisor_busy:.0%} of a core" + ("" if full else ", and does not get it")
    return Finding(
        cause="frontend_bound",
        stage="frontend",
        sentence=f"The supervisor itself is late: its event loop runs {ms(signs.loop_delay_s)} behind, for {why}.",
        confidence=0.9 if full else 0.8,
        evidence=(
            Evidence(
                measured=signs.loop_delay_s,
                expected=0.001,
                unit="s",
                sentence=f"The supervisor's event loop runs {ms(signs.loop_delay_s)} later than it should.",
            ),
            Evidence(
                measured=signs.supervisor_busy,
                expected=0.5,
                unit="of a core",
                sentence=f"The supervisor needs {signs.supervisor_busy:.0%} of the one core that its event loop can use.",
            ),
        ),
        action=Action(
            sentence="Let engines send several tokens in one piece: each piece of each stream goes through the supervisor."
            if full
            else "Give the supervisor a core of its own: engines or other processes keep it from running.",
            setting="[engine] args: --stream-interval 8" if full else None,
        ),
    )


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
    rate = "" if worst.bytes_s is None else f" at {worst.bytes_s / 1e9:.1f} GB/s"
    ends = [name for link in slow for name in (link.producer, link.consumer)]
    common = max(sorted(set(ends)), key=ends.count)
    several = len(slow) > 1 and ends.count(common) == len(slow)
    wanted = (common,) if several else (worst.consumer, worst.producer)
    ends_of = [one for name in wanted for one in signs.engines if one.name == name]
    return Finding(
        cause="handoff_link_slow",
        stage="handoff",
        sentence=(
            f"KV from {worst.producer} to {worst.consumer} is copied{rate}, {_times(worst.slowdown or 1.0)} as slowly as over links "
            "that are well" + (f"; all links of {common} are slow." if several else ".")
        ),
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


def straggler(signs: Signs) -> Finding | None:
    """Steps of one engine take longer than such steps do."""
    candidates = [engine for engine in signs.engines if engine.serves and engine.busy >= _WORKING]
    found = [engine for engine in candidates if _is_slow(engine, candidates) and _matters(engine, signs)]
    if found and _too_much_anyway(signs):
        found = [engine for engine in found if not engine.prefills]
    if not found:
        return None
    worst = max(found, key=lambda engine: (engine.slowdown - 1) * engine.busy)
    stage, trouble = _slow_stage(worst, signs), worst.gpu_trouble
    starved = _starved(worst)
    kind = "cpu" if not trouble and (starved or not worst.now.gpus) else "gpu"
    why = trouble or _why_starved(worst) or "nothing that its GPUs or its cores tell explains it"
    known = worst.now.slowdown is not None
    slower = (
        f"takes {worst.slowdown:.1f} times as long for its steps as it should"
        if known
        else "is slow, by what its GPU says"
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
        action=advice.less_work(
            worst,
            signs,
            worst.slowdown if known else _SLOWER,
            f"see to its GPU ({trouble})"
            if trouble
            else _relief(worst)
            if starved
            else "look at what else runs on its GPU"
            if worst.now.gpus
            else "look at what else runs on its cores",
        ),
        gain=1 - 1 / worst.slowdown if known else None,
    )


def _since(engine: Engine) -> str:
    """Since when that is known: a decline may be as old."""
    since = engine.now.usual_since
    return "" if since is None else f", as was learnt by {time.strftime('%Y-%m-%d', time.localtime(since))}"


def _who(engine: Engine) -> str:
    """With what it does, where engines do not all do the same."""
    return engine.name if engine.prefills and engine.decodes else f"{engine.name}, which {_stage(engine)}s,"


def _starved(engine: Engine) -> bool:
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
        return "raise the CPU quota of its control group (CPUQuota= of its unit, --cpus of its container)"
    return "give its processes cores of their own"


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
        return engine.gpu_trouble is not None
    rest = [other.slowdown for other in others if other is not engine and _alike(other, engine)]
    usual = max(1.0, statistics.median(rest)) if rest else 1.0
    reason = engine.gpu_trouble is not None or _starved(engine)
    if not reason:
        return engine.slowdown > _SLOW_FOR_NO_REASON * usual
    least = _SLOW if engine.gpu_trouble is not None else _SLOW_FOR_WANT_OF_CORES
    return engine.slowdown > least * (usual if usual < _SLOW else 1.0)  # all may be slow together, and excuse nobody


def _matters(engine: Engine, signs: Signs) -> bool:
    """To those who are hurt: a slow engine that does its work in time is not what they wait for."""
    prompts = signs.ttft_late > 0 or signs.waits_too_long or signs.queue >= 1
    tokens = signs.is_behind(engine) or engine.full or engine.kv >= _NEARLY_FULL
    waiting = engine.waiting + engine.fetching >= 1 or (prompts and _waits_for_decoding(signs))
    return (engine.prefills and prompts) or (engine.decodes and (tokens or waiting))


def _too_much_anyway(signs: Signs) -> bool:
    """More prompt tokens come than engines could compute that are all of the time at it, were none of them slow."""
    pool = signs.prefill
    if not pool or signs.prompt_tokens is None or min(engine.busy for engine in pool) < _ALL_OF_THE_TIME:
        return False
    could = sum(engine.prompt_tokens_s * max(1.0, engine.slowdown) for engine in pool)
    found = [engine.hits for engine in pool if engine.hits is not None]
    computed = 1 - (sum(found) / len(found) if found else 0.0)
    return signs.arrivals_s * signs.prompt_tokens * computed > _CLEARLY_MORE * could > 0


def _waits_for_decoding(signs: Signs) -> bool:
    """First tokens do, for a good part of their time: until a decode engine takes them, and makes a step."""
    after = signs.stages.get("decode_wait", 0.0) + signs.stages.get("first_step", 0.0)
    return after >= _HELD * sum(signs.stages.values()) > 0


def _slow_stage(engine: Engine, signs: Signs) -> str:
    if engine.prefills and engine.decodes:
        return "decode" if signs.itl_late > signs.ttft_late else "prefill"
    return "prefill" if engine.prefills else "decode"


def _stage(engine: Engine) -> str:
    return "prefill" if engine.prefills else "decode"


def _alike(one: Engine, other: Engine) -> bool:
    return one.now.role is other.now.role
