"""What the machine says about our processes. Readings may be refused: then they are None."""

from __future__ import annotations

import os
import time

import psutil


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
