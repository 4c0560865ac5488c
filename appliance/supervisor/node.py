"""The node: all engines, and the only writer of their state.

Whatever happens (a process ends, a message comes, time passes) becomes an event in the inbox; one loop takes them out, asks
``lifecycle`` what follows, and does it. Readers get immutable views.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp

from appliance.channel import (
    ChannelServer,
    ClosePeer,
    Connection,
    CoreReady,
    Down,
    Hello,
    OpenPeer,
    PeerClosed,
    PeerOpened,
    Progress,
    Up,
)
from appliance.config import Config
from appliance.errors import ChannelError
from appliance.records import EngineState, EngineView
from appliance.supervisor import lifecycle, specs
from appliance.supervisor.acquaintance import Acquaintances, Key
from appliance.supervisor.exits import Exit, explain
from appliance.supervisor.forkserver import ForkError, ForkServer
from appliance.supervisor.lifecycle import Answers, Clock, Ended, Event, Life, Progressed, Spawned, Start, Stirred, Stop
from appliance.supervisor.process import LOG_LINES, Session, launch
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import EngineSpec

_PROBE_S: Final = 0.1
_CLOCK_S: Final = 1.0
_IMPORTING: Final = 0.05  # of a start, when it begins to import
_UNMAP_S: Final = 2.0  # for peers to unmap a dead engine before it is started again
_log = logging.getLogger("pd-appliance")

OnMessage = Callable[[str, int, Up], None]
OnLost = Callable[[str, int], None]
OnChange = Callable[[EngineView], None]


class Engine:
    """What the node keeps of one engine. Only the node's loop writes here."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.life = Life()
        self.process: Session | None = None
        self.spawning = False
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.connections: dict[tuple[str, int], Connection] = {}
        self.core: CoreReady | None = None

    @property
    def key(self) -> Key:
        return Key(self.spec.name, self.life.epoch)

    def ranks(self) -> dict[int, Connection]:
        """The processes that hold KV memory: the workers, or EngineCore where its only worker is inside it."""
        workers = {rank: connection for (kind, rank), connection in self.connections.items() if kind == "worker"}
        core = self.connections.get(("core", 0))
        return workers or ({0: core} if core else {})


class Node:
    """Starts, watches, introduces and ends the engines of a topology."""

    def __init__(
        self,
        config: Config,
        engines: Sequence[EngineSpec],
        runtime: Runtime,
        *,
        topology: str,
    ) -> None:
        self.topology = topology
        self._config = config
        self._runtime = runtime
        self._on_message: list[OnMessage] = []
        self._on_change: list[OnChange] = []
        self._on_lost: list[OnLost] = []
        self._engines = {spec.name: Engine(spec) for spec in engines}
        self._views: dict[str, EngineView] = {}
        self._acquaintances = Acquaintances()
        self._forks = ForkServer(specs.environment(engines[0], runtime, os.environ), config.engine.stall_s)
        self._inbox: asyncio.Queue[tuple[Engine, int, Event]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retired = False  # then an engine that ends is not started again
        self._channel = ChannelServer(
            runtime.channel,
            on_open=self._opened,
            on_message=self._received,
            on_close=self._closed,
            on_error=self._broken,
        )
        for engine in self._engines.values():
            self._publish(engine)

    # ---- what others may ask

    def views(self) -> tuple[EngineView, ...]:
        return tuple(self._views.values())

    def logs(self, name: str) -> list[str] | None:
        engine = self._engines.get(name)
        return list(engine.log) if engine else None

    def send_core(self, name: str, message: Down) -> bool:
        """To an engine's EngineCore; False if there is none now."""
        engine = self._engines.get(name)
        core = engine.connections.get(("core", 0)) if engine else None
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

    async def start(self) -> None:
        """Listen, and begin all engines; returns at once."""
        await self._channel.start()
        self._task(self._run(), "node")
        self._task(self._tick(), "node clock")
        for engine in self._engines.values():
            self._post(engine, Start())

    async def stop(self, grace_s: float) -> None:
        """End all engines: ask, wait for ``grace_s``, then force. Afterwards nothing of them is left. Harmless a second time."""
        if self._retired:
            return
        self._retired = True
        await self._forks.close()
        for engine in self._engines.values():
            if engine.process is not None:
                engine.process.terminate()
            else:
                self._post(engine, Stop())
        deadline = time.monotonic() + grace_s
        while any(engine.process for engine in self._engines.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for engine in self._engines.values():
            self._post(engine, Stop())
        while any(e.process or e.spawning for e in self._engines.values()) or not self._inbox.empty():
            await asyncio.sleep(0.02)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.stop()

    # ---- the loop

    def _post(self, engine: Engine, event: Event, epoch: int | None = None) -> None:
        self._inbox.put_nowait((engine, engine.life.epoch if epoch is None else epoch, event))

    async def _run(self) -> None:
        while True:
            engine, epoch, event = await self._inbox.get()
            if epoch == engine.life.epoch:  # what an earlier life said late means nothing
                await self._handle(engine, event)

    async def _handle(self, engine: Engine, event: Event) -> None:
        if isinstance(event, Start) and self._retired:
            return
        if isinstance(event, Ended):
            self._forget(engine)
        before = engine.life
        engine.life, actions = lifecycle.step(before, event, time.monotonic_ns())
        if engine.life != before or isinstance(event, Ended):
            self._publish(engine)
        for action in actions:
            await self._act(engine, action)

    async def _act(self, engine: Engine, action: lifecycle.Action) -> None:
        match action:
            case lifecycle.Spawn():
                engine.spawning = True
                self._task(self._spawn(engine, engine.key), f"start of {engine.spec.name}")
            case lifecycle.Kill():
                if engine.process is not None:
                    engine.process.kill()
            case lifecycle.StartIn(delay_s):
                if not self._retired:
                    self._task(self._start_in(engine, engine.key, delay_s), f"back-off of {engine.spec.name}")
            case lifecycle.Introduce():
                self._introduce_all()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_S)
            for engine in self._engines.values():
                if engine.life.state is EngineState.STARTING:
                    self._post(engine, Clock(self._config.engine.stall_s))

    # ---- processes

    async def _spawn(self, engine: Engine, key: Key) -> None:
        engine.log.append(f"--- life {key.epoch} of {key.engine} ---")
        self._runtime.forget(key.engine, key.epoch)  # a stale socket would be in the way
        reader, writer = os.pipe()
        try:
            pid = await self._begin(engine, key, writer)
        except (OSError, ForkError) as error:
            os.close(reader)
            exit = error.exit if isinstance(error, ForkError) else Exit(f"its process can't be started: {error}", True)
            self._post(engine, Ended(exit), key.epoch)
            return
        finally:
            engine.spawning = False
            os.close(writer)
        engine.process = Session(pid, reader, engine.log, lambda _: self._post(engine, Stirred(), key.epoch))
        self._post(engine, Spawned(pid), key.epoch)
        self._task(self._watch(engine, engine.process, key), f"watch of {key.engine}")
        self._task(self._probe(engine, key), f"probe of {key.engine}")

    async def _begin(self, engine: Engine, key: Key, output: int) -> int:
        """The pid of a new process. Raises ``OSError``, ``ForkError``."""
        arguments = specs.arguments(engine.spec, self._runtime, self._config, key.epoch, os.getpid())
        environment = specs.environment(engine.spec, self._runtime, os.environ)
        if not engine.spec.forked:
            return launch(specs.command(engine.spec, arguments), environment, output)
        if not self._forks.imported:
            self._post(engine, Progressed("importing vLLM", _IMPORTING), key.epoch)
        return await self._forks.fork(arguments, environment, output)

    async def _watch(self, engine: Engine, session: Session, key: Key) -> None:
        code = await session.wait()
        self._post(engine, Ended(explain(code, list(engine.log))), key.epoch)

    async def _probe(self, engine: Engine, key: Key) -> None:
        """Until it is healthy: EngineCore has reported, and its server says 200."""
        connector = aiohttp.UnixConnector(str(self._runtime.server_socket(key.engine)))
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(2.0)) as session:
            while engine.key == key and engine.life.state is EngineState.STARTING:
                if engine.core is not None and await _healthy(session):
                    self._post(engine, Answers(), key.epoch)
                    return
                await asyncio.sleep(_PROBE_S)

    async def _start_in(self, engine: Engine, key: Key, delay_s: float) -> None:
        """After the pause, and once its peers have unmapped what is left of its last life."""
        await asyncio.sleep(delay_s)
        deadline = time.monotonic() + _UNMAP_S
        while self._acquaintances.still_mapped(key) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self._post(engine, Start(), key.epoch)

    def _forget(self, engine: Engine) -> None:
        """A life is over."""
        key = engine.key
        engine.process = None
        engine.core = None
        engine.connections.clear()
        self._acquaintances.gone(key)
        for other in self._engines.values():
            if other is not engine and other.life.state is EngineState.READY:
                self._tell_to_close(other, key)
        self._runtime.forget(key.engine, key.epoch)
        for callback in self._on_lost:
            callback(key.engine, key.epoch)

    # ---- introductions

    def _introduce_all(self) -> None:
        ready = [engine for engine in self._engines.values() if engine.life.state is EngineState.READY and engine.core]
        for consumer in ready:
            for producer in ready:
                if consumer is not producer:
                    self._introduce(consumer, producer)

    def _introduce(self, consumer: Engine, producer: Engine) -> None:
        ranks = consumer.ranks()
        if producer.core is None or not self._acquaintances.open(consumer.key, producer.key, set(ranks)):
            return
        message = OpenPeer(
            peer=producer.key.engine,
            epoch=producer.key.epoch,
            sockets=producer.core.sockets,
            lease_table=producer.core.lease_table,
        )
        for connection in ranks.values():
            connection.send(message)

    def _tell_to_close(self, consumer: Engine, dead: Key) -> None:
        ranks = consumer.ranks()
        self._acquaintances.close(consumer.key, dead, set(ranks))
        for connection in ranks.values():
            connection.send(ClosePeer(peer=dead.engine, epoch=dead.epoch))
        self._publish(consumer)

    # ---- the channel

    def _living(self, hello: Hello) -> Engine | None:
        """The engine that a connection belongs to, if that life of it is the present one."""
        engine = self._engines.get(hello.engine)
        return engine if engine and engine.life.epoch == hello.epoch else None

    def _opened(self, connection: Connection) -> None:
        engine = self._living(connection.hello)
        if engine is None:
            connection.close()
            return
        engine.connections[(connection.hello.process, connection.hello.rank)] = connection

    def _received(self, connection: Connection, message: Up) -> None:
        engine = self._living(connection.hello)
        if engine is None:
            return
        self._take(engine, message)
        for callback in self._on_message:
            callback(engine.spec.name, engine.life.epoch, message)

    def _take(self, engine: Engine, message: Up) -> None:
        """What the node itself needs to know."""
        match message:
            case Progress(stage=stage, fraction=fraction):
                self._post(engine, Progressed(stage, fraction))
            case CoreReady():
                engine.core = message
            case PeerOpened(peer=peer, epoch=epoch, rank=rank, error=error):
                self._acquaintances.opened(engine.key, Key(peer, epoch), rank, error)
                if error is not None:
                    _log.warning("%s", error)
                self._publish(engine)
            case PeerClosed(peer=peer, epoch=epoch, rank=rank):
                self._acquaintances.closed(engine.key, Key(peer, epoch), rank)

    def _closed(self, connection: Connection) -> None:
        engine = self._living(connection.hello)
        if engine is not None:
            engine.connections.pop((connection.hello.process, connection.hello.rank), None)

    def _broken(self, hello: Hello | None, error: ChannelError) -> None:
        """A process that we can't understand is of no use: end its engine."""
        engine = self._living(hello) if hello else None
        _log.error("engine channel%s: %s", f" of {hello.engine}" if hello else "", error)
        if engine is not None and engine.process is not None:
            engine.process.kill()

    # ---- views

    def _publish(self, engine: Engine) -> None:
        life, core, spec = engine.life, engine.core, engine.spec
        view = EngineView(
            name=spec.name,
            role=spec.role,
            state=life.state,
            epoch=life.epoch,
            socket=str(self._runtime.server_socket(spec.name)),
            pid=life.pid,
            cores=spec.cores,
            stage=life.stage,
            progress=life.progress,
            since_ns=life.since_ns,
            restarts=life.restarts,
            cause=life.cause,
            peers=self._acquaintances.peers(engine.key),
            peer_errors=self._acquaintances.errors(engine.key),
            max_batched_tokens=core.max_batched_tokens if core else 2048,
            max_running=core.max_running if core else 256,
            max_model_len=core.max_model_len if core else 0,
            block_tokens=core.block_tokens if core else None,
            kv_blocks=core.kv_blocks if core else None,
        )
        if view != self._views.get(spec.name):
            self._views[spec.name] = view
            for callback in self._on_change:
                callback(view)

    def _task(self, coroutine: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s failed", task.get_name(), exc_info=task.exception())


async def _healthy(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("http://engine/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
