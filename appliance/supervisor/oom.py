"""Whether the kernel has killed a process for want of memory: it counts such kills, of this cgroup or of the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

_LATELY_NS: Final = 6_000_000_000  # an API process ends some seconds after its EngineCore
_ROOT: Final = Path("/sys/fs/cgroup")


def kills() -> int:
    """So far, wherever the kernel says it: only that it rises means something. An engine may be in a cgroup of its own."""
    return sum(_read(path) or 0 for path in (*_of_own_cgroup(), Path("/proc/vmstat")))


class OomKills:
    """To be looked at now and then. Times are ``CLOCK_MONOTONIC`` nanoseconds."""

    def __init__(self, read: Callable[[], int] = kills) -> None:
        self._read = read
        self._count = read()
        self._rose_ns: int | None = None

    def look(self, now_ns: int) -> None:
        count = self._read()
        if count > self._count:
            self._rose_ns = now_ns
        self._count = count

    def lately(self, now_ns: int) -> bool:
        """True if one has been killed within the last seconds."""
        self.look(now_ns)
        return self._rose_ns is not None and now_ns - self._rose_ns <= _LATELY_NS


def _of_own_cgroup() -> list[Path]:
    """Version 2's ``memory.events``, and version 1's ``memory.oom_control``."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(_ROOT / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(_ROOT / "memory" / path.lstrip("/") / "memory.oom_control")
    return found


def _read(path: Path) -> int | None:
    try:
        fields = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(field[1]) for field in fields if len(field) == 2 and field[0] == "oom_kill"), None)
