"""HTTP to the engines, over their Unix sockets.

One session per life of an engine, so that no connection of a dead one is ever taken from a pool. Bodies pass unparsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Mapping
from typing import Final

import aiohttp
from yarl import URL

from appliance.records import EngineView

_CONNECT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 4.0  # vLLM closes an idle connection after 5 s: ours is gone before that
_OURS_TO_SET: Final = ("Accept", "Accept-Encoding", "User-Agent")
_FAILURES: Final = (aiohttp.ClientError, OSError, TimeoutError)
_NOT_CONNECTED: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_INLINE_BODY_BYTES: Final = 1 << 20  # larger ones are sent in pieces


class Unreachable(Exception):
    """An engine could not be reached, or ended before its answer did. The message is for clients, ``detail`` for us.

    ``had_it``: the engine may have begun on the request; False where there was not even a connection.
    """

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.detail = f"{message}: {cause or type(cause).__name__}"
        self.had_it = not isinstance(cause, _NOT_CONNECTED)


class Response:
    """An engine's answer, as it comes. Close it in any case: an answer not read to its end is thereby cancelled."""

    def __init__(self, engine: str, response: aiohttp.ClientResponse, session: _Session) -> None:
        self._engine = engine
        self._response = response
        self._content = response.content
        self._session = session
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "application/json")
        session.responses.add(self)

    @property
    def streams(self) -> bool:
        """True for server-sent events."""
        return self.content_type.startswith("text/event-stream")

    async def some(self) -> bytes:
        """What has arrived since; empty at the end. Raises ``Unreachable``."""
        try:
            return await self._content.readany()
        except _FAILURES as error:
            raise self._cut_short(error) from error

    async def all(self) -> bytes:
        """The rest of the body. Raises ``Unreachable``."""
        try:
            return await self._content.read()
        except _FAILURES as error:
            raise self._cut_short(error) from error

    def _cut_short(self, cause: BaseException) -> Unreachable:
        return Unreachable(f"{self._engine} ended in the middle of its answer", cause)

    def break_off(self) -> None:
        """Whoever reads is told that no more will come. (Of a connection that we close, aiohttp tells a reader nothing.)"""
        self._content.set_exception(aiohttp.ClientConnectionError(f"{self._engine} is gone"))

    def close(self) -> None:
        """Harmless at the end; before it, closes the connection, on which vLLM aborts the request."""
        self._session.responses.discard(self)
        self._response.close()


class _Session:
    """Connections to one life of an engine, and the answers that come on them."""

    def __init__(self, view: EngineView) -> None:
        self.epoch = view.epoch
        self.socket = view.socket
        self.http = _open(view.socket)
        self.responses: set[Response] = set()

    def is_of(self, view: EngineView) -> bool:
        return (self.epoch, self.socket) == (view.epoch, view.socket)

    async def close(self) -> None:
        await self.http.close()


class Engines:
    """Sessions to all engines."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._over: dict[str, int] = {}  # the latest life of each engine that is known to be over
        self._told = asyncio.Event()

    async def send(
        self, view: EngineView, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Response:
        """Ask an engine; returns with the status line. ``target``: path and query, encoded. Raises ``Unreachable``."""
        url = URL(f"http://{view.name}{target}", encoded=True)
        data = io.BytesIO(body) if len(body) > _INLINE_BODY_BYTES else body or None
        session = self._session(view)
        try:
            response = await session.http.request(method, url, headers=headers, data=data, allow_redirects=False)
        except _FAILURES as error:
            raise Unreachable(f"{view.name} can't be reached", error) from error
        return Response(view.name, response, session)

    def lost(self, engine: str, epoch: int) -> None:
        """A life of an engine is over: whatever still waits for it fails now."""
        self._over[engine] = max(epoch, self._over.get(engine, 0))
        self._told.set()
        self._told = asyncio.Event()
        known = self._sessions.get(engine)
        if known is not None and known.epoch <= epoch:
            self._drop(engine)

    async def gone(self, engine: str, epoch: int, patience_s: float) -> None:
        """Until that life of an engine is known to be over, or patience is at its end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._over.get(engine, 0) < epoch:
                    await self._told.wait()

    async def close(self) -> None:
        for engine in list(self._sessions):
            self._drop(engine)
        await asyncio.gather(*self._closing)

    def _session(self, view: EngineView) -> _Session:
        known = self._sessions.get(view.name)
        if known is not None and known.is_of(view):
            return known
        if known is not None:
            self._drop(view.name)
        self._sessions[view.name] = _Session(view)
        return self._sessions[view.name]

    def _drop(self, engine: str) -> None:
        session = self._sessions.pop(engine)
        for response in session.responses:
            response.break_off()
        task = asyncio.get_running_loop().create_task(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _open(socket: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(socket, limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_S, sock_read=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_OURS_TO_SET,
        auto_decompress=False,
    )
