"""What a kind of memory must be able to do so that KV can be handed over through it."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from appliance.engine.kv.routes import Copy
from appliance.errors import HandoffError

if TYPE_CHECKING:
    import torch


class Use:
    """Of a mapping, by several threads at once: closing it waits for the copies that are under way, and refuses later ones."""

    def __init__(self) -> None:
        self._idle = threading.Condition()
        self._copying = 0
        self._closed = False

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        """Raises ``HandoffError`` once it is closed."""
        with self._idle:
            if self._closed:
                raise HandoffError("the peer's memory was closed")
            self._copying += 1
        try:
            yield
        finally:
            with self._idle:
                self._copying -= 1
                self._idle.notify_all()

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Nobody copies while this is held, nor afterwards."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._copying)
            yield


class PeerMemory(ABC):
    """A peer's exported storages, mapped here."""

    @property
    def staged(self) -> bool:
        """Bytes come by way of a third memory, which is slower than it could be."""
        return False

    @abstractmethod
    def copy(self, copies: Sequence[Copy]) -> None:
        """Bring the bytes over and return when they are there. Raises ``HandoffError`` if the mapping is closed or too short."""

    @abstractmethod
    def close(self) -> None:
        """Unmap. Waits for a copy that is under way; later copies raise."""


class MemoryTransport(ABC):
    """Export local KV storages once; open each peer's once.

    One backend per file; ``open_transport`` knows them by name.
    """

    kind: str

    @abstractmethod
    def export(self, storages: Sequence[torch.UntypedStorage]) -> tuple[list[bytes], list[int]]:
        """Make the storages shareable, in place.

        Returns:
            Per storage a handle that travels in the handshake, and the file descriptors that travel beside it.
            Both stay valid, and the storages' own, for as long as those live: the caller closes nothing.

        Raises:
            HandoffError: this memory can't be shared; says what would make it shareable.
        """

    def fence(self) -> None:  # noqa: B027 (most memory has nothing to wait for)
        """Copies that begin later wait for what the calling thread has given its device to do so far."""

    @abstractmethod
    def open(self, handles: Sequence[bytes], descriptors: Sequence[int], sizes: Sequence[int]) -> PeerMemory:
        """Map a peer's storages of ``sizes`` bytes; takes the descriptors over. Raises ``HandoffError`` if refused."""


def open_transport(kind: str) -> MemoryTransport:
    """The backend called ``kind``. Raises ``HandoffError`` for an unknown one."""
    if kind == "shared_memory":
        from appliance.engine.kv.shared_memory import SharedMemory

        return SharedMemory()
    if kind == "cuda_ipc":
        from appliance.engine.kv.cuda_ipc import CudaIpc

        return CudaIpc()
    raise HandoffError(f"unknown KV transport {kind!r}; known: shared_memory, cuda_ipc")
