"""Viewers of the page: the live streams that browsers would open, without the browsers. Some of them read slowly."""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp

SLOW_BYTES_S: Final = 10_000.0
_SMALL_BUFFER_BYTES: Final = 4096
_FIRST_S: Final = 30.0
_STREAM: Final = re.compile(r'hx-sse:connect="([^"]+)"')
_SAMPLE: Final = re.compile(rb'event: sample\r?\ndata: \{"time": ([\d.]+),')
_LONGEST_SAMPLE: Final = 80  # bytes of what is looked for


class Viewer(asyncio.Protocol):
    """One live stream. ``slow``: no more than ``SLOW_BYTES_S`` are read of it."""

    def __init__(self, address: str, slow: bool) -> None:
        self.address = address
        self.slow = slow
        self.bytes = 0
        self.delays_s: list[float] = []  # of the snapshots that were read, how old each was then
        self.lost: str | None = None
        self.first = asyncio.get_running_loop().create_future()
        self.closed = asyncio.get_running_loop().create_future()
        self._tail = b""
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        head = (
            "host: 127.0.0.1",
            "accept: text/event-stream",
            "connection: close",
        )  # a stream that ends is to be noticed
        transport.write("\r\n".join((f"GET {self.address} HTTP/1.1", *head, "\r\n")).encode())

    def data_received(self, data: bytes) -> None:
        if not self.bytes and not data.startswith(b"HTTP/1.1 200"):
            self.lost = data.split(b"\r\n")[0].decode(errors="replace")
            return self._transport.abort()
        self.bytes += len(data)
        self._look(self._tail + data)
        if self.slow:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(len(data) / SLOW_BYTES_S, self._go_on)

    def _look(self, seen: bytes) -> None:
        now, end = time.time(), 0
        for found in _SAMPLE.finditer(seen):
            self.delays_s.append(now - float(found[1]))
            end = found.end()
        self._tail = seen[max(end, len(seen) - _LONGEST_SAMPLE) :]
        if end and not self.first.done():
            self.first.set_result(None)

    def _go_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._closing:
            self.lost = self.lost or f"ended: {error or 'by the server'}"
        for waited in (self.first, self.closed):
            if not waited.done():
                waited.set_result(None)

    def close(self) -> None:
        self._closing = True
        self._transport.abort()


async def stream_of(session: aiohttp.ClientSession, page: str) -> str:
    """Where that page's updates come from, as the page itself says."""
    async with session.get(page) as answer:
        answer.raise_for_status()
        found = _STREAM.search(await answer.text())
    if found is None:
        raise RuntimeError(f"{page} has no live stream: are the browser libraries built?")
    return html.unescape(found[1])


@contextlib.asynccontextmanager
async def audience(port: int, streams: Sequence[str], viewers: int, slow: int) -> AsyncIterator[list[Viewer]]:
    """So many viewers, evenly over the streams, of whom the last ``slow`` read slowly; from when each has seen a snapshot."""
    there: list[Viewer] = []
    try:
        for number in range(viewers):
            made = Viewer(streams[number % len(streams)], number >= viewers - slow)
            await _open(port, made)
            there.append(made)
        async with asyncio.timeout(_FIRST_S):
            await asyncio.gather(*(viewer.first for viewer in there if not viewer.slow))
        yield there
    finally:
        for viewer in there:
            viewer.close()
        await asyncio.gather(*(viewer.closed for viewer in there))


async def _open(port: int, viewer: Viewer) -> None:
    """What a slow one does not read must not lie in its kernel."""
    loop, place = asyncio.get_running_loop(), socket.socket()
    if viewer.slow:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
    place.setblocking(False)
    await loop.sock_connect(place, ("127.0.0.1", port))
    await loop.create_connection(lambda: viewer, sock=place)
