"""Clients of a chaos run: plain ones, and such as stall, leave, or close their sending side. Each says what it has heard."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from bench.checker import Case, Ending, Heard

PATIENCE_S: Final = 120.0
_SMALL_BUFFER_BYTES: Final = 4096
_FEW_BYTES: Final = 600
_STALL_S: Final = 4.0
_PROMPT_S: Final = 0.03


class Manner(StrEnum):
    """How a client behaves."""

    PLAIN = "plain"
    SLOW = "slow"  # reads a little, stalls with a small buffer, then reads on to the end
    STALLS = "stalls"  # reads a little, stalls, and is gone
    LEAVES_EARLY = "leaves early"  # while its prompt is computed
    LEAVES_LATE = "leaves late"  # in the middle of its answer
    HALF_CLOSES = "half-closes"  # has nothing more to send, and says so


GONE: Final = (  # they may go first: whether they did is told by the ending
    Manner.STALLS,
    Manner.LEAVES_EARLY,
    Manner.LEAVES_LATE,
    Manner.HALF_CLOSES,
)


class Clients:
    """For one server. Every request has a connection of its own, so that none fails for having been kept too long.

    Use as an asynchronous context manager.
    """

    def __init__(self, url: str, uds: str | None = None, patience_s: float = PATIENCE_S) -> None:
        self._url = url.rstrip("/")
        self._uds = uds
        self._patience_s = patience_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Clients:
        tcp, unix = aiohttp.TCPConnector, aiohttp.UnixConnector
        connector = unix(self._uds, limit=0, force_close=True) if self._uds else tcp(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, case: Case, manner: Manner = Manner.PLAIN) -> Heard:
        """Send one request, and hear as much of the answer as the manner wants. Never raises."""
        heard = _Hearing()
        try:
            async with asyncio.timeout(self._patience_s):
                await (self._plainly(case, heard) if manner is Manner.PLAIN else self._oddly(case, manner, heard))
        except TimeoutError:
            return heard.ended(Ending.TIMEOUT, f"no end within {self._patience_s:.0f} s")
        except Exception as error:  # whatever a server makes a client raise, it is told
            return heard.ended(_ending(error, heard.status, manner), f"{type(error).__name__}: {error}"[:200])
        return heard.ended(Ending.COMPLETE)

    async def _plainly(self, case: Case, heard: _Hearing) -> None:
        if self._session is None:
            raise RuntimeError("Clients are used outside their context")
        async with self._session.post(self._url + case.path, json=case.body, allow_redirects=False) as answer:
            heard.begin(answer.status, {name.lower(): value for name, value in answer.headers.items()})
            async for chunk in answer.content.iter_any():
                heard.body += chunk

    async def _oddly(self, case: Case, manner: Manner, heard: _Hearing) -> None:
        try:
            reader, writer = await self._connect()
        except OSError as error:
            raise _NeverConnected(str(error)) from error
        try:
            writer.write(_request(case))
            if manner is Manner.HALF_CLOSES:
                writer.write_eof()
            await _behave(manner, reader, heard)
        finally:
            writer.transport.abort() if manner in GONE else writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._uds:
            return await asyncio.open_unix_connection(self._uds, limit=_SMALL_BUFFER_BYTES)
        place = urlsplit(self._url)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (place.hostname, place.port))
        return await asyncio.open_connection(sock=connection, limit=_SMALL_BUFFER_BYTES)


class _Hearing:
    """What has been heard so far."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers

    def ended(self, ending: Ending, detail: str = "") -> Heard:
        return Heard(ending=ending, status=self.status, headers=self.headers, body=bytes(self.body), detail=detail)


class _Left(Exception):
    """The client has what it wanted, and goes before the answer's end."""


class _NeverConnected(Exception):
    """Nobody took the connection."""


def _ending(error: Exception, status: int | None, manner: Manner) -> Ending:
    """Who ended it, and where. A client that has closed its sending side went first: a server may take it for gone."""
    if isinstance(error, _Left):
        return Ending.LEFT
    if isinstance(error, _NeverConnected | aiohttp.ClientConnectorError):
        return Ending.REFUSED
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError | EOFError):
        if manner is Manner.HALF_CLOSES:
            return Ending.LEFT
        return Ending.DROPPED if status is None else Ending.CUT
    return Ending.GARBLED


async def _behave(manner: Manner, reader: asyncio.StreamReader, heard: _Hearing) -> None:
    """Raises ``_Left`` if the client goes before the end."""
    if manner is Manner.LEAVES_EARLY:
        return await _for_a_moment(reader, heard)
    await _head(reader, heard)
    if manner is Manner.SLOW:
        return await _body(reader, heard, pause_after=_FEW_BYTES)
    try:
        await _body(reader, heard, stop_after=_FEW_BYTES)
    except _Left:
        await asyncio.sleep(_STALL_S if manner is Manner.STALLS else 0)
        raise


async def _for_a_moment(reader: asyncio.StreamReader, heard: _Hearing) -> None:
    try:
        async with asyncio.timeout(_PROMPT_S):
            await _head(reader, heard)
            await _body(reader, heard)
    except TimeoutError:
        raise _Left from None


async def _head(reader: asyncio.StreamReader, heard: _Hearing) -> None:
    line = await _line(reader)
    if not line.startswith(b"HTTP/1.") or len(words := line.split()) < 2:
        raise ValueError(f"no status line: {line[:100]!r}")
    status = int(words[1])
    headers: dict[str, str] = {}
    while line := (await _line(reader)).strip():
        name, _, value = line.partition(b":")
        headers[name.decode().lower()] = value.decode().strip()
    heard.begin(status, headers)


async def _body(
    reader: asyncio.StreamReader, heard: _Hearing, stop_after: int | None = None, pause_after: int | None = None
) -> None:
    """Raises ``_Left`` after ``stop_after`` bytes if more come; ``EOFError`` if the connection ends before the body."""
    try:
        async for piece in _pieces(reader, heard.headers):
            enough = stop_after is not None and len(heard.body) >= stop_after
            heard.body += piece
            if enough:
                raise _Left
            if pause_after is not None and len(heard.body) >= pause_after:
                pause_after = None
                await asyncio.sleep(_STALL_S)
    except asyncio.IncompleteReadError as error:
        heard.body += error.partial
        raise


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body in the pieces that the server has made; without a length, whatever comes until the connection ends."""
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    if headers.get("transfer-encoding", "").lower() != "chunked":
        yield await reader.read(-1)
        return
    while length := int((await _line(reader)).partition(b";")[0].strip(), 16):
        yield await reader.readexactly(length)
        if await _line(reader) != b"\r\n":
            raise ValueError("a chunk is longer than it says")
    await _line(reader)


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the connection ended")
    return line


def _request(case: Case) -> bytes:
    body = json.dumps(case.body).encode()
    head = f"POST {case.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
