"""A CUDA that is not there, below our binding, with CUDA's rules (CUDA Runtime API, section on IPC):

a handle is of a whole allocation of the classic kind, never of virtual memory management's; it is opened by other processes only, once
per process until closed; a mapping is closed before its owner frees the memory, and is of no use after its owner's exit; device numbers
are each process's own, and the current device each thread's; without peer access between two GPUs nothing is mapped; copies are there
when their stream has been waited for. What breaks a rule that real CUDA leaves undefined is written down in ``Machine.broken``.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from dataclasses import dataclass, field
from typing import Any

INVALID_VALUE, ALREADY_MAPPED, INVALID_HANDLE, NO_PEER, ILLEGAL_ADDRESS, INVALID_CONTEXT, INVALID_DEVICE = (
    1,
    205,
    400,
    217,
    700,
    201,
    101,
)
NAMES = {
    INVALID_VALUE: b"cudaErrorInvalidValue",
    ALREADY_MAPPED: b"cudaErrorMapBufferObjectFailed",
    INVALID_HANDLE: b"cudaErrorInvalidResourceHandle",
    NO_PEER: b"cudaErrorPeerAccessUnsupported",
    ILLEGAL_ADDRESS: b"cudaErrorIllegalAddress",
    INVALID_CONTEXT: b"cudaErrorDeviceUninitialized",
    INVALID_DEVICE: b"cudaErrorInvalidDevice",
}


@dataclass
class Allocation:
    """Memory of one GPU, with its bytes."""

    owner: Process
    gpu: str
    data: bytearray
    number: int
    virtual: bool = False  # of virtual memory management: expandable segments, sleep mode
    freed: bool = False


@dataclass
class Machine:
    """GPUs by name, and what was done to them that must not be."""

    apart: set[frozenset[str]] = field(default_factory=set)
    allocations: dict[int, Allocation] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def process(self, *visible: str) -> Process:
        return Process(self, visible)


class Process:
    """What one process sees: libcudart and libcuda in one."""

    def __init__(self, machine: Machine, visible: tuple[str, ...]) -> None:
        self.machine = machine
        self.visible = visible
        self.spaces: dict[int, Allocation] = {}  # by where they begin in this process
        self.opened: dict[int, int] = {}  # handle's number: where
        self.streams: dict[int, list[tuple[int, int, int]]] = {}
        self.alive = True
        self.last_error = 0
        self._current = threading.local()
        self._addresses = itertools.count(id(self) % 1000 * (1 << 40) + (1 << 44), 1 << 32)

    # ---- what tests do

    def allocate(self, size: int, device: int = 0, *, virtual: bool = False) -> int:
        number = next(self.machine.numbers)
        made = Allocation(self, self.visible[device], bytearray(size), number, virtual)
        self.machine.allocations[number] = made
        where = next(self._addresses)
        self.spaces[where] = made
        return where

    def free(self, where: int) -> None:
        found = self.spaces.pop(where)
        found.freed = True
        for other in {one for one in self._others() if found.number in one.opened}:
            self.machine.broken.append(
                f"allocation {found.number} was freed while process {other.visible} had it mapped"
            )

    def exit(self) -> None:
        """Nobody asks first: the kernel takes everything back."""
        self.alive = False
        for found in self.spaces.values():
            if found.owner is self:
                found.freed = True

    def bytes_at(self, where: int, size: int) -> bytearray:
        found, offset = self._at(where)
        return found.data[offset : offset + size]

    def fill(self, where: int, data: bytes) -> None:
        found, offset = self._at(where)
        found.data[offset : offset + len(data)] = data

    def _others(self) -> list[Process]:
        return [one for one in PROCESSES.get(id(self.machine), []) if one is not self]

    def _at(self, where: int) -> tuple[Allocation, int]:
        for base, found in self.spaces.items():
            if base <= where < base + len(found.data):
                return found, where - base
        raise KeyError(where)

    @property
    def device(self) -> int:
        return getattr(self._current, "device", 0)

    # ---- libcudart

    def cudaSetDevice(self, device: ctypes.c_int) -> int:
        if not 0 <= device.value < len(self.visible):
            return self._failed(INVALID_DEVICE)
        self._current.device = device.value
        return 0

    def cudaIpcGetMemHandle(self, handle: Any, pointer: ctypes.c_void_p) -> int:
        try:
            found, _ = self._at(pointer.value or 0)
        except KeyError:
            return self._failed(INVALID_VALUE)
        if found.virtual or found.owner is not self:
            return self._failed(INVALID_VALUE)
        ctypes.memmove(handle, found.number.to_bytes(64, "little"), 64)
        return 0

    def cudaIpcOpenMemHandle(self, pointer: Any, handle: Any, flags: ctypes.c_uint) -> int:
        assert flags.value == 1, "cudaIpcMemLazyEnablePeerAccess is the only flag there is"
        number = int.from_bytes(ctypes.string_at(ctypes.byref(handle), 64), "little")
        found = self.machine.allocations.get(number)
        if found is None or found.freed:
            return self._failed(INVALID_HANDLE)
        if found.owner is self:
            return self._failed(INVALID_CONTEXT)
        if number in self.opened:
            return self._failed(ALREADY_MAPPED)
        if frozenset((found.gpu, self.visible[self.device])) in self.machine.apart:
            return self._failed(NO_PEER)
        where = next(self._addresses)
        self.spaces[where] = found
        self.opened[number] = where
        PROCESSES.setdefault(id(self.machine), []).append(self)
        pointer._obj.value = where
        return 0

    def cudaIpcCloseMemHandle(self, pointer: ctypes.c_void_p) -> int:
        number = next((number for number, where in self.opened.items() if where == pointer.value), None)
        if number is None:
            return self._failed(INVALID_VALUE)
        del self.spaces[self.opened.pop(number)]
        return 0

    def cudaStreamCreateWithFlags(self, stream: Any, flags: ctypes.c_uint) -> int:
        assert flags.value == 1, "it must not wait for the default stream"
        made = next(self._addresses)
        self.streams[made] = []
        stream._obj.value = made
        return 0

    def cudaStreamDestroy(self, stream: ctypes.c_void_p) -> int:
        return 0 if self.streams.pop(stream.value or 0, None) is not None else self._failed(INVALID_HANDLE)

    def cudaMemcpyAsync(
        self,
        target: ctypes.c_void_p,
        source: ctypes.c_void_p,
        size: ctypes.c_size_t,
        kind: int,
        stream: ctypes.c_void_p,
    ) -> int:
        assert kind == 3, "from device to device"
        if (stream.value or 0) not in self.streams:
            return self._failed(INVALID_HANDLE)
        self.streams[stream.value or 0].append((target.value or 0, source.value or 0, size.value))
        return 0

    def cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:
        waiting = self.streams.get(stream.value or 0)
        if waiting is None:
            return self._failed(INVALID_HANDLE)
        while waiting:
            target, source, size = waiting.pop(0)
            try:
                (to, at), (from_, offset) = self._at(target), self._at(source)
            except KeyError:
                return self._failed(ILLEGAL_ADDRESS)
            if from_.freed or offset + size > len(from_.data) or at + size > len(to.data):
                self.machine.broken.append(f"a copy touched memory that is not there (allocation {from_.number})")
                return self._failed(ILLEGAL_ADDRESS)
            if to.owner is not self:
                self.machine.broken.append("somebody else's memory was written to")
            to.data[at : at + size] = from_.data[offset : offset + size]
        return 0

    def cudaGetLastError(self) -> int:
        found, self.last_error = self.last_error, 0
        return found

    @property
    def cudaGetErrorName(self) -> Any:
        class Named:
            restype: Any = None

            def __call__(self, code: ctypes.c_int) -> bytes | None:
                return NAMES.get(code.value)

        return Named()

    # ---- libcuda

    def cuMemGetAddressRange_v2(self, base: Any, size: Any, pointer: ctypes.c_void_p) -> int:
        for where, found in self.spaces.items():
            if where <= (pointer.value or 0) < where + len(found.data):
                base._obj.value, size._obj.value = where, len(found.data)
                return 0
        return 1

    def _failed(self, code: int) -> int:
        self.last_error = code
        return code


PROCESSES: dict[int, list[Process]] = {}
