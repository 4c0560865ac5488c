"""The node: all engines, and the only writer of their state.

Whatever happens (a process ends, a message comes, time passes) becomes an event in the inbox; one loop takes them out, asks
``lifecycle`` what follows, and does it. Readers get immutable views.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from appliance.channel import CoreReady, Down, PeerClosed, PeerOpened, Progress, Up
from appliance.config import Config
from appliance.records import EngineState, EngineView
from appliance.supervisor import lifecycle, loading
from appliance.supervisor.acquaintance import Acquaintances, Key
from appliance.supervisor.actions import EngineActions
from appliance.supervisor.engine import Engine
from appliance.supervisor.exits import Exit, explain
from appliance.supervisor.forkserver import ForkError
from appliance.supervisor.health import Health
from appliance.supervisor.introductions import Introductions
from appliance.supervisor.lifecycle import (
    Answers,
    Clock,
    Ended,
    Event,
    Progressed,
    Retire,
    Spawned,
    Start,
    Stop,
)
from appliance.supervisor.listening import Listening
from appliance.supervisor.oom import OomKills
from appliance.supervisor.process import Session
from appliance.supervisor.reshaping import Reshaping
from appliance.supervisor.roster import Roster
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import EngineSpec, shown
from appliance.supervisor.starts import Starts
from appliance.supervisor.topology import described
from appliance.supervisor.watch import Watch

_PROBE_S: Final = 0.1
_CLOCK_S: Final = 1.0
_TURN_S: Final = 0.1
_ENDING_S: Final = 5.0  # after SIGKILL
_UNMAP_S: Final = 2.0  # for peers to unmap a dead engine before it is started again
_log = logging.getLogger("pd-appliance")

OnMessage = Callable[[str, int, Up], None]
OnLost = Callable[[str, int], None]
OnChange = Callable[[EngineView], None]


class Node:
    """Starts, watches, introduces and ends the engines of a topology."""

    def __init__(
        self,
        config: Config,
        engines: Sequence[EngineSpec],
        runtime: Runtime,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._on_message: list[OnMessage] = []
        self._on_change: list[OnChange] = []
        self._on_lost: list[OnLost] = []
        self.roster = Roster(engines)
        self._engines = self.roster.engines
        self._views: dict[str, EngineView] = {}
        self.roster.on_begin.append(lambda spec: self._publish(self._engines[spec.name]))
        self.roster.on_remove.append(self._views.pop)
        self._acquaintances = Acquaintances()
        self._introductions = Introductions(self._engines.values(), self._acquaintances, self._task)
        self._watch = Watch(self._engines.values(), runtime, self._post, self._task)
        reshaping = Reshaping(
            self.roster,
            self._introductions,
            self._post,
            lambda engine: self.actions.in_flight(engine),
            config.server.grace_s,
        )
        self.actions = EngineActions(
            self._engines, self._acquaintances, self._post, self._task, self._publish, reshaping, config.server.grace_s
        )
        self._starts = Starts(config, runtime, engines[0], self._post)
        self._inbox: asyncio.Queue[tuple[Engine, int, Event] | asyncio.Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._oom_kills = OomKills()
        self._ticked_ns = 0
        self._retired = False  # then an engine that ends is not started again
        self._listening = Listening(runtime.channel, self._engines, self._take, self._post, self._task)
        for engine in self._engines.values():
            self._publish(engine)

    # ---- what others may ask

    @property
    def topology(self) -> str:
        """What the engines are used for now."""
        return described([engine.place for engine in self._engines.values()])

    def views(self) -> tuple[EngineView, ...]:
        return tuple(self._views.values())

    def logs(self, name: str) -> list[str] | None:
        engine = self._engines.get(name)
        return list(engine.log) if engine else None

    def command(self, name: str) -> list[str] | None:
        """What the engine is started with, but for what changes from life to life; secrets are left out."""
        engine = self._engines.get(name)
        return shown(engine.spec) if engine else None

    def send_core(self, name: str, message: Down) -> bool:
        """To an engine's EngineCore; False if there is none now."""
        engine = self._engines.get(name)
        core = engine.core_connection if engine else None
        if core is None:
            return False
        core.send(message)
        return True

    def on_message(self, callback: OnMessage) -> None:
        """Call back with name, epoch and message for every message of a living engine."""
        self._on_message.append(callback)

    def on_change(self, callback: OnChange) -> None:
        """Call back with every new view."""
        self._on_change.append(callback)

    def on_engine_lost(self, callback: OnLost) -> None:
        """Call back with name and epoch whenever a life has ended."""
        self._on_lost.append(callback)

    async def turns(self) -> None:
        """Return once all that supervises has turned: the loop, the clock and the watch. Never, if one of them hangs or has ended."""
        asked_ns = time.monotonic_ns()
        turned = asyncio.Event()
        self._inbox.put_nowait(turned)
        await turned.wait()
        while min(self._ticked_ns, self._watch.ticked_ns) < asked_ns:
            await asyncio.sleep(_TURN_S)

    def progress_ns(self) -> int:
        """When an engine that starts last gave a sign of getting on."""
        return max(engine.life.progress_ns for engine in self._engines.values())

    # ---- beginning and end

    async def start(self) -> None:
        """Listen, and begin all engines; returns at once."""
        await self._listening.start()
        self._task(self._run(), "node")
        self._task(self._tick(), "node clock")
        self._task(self._watch.run(), "watch")
        for engine in self._engines.values():
            self._post(engine, Start())

    async def stop(self, grace_s: float) -> None:
        """End all engines: ask, wait for ``grace_s``, then force. Afterwards nothing of them is left. Harmless a second time."""
        if self._retired:
            return
        self._retired = True
        await self._starts.close()
        for event, patience_s in ((Retire(), grace_s), (Stop(), _ENDING_S)):
            for engine in self._engines.values():
                self._post(engine, event)
            await self._all_gone(patience_s)
        for engine in self._engines.values():
            if engine.process is not None:
                _log.error("%s has not ended for %.0f s after it was killed", engine.spec.name, _ENDING_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listening.stop()

    async def _all_gone(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if self._inbox.empty() and not any(engine.lives for engine in self._engines.values()):
                return
            await asyncio.sleep(0.02)

    # ---- the loop

    def _post(self, engine: Engine, event: Event, epoch: int | None = None) -> None:
        self._inbox.put_nowait((engine, engine.life.epoch if epoch is None else epoch, event))

    async def _run(self) -> None:
        while True:
            taken = await self._inbox.get()
            if isinstance(taken, asyncio.Event):
                taken.set()
                continue
            engine, epoch, event = taken
            if epoch != engine.life.epoch or not self.roster.has(engine):
                continue  # what an earlier life said late means nothing
            try:
                self._handle(engine, event)
            except Exception:  # a fault in seeing to one engine must not leave the others unseen to
                _log.exception("%s of %s", type(event).__name__, engine.spec.name)

    def _handle(self, engine: Engine, event: Event) -> None:
        if isinstance(event, Start) and self._retired:
            return
        key, before = engine.key, engine.life
        engine.life, actions = lifecycle.step(before, event, time.monotonic_ns())
        if isinstance(event, Ended):
            try:
                self._forget(engine, key)
            except Exception:  # what follows is more important
                _log.exception("forgetting %s", engine.spec.name)
        if engine.life != before or isinstance(event, Ended):
            self._publish(engine)
        for action in actions:
            try:
                self._act(engine, action)
            except Exception:  # the next ones are as necessary
                _log.exception("%s of %s", type(action).__name__, engine.spec.name)

    def _act(self, engine: Engine, action: lifecycle.Action) -> None:
        match action:
            case lifecycle.Spawn():
                engine.spawning = True
                self._task(self._spawn(engine, engine.key), f"start of {engine.spec.name}")
            case lifecycle.Kill():
                if engine.process is not None:
                    asyncio.get_running_loop().call_later(action.after_s, engine.process.kill)
            case lifecycle.TellStacks():
                if engine.process is not None:
                    engine.process.tell_stacks()
            case lifecycle.Terminate():
                if engine.process is not None:
                    engine.process.terminate()
            case lifecycle.StartIn(delay_s):
                if not self._retired:
                    self._task(self._start_in(engine, engine.key, delay_s), f"back-off of {engine.spec.name}")
            case lifecycle.Introduce():
                self._watch.begin(engine)
                if engine.process is not None:
                    engine.process.note_named()
                self._introductions.everyone()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_S)
            self._ticked_ns = time.monotonic_ns()
            self._oom_kills.look(self._ticked_ns)
            for engine in self._engines.values():
                if engine.life.state is EngineState.STARTING:
                    self._loading(engine)
                    self._post(engine, Clock(self._config.engine.stall_s))

    def _loading(self, engine: Engine) -> None:
        """What can be seen of a start from outside."""
        try:
            sign = loading.look(engine, _CLOCK_S)
        except Exception:  # a look that fails is no reason to look no more
            _log.exception("looking at %s", engine.spec.name)
            return
        if sign is not None:
            self._post(engine, sign)

    # ---- processes

    async def _spawn(self, engine: Engine, key: Key) -> None:
        try:
            engine.process = await self._starts.session(engine, key)
        except Exception as error:  # whatever it is, an engine that nobody starts again must not be left as starting
            exit = error.exit if isinstance(error, ForkError) else Exit(f"its process can't be started: {error}", True)
            self._post(engine, Ended(exit), key.epoch)
            return
        finally:
            engine.spawning = False
        self._post(engine, Spawned(engine.process.pid), key.epoch)
        self._task(self._await_end(engine, engine.process, key), f"end of {key.engine}")
        self._task(self._await_ready(engine, key), f"readiness of {key.engine}")

    async def _await_end(self, engine: Engine, session: Session, key: Key) -> None:
        try:
            code = await session.wait()
        except Exception:  # an end that nobody hears of would be for ever
            _log.exception("waiting for the end of %s", key.engine)
            session.kill()
            code = -signal.SIGKILL
        oom = self._oom_kills.lately(time.monotonic_ns())
        await self._listening.drained(engine)
        self._post(engine, Ended(explain(code, engine.last_words(), oom=oom)), key.epoch)

    async def _await_ready(self, engine: Engine, key: Key) -> None:
        """Until it is healthy: EngineCore has reported, and its server says 200."""
        async with Health(self._runtime.server_socket(key.engine)) as health:
            while engine.key == key and engine.life.state is EngineState.STARTING:
                if engine.core is not None and await health.status() == 200:
                    self._post(engine, Answers(), key.epoch)
                    return
                await asyncio.sleep(_PROBE_S)

    async def _start_in(self, engine: Engine, key: Key, delay_s: float) -> None:
        """After the pause, and once its peers have unmapped what is left of its last life."""
        await asyncio.sleep(delay_s)
        await self._introductions.unmapped(key, _UNMAP_S)
        self._post(engine, Start(), key.epoch)

    def _forget(self, engine: Engine, key: Key) -> None:
        """A life is over."""
        engine.forget_life()
        for other in self._introductions.gone(key):
            self._publish(other)
        self._runtime.forget(key.engine, key.epoch)
        _tell(self._on_lost, key.engine, key.epoch)

    def _take(self, engine: Engine, message: Up) -> None:
        """What a living engine says: what the node itself needs to know, and then the others."""
        if engine.vitals is not None:
            engine.vitals.fold(message, time.monotonic_ns())
        match message:
            case Progress(stage=stage, fraction=fraction):
                self._post(engine, Progressed(stage, fraction))
            case CoreReady():
                engine.core = message
            case PeerOpened():
                self._introductions.opened(engine, message)
                self._publish(engine)
            case PeerClosed():
                self._introductions.closed(engine, message)
        _tell(self._on_message, engine.spec.name, engine.life.epoch, message)

    # ---- views

    def _publish(self, *engines: Engine) -> None:
        """What has changed is told once all of it is true: of two engines that change places none is missing for a moment."""
        views = [self._view(engine) for engine in engines]
        changed = [view for view in views if view != self._views.get(view.name)]
        self._views |= {view.name: view for view in changed}
        for view in changed:
            _tell(self._on_change, view)

    def _view(self, engine: Engine) -> EngineView:
        return engine.view(str(self._runtime.server_socket(engine.spec.name)), self._acquaintances)

    def _task(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s failed", task.get_name(), exc_info=task.exception())


def _tell(callbacks: Iterable[Callable[..., None]], *what: object) -> None:
    """A callback that fails is its own affair."""
    for callback in callbacks:
        try:
            callback(*what)
        except Exception:
            _log.exception("%s", callback)
