"""No process of an engine outlives its parent.

The kernel sends ``PR_SET_PDEATHSIG`` when the parent's *thread* that forked ends, and forgets it over a fork, so every process
of the engine has to ask for itself, and has to be forked from its parent's main thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_SPAWNER: Final = "PD_APPLIANCE_SPAWNER"  # pid of the process that forks or spawns
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; exit at once if ``parent`` is no longer it."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def entitle(title: str) -> None:
    """What ``ps`` and ``top`` call this process, where ``setproctitle`` is installed. First called before the environment changes."""
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"pd-appliance: {title}")


def tell_stacks() -> None:
    """Have this process write what its threads do to stderr at SIGUSR2, also while its main thread hangs in C code.

    And also before a fault, such as one of memory, ends it.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)


def bind_children() -> None:
    """Make what this process forks or spawns die with it: forks by a hook, spawned children by :func:`die_with_spawner`."""
    os.environ[_SPAWNER] = str(os.getpid())
    os.register_at_fork(after_in_child=_die_with_forker)


def die_with_spawner() -> None:
    """For a spawned child, as early as it runs code of ours."""
    die_with(int(os.environ[_SPAWNER]))
    bind_children()


def _die_with_forker() -> None:
    die_with(int(os.environ[_SPAWNER]))
    os.environ[_SPAWNER] = str(os.getpid())  # the hook itself is inherited
