"""A CPU quota for one process, by a control group of its own: both versions of control groups, where we may make groups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MOUNT: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_PERIOD_US: Final = 100_000


class NoQuota(Exception):
    """Why there can be none."""


def refused(mount: Path = _MOUNT) -> str | None:
    """Why no quota can be given on this machine; None if one can."""
    try:
        with _group(mount) as group:
            _limit(group, 0.5)
    except (OSError, NoQuota) as error:
        return str(error)
    return None


@contextlib.contextmanager
def limited(pid: int, share: float, mount: Path = _MOUNT) -> Iterator[str]:
    """So much of one core, for all threads of the process. Yields what was done. Raises ``NoQuota`` or ``OSError``."""
    with _group(mount) as group:
        before = _group_of(pid, mount)
        _limit(group, share)
        (group / "cgroup.procs").write_text(str(pid))
        try:
            yield f"{pid} may have {share:.0%} of a core"
        finally:
            with contextlib.suppress(OSError):  # it may have ended
                (before / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def _group(mount: Path) -> Iterator[Path]:
    group = _root(mount) / f"pd-bench-{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def _root(mount: Path) -> Path:
    if (mount / "cgroup.controllers").exists():
        if "cpu" not in (mount / "cgroup.controllers").read_text().split():
            raise NoQuota("control groups have no cpu controller here")
        (mount / "cgroup.subtree_control").write_text("+cpu")
        return mount
    if (mount / "cpu").is_dir():
        return mount / "cpu"
    raise NoQuota("control groups are not mounted here")


def _limit(group: Path, share: float) -> None:
    quota = max(1000, round(share * _PERIOD_US))
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota))


def _group_of(pid: int, mount: Path) -> Path:
    root = _root(mount)
    for line in (_PROC / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (not controllers and root == mount) or "cpu" in controllers.split(","):
            return root / path.lstrip("/")
    return root
