"""What ``serve`` says on its standard output, line by line."""

from __future__ import annotations

import contextlib
import sys

from appliance.records import EngineState, EngineView, Role

_last_said: dict[str, tuple[Role, EngineState, str | None]] = {}


def report(view: EngineView) -> None:
    """A line whenever an engine's role, state or stage changes."""
    now = (view.role, view.state, view.stage)
    if _last_said.get(view.name) != now and view.epoch:
        _last_said[view.name] = now
        detail = (
            view.stage
            if view.state is EngineState.STARTING
            else view.cause
            if view.state is not EngineState.READY
            else None
        )
        say(f"{view.name} {view.role.value:8} {view.state.value}" + (f": {detail}" if detail else ""))


def say(line: str) -> None:
    """Nobody may listen any more (``serve | head -3``): that is no reason to stop serving."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # broken, closed, or never there
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
