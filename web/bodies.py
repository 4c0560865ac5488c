"""The bodies of requests: bounded one by one, in time, and all together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from starlette.types import Receive

from appliance.errors import RequestError

_PAUSE_S: Final = 60.0  # a body that stands still for longer is given up
_WHOLE_S: Final = 300.0  # and so is one that trickles
_FULL_RETRY_S: Final = 1.0


class ClientLeft(Exception):
    """The connection ended before the body was complete."""


class Room:
    """Memory for the bodies of all requests under way: a body is held until its request has ended, however it ends."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """One request's part of it, given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held_bytes -= share.size_bytes

    def take(self, size_bytes: int) -> None:
        """Called by shares."""
        if self.held_bytes + size_bytes > self._limit_bytes:
            message = (
                f"The bodies of the requests under way already fill the {self._limit_bytes:,} bytes that there are for them "
                "([server] max_held_bytes); try again in a moment."
            )
            raise RequestError(
                503, message, kind="service_unavailable", code="bodies_full", retry_after_s=_FULL_RETRY_S
            )
        self.held_bytes += size_bytes


class Share:
    """What one request holds."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Raises ``RequestError`` 503 where there is no room."""
        self._room.take(size_bytes)
        self.size_bytes += size_bytes


async def read(headers: Mapping[str, str], receive: Receive, limit_bytes: int, share: Share, whose: str) -> bytes:
    """The whole body. ``whose``: whose limit it is, for who is over it.

    Raises ``ClientLeft``, and ``RequestError``: 413 as soon as it is known to be too large, whatever Content-Length said;
    408 where it takes too long; 503 where all bodies together are too large.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes, whose)
    try:
        async with asyncio.timeout(_WHOLE_S):
            return await _all(receive, limit_bytes, share, whose)
    except TimeoutError as error:
        raise _too_slow(f"The request's body was not complete after {_WHOLE_S:.0f} s.") from error


async def _all(receive: Receive, limit_bytes: int, share: Share, whose: str) -> bytes:
    body = bytearray()  # not a list of chunks: of small ones each would cost ten times its size
    more = True
    while more:
        chunk, more = await _chunk(receive)
        if len(body) + len(chunk) > limit_bytes:
            raise _too_large(limit_bytes, whose)
        share.grow(len(chunk))
        if not more and not body:
            return chunk
        body += chunk
    return bytes(body)


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(_PAUSE_S):
            message = await receive()
    except TimeoutError as error:
        raise _too_slow(f"Nothing more of the request's body has come for {_PAUSE_S:.0f} s.") from error
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message.get("body", b""), message.get("more_body", False)


def _too_large(limit_bytes: int, whose: str) -> RequestError:
    message = f"The request's body is over the limit of {limit_bytes:,} bytes ({whose})."
    return RequestError(413, message, code="request_too_large")


def _too_slow(message: str) -> RequestError:
    return RequestError(408, message, code="request_timeout")
