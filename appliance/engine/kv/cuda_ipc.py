"""KV through CUDA IPC: the allocation that a storage lies in is exported as a handle, and peers map it beside their own memory.

Each allocation is opened once per peer, whatever lies in it, on the device of the rank that copies: the producer's GPU need not be visible
to this process. Copies run on a stream of their own, so that kernels go on beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from appliance.engine.kv.cudart import CudaError, Cudart
from appliance.engine.kv.routes import Copy
from appliance.engine.kv.transport import MemoryTransport, PeerMemory, Use
from appliance.errors import HandoffError

if TYPE_CHECKING:
    import torch

_WHY: Final = {  # in words, by CUDA's name for it
    "cudaErrorPeerAccessUnsupported": "the two GPUs can't read each other's memory; nvidia-smi topo -p2p r shows which can",
    "cudaErrorTooManyPeers": "this GPU is connected to as many others as it can be",
    "cudaErrorMapBufferObjectFailed": "it is mapped here already, or its owner has freed it",
    "cudaErrorInvalidResourceHandle": "its owner has freed it, or has ended",
    "cudaErrorDeviceUninitialized": "the GPU is not usable by this process",
}
_NOT_EXPORTED: Final = (
    "this memory can't be exported: expandable segments, sleep mode and other memory of CUDA's virtual memory management can't be; "
    "unset PYTORCH_CUDA_ALLOC_CONF's expandable_segments, and leave --enable-sleep-mode out"
)


class Exported(msgspec.Struct, frozen=True, array_like=True):
    """What travels in the handshake for one storage."""

    handle: bytes  # of the allocation
    offset: int  # of the storage in it, bytes


class CudaIpc(MemoryTransport):
    """Backend for storages on one GPU."""

    kind = "cuda_ipc"

    def __init__(self, runtime: Cudart | None = None) -> None:
        self._runtime = runtime or Cudart.load()
        self._local: list[torch.UntypedStorage] = []
        self._device = 0

    def export(self, storages: Sequence[torch.UntypedStorage]) -> tuple[list[bytes], list[int]]:
        devices = {storage.device for storage in storages}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            raise HandoffError(f"KV lies on {', '.join(sorted(map(str, devices)))}: CUDA IPC is for memory on one GPU")
        self._device = next(iter(devices)).index or 0
        self._runtime.use(self._device)
        self._local = list(storages)
        return [msgspec.msgpack.encode(self._exported(storage.data_ptr())) for storage in storages], []

    def _exported(self, pointer: int) -> Exported:
        try:
            return Exported(*self._runtime.handle(pointer))
        except CudaError as error:
            raise HandoffError(f"{_NOT_EXPORTED} ({error})") from error

    def _check_extent(self, base: int, needed: int) -> None:
        _, size = self._runtime.extent(base)
        if needed > size:
            raise _TooShort(f"the peer announced KV up to byte {needed} of an allocation that has {size}")

    def open(self, handles: Sequence[bytes], descriptors: Sequence[int], sizes: Sequence[int]) -> PeerMemory:
        if len(handles) != len(sizes):
            raise HandoffError(f"{len(sizes)} storages were announced, but {len(handles)} handles came")
        if not self._local:
            raise HandoffError("nothing of this engine has been exported yet, so that there is nowhere to copy to")
        exported = [msgspec.msgpack.decode(handle, type=Exported) for handle in handles]
        self._runtime.use(self._device)
        opened: dict[bytes, int] = {}
        try:
            for one, size in zip(exported, sizes, strict=True):
                if one.handle not in opened:
                    opened[one.handle] = self._runtime.open(one.handle)
                self._check_extent(opened[one.handle], one.offset + size)
            stream = self._runtime.stream()
        except _TooShort:
            _close(self._runtime, opened.values())
            raise
        except CudaError as error:
            _close(self._runtime, opened.values())
            raise HandoffError(f"a peer's GPU memory can't be mapped: {_WHY.get(error.name, '')} ({error})") from error
        sources = [(opened[one.handle] + one.offset, size) for one, size in zip(exported, sizes, strict=True)]
        targets = [(storage.data_ptr(), storage.nbytes()) for storage in self._local]
        return _Mapped(self._runtime, self._device, list(opened.values()), stream, sources, targets)


class _TooShort(HandoffError):
    """What a peer has announced is not there."""


class _Mapped(PeerMemory):
    """Copies of several threads share the stream, and so come one after the other."""

    def __init__(
        self,
        runtime: Cudart,
        device: int,
        opened: list[int],
        stream: int,
        sources: list[tuple[int, int]],
        targets: list[tuple[int, int]],
    ) -> None:
        self._runtime = runtime
        self._device = device
        self._opened = opened
        self._stream = stream
        self._sources = sources
        self._targets = targets
        self._use = Use()

    def copy(self, copies: Sequence[Copy]) -> None:
        with self._use.copying():
            runs = [self._run(copy) for copy in copies]  # checked all before the first byte moves
            self._runtime.use(self._device)  # the current device is each thread's own
            self._runtime.copy(runs, self._stream)

    def _run(self, copy: Copy) -> tuple[int, int, int]:
        """(target, source, size)"""
        source, there = self._sources[copy.source_storage]
        target, here = self._targets[copy.target_storage]
        if copy.source + copy.size > there:
            raise HandoffError(f"a copy reaches byte {copy.source + copy.size}, beyond the peer's memory")
        if copy.target + copy.size > here:
            raise HandoffError(f"a copy reaches byte {copy.target + copy.size}, beyond our own memory")
        return target + copy.target, source + copy.source, copy.size

    def close(self) -> None:
        with self._use.closing():
            opened, self._opened = self._opened, []
        if opened:
            self._runtime.use(self._device)
            _close(self._runtime, opened)
            with contextlib.suppress(CudaError):
                self._runtime.destroy(self._stream)


def _close(runtime: Cudart, pointers: Iterable[int]) -> None:
    """Also where the owner has ended: what is mapped here is given back in any case."""
    for pointer in pointers:
        with contextlib.suppress(CudaError):
            runtime.close(pointer)
