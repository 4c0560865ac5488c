"""Whose a GPU is, and who else is on it. Pure but for what it is given to ask processes by."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

import msgspec

from appliance.gpu.device import Reading
from appliance.records import EngineView, GpuProcess, GpuSnapshot


def session(pid: int) -> int | None:
    """Whose leader an engine is known by."""
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


def command(pid: int) -> str | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().strip() or None
    return None


def assign(
    readings: Sequence[Reading],
    views: Sequence[EngineView],
    *,
    session: Callable[[int], int | None] = session,
    command: Callable[[int], str | None] = command,
) -> tuple[GpuSnapshot, ...]:
    """GPUs and engines meet by UUID, which means the same to every process."""
    leaders = {view.pid for view in views if view.pid}
    return tuple(_assigned(reading, views, lambda pid: session(pid) in leaders, command) for reading in readings)


def _assigned(
    reading: Reading,
    views: Sequence[EngineView],
    ours: Callable[[int], bool],
    command: Callable[[int], str | None],
) -> GpuSnapshot:
    uuids = {reading.gpu.uuid, *reading.parts}
    engine = next((view.name for view in views if uuids & set(view.gpus)), None)
    others = _others(reading.processes, ours, expected=engine is not None)
    named = others and tuple(msgspec.structs.replace(one, name=command(one.pid)) for one in others)
    return msgspec.structs.replace(reading.gpu, engine=engine, others=named)


def _others(
    processes: tuple[GpuProcess, ...] | None, ours: Callable[[int], bool], *, expected: bool
) -> tuple[GpuProcess, ...] | None:
    """None where our own engine is not among them: it is not there yet, or pids are those of another namespace (a container's)."""
    if processes is None:
        return None
    others = tuple(one for one in processes if not ours(one.pid))
    if expected and len(others) == len(processes):
        return None
    return others
