"""Clients of a chaos run: plain ones, and such as stall, leave, or close their sending side. Each says what it has heard."""

from __future__ import annotations

import asyncio
import contextlib
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


GONE: Final = (Manner.STALLS, Manner.LEAVES_EARLY, Manner.LEAVES_LATE, Manner.HALF_CLOSES)


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
        except (aiohttp.ClientError, OSError, EOFError, ValueError) as error:
            ending = Ending.REFUSED if heard.status is None else Ending.CUT
            return heard.ended(ending, f"{type(error).__name__}: {error}"[:200])
        return heard.ended(Ending.LEFT if manner in GONE else Ending.COMPLETE)

    async def _plainly(self, case: Case, heard: _Hearing) -> None:
        if self._session is None:
            raise RuntimeError("Clients are used outside their context")
        async with self._session.post(self._url + case.path, json=case.body) as answer:
            heard.begin(answer.status, {name.lower(): value for name, value in answer.headers.items()})
            async for chunk in answer.content.iter_any():
                heard.body += chunk

    async def _oddly(self, case: Case, manner: Manner, heard: _Hearing) -> None:
        reader, writer = await self._connect()
        try:
            writer.write(_request(case))
            if manner is Manner.HALF_CLOSES:
                writer.write_eof()
            elif manner is Manner.LEAVES_EARLY:
                return await asyncio.sleep(_PROMPT_S)
            await _behave(manner, reader, heard)
        except (OSError, EOFError):
            if manner not in GONE:
                raise
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


async def _behave(manner: Manner, reader: asyncio.StreamReader, heard: _Hearing) -> None:
    await _head(reader, heard)
    if manner is Manner.SLOW:
        return await _body(reader, heard, pause_after=_FEW_BYTES)
    with contextlib.suppress(_Enough):
        await _body(reader, heard, stop_after=_FEW_BYTES)
    if manner is Manner.STALLS:
        await asyncio.sleep(_STALL_S)


class _Enough(Exception):
    """The client has what it wanted."""


async def _head(reader: asyncio.StreamReader, heard: _Hearing) -> None:
    status = int((await _line(reader)).split()[1])
    headers: dict[str, str] = {}
    while line := (await _line(reader)).strip():
        name, _, value = line.partition(b":")
        headers[name.decode().lower()] = value.decode().strip()
    heard.begin(status, headers)


async def _body(
    reader: asyncio.StreamReader, heard: _Hearing, stop_after: int | None = None, pause_after: int | None = None
) -> None:
    """Raises ``_Enough`` after ``stop_after`` bytes; ``EOFError`` if the connection ends before the body."""
    async for piece in _pieces(reader, heard.headers):
        heard.body += piece
        if stop_after is not None and len(heard.body) >= stop_after:
            raise _Enough
        if pause_after is not None and len(heard.body) >= pause_after:
            pause_after = None
            await asyncio.sleep(_STALL_S)


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body in the pieces that the server has made."""
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while length := int((await _line(reader)).strip(), 16):
        yield (await reader.readexactly(length + 2))[:-2]
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
