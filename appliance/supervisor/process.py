"""Sessions of processes: launch, listen, end, reap."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

LOG_LINES: Final = 2000
STOPPED_LETTERS: Final = frozenset("T")  # of a thread's state: by a signal. (By a debugger is t: somebody looks at it.)
STACKS_SIGNAL: Final = signal.SIGUSR2  # engine/life.py answers it
_LINE_BYTES: Final = 1 << 16
_REAP_S: Final = 2.0
_TIDY_S: Final = 0.5  # for what ends by itself
_PR_SET_CHILD_SUBREAPER: Final = 36
_SHARED_MEMORY: Final = Path("/dev/shm")
# A file's inode: its name in the map may be that of its making. Multiprocessing's semaphores and memory, and that of vLLM's ranks on CPUs.
_NAMED: Final = re.compile(r" (\d+) +/dev/shm/(?:sem\.|psm_|vllm_dist_)")
_NAMES: Final = ("sem.mp-*", "psm_*", "vllm_dist_*")
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def adopt_orphans(adopt: bool = True) -> None:
    """What an engine leaves behind becomes this process's child, to be reaped, instead of init's. Or no longer does."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def launch(command: Sequence[str], environment: Mapping[str, str], output: int, source: int | None = None) -> int:
    """Start a program in a session of its own; its pid. Raises ``OSError`` if it can't be started.

    ``output`` is the descriptor that it writes to, ``source`` the one it reads from; it gets no others.
    """
    reading = (os.POSIX_SPAWN_DUP2, source, 0) if source is not None else _NOTHING_TO_READ
    actions = [reading, (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    return os.posix_spawn(
        command[0], list(command), environment, file_actions=actions, setsid=True, setsigdef=_IGNORED_BY_PYTHON
    )


_NOTHING_TO_READ: Final = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)


class Session:
    """The leader of a session, a child of this process, and all that is in it."""

    def __init__(self, pid: int, output: int, log: deque[str], on_line: Callable[[str], None]) -> None:
        """``output`` is the end to read of what it says; taken over."""
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)  # another process of this pid is never taken for it
        self._named: dict[Path, str] = {}  # semaphores and shared memory, and their inodes
        self._log = log
        self._on_line = on_line
        self._reader = asyncio.create_task(self._read(output), name=f"log of {pid}")

    def processes(self) -> list[psutil.Process]:
        """The leader, and what descends from it."""
        with contextlib.suppress(psutil.Error, OSError):  # no descriptors left to look with
            leader = psutil.Process(self.pid)
            return [leader, *leader.children(recursive=True)]
        return []

    def moved_bytes(self) -> int:
        """Bytes that its living processes have read and written, from files, sockets and pipes."""
        return int(self._sum(lambda process: sum(process.io_counters()[-2:])))  # read_chars and write_chars

    def cpu_s(self) -> float:
        """CPU time that its living processes have used."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))  # user and system

    def _sum(self, reading: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                total += reading(process)
        return total

    def thread_states(self) -> set[str]:
        """The states of all threads of its processes, in the letters of ``/proc/<pid>/stat``: R runs or would, D, S, T stopped."""
        found = set()
        for process in self.processes():
            with contextlib.suppress(OSError):
                for stat in list(Path(f"/proc/{process.pid}/task").glob("*/stat")):
                    with contextlib.suppress(OSError, IndexError):  # it ends meanwhile
                        found.add(stat.read_text().rpartition(") ")[2][0])
        return found

    def stopped(self) -> dict[int, float]:
        """By pid, the CPU time that those of its processes have used that are stopped now."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() == psutil.STATUS_STOPPED:
                    found[process.pid] = sum(process.cpu_times()[:2])
        return found

    def tell_stacks(self) -> None:
        """Ask its processes to write what their threads do into their log. (One that is stopped, or not ours, says nothing.)"""
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                if _listens(process.pid, STACKS_SIGNAL):
                    process.send_signal(STACKS_SIGNAL)

    def note_named(self) -> None:
        """Remember what its processes have in /dev/shm: what they are killed with, and multiprocessing's tracker, is ours to remove."""
        mapped: set[str] = set()
        for process in self.processes():
            with contextlib.suppress(OSError):
                mapped.update(_NAMED.findall(Path(f"/proc/{process.pid}/maps").read_text(errors="replace")))
        with contextlib.suppress(OSError):
            for path in [path for pattern in _NAMES for path in _SHARED_MEMORY.glob(pattern)]:
                inode = _inode(path)
                if inode in mapped:
                    self._named[path] = inode

    async def wait(self) -> int:
        """Until the leader has ended; then ends and reaps the rest of the session. The leader's code, negative for a signal.

        The rest dies with its parent by itself (``engine/life.py``). Only multiprocessing's resource tracker does not: it
        sees that everybody else has gone, removes what they had in /dev/shm, and ends, if it is given the time.
        """
        await self._ended()
        _, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 (it has ended: nothing to wait for)
        os.close(self._descriptor)
        self._descriptor = -1
        await self._reap()
        for path, inode in self._named.items():
            with contextlib.suppress(OSError):
                if _inode(path) == inode:  # else the name is somebody else's by now
                    path.unlink()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_S):
                await self._reader
        return os.waitstatus_to_exitcode(status)

    def terminate(self) -> None:
        """Ask the leader to end. Nothing, once it has."""
        if self._descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    def kill(self) -> None:
        """End the leader at once, and with it the session. Nothing, once it has ended."""
        if self._descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def _ended(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._descriptor)

    async def _reap(self) -> None:
        """Orphans of the session are ours (``adopt_orphans``); none may stay behind, not even as a zombie."""
        began = time.monotonic()
        while self._some_are_left() and time.monotonic() - began < _REAP_S:
            if time.monotonic() - began > _TIDY_S:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            await asyncio.sleep(0.01)

    def _some_are_left(self) -> bool:
        """Reaps those that have ended. While there are others, nobody else's process group can have this number."""
        with contextlib.suppress(ChildProcessError):
            while True:
                found, _ = os.waitpid(-self.pid, os.WNOHANG)
                if not found:
                    return True
        return False

    async def _read(self, output: int) -> None:
        stream = asyncio.StreamReader(limit=_LINE_BYTES)
        pipe = os.fdopen(output, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        with contextlib.closing(transport):
            while line := await _line(stream):
                text = line.decode(errors="replace").rstrip()
                self._log.append(text)
                self._on_line(text)


def _inode(path: Path) -> str:
    """Empty if there is no such file."""
    try:
        return str(path.stat().st_ino)
    except OSError:
        return ""


def _listens(pid: int, number: signal.Signals) -> bool:
    """True if the process catches a signal, which would else end it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line, or as much of it as the limit allows; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)
    except asyncio.IncompleteReadError as end:
        return end.partial
