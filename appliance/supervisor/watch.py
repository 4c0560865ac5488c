"""Watches over the engines in service, and tells the node which of them give no sign of life.

What follows from that is ``lifecycle``'s to say; how long is too long, ``vitals``'.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from appliance.records import EngineState
from appliance.supervisor.acquaintance import Key
from appliance.supervisor.engine import Engine
from appliance.supervisor.health import Health
from appliance.supervisor.introductions import Task
from appliance.supervisor.lifecycle import BUSY_PATIENCE_S, SUSPECT_SHARE, Lively, Quiet
from appliance.supervisor.process import STOPPED_LETTERS, Session
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.vitals import PATIENCE_S, Condition, Vitals

TICK_S: Final = 0.5
_LATE_NS: Final = 1_000_000_000  # a tick that is later than this was not the engines' fault
_PROBE_S: Final = 1.0
_KNOWN: Final = (Condition.STOPPED, Condition.GONE)  # for whom nobody need wait as long as a slow step takes
_BUSY_SHARE: Final = 0.2  # of a core

_log = logging.getLogger("pd-appliance")

Post = Callable[[Engine, Quiet | Lively], None]


class Watch:
    """One for the node."""

    def __init__(self, engines: Collection[Engine], runtime: Runtime, post: Post, task: Task) -> None:
        """``post`` tells the node; ``task`` runs a coroutine for as long as the node lives."""
        self._engines = engines
        self._runtime = runtime
        self._post = post
        self._task = task
        self._stopped: dict[
            str, dict[int, float]
        ] = {}  # by engine: see Session.stopped, at the last look while it was quiet
        self.ticked_ns = 0  # when it looked last

    def begin(self, engine: Engine) -> None:
        """It has just become ready."""
        engine.vitals = Vitals(time.monotonic_ns())
        self._task(self._probe(engine, engine.key, engine.vitals), f"probe of {engine.spec.name}")

    async def run(self) -> None:
        """Look at each engine every ``TICK_S``, for ever."""
        last_ns = time.monotonic_ns()
        while True:
            await asyncio.sleep(TICK_S)
            self.ticked_ns = now_ns = time.monotonic_ns()
            late = now_ns - last_ns > TICK_S * 1e9 + _LATE_NS
            last_ns = now_ns
            for engine in self._engines:
                if engine.vitals is not None:
                    if late:  # this process itself was stopped or starved: what engines said is still to be read
                        engine.vitals.excuse(now_ns)
                    try:
                        self._look(engine, engine.vitals, now_ns)
                    except Exception:  # a look that fails is no reason to look no more
                        _log.exception("looking at %s", engine.spec.name)

    def _look(self, engine: Engine, vitals: Vitals, now_ns: int) -> None:
        who, quiet_s, patience_s = max(
            ("EngineCore", vitals.core_quiet_s(now_ns), vitals.core_patience_s()),
            ("API process", vitals.api_quiet_s(now_ns), vitals.api_patience_s()),
            key=lambda sign: sign[1] / sign[2],
        )
        condition = self._condition(engine) if quiet_s > SUSPECT_SHARE * PATIENCE_S else None
        if condition is None:
            self._stopped.pop(engine.spec.name, None)
        if condition is not None and (quiet_s > SUSPECT_SHARE * patience_s or condition in _KNOWN):
            self._post(engine, Quiet(who, quiet_s, patience_s, condition))
        elif engine.life.state is EngineState.SUSPECT:
            self._post(engine, Lively())

    def _condition(self, engine: Engine) -> Condition:
        if engine.core_connection is None:
            return Condition.GONE
        if engine.process is None:
            return Condition.STILL
        before_s, engine.cpu_s = engine.cpu_s, engine.process.cpu_s()
        used_s = engine.cpu_s - before_s if before_s else 0.0
        states = engine.process.thread_states()
        if states & STOPPED_LETTERS:
            return Condition.STOPPED if self._stays_stopped(engine, engine.process) else Condition.BUSY
        return Condition.BUSY if states & {"R", "D"} or used_s > _BUSY_SHARE * TICK_S else Condition.STILL

    def _stays_stopped(self, engine: Engine, process: Session) -> bool:
        """A process of it has been so since the last look. One that is let go now and then is slow, and gets on."""
        now = process.stopped()
        before, self._stopped[engine.spec.name] = self._stopped.get(engine.spec.name, {}), now
        return any(before.get(pid) == cpu_s for pid, cpu_s in now.items())

    async def _probe(self, engine: Engine, key: Key, vitals: Vitals) -> None:
        """Any answer will do, and a late one, too: that the API process answers is all that it proves."""
        async with Health(self._runtime.server_socket(key.engine), timeout_s=2 * BUSY_PATIENCE_S) as health:
            while engine.key == key and engine.vitals is vitals:
                if await health.status() is not None:
                    vitals.answered(time.monotonic_ns())
                await asyncio.sleep(_PROBE_S)
