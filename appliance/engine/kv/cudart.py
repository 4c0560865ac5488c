"""The few functions of the CUDA runtime that hand-offs need, by ctypes: the library is the one that torch has loaded.

Pointers are integers, sizes bytes. Everything raises ``CudaError`` with CUDA's own name for what went wrong.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from appliance.errors import HandoffError

HANDLE_BYTES: Final = 64
LAZY_PEER_ACCESS: Final = 1  # cudaIpcMemLazyEnablePeerAccess
_DEVICE_TO_DEVICE: Final = 3
_NON_BLOCKING: Final = 1  # a stream that does not wait for the default one
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


class Cudart:
    """Raises ``CudaError``. Works on the calling thread's current device."""

    def __init__(self, runtime: Any, driver: Any) -> None:
        """``runtime``: libcudart; ``driver``: libcuda."""
        self._runtime = runtime
        self._driver = driver

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

    def copy(self, runs: Sequence[tuple[int, int, int]], stream: int) -> None:
        """(target, source, size) each, and wait until all are there."""
        submit, on = self._runtime.cudaMemcpyAsync, ctypes.c_void_p(stream)
        for target, source, size in runs:
            code = submit(
                ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), _DEVICE_TO_DEVICE, on
            )
            self._do("copy", code)
        self._do("copy", self._runtime.cudaStreamSynchronize(on))

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
