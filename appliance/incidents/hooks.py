"""Tells the owner when an incident opens and when it closes: by a command, and by a webhook. Whatever they do, the node goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from appliance.config import IncidentsConfig
from appliance.incidents import attendant
from appliance.incidents.attendant import NOT_ENDED
from appliance.incidents.tracker import EventKind
from appliance.records import Incident

_AT_ONCE: Final = 4
_WAITING: Final = 64  # notices; beyond that, new ones are not told
_PAUSES_S: Final = (1.0, 4.0, 15.0)  # between tries of the webhook
_ANSWER_S: Final = 10.0  # for one try
_KEPT_BYTES: Final = 4000  # of what a command says, the end
_PIECE_BYTES: Final = 65_536
_PIECE_S: Final = 0.005  # 13 MB per second
_TERM_S: Final = 2.0  # from SIGTERM to SIGKILL
_ATTENDANT: Final = Path(attendant.__file__)
_OWN: Final = "PD_APPLIANCE_"
_NOT_FOR_IT: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_log = logging.getLogger("pd-appliance.incidents")


class Hooks:
    """``tell`` returns at once. Notices of one incident come in order."""

    def __init__(
        self, config: IncidentsConfig, environment: Mapping[str, str], pauses_s: Sequence[float] = _PAUSES_S
    ) -> None:
        self._config = config
        self._environment = environment
        self._pauses_s = tuple(pauses_s)
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._last: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.untold = 0  # notices that did not arrive

    def tell(self, event: EventKind, incident: Incident) -> None:
        """An incident has been opened or closed."""
        if not (self._config.command or self._config.webhook):
            return
        if len(self._running) >= _WAITING:
            self.untold += 1
            _log.error("%s: nobody is told that it was %s, for %d notices wait", incident.id, event, _WAITING)
            return
        task = asyncio.create_task(self._tell(event, incident, self._last.get(incident.id)))
        self._last[incident.id] = task
        self._running.add(task)
        task.add_done_callback(lambda done: self._over(incident.id, done))

    async def finish(self, within_s: float, hurry: asyncio.Event) -> None:
        """Until all have been told, or time is up, or somebody is in a hurry: what runs then is ended."""
        hurried = asyncio.create_task(hurry.wait())
        told = asyncio.create_task(self._all_told())
        await asyncio.wait({told, hurried}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        left = set(self._running)
        if left:
            self.untold += len(left)
            _log.error("%d notices of incidents are given up: the appliance ends", len(left))
        for task in (*left, told, hurried):
            task.cancel()
        await asyncio.gather(*left, told, hurried, return_exceptions=True)

    async def _all_told(self) -> None:
        while self._running:
            await asyncio.wait(set(self._running))

    def _over(self, id: str, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._last.get(id) is task:
            del self._last[id]
        if not task.cancelled() and task.exception() is not None:
            self.untold += 1
            _log.error("telling of incident %s failed", id, exc_info=task.exception())

    async def _tell(self, event: EventKind, incident: Incident, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        body = msgspec.json.encode(notice(event, incident))
        async with self._places:
            if self._config.command:
                environment = {**_passed_on(self._environment), **variables(event, incident)}
                why = await run_command(self._config.command, body, environment, self._config.command_timeout_s)
                if why is not None:
                    self.untold += 1
                    _log.error("[incidents] command, told that %s was %s: %s", incident.id, event, why)
            if self._config.webhook:
                why = await post(self._config.webhook, body, self._pauses_s)
                if why is not None:
                    self.untold += 1
                    where = origin(self._config.webhook)
                    _log.error(
                        "[incidents] webhook at %s was not told that %s was %s: %s", where, incident.id, event, why
                    )


# ---- what is told


def notice(event: EventKind, incident: Incident) -> dict[str, Any]:
    """The JSON. ``text`` is what chat services show of it."""
    return {"event": event.value, "text": text(event, incident), "host": socket.gethostname(), "incident": incident}


def text(event: EventKind, incident: Incident) -> str:
    """One line."""
    marked = " (simulated)" if incident.simulated else ""
    if event is EventKind.CLOSED and incident.closed is not None:
        lasted_s = incident.closed - incident.opened
        hurt = f"about {incident.late} first tokens were late, {incident.failed} requests failed"
        return f"Incident {incident.id}{marked} is over after {lasted_s:.0f} s: {incident.ended}; {hurt}. It was: {incident.summary}"
    again = " again" if incident.reopened else ""
    return f"Incident {incident.id}{marked} is open{again}: {incident.summary}"


def variables(event: EventKind, incident: Incident) -> dict[str, str]:
    """For a command that reads no JSON."""
    found = {
        "EVENT": event.value,
        "INCIDENT": incident.id,
        "ENGINE": incident.engine or "",
        "CAUSE": incident.cause or "",
        "TEXT": text(event, incident),
    }
    return {_OWN + name: value.replace("\0", "") for name, value in found.items()}


def _passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Not our own settings, one of which may be a webhook's secret, and not what is for the supervisor alone."""
    return {name: value for name, value in environment.items() if not name.startswith(_OWN) and name not in _NOT_FOR_IT}


# ---- the command


async def run_command(
    command: Sequence[str], body: bytes, environment: Mapping[str, str], within_s: float
) -> str | None:
    """Run it, and wait until nothing is left of what it has started. None if it ended well, else why not."""
    told, (output, end) = _file(body), os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_ATTENDANT), str(os.getpid()), str(_TERM_S), *command),
            stdin=told,
            stdout=end,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )
    except (OSError, ValueError) as error:
        os.close(output)
        return f"{command[0]} can't be run: {getattr(error, 'strerror', None) or error}"
    finally:
        os.close(told)
        os.close(end)
    said = bytearray()
    reading = asyncio.create_task(_read(output, said))
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await process.wait()
                await asyncio.shield(reading)  # what it has said to the end
        in_time = process.returncode is not None
        await asyncio.shield(_end(process))
        if process.returncode is None or (not in_time and process.returncode == NOT_ENDED):
            return f"it did not end within {within_s:g} s{_saying(said)}"
        return None if process.returncode == 0 else f"it ended with {_ending(process.returncode)}{_saying(said)}"
    finally:
        reading.cancel()
        await asyncio.shield(_end(process))


def _file(body: bytes) -> int:
    """A descriptor to read it from: whether and when the command does so is its own affair."""
    descriptor = os.memfd_create("incident")
    os.write(descriptor, body)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _read(output: int, said: bytearray) -> None:
    """Its output to the end, of which the last is kept; the descriptor is closed then, whoever may still write to it.

    One that never stops is read no faster than it takes to leave the loop to others.
    """
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
    )
    try:
        while piece := await reader.read(_PIECE_BYTES):
            said += piece
            del said[:-_KEPT_BYTES]
            await asyncio.sleep(_PIECE_S)
    finally:
        pipe.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Whatever is left: ``attendant.py`` ends it all. One that can't be ended is left to the kernel."""
    for end, within_s in ((process.terminate, 3 * _TERM_S + 1.0), (process.kill, 1.0)):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await process.wait()


def _ending(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal {-code}"


def _saying(said: bytearray) -> str:
    """In one line, and nothing that a terminal would obey: it stands in the log."""
    words = " ".join("".join(one if one.isprintable() else " " for one in said.decode(errors="replace")).split())
    return f", and said: {words}" if words else ""


# ---- the webhook


async def post(url: str, body: bytes, pauses_s: Sequence[float]) -> str | None:
    """Tell it, again after a while if that fails and may end better. None if it was told, else why not."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, trust_env=True) as session:
        for pause_s in (*pauses_s, None):
            why, again = await _post(session, url, body)
            if why is None or not again or pause_s is None:
                return why
            await asyncio.sleep(pause_s)
    return None


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str | None, bool]:
    """Why not, and whether another try may end better. Nothing that could hold the address, which may be a secret, is told."""
    try:
        async with session.post(url, data=body, allow_redirects=False) as answer:
            if answer.status < 300:
                return None, False
            moved = ", which is not followed: name the address that it leads to" if answer.status < 400 else ""
            return f"it answered {answer.status}{moved}", answer.status >= 500 or answer.status in (408, 425, 429)
    except TimeoutError:
        return f"it did not answer within {_ANSWER_S:g} s", True
    except aiohttp.InvalidURL:
        return "its address is none", False
    except aiohttp.ClientConnectorError as error:
        return f"it can't be reached ({error.os_error.strerror or type(error.os_error).__name__})", True
    except (aiohttp.ClientError, OSError) as error:
        return f"it can't be told ({type(error).__name__})", True


def origin(url: str) -> str:
    """Scheme, host and port: the rest of a webhook's address is often a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
