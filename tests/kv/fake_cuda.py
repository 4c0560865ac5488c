"""A CUDA that is not there, below our binding, with CUDA's rules (CUDA Runtime API, section on IPC):

a handle is of a whole allocation of the classic kind, never of virtual memory management's; it is opened by other processes only, once
per process until closed; a mapping is closed before its owner frees the memory, and is of no use after its owner's exit; device numbers
are each process's own, and the current device each thread's; without peer access between two GPUs nothing is mapped, unless on the
owner's own, and only copies from GPU to GPU by name reach across; what a stream is given is done in order, as late as can be: when
somebody waits for it, or when another stream does that waits for an event of it. The copies of a batch are done in any order. What breaks
a rule that real CUDA leaves undefined is written down in ``Machine.broken``.
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
NEWER_DRIVER = 36
NAMES = {
    NEWER_DRIVER: b"cudaErrorCallRequiresNewerDriver",
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
class Move:
    """Bytes from place to place, or ``data`` as a kernel writes it."""

    target: int
    source: int
    size: int
    data: bytes | None = None
    over: bool = False  # from GPU to GPU by name


@dataclass
class Mark:
    """What an event was recorded as, and where."""

    stream: int
    done: bool = False


@dataclass
class Machine:
    """GPUs by name, and what was done to them that must not be."""

    version: int = 13_000
    narrow: bool = False  # it opens no memory of GPUs that a process does not see
    refused: dict[str, int] = field(default_factory=dict)  # functions that this driver can't do
    calls: list[str] = field(default_factory=list)  # that moved bytes
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
        self.streams: dict[int, list[Move | Mark | tuple[Mark]]] = {}  # a mark in brackets is waited for
        self.events: dict[int, Mark | None] = {}
        self.most_pending = 0  # bytes that were under way at once
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

    def kernel(self, stream: int, where: int, data: bytes) -> None:
        """Something that an engine has its GPU do."""
        self.streams[stream].append(Move(where, 0, len(data), data))

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
        if self.machine.narrow and found.gpu not in self.visible:
            return self._failed(INVALID_DEVICE)
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
        return self._give("cudaMemcpyAsync", stream, [Move(target.value or 0, source.value or 0, size.value)])

    def cudaMemcpy2DAsync(
        self,
        target: ctypes.c_void_p,
        target_pitch: ctypes.c_size_t,
        source: ctypes.c_void_p,
        source_pitch: ctypes.c_size_t,
        width: ctypes.c_size_t,
        height: ctypes.c_size_t,
        kind: int,
        stream: ctypes.c_void_p,
    ) -> int:
        assert kind == 3, "from device to device"
        if width.value > min(target_pitch.value, source_pitch.value):
            return self._failed(INVALID_VALUE)
        to, from_ = target.value or 0, source.value or 0
        rows = [
            Move(to + row * target_pitch.value, from_ + row * source_pitch.value, width.value)
            for row in range(height.value)
        ]
        return self._give("cudaMemcpy2DAsync", stream, rows)

    def cudaMemcpyBatchAsync(self, targets: Any, sources: Any, sizes: Any, *rest: Any) -> int:
        count, attributes, all_of_them, groups, *index, stream = rest
        assert len(index) == (self.machine.version < 13_000), "CUDA 13 has no failIdx any more"
        assert (groups.value, all_of_them._obj.value) == (1, 0)
        assert (attributes._obj.order, attributes._obj.flags) == (1, 1)
        columns = [(ctypes.c_uint64 * count.value).from_address(column.value) for column in (targets, sources, sizes)]
        moves = [Move(*one) for one in zip(*columns, strict=True)]
        return self._give("cudaMemcpyBatchAsync", stream, moves[::-1])

    def cudaMemcpyPeerAsync(
        self,
        target: ctypes.c_void_p,
        target_device: ctypes.c_int,
        source: ctypes.c_void_p,
        source_device: ctypes.c_int,
        size: ctypes.c_size_t,
        stream: ctypes.c_void_p,
    ) -> int:
        for where, device in ((target, target_device), (source, source_device)):
            try:
                found, _ = self._at(where.value or 0)
            except KeyError:
                return self._failed(INVALID_VALUE)
            assert found.gpu == self.visible[device.value], "it lies on another GPU than was said"
        move = Move(target.value or 0, source.value or 0, size.value, over=True)
        return self._give("cudaMemcpyPeerAsync", stream, [move])

    def _give(self, name: str, stream: ctypes.c_void_p, moves: list[Move]) -> int:
        if name in self.machine.refused:
            return self._failed(self.machine.refused[name])
        waiting = self.streams.get(stream.value or 0)
        if waiting is None:
            return self._failed(INVALID_HANDLE)
        self.machine.calls.append(name)
        waiting.extend(moves)
        self.most_pending = max(self.most_pending, sum(one.size for one in waiting if isinstance(one, Move)))
        return 0

    def cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:
        return self._run(stream.value or 0)

    def _run(self, stream: int, until: Mark | None = None) -> int:
        """All that the stream was given, or what came before a mark."""
        waiting = self.streams.get(stream)
        if waiting is None:
            return self._failed(INVALID_HANDLE)
        while waiting and not (until and until.done):
            code = self._do(waiting.pop(0))
            if code:
                return self._failed(code)
        return 0

    def _do(self, one: Move | Mark | tuple[Mark]) -> int:
        if isinstance(one, Move):
            return self._move(one)
        if isinstance(one, Mark):
            one.done = True
            return 0
        return self._run(one[0].stream, one[0])

    def _move(self, move: Move) -> int:
        try:
            to, at = self._at(move.target)
            from_, offset = (to, at) if move.data is not None else self._at(move.source)
        except KeyError:
            return ILLEGAL_ADDRESS
        if from_.freed or offset + move.size > len(from_.data) or at + move.size > len(to.data):
            self.machine.broken.append(f"a copy touched memory that is not there (allocation {from_.number})")
            return ILLEGAL_ADDRESS
        if to.owner is not self:
            self.machine.broken.append("somebody else's memory was written to")
        if not move.over and frozenset((to.gpu, from_.gpu)) in self.machine.apart:
            self.machine.broken.append(f"{to.gpu} has read the memory of {from_.gpu}")
            return ILLEGAL_ADDRESS
        to.data[at : at + move.size] = move.data or from_.data[offset : offset + move.size]
        return 0

    # ---- events

    def cudaEventCreateWithFlags(self, event: Any, flags: ctypes.c_uint) -> int:
        assert flags.value == 3, "it sleeps, and tells no times"
        made = next(self._addresses)
        self.events[made] = None
        event._obj.value = made
        return 0

    def cudaEventDestroy(self, event: ctypes.c_void_p) -> int:
        found = (event.value or 0) in self.events
        self.events.pop(event.value or 0, None)
        return 0 if found else self._failed(INVALID_HANDLE)

    def cudaEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        if (event.value or 0) not in self.events or (stream.value or 0) not in self.streams:
            return self._failed(INVALID_HANDLE)
        mark = Mark(stream.value or 0)
        self.events[event.value or 0] = mark
        self.streams[mark.stream].append(mark)
        return 0

    def cudaEventSynchronize(self, event: ctypes.c_void_p) -> int:
        if (event.value or 0) not in self.events:
            return self._failed(INVALID_HANDLE)
        mark = self.events[event.value or 0]
        return self._run(mark.stream, mark) if mark else 0

    def cudaStreamWaitEvent(self, stream: ctypes.c_void_p, event: ctypes.c_void_p, flags: ctypes.c_uint) -> int:
        if (event.value or 0) not in self.events or flags.value:
            return self._failed(INVALID_HANDLE)
        mark = self.events[event.value or 0]
        if mark is not None:
            self.streams[stream.value or 0].append((mark,))
        return 0

    # ---- which GPU is which

    def cudaRuntimeGetVersion(self, version: Any) -> int:
        version._obj.value = self.machine.version
        return 0

    def cudaDeviceGetPCIBusId(self, address: Any, size: ctypes.c_int, device: ctypes.c_int) -> int:
        address.value = self.visible[device.value].encode()
        return 0

    def cudaDeviceGetByPCIBusId(self, device: Any, address: bytes) -> int:
        if address.decode() not in self.visible:
            return self._failed(INVALID_DEVICE)
        device._obj.value = self.visible.index(address.decode())
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
