"""Tells the owner when an incident opens and when it closes: by a command, and by a webhook. Whatever they do, the node goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
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

_WAITING: Final = 64  # notices for one of the two; beyond that, new ones are not told
_LEAST_S: Final = 1.0  # for one notice when the appliance ends, however many wait
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
    """``tell`` returns at once. Command and webhook don't wait for each other; each is told in the order of events."""

    def __init__(
        self, config: IncidentsConfig, environment: Mapping[str, str], pauses_s: Sequence[float] = _PAUSES_S
    ) -> None:
        self._config = config
        self._environment = environment
        self._pauses_s = tuple(pauses_s)
        self._channels: list[_Channel] = []
        if config.command:
            self._channels.append(_Channel("[incidents] command", self._run_command))
        if config.webhook:
            self._channels.append(_Channel(f"[incidents] webhook at {origin(config.webhook)}", self._post))

    @property
    def untold(self) -> int:
        """Notices that did not arrive: one that neither of the two took counts twice."""
        return sum(channel.untold for channel in self._channels)

    def tell(self, event: EventKind, incident: Incident) -> None:
        """An incident has been opened or closed."""
        for channel in self._channels:
            channel.tell(event, incident)

    async def finish(self, within_s: float, hurry: asyncio.Event) -> None:
        """Until all have been told, or time is up, or somebody is in a hurry: what runs then is ended."""
        await asyncio.gather(*(channel.finish(within_s, hurry) for channel in self._channels))

    async def _run_command(self, event: EventKind, incident: Incident) -> str | None:
        environment = {**_passed_on(self._environment), **variables(event, incident)}
        return await run_command(
            self._config.command, _body(event, incident), environment, self._config.command_timeout_s
        )

    async def _post(self, event: EventKind, incident: Incident) -> str | None:
        return await post(self._config.webhook, _body(event, incident), self._pauses_s)


class _Channel:
    """The command, or the webhook: told of one event after the other by a task that is there while some wait."""

    def __init__(self, name: str, send: Callable[[EventKind, Incident], Awaitable[str | None]]) -> None:
        """``name``: for the log. ``send``: None if it was told, else why not."""
        self._name = name
        self._send = send
        self._waiting: deque[tuple[EventKind, Incident]] = deque()  # the first is being told
        self._worker: asyncio.Task[None] | None = None
        self._end_s: float | None = None  # when the appliance ends, by the loop's clock
        self._limit: asyncio.Timeout | None = None  # of the one that is being told
        self._given_up: list[str] = []
        self.untold = 0

    def tell(self, event: EventKind, incident: Incident) -> None:
        """Once those before have been told."""
        if len(self._waiting) >= _WAITING:
            self.untold += 1
            _log.error("%s, not told that %s was %s: %d notices wait", self._name, incident.id, event, _WAITING)
            return
        self._waiting.append((event, incident))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def finish(self, within_s: float, hurry: asyncio.Event) -> None:
        """Each that waits gets its part of the time, and what the others leave of theirs."""
        if self._worker is None:
            return
        self._end_in(within_s)
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({self._worker, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if hurry.is_set():
            self._end_in(0.0)
        hurried.cancel()
        await asyncio.wait({self._worker, hurried})
        lost = self._given_up + [f"{incident.id} was {event}" for event, incident in self._waiting]
        if lost:
            self.untold += len(lost)
            said = "1 notice is" if len(lost) == 1 else f"{len(lost)} notices are"
            _log.error("%s: %s given up, for the appliance ends: %s", self._name, said, ", ".join(lost))

    def _end_in(self, within_s: float) -> None:
        self._end_s = asyncio.get_running_loop().time() + within_s
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._until())

    def _until(self) -> float | None:
        """How long the first may take: while there is no end, as long as it likes."""
        if self._end_s is None:
            return None
        now_s = asyncio.get_running_loop().time()
        return min(self._end_s, now_s + max((self._end_s - now_s) / len(self._waiting), _LEAST_S))

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._waiting and (self._end_s is None or clock() < self._end_s):
            event, incident = self._waiting[0]
            try:
                async with asyncio.timeout_at(self._until()) as self._limit:
                    why = await self._send(event, incident)
                if why is not None:
                    self.untold += 1
                    _log.error("%s, told that %s was %s: %s", self._name, incident.id, event, why)
            except TimeoutError:
                self._given_up.append(f"{incident.id} was {event}")
            except Exception:
                self.untold += 1
                _log.exception("%s: telling that %s was %s failed", self._name, incident.id, event)
            finally:
                self._limit = None
            self._waiting.popleft()


# ---- what is told


def _body(event: EventKind, incident: Incident) -> bytes:
    return msgspec.json.encode(notice(event, incident))


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
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "an address that is none"
