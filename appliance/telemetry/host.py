"""What the machine says about our processes. Readings may be refused: then they are None."""

from __future__ import annotations

import os
import time

import psutil


def session_memory_bytes(leader: int) -> int | None:
    """Proportional set size of all processes of a session. Slow (page tables are walked): call it off the event loop."""
    sizes = [_pss(process) for process in psutil.process_iter() if _session(process.pid) == leader]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


def own_memory_bytes() -> int | None:
    """This process's proportional set size."""
    return _pss(psutil.Process())


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


def _pss(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, OSError):
        return None
