"""The supervisor's end of the fork server (``appliance/engine/forkserver.py``), from which engines are forked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from appliance.channel import ForkAnswer, Forked, ForkOrder, Frames, Imported, encode
from appliance.errors import ApplianceError, ChannelError
from appliance.supervisor.exits import Exit, explain
from appliance.supervisor.process import LOG_LINES, Session, launch

_MODULE: Final = "appliance.engine.forkserver"
_ANSWER_S: Final = 15.0
_ENDING_S: Final = 1.0
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # or it could not be forked safely


class ForkError(ApplianceError):
    """An engine could not be forked. ``exit`` is why, as an engine's own end would be told."""

    def __init__(self, exit: Exit) -> None:
        super().__init__(exit.cause)
        self.exit = exit


class ForkServer:
    """Starts with the first order, and again with the first one after it has ended. Engines live on without it."""

    def __init__(self, environment: Mapping[str, str], import_s: float) -> None:
        """``environment``: what all engines have in common. ``import_s``: the longest that importing may take."""
        self._environment = {**environment, **_ONE_THREAD}
        self._import_s = import_s
        self._order = asyncio.Lock()
        self._running: _Running | None = None
        self._closed = False

    @property
    def imported(self) -> bool:
        """True while an order would be carried out at once."""
        return self._running is not None and self._running.imported

    async def fork(self, arguments: Sequence[str], environment: Mapping[str, str], output: int) -> int:
        """The pid of a new engine, a child of this process in a session of its own. Raises ``ForkError``."""
        async with self._order:
            if self._closed:
                raise ForkError(Exit("the appliance is stopping"))
            if self._running is None or self._running.ended:
                self._running = _Running(self._environment)
            try:
                await self._running.ready(self._import_s)
                return await self._running.fork(arguments, environment, output)
            except (ChannelError, OSError, TimeoutError) as error:
                exit = await self._running.failed(str(error) or "it does not answer")
                raise ForkError(Exit(f"the fork server: {exit.cause}", exit.terminal)) from error

    async def close(self) -> None:
        """End it for good; orders that wait fail."""
        self._closed = True
        if self._running is not None:
            await self._running.end()


class _Running:
    """One life of it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.imported = False
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._frames: Frames[ForkAnswer] = Frames(ForkAnswer)
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        reader, writer = os.pipe()
        try:
            command = [sys.executable, "-m", _MODULE, "--parent", str(os.getpid())]
            pid = launch(command, environment, writer, theirs.fileno())
        finally:
            os.close(writer)
            theirs.close()
        self._session = Session(pid, reader, self._lines, lambda _: None)
        self._code = asyncio.create_task(self._session.wait(), name="fork server")

    @property
    def ended(self) -> bool:
        return self._code.done()

    async def ready(self, import_s: float) -> None:
        if not self.imported:
            async with asyncio.timeout(import_s):
                self.imported = isinstance(await self._answer(), Imported)

    async def fork(self, arguments: Sequence[str], environment: Mapping[str, str], output: int) -> int:
        order = ForkOrder(arguments=tuple(arguments), environment=dict(environment))
        async with asyncio.timeout(_ANSWER_S):
            socket.send_fds(self._control, [encode(order)], [output])
            answer = await self._answer()
        if not isinstance(answer, Forked):
            raise ChannelError(f"the fork server answered an order with {type(answer).__name__}")
        return answer.pid

    async def _answer(self) -> ForkAnswer:
        while True:
            data = await asyncio.get_running_loop().sock_recv(self._control, 1 << 16)
            if not data:
                raise ConnectionError("it ended")
            for answer in self._frames.feed(data):
                return answer

    async def failed(self, reason: str) -> Exit:
        """End it. Why it has ended, if it did so by itself; else ``reason``."""
        with contextlib.suppress(TimeoutError):  # what has closed its end of the socket is about to end
            async with asyncio.timeout(_ENDING_S):
                await asyncio.shield(self._code)
        by_itself = self.ended
        code = await self.end()
        return explain(code, list(self._lines)) if by_itself else Exit(reason)

    async def end(self) -> int:
        self.imported = False
        self._session.kill()
        code = await self._code
        self._control.close()
        return code
