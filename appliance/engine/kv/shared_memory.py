"""KV through shared memory: on a CPU engine the storage itself is moved into shared memory, and peers map its descriptor."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from appliance.engine.kv.routes import Copy
from appliance.engine.kv.transport import MemoryTransport, PeerMemory, Use
from appliance.errors import HandoffError

if TYPE_CHECKING:
    import torch

_SHM_DIR: Final = "/dev/shm"
_MADV_POPULATE_READ: Final = 22
_libc = ctypes.CDLL(None)


class SharedMemory(MemoryTransport):
    """Backend for CPU storages. ``export`` must come before anything caches the storages' data pointers."""

    kind = "shared_memory"

    def __init__(self) -> None:
        self._local: list[torch.UntypedStorage] = []

    def export(self, storages: Sequence[torch.UntypedStorage]) -> tuple[list[bytes], list[int]]:
        _check_room(sum(storage.nbytes() for storage in storages))
        descriptors = []
        for storage in storages:
            descriptor, _ = storage._share_fd_cpu_()
            descriptors.append(int(descriptor))
        self._local = list(storages)
        return [b""] * len(storages), descriptors

    def open(self, handles: Sequence[bytes], descriptors: Sequence[int], sizes: Sequence[int]) -> PeerMemory:
        if not len(handles) == len(descriptors) == len(sizes):
            raise HandoffError(f"{len(sizes)} storages were announced, but {len(descriptors)} descriptors came")
        try:
            maps = [_map(descriptor, size) for descriptor, size in zip(descriptors, sizes, strict=True)]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return _MappedMemory(maps, [storage.data_ptr() for storage in self._local], [s.nbytes() for s in self._local])


class _MappedMemory(PeerMemory):
    """Copies run side by side: a small pull in the engine's loop must not wait for a large one beside it."""

    def __init__(self, maps: list[mmap.mmap], targets: list[int], target_sizes: list[int]) -> None:
        self._use = Use()
        self._maps = maps
        self._targets = targets
        self._target_sizes = target_sizes
        self._views = [np.frombuffer(m, dtype=np.uint8) for m in maps]
        for view in self._views:
            _populate(view)

    def copy(self, copies: Sequence[Copy]) -> None:
        with self._use.copying():
            sources = [view.ctypes.data for view in self._views]
            for copy in copies:  # checked all before the first byte moves
                self._check(copy)
            for copy in copies:
                ctypes.memmove(
                    self._targets[copy.target_storage] + copy.target,
                    sources[copy.source_storage] + copy.source,
                    copy.size,
                )

    def _check(self, copy: Copy) -> None:
        if copy.source + copy.size > len(self._views[copy.source_storage]):
            raise HandoffError(f"a copy reaches byte {copy.source + copy.size}, beyond the peer's memory")
        if copy.target + copy.size > self._target_sizes[copy.target_storage]:
            raise HandoffError(f"a copy reaches byte {copy.target + copy.size}, beyond our own memory")

    def close(self) -> None:
        with self._use.closing():
            self._views.clear()  # a mapping with views on it can't be closed
            for mapped in self._maps:
                mapped.close()
            self._maps.clear()


def _map(descriptor: int, size: int) -> mmap.mmap:
    """Read-only."""
    actual = os.fstat(descriptor).st_size
    if actual < size:
        raise HandoffError(f"the peer announced {size} bytes of KV, its shared memory has {actual}")
    try:
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise HandoffError(f"the peer's shared memory can't be mapped: {error.strerror}") from error


def _populate(view: np.ndarray[Any, Any]) -> None:
    """Map every page now: faults in the first copies would cost more than the copies.

    ctypes lets other threads run meanwhile, which ``mmap(MAP_POPULATE)`` of Python's does not. A kernel before 5.14 refuses, and
    the faults come.
    """
    _libc.madvise(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.nbytes), _MADV_POPULATE_READ)


def _check_room(wanted: int) -> None:
    """Torch says only that it could not; this says what to do. (Two engines at once may still both find room for one.)"""
    stats = os.statvfs(_SHM_DIR)
    free = stats.f_bavail * stats.f_frsize
    if free < wanted:
        raise HandoffError(
            f"{_SHM_DIR} has {free >> 20} MiB free and the KV cache needs {wanted >> 20} MiB: enlarge it "
            f"(mount -o remount,size=… {_SHM_DIR}; docker run --shm-size=…) or lower [engine] kv_cache_bytes"
        )
