"""An engine is not ready yet, and those that are can't do its work as well. Pure.

One that has ended by itself, and starts again, is told of as such (``gone.down``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.diagnosis.finding import Finding, do, first
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, EngineState, Evidence

TOO_FEW: Final = (
    "decode_kv_full",
    "handoff_decode_admission",
    "prefill_budget_small",
    "disaggregation_not_worth_it",
    "prefill_saturated",
    "decode_saturated",
    "pool_imbalance",
)
"""Causes that are no more once there is an engine more."""
_TELLING: Final = 0.05  # of a start, from where on what is left can be told from what it took


def starting(signs: Signs, found: Sequence[Finding]) -> Finding | None:
    """Engines start that others wait for. ``found``: what else holds, the first of which they would mend."""
    pool = [engine for engine in signs.engines if _starts(engine)]
    missed = [engine for engine in pool if not found or _would_mend(engine, found[0], signs)]
    if not missed:
        return None
    least = min(missed, key=lambda engine: engine.now.progress or 0.0)
    stage = found[0].stage if found else "prefill" if least.prefills else "decode"
    one = len(missed) == 1
    return Finding(
        cause="engine_starting",
        stage=stage,
        sentence=f"{do(missed, 'is', 'are')} still starting, and the others do not suffice without {'it' if one else 'them'}. "
        f"{_meanwhile(found, signs)}",
        confidence=0.9,
        engines=first(least, missed),
        evidence=tuple(map(_of_start, missed)),
        action=Action(sentence=_wait(least)),
    )


def _starts(engine: Engine) -> bool:
    """For the first time, or because somebody has told it to."""
    return engine.now.state is EngineState.STARTING and not (engine.now.restarts and engine.now.cause)


def _would_mend(engine: Engine, finding: Finding, signs: Signs) -> bool:
    if finding.cause not in TOO_FEW:
        return False
    prompts = finding.stage == "prefill"
    alone = not (signs.prefill if engine.prefills else signs.decode)  # nobody else does what it does: others do it, too
    return alone or (engine.prefills if prompts else engine.decodes)


def _meanwhile(found: Sequence[Finding], signs: Signs) -> str:
    return found[0].sentence if found else f"{signs.queue:.0f} requests wait that nobody else can take."


def _of_start(engine: Engine) -> Evidence:
    now = engine.now
    doing = f" ({now.stage})" if now.stage else ""
    done = "" if now.progress is None else f"; {now.progress:.0%} of its start is done"
    return Evidence(
        measured=now.progress if now.progress is not None else now.in_state_s,
        expected=None,
        unit="of its start" if now.progress is not None else "s",
        sentence=f"{engine.name} has been starting for {now.in_state_s:.0f} s{doing}{done}.",
    )


def _wait(engine: Engine) -> str:
    progress = engine.now.progress
    if progress is None or progress < _TELLING:
        return f"Wait until {engine.name} is ready; its log says how far it is."
    left_s = engine.now.in_state_s * (1 - progress) / progress
    return f"Wait: by its progress, {engine.name} is ready in about {max(1.0, left_s):.0f} s."
