"""One connection to an engine, over its Unix socket: one request after the other, and each answer as it comes.

Every token of every stream comes this way, so this is a protocol around httptools' parser, and no client library.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final, cast

import httptools

_NOT_IN_A_LINE: Final = re.compile(r"[\r\n\0]")
_MOST_HELD_BYTES: Final = 256 << 10  # of an answer that nobody reads; beyond it nothing more is taken from the engine
Taker = Callable[[bytes], bool]
"""Is given a piece of a body; False where it has not taken it. What it raises, whoever waits for more gets."""


def head(method: str, target: str, host: str, headers: Mapping[str, str], length: int) -> bytes:
    """Of a request with a body of so many bytes. Raises ``ValueError`` for a header that is none."""
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if length or method != "GET":
        lines.append(f"content-length: {length}")
    if any(_NOT_IN_A_LINE.search(line) for line in lines):
        raise ValueError("a header is one line of text")
    return "\r\n".join((*lines, "", "")).encode("latin-1")


class Answering:
    """What comes on one request. The connection writes it, one task reads it: to wake that task costs more than all else that is done
    with a token, so while it waits, a function of its own may take pieces as they come.
    """

    __slots__ = (
        "_connection",
        "_ended",
        "_error",
        "_held",
        "_held_bytes",
        "_taker",
        "_waiter",
        "content_type",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ended = False
        self._error: ConnectionError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Taker | None = None  # while a task waits for more of the body
        self.status = 0
        self.content_type = "application/json"

    async def begun(self) -> None:
        """Its status and headers are there. Raises ``ConnectionError``."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._news()

    async def some(self, taker: Taker | None = None) -> bytes:
        """What of the body has come since; empty at the end. Raises ``ConnectionError``.

        ``taker`` is offered what comes first; what it takes is not returned.
        """
        while not self._held:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._taker = taker
            try:
                await self._news()
            finally:
                self._taker = None
        held = self._gathered()
        self._taken()
        return held

    def close(self) -> None:
        """What is still to come is not wanted: the engine notices that the connection is closed, and stops."""
        if not self._ended:
            self._connection.abort()

    # ---- what the connection says

    def came(self, piece: bytes) -> bool:
        """A piece of the body; False where too much is held already."""
        self._held.append(piece)
        self._held_bytes += len(piece)
        return self._held_bytes <= _MOST_HELD_BYTES

    def end(self) -> None:
        self._ended = True

    def fail(self, error: ConnectionError) -> None:
        """No more will come. What has come already can still be read."""
        self._error = self._error or error

    def wake(self) -> None:
        """Whoever reads looks again, unless all that is new is taken."""
        if self._waiter is None or self._waiter.done():
            return
        if self._taker is not None:
            try:
                if self._held and self._taker(self._gathered()):
                    self._taken()
            except Exception as error:  # the reader's own: neither the engine nor its connection is to blame
                return self._waiter.set_exception(error)
            if not self._held and not self._ended and self._error is None:
                return
        self._waiter.set_result(None)

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _gathered(self) -> bytes:
        """What is held, which is something."""
        if len(self._held) > 1:
            self._held = [b"".join(self._held)]
        return self._held[0]

    def _taken(self) -> None:
        """Nothing is held any more."""
        self._held.clear()
        if self._held_bytes > _MOST_HELD_BYTES and not self._ended:
            self._connection.go_on()
        self._held_bytes = 0


class Connection(asyncio.Protocol):
    """``rests`` is called when it may be used again, ``gone`` when it is closed."""

    def __init__(self, rests: Callable[[Connection], None], gone: Callable[[Connection], None]) -> None:
        self._rests, self._gone = rests, gone
        self._parser = httptools.HttpResponseParser(self)
        self._answering: Answering | None = None
        self._surplus = False
        self._transport: asyncio.Transport
        self.closed = asyncio.get_running_loop().create_future()

    @property
    def open(self) -> bool:
        return not self._transport.is_closing()

    def ask(self, head: bytes, body: bytes) -> Answering:
        """Send a request; the one before it has been answered."""
        self._answering = Answering(self)
        self._transport.writelines((head, body))
        return self._answering

    def go_on(self) -> None:
        """Room was made."""
        if self.open:
            self._transport.resume_reading()

    def abort(self, why: str = "it was given up") -> None:
        """Close it at once. Whoever waits for an answer is told."""
        self._fail(ConnectionAbortedError(why))
        self._transport.abort()

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        answering = self._answering
        if answering is None:
            return self.abort()  # nobody has asked
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.abort(f"what it says can't be read: {error}")
        if self._surplus:
            self.abort()
        answering.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionResetError(str(error) if error else "the connection was closed"))
        self._gone(self)
        if not self.closed.done():  # whoever waits for it may have been cancelled
            self.closed.set_result(None)

    def _fail(self, error: ConnectionError) -> None:
        answering, self._answering = self._answering, None
        if answering is not None:
            answering.fail(error)
            answering.wake()

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        self._surplus = (
            self._answering is None
        )  # nobody has asked for it: it must not be the answer to what is asked next

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answering is not None and name.lower() == b"content-type":
            self._answering.content_type = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._answering is not None and status >= 200:  # before it there may be others, that say nothing
            self._answering.status = status

    def on_body(self, piece: bytes) -> None:
        if self._answering is not None and not self._answering.came(piece):
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answering = self._answering
        if answering is None or not answering.status:
            return
        answering.end()
        self._answering = None
        # After a failure that it did not expect, uvicorn closes the connection without having said so.
        well = answering.status < 500 and self._parser.should_keep_alive()
        if well and not self._transport.get_write_buffer_size():
            self._transport.resume_reading()
            self._rests(self)
        else:
            self._transport.close()
