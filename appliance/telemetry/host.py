"""What the machine says about our processes. Readings may be refused: then they are None."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import msgspec
import psutil

from appliance.gpu import tenants
from appliance.gpu.device import Reading
from appliance.records import EngineView, GpuSnapshot, HostReading
from appliance.telemetry.cgroup import Cgroups


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

    def __init__(
        self,
        views: Callable[[], Sequence[EngineView]] = tuple,
        readings: Callable[[], Sequence[Reading]] = tuple,
        cgroups: Cgroups | None = None,
    ) -> None:
        """``readings``: the latest ones of GPUs, as ``gpu.watch`` has them."""
        self._views = views
        self._readings = readings
        self._cgroups = cgroups or Cgroups()
        self._threads = Threads()

    def gpus(self) -> tuple[GpuSnapshot, ...]:
        """As they were read last; whose they are, as it is now."""
        return tenants.assign(self._readings(), self._views())

    def host(self, view: EngineView) -> HostReading | None:
        """Of the main threads of EngineCore and of the API process, which leads the session. Of ranks that are processes, the one that
        waits the longest for a core counts with EngineCore: all others wait for it.
        """
        now_ns = time.monotonic_ns()
        core = self._threads.shares(view.core_pid, now_ns)
        workers = [self._threads.shares(pid, now_ns) for pid in view.worker_pids]
        api = self._threads.shares(view.pid, now_ns) if view.pid != view.core_pid else None
        pid = view.core_pid or view.pid
        throttled = self._cgroups.throttled(pid, now_ns) if pid else None
        pressure = self._cgroups.pressure(pid, now_ns) if pid else None
        if core is None and api is None:
            return None
        return HostReading(
            core_busy=core.ran if core else None,
            core_delay=max(one.waited for one in (core, *workers) if one) if core else None,
            core_switches_s=core.switches_s if core else None,
            api_busy=min(1.0, api.ran + api.waited) if api else None,
            api_starved=api.waited if api else None,
            throttled=throttled,
            pressure=pressure,
            cores=_allowed(view.core_pid),
        )


class Shares(msgspec.Struct, frozen=True):
    """Of a main thread, since it was asked last."""

    ran: float
    waited: float  # it could run, and had no core
    switches_s: float | None  # it was made to leave its core, per second


class Threads:
    """Remembers what main threads had when they were asked last."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, int, int, int | None]] = {}

    def shares(self, pid: int | None, now_ns: int) -> Shares | None:
        """None the first time, and for a process that is not there."""
        if pid is None:
            return None
        try:
            with open(f"/proc/{pid}/schedstat") as file:
                ran_ns, waited_ns, _ = map(int, file.read().split())
        except (OSError, ValueError):
            self._before.pop(pid, None)
            return None
        switches = _switches(pid)
        before, self._before[pid] = self._before.get(pid), (now_ns, ran_ns, waited_ns, switches)
        if before is None or now_ns <= before[0]:
            return None
        since_ns = now_ns - before[0]
        made = None if switches is None or before[3] is None else (switches - before[3]) / (since_ns * 1e-9)
        return Shares((ran_ns - before[1]) / since_ns, (waited_ns - before[2]) / since_ns, made)


def _switches(pid: int) -> int | None:
    """Of its main thread, for which it did not ask."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return int(file.read().rpartition(b"nonvoluntary_ctxt_switches:")[2])
    except (OSError, ValueError):
        return None


def _allowed(pid: int | None) -> int | None:
    """Cores that its main thread may run on."""
    try:
        return len(os.sched_getaffinity(pid)) if pid else None
    except OSError:
        return None


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
