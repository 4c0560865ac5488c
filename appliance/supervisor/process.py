"""One engine process: spawn, listen, end, reap."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

LOG_LINES: Final = 2000
_LINE_BYTES: Final = 1 << 16
_REAP_S: Final = 2.0
_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """What an engine leaves behind becomes this process's child, to be reaped, instead of init's."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class EngineProcess:
    """The leader of an engine's session, and all that is in it."""

    def __init__(self, process: asyncio.subprocess.Process, log: deque[str], on_line: Callable[[str], None]) -> None:
        self._process = process
        self._log = log
        self._on_line = on_line
        self._reader = asyncio.create_task(self._read(), name=f"log of {process.pid}")

    @classmethod
    async def spawn(
        cls, command: Sequence[str], environment: dict[str, str], log: deque[str], on_line: Callable[[str], None]
    ) -> EngineProcess:
        """Start it in a session of its own. Raises ``OSError`` if it can't be started."""
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LINE_BYTES,
        )
        return cls(process, log, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Until the leader has ended; then ends and reaps the rest of the session. The leader's code, negative for a signal."""
        code = await self._process.wait()
        self.kill()
        await self._reap()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_S):
                await self._reader
        return code

    def terminate(self) -> None:
        """Ask the leader to end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole session at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _reap(self) -> None:
        """Orphans of the session are ours (``adopt_orphans``); none may stay behind as a zombie."""
        with contextlib.suppress(ChildProcessError, TimeoutError):
            async with asyncio.timeout(_REAP_S):
                while True:
                    found, _ = os.waitpid(-self.pid, os.WNOHANG)  # noqa: ASYNC222 (does not wait)
                    if not found:
                        await asyncio.sleep(0.01)

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while True:
            try:
                line = await stream.readuntil(b"\n")
            except asyncio.LimitOverrunError as overrun:
                line = await stream.readexactly(overrun.consumed)
            except asyncio.IncompleteReadError as end:
                line = end.partial
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._log.append(text)
            self._on_line(text)
