"""What the router is given. ``web.ports`` has the same shapes: neither side imports the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Request(Protocol):
    """One call to the API as it came in. ``headers`` has lower-case names, ``path`` no query string, ``peer``
    is the network address that it came from.

    ``id`` is the client's where it sent one: two requests may have the same.
    """

    @property
    def id(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Reply(Protocol):
    """Where an answer goes. ``start`` once, ``send`` any number of times, then ``end``.

    ``send_now`` sends where that can be done without waiting, and else does nothing and is False.
    """

    @property
    def started(self) -> bool: ...
    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...
    async def send(self, chunk: bytes) -> None: ...
    def send_now(self, chunk: bytes) -> bool: ...
    async def end(self) -> None: ...


class Ledger(Protocol):
    """What the router needs of the ledger."""

    def cancel(self, key: str) -> None:
        """End this key's lease if it is held, or as soon as it is granted."""
        ...
