"""HTTP to the engines, over their Unix sockets.

Connections are kept for one life of an engine, so that none of a dead one is ever used again. Bodies pass unparsed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from appliance.records import EngineView
from appliance.router.connection import Answering, Connection, Taker, head

_CONNECT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 4.0  # vLLM closes an idle connection after 5 s: before that we stop using it


class Unreachable(Exception):
    """An engine could not be reached, or ended before its answer did. The message is for clients, ``detail`` for us.

    ``had_it``: the engine may have begun on the request; False where there was not even a connection.
    """

    def __init__(self, message: str, cause: BaseException, had_it: bool = True) -> None:
        super().__init__(message)
        self.detail = f"{message}: {str(cause) or type(cause).__name__}"
        self.had_it = had_it


class Response:
    """An engine's answer, as it comes. Close it in any case: an answer not read to its end is thereby cancelled."""

    def __init__(self, engine: str, answering: Answering) -> None:
        self._engine = engine
        self._answering = answering
        self.status = answering.status
        self.content_type = answering.content_type

    @property
    def streams(self) -> bool:
        """True for server-sent events."""
        return self.content_type.startswith("text/event-stream")

    async def some(self, taker: Taker | None = None) -> bytes:
        """What has arrived since and ``taker`` has not taken; empty at the end. Raises ``Unreachable``."""
        try:
            return await self._answering.some(taker)
        except ConnectionError as error:
            raise Unreachable(f"{self._engine} ended in the middle of its answer", error) from error

    async def all(self) -> bytes:
        """The rest of the body. Raises ``Unreachable``."""
        pieces = []
        while piece := await self.some():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Harmless at the end; before it, closes the connection, on which vLLM aborts the request."""
        self._answering.close()


class _Life:
    """Connections to one life of an engine: those in use, and those that rest."""

    def __init__(self, view: EngineView) -> None:
        self._name, self._epoch, self._socket = view.name, view.epoch, view.socket
        self._all: set[Connection] = set()
        self._resting: dict[Connection, float] = {}  # since when; the latest is last
        self._over = False

    @property
    def epoch(self) -> int:
        return self._epoch

    def is_of(self, view: EngineView) -> bool:
        return (self._epoch, self._socket) == (view.epoch, view.socket)

    def rested(self) -> Connection | None:
        """One that nobody uses. The engine may be about to close it."""
        oldest_s = asyncio.get_running_loop().time() - _KEEP_ALIVE_S
        while self._resting:
            rested, since_s = self._resting.popitem()
            if rested.open and since_s >= oldest_s:
                return rested
            rested.abort()
        return None

    async def connect(self) -> Connection:
        """A new one. Raises ``OSError``."""
        async with asyncio.timeout(_CONNECT_S):
            _, made = await asyncio.get_running_loop().create_unix_connection(
                lambda: Connection(self._rests, self._gone), self._socket
            )
        if self._over or not made.open:  # meanwhile; one that is closed already would tell nobody
            made.abort()
            raise ConnectionAbortedError(f"{self._name} is gone")
        self._all.add(made)
        return made

    def end(self) -> list[asyncio.Future[None]]:
        """Whoever waits for an answer is told that none will come. When connections are closed is returned."""
        self._over = True
        there = list(self._all)
        for connection in there:
            connection.abort(f"{self._name} is gone")
        return [connection.closed for connection in there]

    def _rests(self, connection: Connection) -> None:
        self._resting[connection] = asyncio.get_running_loop().time()

    def _gone(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._resting.pop(connection, None)


class Engines:
    """Connections to all engines."""

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._over: dict[str, int] = {}  # the latest life of each engine that is known to be over
        self._told = asyncio.Event()

    async def send(
        self, view: EngineView, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Response:
        """Ask an engine; returns with the status line. ``target``: path and query, encoded. Raises ``Unreachable``.

        A connection that had rested may have been closed just when it was used, with the request unread: then a new one is tried.
        """
        message, asked = f"{view.name} can't be reached", head(method, target, view.name, headers, len(body))
        had_it = False
        while True:
            try:
                life = self._life(view)
                rested = None if had_it else life.rested()
                connection = rested or await life.connect()
            except OSError as error:
                raise Unreachable(message, error, had_it) from error
            answering = connection.ask(asked, body)
            try:
                await answering.begun()
            except ConnectionError as error:
                if rested is None:
                    raise Unreachable(message, error) from error
                had_it = True
            except BaseException:  # the client left
                answering.close()
                raise
            else:
                return Response(view.name, answering)

    def lost(self, engine: str, epoch: int) -> None:
        """A life of an engine is over: whatever still waits for it fails now."""
        self._over[engine] = max(epoch, self._over.get(engine, 0))
        self._told.set()
        self._told = asyncio.Event()
        known = self._lives.get(engine)
        if known is not None and known.epoch <= epoch:
            self._lives.pop(engine).end()

    async def gone(self, engine: str, epoch: int, patience_s: float) -> None:
        """Until that life of an engine is known to be over, or patience is at its end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._over.get(engine, 0) < epoch:
                    await self._told.wait()

    async def close(self) -> None:
        """Returns when all are closed."""
        closing = [closed for life in self._lives.values() for closed in life.end()]
        self._lives.clear()
        await asyncio.gather(*closing)

    def _life(self, view: EngineView) -> _Life:
        """Of that view. Raises ``ConnectionAbortedError`` for one that is known to be over: another life has its socket now."""
        known = self._lives.get(view.name)
        if known is not None and known.is_of(view):
            return known
        if view.epoch <= self._over.get(view.name, 0) or (known is not None and view.epoch < known.epoch):
            raise ConnectionAbortedError(f"{view.name} is gone")
        if known is not None:
            known.end()
        self._lives[view.name] = _Life(view)
        return self._lives[view.name]
