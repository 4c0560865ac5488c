"""What simulated processes get of their cores, as the kernel would tell it of real ones."""

from __future__ import annotations

from typing import Final

from appliance.records import HostReading
from appliance.simulator.clock import Timer
from appliance.simulator.frontend import Frontend

_STEP_S: Final = 0.0008  # of its core, which EngineCore's main thread needs for a step


class VirtualHost:
    """Of one engine. ``physics`` tells it of steps; of the API process it asks ``frontend``."""

    def __init__(self, timer: Timer, frontend: Frontend) -> None:
        self._timer = timer
        self._frontend = frontend
        self._read_ns = timer.now_ns
        self._ran_s = self._delayed_s = self._api_s = 0.0

    def stepped(self, late_s: float) -> None:
        """A step has begun, so much later than it could have for want of a core."""
        self._ran_s += _STEP_S
        self._delayed_s += late_s

    def read(self) -> HostReading:
        """Of the time since it was asked last."""
        now_ns, api_s = self._timer.now_ns, self._frontend.occupied_s
        seconds = max(1e-6, (now_ns - self._read_ns) * 1e-9)
        reading = HostReading(
            core_delay=min(1.0, self._delayed_s / seconds),
            core_busy=min(1.0, self._ran_s / seconds),
            api_busy=min(1.0, (api_s - self._api_s) / seconds),
        )
        # Of a wait that is longer than this, the rest is still to come.
        self._read_ns, self._api_s, self._ran_s = now_ns, api_s, 0.0
        self._delayed_s = max(0.0, self._delayed_s - seconds)
        return reading

    def ended(self) -> None:
        """Its processes are gone."""
        self._ran_s = self._delayed_s = 0.0
