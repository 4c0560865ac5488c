"""What the machine says about our processes. Readings may be refused: then they are None."""

from __future__ import annotations

import os
import time

import psutil

from appliance.records import EngineView, GpuSnapshot, HostReading


def session_memory_bytes(leader: int) -> int | None:
    """Proportional set size of a session's processes and of all that descend from its leader, in bytes.

    None if the leader is gone or any reading is refused: a part is not the whole. Slow (page tables are walked): call it
    off the event loop.
    """
    try:
        return sum(_pss_bytes(process) for process in _family(leader))
    except (psutil.Error, OSError):
        return None


def own_memory_bytes() -> int | None:
    """This process's proportional set size."""
    try:
        return _pss_bytes(psutil.Process())
    except (psutil.Error, OSError):
        return None


def _family(leader: int) -> set[psutil.Process]:
    """Also orphans that have stayed in the session, and children that have left it."""
    first = psutil.Process(leader)
    return {first, *first.children(recursive=True), *(p for p in psutil.process_iter() if _session(p.pid) == leader)}


class Machine:
    """This machine, as far as nobody simulates it. Implements ``collector.HardwareSource``."""

    def __init__(self) -> None:
        self._threads: dict[
            int, tuple[int, int, int]
        ] = {}  # by pid: when last asked, and what its main thread had by then

    def gpus(self) -> tuple[GpuSnapshot, ...]:
        """NVML is not asked yet."""
        return ()

    def host(self, view: EngineView) -> HostReading | None:
        """Of the main threads of EngineCore and of the API process, which leads the session."""
        core = self._shares(view.core_pid)
        api = self._shares(view.pid) if view.pid != view.core_pid else None
        if core is None and api is None:
            return None
        return HostReading(
            core_busy=core[0] if core else None,
            core_delay=core[1] if core else None,
            api_busy=min(1.0, sum(api)) if api else None,
        )

    def _shares(self, pid: int | None) -> tuple[float, float] | None:
        """Shares of the time since the last call in which it ran, and in which it could have; None the first time."""
        if pid is None:
            return None
        try:
            with open(f"/proc/{pid}/schedstat") as file:
                ran_ns, waited_ns, _ = map(int, file.read().split())
        except (OSError, ValueError):
            self._threads.pop(pid, None)
            return None
        now_ns = time.monotonic_ns()
        before, self._threads[pid] = self._threads.get(pid), (now_ns, ran_ns, waited_ns)
        if before is None or now_ns <= before[0]:
            return None
        since_ns = now_ns - before[0]
        return (ran_ns - before[1]) / since_ns, (waited_ns - before[2]) / since_ns


class CpuShare:
    """This process's CPU time per wall time, of one core, between two calls."""

    def __init__(self) -> None:
        self._last = (time.monotonic(), time.process_time())

    def since_last(self) -> float:
        before, self._last = self._last, (time.monotonic(), time.process_time())
        wall = self._last[0] - before[0]
        return (self._last[1] - before[1]) / wall if wall > 0 else 0.0


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _pss_bytes(process: psutil.Process) -> int:
    """0 for one that has ended meanwhile. Raises ``psutil.AccessDenied``."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, ProcessLookupError):  # a zombie is one too
        return 0
