"""How far a process's control groups keep it from the CPUs: quotas that are used up, and pressure (PSI). Both versions of control groups.

The kernel counts the periods in which a group was held back, and the time, summed over CPUs, for which it was. Of a period only a part is
lost, and of several CPUs several may stand at once: both shares are upper bounds, and the smaller one is told.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

_MOUNT: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_SAME_NS: Final = 20_000_000  # engines that share a group ask for it one after the other: one answer for all

_MOVED_NS: Final = 10_000_000_000  # hardly any process is: it is looked where it is no more often

Stat = tuple[int, int, int]  # periods, of which held back, for how many nanoseconds


class Cgroups:
    """Remembers what it has read, to tell shares of the time since then."""

    def __init__(self, mount: Path = _MOUNT, proc: Path = _PROC) -> None:
        self._mount = mount
        self._proc = proc
        self._known: dict[int, tuple[int, list[Path]]] = {}  # by pid: when it was looked, and the groups
        self._stats: dict[Path, tuple[int, Stat, float | None]] = {}
        self._stalls: dict[Path, tuple[int, int, float | None]] = {}

    def throttled(self, pid: int, now_ns: int) -> float | None:
        """By the quota of its group, or of any that this one is in. None the first time, and where no group can be read."""
        shares = [share for group in self._groups(pid, now_ns) if (share := self._throttled(group, now_ns)) is not None]
        return max(shares, default=None)

    def pressure(self, pid: int, now_ns: int) -> float | None:
        """Of its own group, or of the machine where groups don't tell."""
        own = self._groups(pid, now_ns)[:1]
        for file in (*(group / "cpu.pressure" for group in own), self._proc / "pressure" / "cpu"):
            stalled_us = _stalled_us(file)
            if stalled_us is not None:
                return self._pressed(file, stalled_us, now_ns)
        return None

    def _groups(self, pid: int, now_ns: int) -> list[Path]:
        """From its own to the outermost that can be seen."""
        at_ns, known = self._known.get(pid, (now_ns - _MOVED_NS, []))
        if now_ns - at_ns >= _MOVED_NS:
            self._known = {other: found for other, found in self._known.items() if now_ns - found[0] < _MOVED_NS}
            at_ns, known = self._known[pid] = now_ns, self._look_for(pid)
        return known

    def _look_for(self, pid: int) -> list[Path]:
        with contextlib.suppress(OSError, ValueError):
            for line in (self._proc / str(pid) / "cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                root = self._root(controllers)
                if root is not None and ".." not in path:  # outside of what this namespace sees
                    group = root / path.lstrip("/")
                    return [group, *(one for one in group.parents if one.is_relative_to(root))]
        return []

    def _root(self, controllers: str) -> Path | None:
        """Where the hierarchy is mounted that has CPU quotas; None for any other."""
        if not controllers:
            return self._mount if (self._mount / "cgroup.controllers").exists() else None
        return self._mount / controllers if "cpu" in controllers.split(",") else None

    def _throttled(self, group: Path, now_ns: int) -> float | None:
        before = self._stats.get(group)
        if before is not None and now_ns - before[0] < _SAME_NS:
            return before[2]
        stat = _stat(group / "cpu.stat")
        if stat is None:
            self._stats.pop(group, None)
            return None
        share = _share(before[1], stat, now_ns - before[0]) if before is not None else None
        self._stats[group] = now_ns, stat, share
        return share

    def _pressed(self, file: Path, stalled_us: int, now_ns: int) -> float | None:
        before = self._stalls.get(file)
        if before is not None and now_ns - before[0] < _SAME_NS:
            return before[2]
        share = min(1.0, (stalled_us - before[1]) * 1e3 / (now_ns - before[0])) if before is not None else None
        self._stalls[file] = now_ns, stalled_us, share
        return share


def _share(before: Stat, after: Stat, since_ns: int) -> float:
    """Without a quota there are no periods."""
    periods, held, held_ns = (later - earlier for earlier, later in zip(before, after, strict=True))
    return max(0.0, min(1.0, held / periods, held_ns / since_ns)) if periods > 0 else 0.0


def _stat(file: Path) -> Stat | None:
    try:
        found = dict(line.split() for line in file.read_text().splitlines())
        held_ns = int(found["throttled_usec"]) * 1000 if "throttled_usec" in found else int(found["throttled_time"])
        return int(found["nr_periods"]), int(found["nr_throttled"]), held_ns
    except (OSError, ValueError, KeyError):  # the outermost group of a machine has no quota, and tells of none
        return None


def _stalled_us(file: Path) -> int | None:
    """Microseconds for which something could run and had no core."""
    try:
        return int(file.read_text().split("\n", 1)[0].rpartition("total=")[2])
    except (OSError, ValueError):
        return None
