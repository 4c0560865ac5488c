"""The supervisor's end of the engine channel; the engines' is ``engine/link.py``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance.channel import Down, Frames, Hello, Up, encode
from appliance.errors import ChannelError

_HELLO_S: Final = 5.0
_LOOK_S: Final = 0.1


class Connection:
    """One engine process, seen from the supervisor. ``hello`` says which."""

    def __init__(self, hello: Hello, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self._writer = writer

    def send(self, message: Down) -> None:
        """Queue one message; a connection that is gone swallows it (its end is told by ``on_close``)."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    def close(self) -> None:
        self._writer.close()


OnMessage = Callable[[Connection, Up], None]
OnEvent = Callable[[Connection], None]
OnError = Callable[[Hello | None, ChannelError], None]


class ChannelServer:
    """Listens for engine processes and hands their messages on, in order, from one event loop.

    Callbacks must not block; they are called from the loop. ``on_open`` comes after a valid ``Hello``, ``on_close`` once for each
    ``on_open``. A connection that breaks the protocol is reported by ``on_error`` and closed; the others go on.
    """

    def __init__(
        self, path: Path, *, on_open: OnEvent, on_message: OnMessage, on_close: OnEvent, on_error: OnError
    ) -> None:
        self._path = path
        self._on_open = on_open
        self._on_message = on_message
        self._on_close = on_close
        self._on_error = on_error
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._server.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        session = _Session(self, writer)
        try:
            await self._hear_hello(reader, session)
            while data := await reader.read(1 << 16):
                session.feed(data)
            session.end()
        except ChannelError as error:
            self._on_error(session.hello, error)
        except (ConnectionError, asyncio.CancelledError):
            pass  # an engine process died, or the server stops; on_close tells. A stream server's task reports to nobody
        finally:
            self._writers.discard(writer)
            writer.close()
            if session.connection is not None:
                self._on_close(session.connection)

    async def _hear_hello(self, reader: asyncio.StreamReader, session: _Session) -> None:
        """Raises ``ChannelError`` where none comes in time. A second, short look: after a pause of this process timers come first."""
        for patience_s in (_HELLO_S, _LOOK_S):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    while session.connection is None and (data := await reader.read(1 << 16)):
                        session.feed(data)
                    return
        raise ChannelError(f"a process that said no Hello within {_HELLO_S:.0f} s")

    def opened(self, connection: Connection) -> None:
        self._on_open(connection)

    def received(self, connection: Connection, message: Up) -> None:
        self._on_message(connection, message)


class _Session:
    """The life of one accepted connection: Hello first, then anything but Hello."""

    def __init__(self, server: ChannelServer, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._writer = writer
        self._frames: Frames[Up] = Frames(Up)
        self.connection: Connection | None = None

    @property
    def hello(self) -> Hello | None:
        return self.connection.hello if self.connection else None

    def feed(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._accept(message)

    def end(self) -> None:
        if self._frames.pending:
            raise ChannelError(f"the connection ended inside a frame, after {self._frames.pending} bytes of it")

    def _accept(self, message: Up) -> None:
        if isinstance(message, Hello) == (self.connection is not None):
            raise ChannelError(f"{type(message).__name__} at the wrong place: Hello comes first, and once")
        if isinstance(message, Hello):
            self.connection = Connection(message, self._writer)
            self._server.opened(self.connection)
        elif self.connection is not None:
            self._server.received(self.connection, message)
