"""An API process, or the supervisor, has no time for what goes through it, or is not let run. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.diagnosis import stragglers
from appliance.diagnosis.finding import Finding, first, ms
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, Evidence

_FELT: Final = 0.05  # of the time to the first token
_HELD: Final = 0.25  # of it, in one place
_HELD_S: Final = 0.05  # beyond what busy cores make of it
_CORE_FULL: Final = 0.9  # of the one core that the supervisor's event loop can use
_LATE_S: Final = 0.01  # its loop, where its core is full
_LATE_ANYWAY_S: Final = 0.1  # where it is not: it gets none


def frontend(signs: Signs) -> Finding | None:
    """An API process has no time for the tokens that its engine makes, or for the requests that it is sent; or it is not let run."""
    found = [
        engine for engine in signs.engines if engine.api_full and _waits(engine, signs) and not _has_no_core(engine)
    ]
    if found:
        return _busy(max(found, key=lambda engine: (engine.api_busy, engine.api_delay_s)), found)
    found = [engine for engine in signs.engines if _is_held_up(engine, signs)]
    return _stopped(max(found, key=_held_s), found) if found else None


def _busy(worst: Engine, found: Sequence[Engine]) -> Finding:
    return Finding(
        cause="frontend_bound",
        stage="frontend",
        sentence=(
            f"The API process of {worst.name} is busy {worst.api_busy:.0%} of the time; "
            f"tokens that the engine has made wait {ms(worst.api_delay_s)} in it."
        ),
        confidence=0.9,
        engines=first(worst, found),
        evidence=_waiting(worst),
        action=Action(
            sentence=f"Give the API process of {worst.name} a core of its own; send token ids instead of text.",
            setting="[engine] args: --renderer-num-workers 4",
        ),
    )


def _stopped(worst: Engine, found: Sequence[Engine]) -> Finding:
    return Finding(
        cause="frontend_bound",
        stage="frontend",
        sentence=(
            f"What goes to {worst.name} and comes from it waits {ms(_held_s(worst))} in its API process, "
            f"which runs only {worst.api_busy:.0%} of the time: something stops it."
        ),
        confidence=0.7,
        engines=first(worst, found),
        evidence=_waiting(worst),
        action=Action(
            sentence=f"See what stops the API process of {worst.name} (pid {worst.now.pid}): signals, a debugger, a frozen control group."
        ),
    )


def _waiting(engine: Engine) -> tuple[Evidence, ...]:
    """What its API process does, and for how long what goes through it waits there."""
    busy = Evidence(
        measured=engine.api_busy,
        expected=0.5,
        unit="of a core",
        sentence=f"{engine.name}'s API process had something to do {engine.api_busy:.0%} of the time.",
    )
    out = Evidence(
        measured=engine.api_delay_s,
        expected=0.005,
        unit="s",
        sentence=f"Tokens take {ms(engine.api_delay_s)} from the engine's main loop to the answer.",
    )
    way_in = Evidence(
        measured=engine.intake_s,
        expected=0.01,
        unit="s",
        sentence=f"Requests that are sent to it take {ms(engine.intake_s)} until the engine has them.",
    )
    return (busy, out, way_in) if engine.intake_s >= _HELD_S else (busy, out)


def _has_no_core(engine: Engine) -> bool:
    """Neither it nor its engine: what it has to do would be little, if others let it run."""
    return stragglers.is_starved(engine) and engine.api_starved > engine.api_busy / 2


def _is_held_up(engine: Engine, signs: Signs) -> bool:
    """It has little to do, and is late with it: for a good part of the time to the first token. (A slow engine is late everywhere.)"""
    long = _held_s(engine) >= max(_HELD_S, _HELD * sum(signs.stages.values()))
    return engine.serves and long and not engine.api_full and engine.slowdown <= stragglers.SLOW_FOR_NO_REASON


def _held_s(engine: Engine) -> float:
    """On the way in and on the way out."""
    return engine.intake_s + engine.api_delay_s


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
