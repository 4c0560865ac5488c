"""Runs the owner's command, and ends when nothing is left of all that it has started.

    python -I -S attendant.py PARENT GRACE COMMAND [ARGUMENT…]

It stands between the appliance and the command, because whoever leaves his session (``setsid``) and loses his parent would else become a
child of the appliance, which could not tell whose he was. Here they all become children of this process (``PR_SET_CHILD_SUBREAPER``), are
reaped, and counted. It ends with the last of them, as the command did: by its exit status or its signal. At SIGTERM, which also comes
when the appliance ends, whatever that ends of, it ends all that are left, and so itself: GRACE seconds after SIGTERM by SIGKILL.

It imports nothing but the standard library, and little of that: it is started for each notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NOT_ENDED: Final = 124  # the command was still there at SIGTERM
_NOT_RUN: Final = 127
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_AWAITED: Final = (signal.SIGCHLD, signal.SIGTERM)
_LOOK_S: Final = 0.02
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class Attendant:
    """Of one command."""

    def __init__(self, command: list[str]) -> None:
        """Start it, in a session of its own. Raises ``OSError``."""
        self._pid = os.posix_spawnp(
            command[0], command, os.environ, setsid=True, setsigmask=(), setsigdef=_IGNORED_BY_PYTHON
        )
        self._status: int | None = None  # of the command, once it has ended

    def attend(self, grace_s: float) -> int:
        """Until nothing is left; what to exit with, negative for a signal."""
        while self._some_are_left():
            if signal.sigwait(_AWAITED) == signal.SIGTERM:
                found = self._ending()
                self._end_all(grace_s)
                return found
        return self._ending()

    def _ending(self) -> int:
        return NOT_ENDED if self._status is None else os.waitstatus_to_exitcode(self._status)

    def _some_are_left(self) -> bool:
        """Reaps those that have ended."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return True
                if pid == self._pid:
                    self._status = status
        except ChildProcessError:
            return False

    def _end_all(self, grace_s: float) -> None:
        """What is somebody else's by now (sudo) is not ours to end, and is not waited for for ever."""
        _send(signal.SIGTERM)
        for number in (None, signal.SIGKILL):
            deadline = time.monotonic() + grace_s
            while self._some_are_left() and time.monotonic() < deadline:
                if number is not None:
                    _send(number)  # again and again: they may go on forking
                signal.sigtimedwait((signal.SIGCHLD,), _LOOK_S)


def _send(number: signal.Signals) -> None:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def descendants(of: int) -> Iterator[int]:
    """Children, and theirs; whoever has lost his parent is a child of the reaper above."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = children.get(of, [])
    for pid in found:  # it grows
        found.extend(children.get(pid, []))
    return iter(found)


def main() -> None:
    """End as the command does."""
    parent, grace_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return
    try:
        code = Attendant(command).attend(grace_s)
    except OSError as error:
        sys.stdout.write(f"{command[0]} can't be run: {error.strerror or error}\n")
        sys.exit(_NOT_RUN)
    if code < 0:
        _die_of(-code)
    sys.exit(code)


def _die_of(number: int) -> None:
    """As the command did, but without leaving its memory to anybody."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
