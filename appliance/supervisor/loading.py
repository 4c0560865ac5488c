"""What can be seen of an engine that starts, from outside: that it gets on, or that it can't."""

from __future__ import annotations

from typing import Final

from appliance.supervisor.engine import Engine
from appliance.supervisor.lifecycle import Deaf, Stirred
from appliance.supervisor.process import STOPPED_LETTERS

_STIR_BYTES: Final = 1 << 20  # moved between two looks: an engine that idles moves less
_STOPPED_S: Final = 3.0  # that a start may be stopped for


def look(engine: Engine, every_s: float) -> Stirred | Deaf | None:
    """To be called every so many seconds. None if there is nothing to tell."""
    moved = engine.process.moved_bytes() if engine.process else 0
    moves = moved - engine.moved_bytes >= _STIR_BYTES
    engine.moved_bytes = moved
    if _is_stopped(engine, every_s):
        return Deaf(f"a process of it was stopped (SIGSTOP) while {engine.life.stage or 'starting'}")
    return (
        Stirred() if moves else None
    )  # a model that is downloaded or read says nothing for a long time; but bytes move


def _is_stopped(engine: Engine, every_s: float) -> bool:
    """One whose EngineCore was stopped would go on saying that it waits for it."""
    stopped = engine.process is not None and STOPPED_LETTERS & engine.process.thread_states()
    engine.stopped_ticks = engine.stopped_ticks + 1 if stopped else 0
    return engine.stopped_ticks * every_s > _STOPPED_S
