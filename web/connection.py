"""Connections that don't wait for ever. uvicorn has a time for what is idle between two requests, and begins it anew with every byte that
comes: whoever sends a header byte by byte, or nothing at all, keeps his connection for as long as he likes
(https://github.com/Kludex/uvicorn/issues/157).

Here a request's header has its time and its size, and there are only so many connections: where one more comes, the one gives way that has
owed its request for the longest. Whoever has sent one is waited for, however long its answer takes; bodies have times of their own
(``web/bodies.py``). Between two requests a connection may rest for longer than clients keep theirs: what a client sends while the
server closes is lost, so it is the clients who should close first.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from appliance.errors import RequestError
from web import errors

HEADER_S: Final = 20.0  # from the connection's beginning, or from the first byte of one that comes after an answer
IDLE_S: Final = 75.0  # between an answer and the next request; httpx keeps connections for 5 s, aiohttp for 15, nginx's upstreams for 60
HEADER_BYTES: Final = 256 << 10  # as much as is read at once
_SAY_AGAIN_S: Final = 60.0
_SEND_NOW: Final = "appliance.send_now"
SendNow = Callable[[bytes], bool]
_log = logging.getLogger(__name__)


def sends_now(scope: Scope) -> SendNow | None:
    """Sends a piece of the answer to that request if that can be done without waiting, and says whether it has. None where
    another server serves. Each token goes this way: ASGI's own takes some microseconds more.
    """
    found: SendNow | None = scope.get("extensions", {}).get(_SEND_NOW)
    return found


def _send_now(of: weakref.ref[RequestResponseCycle], piece: bytes) -> bool:
    """As uvicorn sends a piece of an answer that is under way; where it isn't, or the client is behind, uvicorn knows what to do."""
    cycle = of()
    if cycle is None or cycle.flow.write_paused or cycle.disconnected or cycle.response_complete:
        return False
    if not cycle.chunked_encoding or not piece or cycle.transport.is_closing():
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    return True


class Crowd:
    """Those who share a listener. ``most``: at once."""

    def __init__(self, most: int, header_s: float = HEADER_S) -> None:
        self.most = most
        self.header_s = header_s
        self.owing: dict[Connection, None] = {}  # a request, or the rest of one; who has owed it the longest is first
        self._said_s = -_SAY_AGAIN_S

    def make_room(self, there: int) -> bool:
        """For one that has come; ``there`` are they with it. False where all that are there are being served."""
        if there <= self.most:
            return True
        self._say()
        if not self.owing:
            return False
        next(iter(self.owing)).give_up()
        return True

    def _say(self) -> None:
        """Now and then."""
        if time.monotonic() - self._said_s > _SAY_AGAIN_S:
            self._said_s = time.monotonic()
            _log.warning(
                "%d connections are open, and there may be no more (half of the descriptors, ulimit -n): whoever has sent no request "
                "gives way",
                self.most,
            )


class Connection(HttpToolsProtocol):
    """uvicorn's, with a time for what is owed."""

    def __init__(self, *args: Any, crowd: Crowd, **more: Any) -> None:
        super().__init__(*args, **more)
        self._crowd = crowd
        self._deadline: asyncio.TimerHandle | None = None  # while a header is owed
        self._begun_bytes = 0  # of that header
        self._in_body = False  # a header was complete, and its message is not

    # ---- what uvicorn tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if self._crowd.make_room(len(self.connections)):
            self._owe(self._crowd.header_s)
        else:
            self._refuse(_full())

    def connection_lost(self, error: Exception | None) -> None:
        self._owe_nothing()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        of_a_body = self._in_body
        super().data_received(data)
        if self._deadline is not None and not self._in_body and not of_a_body:
            if not self._begun_bytes:
                self._hurry()
            self._begun_bytes += len(data)
            if self._begun_bytes > HEADER_BYTES:
                self._refuse(_too_large())

    def on_headers_complete(self) -> None:
        self._stop_clock()  # but it owes a body: its place is given away before others'
        self._in_body = True
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:  # not so of what is to become a WebSocket
            now = partial(_send_now, weakref.ref(self.cycle))
            self.scope.setdefault("extensions", {})[_SEND_NOW] = now  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._deadline is None:
            self._crowd.owing.pop(self, None)
        else:  # it was answered before it was complete, and owes the next one
            self._owe(IDLE_S)
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._owe_nothing()  # nothing here is told of that connection any more
        super().handle_websocket_upgrade()

    def on_response_complete(self) -> None:
        another = bool(self.pipeline)
        super().on_response_complete()
        if not another and not self.transport.is_closing():
            self._owe(self._crowd.header_s if self._in_body else IDLE_S)

    # ---- what is owed

    def give_up(self) -> None:
        """It has had its time, or somebody else needs its place. What is written already still gets to the client."""
        self._refuse(_too_slow(self._crowd.header_s) if self._begun_bytes and not self._in_body else None)

    def _owe(self, within_s: float) -> None:
        self._owe_nothing()
        self._crowd.owing[self] = None
        self._deadline = self.loop.call_later(within_s, self.give_up)

    def _hurry(self) -> None:
        """A header begins: from now on it has a header's time, and keeps its place among those who owe one."""
        assert self._deadline is not None
        if self._deadline.when() > self.loop.time() + self._crowd.header_s:
            self._deadline.cancel()
            self._deadline = self.loop.call_later(self._crowd.header_s, self.give_up)

    def _owe_nothing(self) -> None:
        self._stop_clock()
        self._crowd.owing.pop(self, None)

    def _stop_clock(self) -> None:
        self._begun_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, why: RequestError | None) -> None:
        """``why`` None: nobody has asked for anything."""
        self._owe_nothing()
        if self.transport.is_closing():
            return
        if why is not None:
            self.transport.write(errors.last_words(why))
        self.transport.close()


def _too_slow(header_s: float) -> RequestError:
    return RequestError(408, f"The request's header was not complete after {header_s:g} s.", code="request_timeout")


def _too_large() -> RequestError:
    return RequestError(431, f"The request's header is over {HEADER_BYTES:,} bytes.", code="header_too_large")


def _full() -> RequestError:
    message = "There are as many connections as there may be, and all are being served; try again in a moment."
    return RequestError(503, message, kind="service_unavailable", code="connections_full", retry_after_s=1.0)
