"""KV through CUDA IPC: the allocation that a storage lies in is exported as a handle, and peers map it beside their own memory.

Each allocation is opened once per peer, whatever lies in it, on the device of the rank that copies: the producer's GPU need not be visible
to this process. Where the two can't read each other's memory, it is opened on the producer's GPU, if this process sees that one, and CUDA
copies by way of the host's memory: slower, and said.

Copies run on a stream of their own, beside kernels, a bounded number of bytes at a time: copy engines are the engine's own way to its
sampled tokens, too. They begin when what the engine's own stream had to do before (``fence``) is done: a step that is still under way
may write into blocks that were somebody else's a moment ago.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from appliance.engine.kv.cudart import CudaError, Cudart
from appliance.engine.kv.routes import Copy
from appliance.engine.kv.runs import Run, sliced
from appliance.engine.kv.transport import MemoryTransport, PeerMemory, Use
from appliance.errors import HandoffError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("pd-appliance")
SLICE_BYTES: Final = 32 << 20
_SLICES: Final = 2  # under way at once
_WHY: Final = {  # in words, by CUDA's name for it
    "cudaErrorPeerAccessUnsupported": "the two GPUs can't read each other's memory; nvidia-smi topo -p2p r shows which can",
    "cudaErrorTooManyPeers": "this GPU is connected to as many others as it can be",
    "cudaErrorMapBufferObjectFailed": "it is mapped here already, or its owner has freed it",
    "cudaErrorInvalidResourceHandle": "its owner has freed it, or has ended",
    "cudaErrorDeviceUninitialized": "the GPU is not usable by this process",
}
_NOT_SEEN: Final = (
    "this engine does not see its GPU, which CUDA does not ask for, but a platform may: "
    "[engine] see_all_gpus = true lets it"
)
_NOT_EXPORTED: Final = (
    "this memory can't be exported: expandable segments, sleep mode and other memory of CUDA's virtual memory management can't be; "
    "unset PYTORCH_CUDA_ALLOC_CONF's expandable_segments, and leave --enable-sleep-mode out"
)


class Exported(msgspec.Struct, frozen=True, array_like=True):
    """What travels in the handshake for one storage."""

    handle: bytes  # of the allocation
    offset: int  # of the storage in it, bytes
    address: str = ""  # of the GPU, on the PCI bus


def _torchs_stream(device: int) -> int:
    """The one on which the calling thread gives a GPU its kernels."""
    import torch

    return int(torch.cuda.current_stream(device).cuda_stream)


class CudaIpc(MemoryTransport):
    """Backend for storages on one GPU."""

    kind = "cuda_ipc"

    def __init__(self, runtime: Cudart | None = None, current_stream: Callable[[int], int] = _torchs_stream) -> None:
        self._runtime = runtime or Cudart.load()
        self._current_stream = current_stream
        self._local: list[torch.UntypedStorage] = []
        self._device = 0
        self._fence = 0

    def export(self, storages: Sequence[torch.UntypedStorage]) -> tuple[list[bytes], list[int]]:
        devices = {storage.device for storage in storages}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            raise HandoffError(f"KV lies on {', '.join(sorted(map(str, devices)))}: CUDA IPC is for memory on one GPU")
        self._device = next(iter(devices)).index or 0
        self._runtime.use(self._device)
        self._local = list(storages)
        self._fence = self._fence or self._runtime.event()
        return [msgspec.msgpack.encode(self._exported(storage.data_ptr())) for storage in storages], []

    def _exported(self, pointer: int) -> Exported:
        try:
            return Exported(*self._runtime.handle(pointer), self._runtime.address(self._device))
        except CudaError as error:
            raise HandoffError(f"{_NOT_EXPORTED} ({error})") from error

    def fence(self) -> None:
        self._runtime.record(self._fence, self._current_stream(self._device))

    def open(self, handles: Sequence[bytes], descriptors: Sequence[int], sizes: Sequence[int]) -> PeerMemory:
        if len(handles) != len(sizes):
            raise HandoffError(f"{len(sizes)} storages were announced, but {len(handles)} handles came")
        if not self._local:
            raise HandoffError("nothing of this engine has been exported yet, so that there is nowhere to copy to")
        exported = [msgspec.msgpack.decode(handle, type=Exported) for handle in handles]
        try:
            return self._mapped(exported, sizes, self._device)
        except CudaError as error:
            other = self._runtime.device_at(exported[0].address)
            if other is None and error.name not in _WHY:
                raise HandoffError(f"{_refused(error)}; {_NOT_SEEN}") from error
            if other is None or other == self._device:
                raise _refused(error) from error
            return self._mapped_far(exported, sizes, other, error)

    def _mapped_far(
        self, exported: Sequence[Exported], sizes: Sequence[int], device: int, why: CudaError
    ) -> PeerMemory:
        """On the producer's own GPU. Raises ``HandoffError`` with both reasons."""
        try:
            found = self._mapped(exported, sizes, device)
        except CudaError as error:
            raise HandoffError(f"{_refused(why)}; nor on its own GPU ({error})") from error
        _log.warning(
            "KV from GPU %s comes by way of the host's memory, which is slower: %s", exported[0].address, _refused(why)
        )
        return found

    def _mapped(self, exported: Sequence[Exported], sizes: Sequence[int], device: int) -> _Mapped:
        """What a peer exports, opened on ``device``. Nothing stays open where that fails."""
        opened: dict[bytes, int] = {}
        try:
            self._runtime.use(device)
            for one, size in zip(exported, sizes, strict=True):
                if one.handle not in opened:
                    opened[one.handle] = self._runtime.open(one.handle)
                self._check_extent(opened[one.handle], one.offset + size)
            self._runtime.use(self._device)
            copier = Copier(self._runtime, self._device, device, self._fence)
        except HandoffError:
            _close(self._runtime, device, opened.values())
            raise
        sources = [(opened[one.handle] + one.offset, size) for one, size in zip(exported, sizes, strict=True)]
        targets = [(storage.data_ptr(), storage.nbytes()) for storage in self._local]
        return _Mapped(copier, list(opened.values()), sources, targets)

    def _check_extent(self, base: int, needed: int) -> None:
        _, size = self._runtime.extent(base)
        if needed > size:
            raise HandoffError(f"the peer announced KV up to byte {needed} of an allocation that has {size}")


def _refused(error: CudaError) -> HandoffError:
    why = _WHY.get(error.name)
    return HandoffError(f"a peer's GPU memory can't be mapped: {f'{why} ({error})' if why else error}")


class Copier:
    """A stream from one GPU's memory to this rank's, and the bound on what is under way on it. Raises ``CudaError``."""

    def __init__(self, runtime: Cudart, device: int, source: int, fence: int) -> None:
        """``device``, ``source``: GPUs, as this process numbers them; ``source`` is another one where neither can read the other."""
        self.runtime = runtime
        self.source = source
        self._device = device
        self._fence = fence
        self._lock = threading.Lock()
        self._stream = runtime.stream()
        self._done = [runtime.event() for _ in range(_SLICES)]

    @property
    def staged(self) -> bool:
        """By way of the host's memory."""
        return self.source != self._device

    def copy(self, runs: Sequence[Run]) -> None:
        """Until all of it is there. Nothing is under way any more when it raises."""
        with self._lock:
            self.runtime.use(self._device)  # the current device is each thread's own
            try:
                self._copy(runs)
            except CudaError:
                with contextlib.suppress(CudaError):
                    self.runtime.synchronize(self._stream)
                raise

    def _copy(self, runs: Sequence[Run]) -> None:
        self.runtime.hold(self._stream, self._fence)
        for number, slice_ in enumerate(sliced(runs, SLICE_BYTES)):
            done = self._done[number % _SLICES]
            self.runtime.wait(done)
            self._submit(slice_)
            self.runtime.record(done, self._stream)
        self.runtime.synchronize(self._stream)

    def _submit(self, runs: Sequence[Run]) -> None:
        if self.staged:
            self.runtime.copy_over(runs, self._device, self.source, self._stream)
        else:
            self.runtime.copy(runs, self._stream)

    def close(self) -> None:
        self.runtime.use(self._device)
        for event in self._done:
            with contextlib.suppress(CudaError):
                self.runtime.forget(event)
        with contextlib.suppress(CudaError):
            self.runtime.destroy(self._stream)


class _Mapped(PeerMemory):
    """Copies of several threads come one after the other."""

    def __init__(
        self, copier: Copier, opened: list[int], sources: list[tuple[int, int]], targets: list[tuple[int, int]]
    ) -> None:
        self._copier = copier
        self._opened = opened
        self._sources = sources
        self._targets = targets
        self._use = Use()

    @property
    def staged(self) -> bool:
        return self._copier.staged

    def copy(self, copies: Sequence[Copy]) -> None:
        with self._use.copying():
            self._copier.copy([self._run(copy) for copy in copies])  # checked all before the first byte moves

    def _run(self, copy: Copy) -> Run:
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
            _close(self._copier.runtime, self._copier.source, opened)
            self._copier.close()


def _close(runtime: Cudart, device: int, pointers: Iterable[int]) -> None:
    """On the GPU that they were opened on; also where the owner has ended: what is mapped here is given back in any case."""
    with contextlib.suppress(CudaError):
        runtime.use(device)
    for pointer in pointers:
        with contextlib.suppress(CudaError):
            runtime.close(pointer)
