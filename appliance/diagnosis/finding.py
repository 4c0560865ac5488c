"""What a test for a cause comes to, and the words that its sentences are made of. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.diagnosis.signs import Engine
from appliance.records import Action, Evidence

_FULL: Final = 0.9  # of KV


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


def first(worst: Engine, engines: Sequence[Engine]) -> tuple[str, ...]:
    return (worst.name, *(engine.name for engine in engines if engine is not worst))


def names(engines: Sequence[Engine]) -> str:
    names = [engine.name for engine in engines]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def do(engines: Sequence[Engine], one: str, several: str) -> str:
    """``e0 prefills``, ``e0 and e1 prefill``."""
    return f"{names(engines)} {one if len(engines) == 1 else several}"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def load(engine: Engine, stage: str) -> float:
    """Of its capacity: decode engines always make steps while they have anything, and what waits for a place or for room counts."""
    if stage == "prefill":
        budget = engine.now.token_budget or 1
        return min(1.0, engine.busy) + engine.outstanding / budget
    held = engine.running + engine.waiting
    times = held / engine.running if engine.kv >= _FULL and engine.running >= 1 else 1.0
    return max(held / (engine.now.max_running or 256), engine.kv * times)
