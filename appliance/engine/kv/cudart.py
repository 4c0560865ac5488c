"""The few functions of the CUDA runtime that hand-offs need, by ctypes: the library is the one that torch has loaded.

Pointers, streams and events are integers, sizes bytes. Everything raises ``CudaError`` with CUDA's own name for what went wrong.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from appliance.engine.kv.runs import Run, Stride, strided
from appliance.errors import HandoffError

_log = logging.getLogger("pd-appliance")

HANDLE_BYTES: Final = 64
LAZY_PEER_ACCESS: Final = 1  # cudaIpcMemLazyEnablePeerAccess
_DEVICE_TO_DEVICE: Final = 3
_NON_BLOCKING: Final = 1  # a stream that does not wait for the default one
_EVENT: Final = 1 | 2  # cudaEventBlockingSync | cudaEventDisableTiming: whoever waits for it sleeps
_IN_STREAM_ORDER: Final = 1  # cudaMemcpySrcAccessOrderStream
_BESIDE_KERNELS: Final = 1  # cudaMemcpyFlagPreferOverlapWithCompute: copy engines rather than multiprocessors
_BATCHES: Final = 12_080  # the first version that has cudaMemcpyBatchAsync
_NO_FAILED_INDEX: Final = 13_000  # the first in which it has one argument less
_ADDRESS_BYTES: Final = 32
_NAMES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_DRIVER: Final = "libcuda.so.1"


class CudaError(HandoffError):
    """``name``: cudaErrorInvalidValue, and so on."""

    def __init__(self, doing: str, name: str) -> None:
        super().__init__(f"{doing}: {name}")
        self.name = name


class Handle(ctypes.Structure):
    """cudaIpcMemHandle_t, which is passed by value."""

    _fields_ = [("reserved", ctypes.c_char * HANDLE_BYTES)]


class Attributes(ctypes.Structure):
    """cudaMemcpyAttributes, with its two cudaMemLocations: hints that only managed memory needs."""

    _fields_ = [
        ("order", ctypes.c_int),
        ("source_kind", ctypes.c_int),
        ("source", ctypes.c_int),
        ("target_kind", ctypes.c_int),
        ("target", ctypes.c_int),
        ("flags", ctypes.c_uint),
    ]


class Cudart:
    """Raises ``CudaError``. Works on the calling thread's current device."""

    def __init__(self, runtime: Any, driver: Any) -> None:
        """``runtime``: libcudart; ``driver``: libcuda."""
        self._runtime = runtime
        self._driver = driver
        version = ctypes.c_int()
        self._do("tell its version", runtime.cudaRuntimeGetVersion(ctypes.byref(version)))
        self._version = version.value
        self.batches = self._version >= _BATCHES and hasattr(runtime, "cudaMemcpyBatchAsync")
        """Many copies are given to CUDA at once; else they are where their distances are equal."""

    @classmethod
    def load(cls) -> Cudart:
        """Raises ``HandoffError`` on a machine without CUDA."""
        try:
            return cls(_runtime(), ctypes.CDLL(_DRIVER))
        except OSError as error:
            raise HandoffError(f"CUDA can't be loaded: {error}") from error

    def use(self, device: int) -> None:
        """``device``: its number among those that this process sees."""
        self._do("choose a GPU", self._runtime.cudaSetDevice(ctypes.c_int(device)))

    def address(self, device: int) -> str:
        """On the PCI bus: the same to every process, whatever GPUs it sees."""
        found = ctypes.create_string_buffer(_ADDRESS_BYTES)
        code = self._runtime.cudaDeviceGetPCIBusId(found, ctypes.c_int(_ADDRESS_BYTES), ctypes.c_int(device))
        self._do("find a GPU's address", code)
        return found.value.decode()

    def device_at(self, address: str) -> int | None:
        """The number that this process has for it; None if it does not see it."""
        device = ctypes.c_int()
        try:
            code = self._runtime.cudaDeviceGetByPCIBusId(ctypes.byref(device), address.encode())
            self._do("find a GPU", code)
        except CudaError:
            return None
        return device.value

    def handle(self, pointer: int) -> tuple[bytes, int]:
        """What another process opens it by, and where in what is opened it lies: a handle is of a whole allocation."""
        handle = Handle()
        self._do("export memory", self._runtime.cudaIpcGetMemHandle(ctypes.byref(handle), ctypes.c_void_p(pointer)))
        return ctypes.string_at(ctypes.byref(handle), HANDLE_BYTES), pointer - self.extent(pointer)[0]

    def extent(self, pointer: int) -> tuple[int, int]:
        """Where the allocation that it lies in begins, and how large it is."""
        base, size = ctypes.c_void_p(), ctypes.c_size_t()
        code = self._driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_void_p(pointer))
        if code:
            raise CudaError("find where an allocation begins", f"CUresult {code}")
        return base.value or 0, size.value

    def open(self, handle: bytes) -> int:
        """Where it is mapped here. Once per handle, until it is closed."""
        pointer = ctypes.c_void_p()
        code = self._runtime.cudaIpcOpenMemHandle(
            ctypes.byref(pointer), Handle.from_buffer_copy(handle), ctypes.c_uint(LAZY_PEER_ACCESS)
        )
        self._do("open a peer's memory", code)
        return pointer.value or 0

    def close(self, pointer: int) -> None:
        self._do("close a peer's memory", self._runtime.cudaIpcCloseMemHandle(ctypes.c_void_p(pointer)))

    def stream(self) -> int:
        """One of its own, beside which kernels go on."""
        stream = ctypes.c_void_p()
        code = self._runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self._do("make a stream", code)
        return stream.value or 0

    def destroy(self, stream: int) -> None:
        self._do("end a stream", self._runtime.cudaStreamDestroy(ctypes.c_void_p(stream)))

    def synchronize(self, stream: int) -> None:
        """Until all is done that it was given."""
        self._do("wait for copies", self._runtime.cudaStreamSynchronize(ctypes.c_void_p(stream)))

    # ---- who waits for whom

    def event(self) -> int:
        event = ctypes.c_void_p()
        self._do("make an event", self._runtime.cudaEventCreateWithFlags(ctypes.byref(event), ctypes.c_uint(_EVENT)))
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        """It comes when the stream has done what it was given so far."""
        code = self._runtime.cudaEventRecord(ctypes.c_void_p(event), ctypes.c_void_p(stream))
        self._do("record an event", code)

    def wait(self, event: int) -> None:
        """This thread; at once for an event that was never recorded."""
        self._do("wait for copies", self._runtime.cudaEventSynchronize(ctypes.c_void_p(event)))

    def hold(self, stream: int, event: int) -> None:
        """What the stream is given from now on waits for it, and nobody else does."""
        code = self._runtime.cudaStreamWaitEvent(ctypes.c_void_p(stream), ctypes.c_void_p(event), ctypes.c_uint(0))
        self._do("order copies", code)

    def forget(self, event: int) -> None:
        self._do("end an event", self._runtime.cudaEventDestroy(ctypes.c_void_p(event)))

    # ---- copies, which are under way when these return

    def copy(self, runs: Sequence[Run], stream: int) -> None:
        """The bytes of no two runs may overlap."""
        if self.batches:
            try:
                return self._batch(runs, stream)
            except CudaError as error:  # whether a driver can do it shows when it is asked to
                _log.warning("CUDA takes no batches of copies here (%s): they are given to it one by one", error)
                self.batches = False
        for one in strided(runs):
            self._strided(one, stream)

    def copy_over(self, runs: Sequence[Run], target_device: int, source_device: int, stream: int) -> None:
        """Between GPUs of which neither need be able to read the other: then CUDA goes by way of the host's memory."""
        submit = self._runtime.cudaMemcpyPeerAsync
        to, from_, on = ctypes.c_int(target_device), ctypes.c_int(source_device), ctypes.c_void_p(stream)
        for target, source, size in runs:
            code = submit(ctypes.c_void_p(target), to, ctypes.c_void_p(source), from_, ctypes.c_size_t(size), on)
            self._do("copy", code)

    def _batch(self, runs: Sequence[Run], stream: int) -> None:
        columns = np.ascontiguousarray(np.array(runs, dtype=np.uint64).T)
        targets, sources, sizes = (ctypes.c_void_p(column.ctypes.data) for column in columns)
        attributes = Attributes(order=_IN_STREAM_ORDER, flags=_BESIDE_KERNELS)
        all_of_them, failed = ctypes.c_size_t(0), ctypes.c_size_t(0)
        rest = (ctypes.c_size_t(len(runs)), ctypes.byref(attributes), ctypes.byref(all_of_them), ctypes.c_size_t(1))
        index = () if self._version >= _NO_FAILED_INDEX else (ctypes.byref(failed),)
        code = self._runtime.cudaMemcpyBatchAsync(targets, sources, sizes, *rest, *index, ctypes.c_void_p(stream))
        self._do(f"copy {len(runs)} runs at once", code)

    def _strided(self, one: Stride, stream: int) -> None:
        target, source, on = ctypes.c_void_p(one.target), ctypes.c_void_p(one.source), ctypes.c_void_p(stream)
        width, kind = ctypes.c_size_t(one.width), _DEVICE_TO_DEVICE
        if one.height == 1:
            self._do("copy", self._runtime.cudaMemcpyAsync(target, source, width, kind, on))
            return
        pitches = ctypes.c_size_t(one.target_pitch), ctypes.c_size_t(one.source_pitch)
        height = ctypes.c_size_t(one.height)
        code = self._runtime.cudaMemcpy2DAsync(target, pitches[0], source, pitches[1], width, height, kind, on)
        self._do("copy", code)

    def _do(self, doing: str, code: int) -> None:
        """A failure also stays behind as the runtime's last error, which torch would take for one of its own."""
        if not code:
            return
        self._runtime.cudaGetLastError()
        name = self._runtime.cudaGetErrorName
        name.restype = ctypes.c_char_p
        told = name(ctypes.c_int(code))
        raise CudaError(doing, told.decode() if told else f"error {code}")


def _runtime() -> Any:
    """That of this process, if it has one; a second one would work, but hold its own state. Raises ``OSError``."""
    mapped = next((line.split()[-1] for line in _maps() if "libcudart" in line), None)
    if mapped is not None:
        return ctypes.CDLL(mapped)
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(f"none of {', '.join(_NAMES)} is there")


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()
