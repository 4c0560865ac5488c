"""Live streams: every snapshot is rendered once, however many look, and a slow viewer skips to the newest.

A ``Feed`` holds named parts, each with the tick at which it last changed. A viewer is sent the parts that have changed
since it was last sent anything, in one piece: while it reads slowly the feed moves on, and what it missed is never queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager, aclosing
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from appliance.errors import RequestError
from appliance.records import NodeSnapshot
from web.audience import Audience
from web.ports import NodeView

_log = logging.getLogger(__name__)
_KEEPALIVE_S: Final = 15.0  # proxies cut silent connections
_SEND_S: Final = 60.0  # a viewer that takes nothing for so long is dropped
_KEEPALIVE: Final = b": still here\n\n"
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}

Parts = Mapping[str, bytes]
Render = Callable[[NodeSnapshot], Parts | Awaitable[Parts]]
"""A snapshot as named parts, each a complete server-sent event (see ``event``)."""


def event(data: str, name: str | None = None) -> bytes:
    """One server-sent event; unnamed ones are what htmx swaps in.

    Its lines end where the protocol's do, and only there: what Python and Unicode call line ends besides is text.
    """
    lines = [f"event: {name}"] if name else []
    lines += [f"data: {line}" for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


class Feed:
    """Fans snapshots out to viewers; reads the node only while there are any.

    ``turn``: of the feeds that share it, one renders at a time, and the event loop does all else that waits before the next one does.
    What has to ask a disk first renders when that has answered: nobody else waits for it.
    """

    def __init__(self, node: NodeView, render: Render, turn: asyncio.Lock | None = None) -> None:
        self._node = node
        self._render = render
        self._turn = turn or asyncio.Lock()
        self._parts: dict[str, tuple[int, bytes]] = {}  # with the tick of its last change
        self._tick = 0
        self._changed = asyncio.Event()
        self._watching: Counter[str] = Counter()  # streams, by client
        self._reader: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()  # cancelled, but not yet over
        self._closed = False

    @property
    def viewers(self) -> int:
        return self._watching.total()

    @property
    def clients(self) -> Collection[str]:
        """Who follows it."""
        return self._watching.keys()

    def close(self) -> None:
        """End all streams, also future ones; the server's shutdown would wait for them for ever."""
        self._closed = True
        self._wake()

    async def follow(self, client: str = "") -> AsyncGenerator[bytes, None]:
        """Everything first, then what changes."""
        self._enter(client)
        seen = 0
        try:
            while not self._closed and self._reader is not None:
                changed, tick = self._changed, self._tick
                if tick > seen:
                    news, seen = self._since(seen), tick
                    if news:
                        yield news
                elif not await _within(changed, _KEEPALIVE_S):
                    yield _KEEPALIVE
        finally:
            self._leave(client)

    def _enter(self, client: str) -> None:
        self._watching[client] += 1
        if self._reader is None and not self._closed:
            self._parts.clear()  # of the last time somebody looked
            self._reader = asyncio.create_task(self._read(), name="feed")

    def _leave(self, client: str) -> None:
        self._watching[client] -= 1
        if not self._watching[client]:
            del self._watching[client]
        if self._watching or self._reader is None:
            return
        reader, self._reader = self._reader, None
        self._ending.add(reader)
        reader.add_done_callback(self._ending.discard)
        reader.cancel()

    async def _read(self) -> None:
        """Ends by cancellation, or when there is no more to say: then the viewers are let go, and come back."""
        try:
            async for snapshot in self._node.updates():
                async with self._turn:
                    parts = self._render(snapshot)
                    if not isinstance(parts, Awaitable):
                        await asyncio.sleep(0)
                self._publish(await parts if isinstance(parts, Awaitable) else parts)
        except RequestError as error:  # what was looked at is no longer there
            _log.info("a live stream ends: %s", error)
        except Exception:
            _log.exception("a live stream broke off")
        if self._reader is asyncio.current_task():
            self._reader = None
            self._wake()

    def _publish(self, parts: Parts) -> None:
        self._tick += 1
        for name, part in parts.items():
            if name not in self._parts or self._parts[name][1] != part:
                self._parts[name] = (self._tick, part)
        self._wake()

    def _since(self, tick: int) -> bytes:
        return b"".join(part for changed_at, part in self._parts.values() if changed_at > tick)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _within(happened: asyncio.Event, timeout_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await happened.wait()
    return happened.is_set()


class LiveResponse(StreamingResponse):
    """An event stream that ends its generator with itself, and waits no longer than a while on a viewer."""

    body_iterator: AsyncGenerator[bytes, None]

    def __init__(self, content: AsyncGenerator[bytes, None], seat: AbstractContextManager[None] | None = None) -> None:
        """``seat``: taken for as long as it lasts."""
        super().__init__(content, media_type="text/event-stream", headers=_HEADERS)
        self._seat = seat or contextlib.nullcontext()

    async def stream_response(self, send: Send) -> None:
        with self._seat:
            await self._stream(send)

    async def _stream(self, send: Send) -> None:
        async with aclosing(self.body_iterator) as parts:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in parts:
                if not await _sent(send, part):
                    return  # an answer without an end makes the server close the connection
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _sent(send: Send, part: bytes) -> bool:
    try:
        async with asyncio.timeout(_SEND_S):
            await send({"type": "http.response.body", "body": part, "more_body": True})
    except TimeoutError:
        return False
    return True


async def stream(request: Request, feed: Feed, audience: Audience) -> Response:
    """The feed as an answer; HEAD gets its headers only. Raises ``RequestError`` where the client follows too many already."""
    if request.method == "HEAD":
        return Response(media_type="text/event-stream", headers=_HEADERS)
    client = client_of(request)
    audience.check(client)
    return LiveResponse(feed.follow(client), audience.seat(client))


def client_of(request: Request) -> str:
    """Its network address, behind a trusted proxy the one that it names."""
    return request.client.host if request.client is not None else ""
