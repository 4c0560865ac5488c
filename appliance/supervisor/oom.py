"""Whether the kernel has killed a process for want of memory: it counts such kills, of this cgroup and of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

_LATELY_NS: Final = 6_000_000_000  # an API process ends some seconds after its EngineCore
_ROOT: Final = Path("/sys/fs/cgroup")
_MACHINE: Final = Path("/proc/vmstat")


class Evidence(StrEnum):
    """What the counts say of the last seconds."""

    NONE = "none"
    ELSEWHERE = "elsewhere"  # on this machine, perhaps in a cgroup of somebody else's
    HERE = "here"  # in the cgroup of this process and its engines


def counts() -> dict[Path, int]:
    """Kills so far, by who says it; without those that can't be asked."""
    found = {path: _read(path) for path in (*own_cgroup(Path("/proc/self/cgroup")), _MACHINE)}
    return {path: count for path, count in found.items() if count is not None}


class OomKills:
    """To be looked at now and then. Times are ``CLOCK_MONOTONIC`` nanoseconds."""

    def __init__(self, read: Callable[[], Mapping[Path, int]] = counts) -> None:
        self._read = read
        self._counts = dict(read())
        self._rose_ns: dict[Path, int] = {}

    def look(self, now_ns: int) -> None:
        for path, count in self._read().items():
            if count > self._counts.get(path, count):
                self._rose_ns[path] = now_ns
            self._counts[path] = count

    def lately(self, now_ns: int) -> Evidence:
        """Whether one has been killed within the last seconds."""
        self.look(now_ns)
        rose = {path for path, when_ns in self._rose_ns.items() if now_ns - when_ns <= _LATELY_NS}
        if rose - {_MACHINE}:
            return Evidence.HERE
        return Evidence.ELSEWHERE if rose else Evidence.NONE


def own_cgroup(listing: Path, root: Path = _ROOT) -> list[Path]:
    """Where the kernel counts for a cgroup: version 2's ``memory.events``, and version 1's ``memory.oom_control``."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(root / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(root / "memory" / path.lstrip("/") / "memory.oom_control")
    return found


def _read(path: Path) -> int | None:
    try:
        fields = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(field[1]) for field in fields if len(field) == 2 and field[0] == "oom_kill"), None)
