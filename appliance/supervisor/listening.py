"""Which life of which engine a connection to the engine channel belongs to, and what follows when one can't be heard any more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from appliance.channel import Hello, Up
from appliance.errors import ChannelError
from appliance.supervisor.acquaintance import Key
from appliance.supervisor.channel_server import ChannelServer, Connection
from appliance.supervisor.engine import Engine
from appliance.supervisor.introductions import Task
from appliance.supervisor.lifecycle import Deaf

_DEAF_S: Final = 5.0  # an API process outlives its EngineCore by up to half of that
_BROKEN_S: Final = 0.2
_DRAINED_S: Final = 2.0
_log = logging.getLogger("pd-appliance")


class Listening:
    """One for the node."""

    def __init__(
        self,
        path: Path,
        engines: Mapping[str, Engine],
        take: Callable[[Engine, Up], None],
        post: Callable[[Engine, Deaf, int], None],
        task: Task,
    ) -> None:
        """``take`` is called with every message of a living engine; ``post`` tells the node, with an epoch; for ``task`` see ``Watch``."""
        self._engines = engines
        self._take = take
        self._post = post
        self._task = task
        self._server = ChannelServer(
            path, on_open=self._opened, on_message=self._received, on_close=self._closed, on_error=self._broken
        )

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()

    async def drained(self, engine: Engine) -> None:
        """Return once what it said before its end has been read: output tokens above all, from which its streams go on elsewhere."""
        deadline = time.monotonic() + _DRAINED_S
        while engine.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    def _living(self, hello: Hello) -> Engine | None:
        """The engine that a connection belongs to, if that life of it is the present one and not yet over."""
        engine = self._engines.get(hello.engine)
        return engine if engine and engine.life.epoch == hello.epoch and engine.lives else None

    def _opened(self, connection: Connection) -> None:
        engine = self._living(connection.hello)
        if engine is None:
            connection.close()
            return
        engine.connections[(connection.hello.process, connection.hello.rank)] = connection

    def _received(self, connection: Connection, message: Up) -> None:
        engine = self._living(connection.hello)
        if engine is not None:
            self._take(engine, message)

    def _closed(self, connection: Connection) -> None:
        engine, place = self._living(connection.hello), (connection.hello.process, connection.hello.rank)
        if engine is not None and engine.connections.get(place) is connection:
            del engine.connections[place]
            self._task(self._deaf(engine, engine.key, place), f"silence of {engine.spec.name}")

    async def _deaf(self, engine: Engine, key: Key, place: tuple[str, int]) -> None:
        """A process that ends closes its channel, and the engine's end follows soon. One that lives on without is of no use."""
        await asyncio.sleep(_DEAF_S)
        if place not in engine.connections:
            name = "EngineCore" if place[0] == "core" else f"{place[0]} {place[1]}"
            self._post(engine, Deaf(f"its {name} lives, but has closed the engine channel"), key.epoch)

    def _broken(self, hello: Hello | None, error: ChannelError) -> None:
        """A process that we can't understand is of no use: end its engine. (One that was killed in mid-word has ended already.)"""
        engine = self._living(hello) if hello else None
        if engine is None:
            _log.warning("engine channel: %s", error)
        else:
            self._task(self._break(engine, engine.key, str(error)), f"breach of {engine.spec.name}")

    async def _break(self, engine: Engine, key: Key, reason: str) -> None:
        await asyncio.sleep(_BROKEN_S)
        self._post(engine, Deaf(reason), key.epoch)
