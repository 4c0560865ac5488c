"""A way from the browser to the node that can be cut, or stand still with every connection open."""

from __future__ import annotations

import asyncio
import contextlib
import threading

_MOST_BYTES = 1 << 16


class Relay:
    """Listens on a port of its own, in a thread, until ``close``."""

    def __init__(self, port: int) -> None:
        self._node = port
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        began = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(began)))
        self._thread.start()
        assert began.wait(10), "the relay did not start"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Reset every connection, and each that is tried."""
        self._loop.call_soon_threadsafe(self._cut)

    def stop(self) -> None:
        """Nothing goes through; nobody is told."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def mend(self) -> None:
        """All is as it was."""
        self._is_cut = False
        self._loop.call_soon_threadsafe(self._flows.set)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self, began: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._over, self._flows = asyncio.Event(), asyncio.Event()
        self._flows.set()
        server = await asyncio.start_server(self._both_ways, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        began.set()
        await self._over.wait()
        server.close()
        self._cut()
        self._flows.set()

    def _cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    async def _both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        answers, asks = await asyncio.open_connection("127.0.0.1", self._node)
        self._writers |= {writer, asks}
        await asyncio.gather(self._pump(reader, asks), self._pump(answers, writer))
        self._writers -= {writer, asks}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_MOST_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
