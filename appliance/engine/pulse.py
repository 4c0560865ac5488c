"""Gets our work done on EngineCore's main loop, also while it sleeps for want of requests.

An idle EngineCore blocks on its input queue. A ``WAKEUP`` put there makes the loop turn once, and on its way back to sleep it calls what
waits in ``_idle_state_callbacks``. A busy loop needs no pulse: the scheduler sees to leases in each step.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc

from appliance.channel import Down, Release


class Pulse:
    """Turns the idle main loop once a second and whenever a lease is to be released. Called on the link's thread."""

    def __init__(self, engine_core: Any) -> None:
        self._core = engine_core
        self._asked = False

    def beat(self) -> None:
        if not self._asked:
            self._asked = True
            self._core._idle_state_callbacks.append(self._idle)
            self._core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))

    def receive(self, message: Down) -> None:
        if isinstance(message, Release):
            self.beat()

    def _idle(self, engine_core: Any) -> None:
        self._asked = False
        engine_core.scheduler.idle()


def install() -> None:
    """Have every EngineCore of this process begin with a pulse."""
    run = EngineCoreProc.run_busy_loop

    def run_with_pulse(self: Any) -> None:
        pulse = Pulse(self)
        link = self.scheduler._link
        link.on_message(pulse.receive)
        link.on_beat(pulse.beat)
        self.scheduler.begin()
        run(self)

    EngineCoreProc.run_busy_loop = run_with_pulse
