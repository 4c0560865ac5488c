"""A stand-in for systemd that does what the [Service] section of a unit says: notifications, watchdog, time limits, restarts.

As in systemd, SIGABRT and SIGTERM come with SIGCONT, and with ``KillMode=mixed`` whatever the main process leaves behind is
killed as soon as it has ended. The control group is stood in for by looking, again and again, at what descends from it.
"""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

LOOK_S = 0.02
PATIENCE_S = 30.0
CLEAN_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}


def section(unit: Path, name: str = "Service") -> dict[str, str]:
    """A section of a unit."""
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return dict(parser[name])


class Life:
    """One run of the main process, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.began = time.monotonic()
        self.said: list[dict[str, str]] = []
        self.members: set[psutil.Process] = set()
        self.ready = False
        self.deadline = float("inf")  # of its start, and later of its stop
        self.hungry = float("inf")  # when the watchdog acts
        self.result = ""  # exit-code, signal, watchdog or timeout; success
        self.left: list[psutil.Process] = []  # what had to be killed after its main process had ended

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> str:
        return next((fields["STATUS"] for fields in reversed(self.said) if "STATUS" in fields), "")

    def look(self) -> None:
        """Remember who belongs to it."""
        with contextlib.suppress(psutil.Error):
            self.members.update(psutil.Process(self.pid).children(recursive=True))

    def alive(self) -> list[psutil.Process]:
        """Those that are left, besides the main process."""
        return [p for p in self.members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class ServiceManager:
    """Runs one command as a service."""

    def __init__(
        self,
        unit: Path,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        *,
        abstract: bool = False,
        **instead: str,
    ) -> None:
        """``instead``: settings with other values than the unit's, such as shorter times. ``directory`` holds socket and log."""
        self.settings = section(unit) | instead
        assert (self.settings["Type"], self.settings["KillMode"]) == ("notify", "mixed")
        assert (self.settings["NotifyAccess"], self.settings["Restart"]) == ("main", "on-failure")
        self.lives: list[Life] = []
        self.log = directory / "journal"
        self._command = command
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        name = f"{directory}/notify"
        self._socket.bind(f"\0{name}" if abstract else name)
        self._environment = {
            **environment,
            "NOTIFY_SOCKET": f"@{name}" if abstract else name,
            "WATCHDOG_USEC": str(round(self._seconds("WatchdogSec") * 1e6)),
        }
        self._stopping = False
        self._running: asyncio.Task[None] | None = None

    @property
    def life(self) -> Life:
        return self.lives[-1]

    async def __aenter__(self) -> ServiceManager:
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        self._running = asyncio.create_task(self._run())
        await self.until(lambda: self.lives)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.stop()
        finally:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    async def stop(self) -> None:
        """``systemctl stop``. Raises what went wrong in here."""
        if not self._stopping and self.lives and not self.life.result:
            self.life.deadline = time.monotonic() + self._seconds("TimeoutStopSec")
            self.life.hungry = float("inf")
            self._signal(self.life, signal.SIGTERM)
        self._stopping = True
        assert self._running is not None
        await self._running

    async def until(self, condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        """Raises ``TimeoutError``, with what the service has written."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    assert self._running is not None
                    if self._running.done():
                        await self._running
                        assert condition(), f"the service has ended: {self.log.read_text()[-3000:]}"
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise TimeoutError(f"{self.life.said[-5:]}: {self.log.read_text()[-3000:]}") from None

    async def until_ready(self, life: int = 1, timeout_s: float = PATIENCE_S) -> Life:
        """The life of that number, once it has said that it serves."""
        await self.until(lambda: len(self.lives) >= life and self.lives[life - 1].ready, timeout_s)
        return self.lives[life - 1]

    # ---- what systemd does

    async def _run(self) -> None:
        while not self._stopping:
            life = await self._begin()
            code = await self._until_over(life)
            self._receive()
            await self._end_the_rest(life)
            life.result = life.result or _result(code)
            if not self._again(life.result, code):
                return
            await asyncio.sleep(self._seconds("RestartSec"))

    async def _begin(self) -> Life:
        with self.log.open("a") as output:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        life = Life(process)
        life.deadline = life.began + self._seconds("TimeoutStartSec")
        self.lives.append(life)
        return life

    async def _until_over(self, life: Life) -> int:
        while life.process.returncode is None:
            life.look()
            now = time.monotonic()
            if now > life.hungry:
                self._abort(life, "watchdog", signal.SIGABRT)
            elif now > life.deadline:
                self._abort(life, "timeout", signal.SIGKILL if life.result or self._stopping else signal.SIGTERM)
            await asyncio.sleep(LOOK_S)
        return life.process.returncode

    def _abort(self, life: Life, why: str, number: signal.Signals) -> None:
        life.result = life.result or why
        life.hungry, life.deadline = float("inf"), time.monotonic() + self._seconds("TimeoutStopSec")
        self._signal(life, number)

    def _signal(self, life: Life, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            life.process.send_signal(number)
            life.process.send_signal(signal.SIGCONT)

    async def _end_the_rest(self, life: Life) -> None:
        """``KillMode=mixed``: SIGKILL to all of the control group."""
        life.left = life.alive()
        for process in life.left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        async with asyncio.timeout(PATIENCE_S):
            while life.alive():
                await asyncio.sleep(LOOK_S)

    def _again(self, result: str, code: int) -> bool:
        prevented = self.settings["RestartPreventExitStatus"].split()
        return not self._stopping and result != "success" and not (result == "exit-code" and str(code) in prevented)

    # ---- what it is told

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(8192, 1024)
                [(_, _, credentials)] = ancillary
                pid, _, _ = struct.unpack("3i", credentials)
                assert len(data) <= 4096, "systemd ignores what is longer"
                if self.lives and pid == self.life.pid:  # NotifyAccess=main
                    self._take(self.life, dict(line.split("=", 1) for line in data.decode().split("\n")))

    def _take(self, life: Life, fields: dict[str, str]) -> None:
        now = time.monotonic()
        life.said.append(fields)
        if "READY" in fields and not life.ready:
            life.ready, life.deadline, life.hungry = True, float("inf"), now + self._seconds("WatchdogSec")
        if "WATCHDOG" in fields and life.hungry < float("inf"):
            life.hungry = now + self._seconds("WatchdogSec")
        if "STOPPING" in fields:
            life.hungry, life.deadline = float("inf"), min(life.deadline, now + self._seconds("TimeoutStopSec"))
        if "EXTEND_TIMEOUT_USEC" in fields and life.deadline < float("inf"):
            life.deadline = max(life.deadline, now + int(fields["EXTEND_TIMEOUT_USEC"]) / 1e6)

    def _seconds(self, name: str) -> float:
        return float(self.settings[name])  # our unit gives plain seconds


def _result(code: int) -> str:
    if code == 0 or (code < 0 and -code in CLEAN_SIGNALS):
        return "success"
    return "signal" if code < 0 else "exit-code"


def environment(directory: Path, **more: str) -> dict[str, str]:
    """What systemd would set, and what the tests need."""
    root = str(Path(__file__).parents[2])
    own = {"RUNTIME_DIRECTORY": str(directory / "run"), "STATE_DIRECTORY": str(directory / "state")}
    return {**os.environ, "PYTHONPATH": root, **own, **more}
