"""An engine is not there: it hangs, or has ended. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

from typing import Final

from appliance.diagnosis.finding import Finding, first
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, EngineState, Evidence, Order, OrderKind
from appliance.remedies.catalogue import advise

_OLD_S: Final = 60.0
_SINCE: Final = {
    EngineState.HUNG: "has been hanging",
    EngineState.SUSPECT: "has not been heard of",
    EngineState.BACKOFF: "has waited to be started again",
    EngineState.FAILED: "has been given up",
    EngineState.STARTING: "has been starting again",
}
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
        stage=engine.stage,
        sentence=_gone(engine, cause),
        confidence=0.8 if state is EngineState.SUSPECT else 0.99,
        engines=first(engine, gone),
        evidence=(
            Evidence(
                measured=engine.now.last_step_age_s or engine.now.in_state_s,
                expected=1.0,
                unit="s",
                sentence=f"{engine.name} {_SINCE[state]} for {_time(engine.now.in_state_s)}.",
            ),
        ),
        action=_back(engine),
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else "less than a second"


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
