"""Faults, from outside the appliance: what is done to its processes, its limits and its directories.

A fault with a duration ends with what it began: when ``apply`` returns, nothing of it is left but its consequences.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from bench import impostors
from bench.checker import Case, Ending
from bench.clients import Clients, Manner
from bench.schedule import Planned
from bench.servers import Server

_FDS_S: Final = 4.0
_DISK_S: Final = 12.0
_SPARE_DESCRIPTORS: Final = 2
_FLOOD: Final = 300
_CROWD: Final = 8
_SMALL_BYTES: Final = 32 << 20
_ENTERING_S: Final = 20.0
_SETTLES_S: Final = 1.0


@dataclass(frozen=True)
class Ground:
    """What faults have to work on. ``cases`` are requests that odd clients send."""

    server: Server
    runtime: Path
    clients: Clients
    cases: tuple[Case, ...]

    @property
    def supervisor(self) -> psutil.Process:
        return psutil.Process(self.server.pid)

    async def engine(self, name: str) -> dict[str, Any]:
        node = await self.server.json("/api/node")
        return next(engine for engine in node["engines"] if engine["name"] == name)

    async def post(self, path: str) -> int:
        async with self.server.target.session.post(self.server.target.url(path)) as answer:
            return answer.status

    async def family(self, name: str) -> list[psutil.Process]:
        """The processes of an engine, leader first; empty while it has none."""
        pid = (await self.engine(name))["pid"]
        if pid is None:  # psutil would take that for this process
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(pid)
            return [leader, *leader.children(recursive=True)]
        return []

    async def process(self, name: str, kind: str) -> psutil.Process | None:
        """One of an engine's, by what is in its command line; ``API`` is the leader."""
        family = await self.family(name)
        if kind == "API":
            return family[0] if family else None
        return next((one for one in family if kind in _title(one)), None)

    def fork_server(self) -> psutil.Process | None:
        children = self.supervisor.children()
        return next((one for one in children if "fork server" in _title(one) or "forkserver" in _title(one)), None)


@dataclass(frozen=True)
class Done:
    """In words, what was done, and whether the fault has happened as planned: a victim that is just being started can't be hit."""

    did: str
    made: bool = True


class NotMade(Exception):
    """Why a fault has not happened."""


async def apply(ground: Ground, planned: Planned) -> Done:
    """Let it happen; returns once it is over."""
    try:
        return await _GROUPS[planned.group](ground, planned)
    except (NotMade, psutil.NoSuchProcess, ProcessLookupError) as error:
        return Done(str(error), made=False)


def _all(*some: Done) -> Done:
    return Done("; ".join(one.did for one in some), all(one.made for one in some))


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


# ---- processes


async def _kill(ground: Ground, planned: Planned) -> Done:
    return _signal(await ground.process(planned.victim, planned.variant), signal.SIGKILL)


async def _stop(ground: Ground, planned: Planned) -> Done:
    """``EngineCore 4 s``: who, and for how long; without that, for good."""
    who, _, rest = planned.variant.partition(" ")
    family = await ground.family(planned.victim)
    chosen = family if who == "all" else [one for one in [await ground.process(planned.victim, who)] if one]
    if not chosen:
        raise NotMade("there was no such process")
    stopped = _all(*(_signal(one, signal.SIGSTOP) for one in chosen))
    if not rest:
        return stopped
    await asyncio.sleep(float(rest.removesuffix(" s")))
    going = _all(*(_signal(one, signal.SIGCONT) for one in chosen))  # some may have been ended meanwhile
    return Done(f"{stopped.did}; {going.did}", stopped.made)


def _signal(process: psutil.Process | None, number: signal.Signals) -> Done:
    if process is None:
        return Done("there was no such process", made=False)
    try:
        if process.status() == psutil.STATUS_ZOMBIE:  # it takes signals, and none has an effect
            return Done(f"{process.pid} had ended", made=False)
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return Done(f"{process.pid} had just ended", made=False)
    return Done(f"{number.name} to {process.pid}")


async def _forkserver(ground: Ground, planned: Planned) -> Done:
    if planned.variant.startswith("stop"):
        server = ground.fork_server()
        told = _signal(server, signal.SIGSTOP)
        core = _signal(await ground.process(planned.victim, "EngineCore"), signal.SIGKILL)
        await asyncio.sleep(3.0)
        return Done(f"{told.did}; {core.did}; {_signal(server, signal.SIGCONT).did}", told.made and core.made)
    told = _signal(ground.fork_server(), signal.SIGKILL)
    if planned.variant == "kill with an engine":
        told = _all(told, _signal(await ground.process(planned.victim, "API"), signal.SIGKILL))
    return told


# ---- limits


async def _oom(ground: Ground, planned: Planned) -> Done:
    """No more private memory than it has now: the next allocation of any size fails, as it would on a full machine."""
    who, _, _ = planned.variant.partition(" ")
    process = await ground.process(planned.victim, who)
    if process is None:
        raise NotMade("there was no such process")
    return Done(lower_data_limit(process, 0))


def lower_data_limit(process: psutil.Process, spare_bytes: int) -> str:
    """``RLIMIT_DATA`` counts private writable memory, and is held against each new mapping of it. Raises ``NotMade``."""
    used = _private_bytes(process)
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (used + spare_bytes, used + spare_bytes))
    return f"RLIMIT_DATA of {process.pid} is {(used + spare_bytes) >> 20} MiB"


def _private_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmData"):  # a zombie has none
                return int(line.split()[1]) << 10
    raise NotMade(f"{process.pid} had just ended")


async def _fds(ground: Ground, planned: Planned) -> Done:
    if planned.variant == "connections":
        return await _crowded(ground)
    kills = "kill" in planned.variant
    leader = await ground.process(planned.victim, "API") if kills else None
    if kills and leader is None:
        raise NotMade("there was no such process")
    with few_descriptors(ground.supervisor, 0 if leader else _SPARE_DESCRIPTORS) as limit:
        killed = [_signal(leader, signal.SIGKILL)] if leader else []
        await asyncio.sleep(_FDS_S)
    return _all(Done(f"RLIMIT_NOFILE was {limit} for {_FDS_S:.0f} s"), *killed)


@contextlib.contextmanager
def few_descriptors(process: psutil.Process, spare: int = _SPARE_DESCRIPTORS) -> Iterator[int]:
    """The process can open ``spare`` more than it has open, and as many as it closes of them."""
    old = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}
    limit = next(
        number for number in range(spare, len(taken) + spare + 1) if number - len(taken & set(range(number))) >= spare
    )
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, old[1]))
    try:
        yield limit
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, old)


async def _crowded(ground: Ground) -> Done:
    """Connections that say nothing, more than the supervisor may have open."""
    host, port = ground.server.target.url("").removeprefix("http://").split(":")
    writers: list[asyncio.StreamWriter] = []
    with few_descriptors(ground.supervisor, spare=_FLOOD // 2):
        for _ in range(_FLOOD):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    writers.append((await asyncio.open_connection(host, int(port)))[1])
        await asyncio.sleep(_FDS_S)
        for writer in writers:
            writer.transport.abort()
    told = f"{len(writers)} silent connections, and {_FLOOD // 2} descriptors for them, for {_FDS_S:.0f} s"
    return Done(told, made=len(writers) > _FLOOD // 2)


# ---- directories


async def _disk(ground: Ground, planned: Planned) -> Done:
    """The runtime directory's: it is needed when an engine starts."""
    how = planned.variant.removeprefix("runtime ")
    with full(ground.runtime) if how == "full" else read_only(ground.runtime):
        await asyncio.sleep(1.0)
        killed = _signal(await ground.process(planned.victim, "EngineCore"), signal.SIGKILL)
        await asyncio.sleep(_DISK_S)
    return _all(Done(f"runtime directory {how} for {_DISK_S + 1:.0f} s"), killed)


@contextlib.contextmanager
def small(directory: Path) -> Iterator[bool]:
    """A file system of its own for a directory that is to run full; False where we may not mount one."""
    directory.mkdir(parents=True, exist_ok=True)
    mounted = may_mount() and _ran("mount", "-t", "tmpfs", "-o", f"size={_SMALL_BYTES}", "none", str(directory))
    try:
        yield mounted
    finally:
        if mounted:
            _ran("umount", "--lazy", str(directory))


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Not a byte is left on its file system: for a ``small`` one. Raises ``NotMade``."""
    if shutil.disk_usage(directory).total > _SMALL_BYTES:
        raise NotMade(f"{directory} is on a file system that is not ours to fill")
    filler = directory / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        _must_not_be_writable(directory)
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """By a mount on itself where we may mount; else by its mode, which binds everybody but root. Raises ``NotMade``."""
    mode, path = directory.stat().st_mode, str(directory)
    mounted = may_mount() and _ran("mount", "--bind", path, path)
    try:
        _ran("mount", "-o", "remount,bind,ro", path) if mounted else directory.chmod(0o500)
        _must_not_be_writable(directory)
        yield
    finally:
        _ran("umount", "--lazy", path) if mounted else directory.chmod(mode)


def _must_not_be_writable(directory: Path) -> None:
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        file.write(b"x")
        raise NotMade(f"{directory} can still be written to")


@functools.cache
def may_mount() -> bool:
    """Not every root may: one in a container often may not."""
    with tempfile.TemporaryDirectory() as place:
        mounted = _ran("mount", "-t", "tmpfs", "none", place)
        return mounted and _ran("umount", place)


def _ran(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True, timeout=10).returncode == 0


# ---- handshakes and clients


async def _channel(ground: Ground, planned: Planned) -> Done:
    return _called(await impostors.call_channel(ground.runtime / "channel", planned.variant, planned.victim))


async def _twin(ground: Ground, planned: Planned) -> Done:
    engine = await ground.engine(planned.victim)
    if engine["pid"] is None:
        raise NotMade(f"{planned.victim} had no process")
    return _called(
        await impostors.call_as(ground.runtime / "channel", planned.victim, engine["epoch"], planned.variant)
    )


def _called(told: str) -> Done:
    """Nobody has been disturbed who has taken no call."""
    return Done(told, made="refused (" not in told and ", 0 connections were closed" not in told)


async def _kv(ground: Ground, planned: Planned) -> Done:
    """Somebody else answers for the victim's memory while its peer, started anew, wants to map it."""
    sockets = sorted(ground.runtime.glob(f"{planned.victim}-*-0.kv"), key=lambda path: path.stat().st_mtime)
    if not sockets:
        raise NotMade("there was no KV socket")
    if planned.variant == "callers":
        return _called(await impostors.call_kv(sockets[-1]))
    engines = [engine["name"] for engine in (await ground.server.json("/api/node"))["engines"]]
    other = next(name for name in engines if name != planned.victim)
    before = (await ground.engine(other))["epoch"]
    async with impostors.in_place_of(sockets[-1], planned.variant) as asked:
        status = await ground.post(f"/api/engines/{other}/restart")
        await _until(lambda: _asked(ground, other, before, asked), _ENTERING_S)
        await asyncio.sleep(_SETTLES_S)
    told = f"an impostor at {sockets[-1].name} was asked {len(asked)} times by {other} (restart: {status})"
    return Done(told, made=bool(asked))


async def _asked(ground: Ground, name: str, epoch: int, asked: list[str]) -> bool:
    engine = await ground.engine(name)
    return bool(asked) and engine["epoch"] > epoch


async def _until(check: Callable[[], Awaitable[bool]], patience_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while not await check():
                await asyncio.sleep(0.1)


async def _clients(ground: Ground, planned: Planned) -> Done:
    leave = (Manner.LEAVES_EARLY, Manner.LEAVES_LATE, Manner.HALF_CLOSES)
    manners = leave if planned.variant == "leave" else (Manner.STALLS,)
    count = len(ground.cases)
    crowd = [(ground.cases[n % count], manners[n % len(manners)]) for n in range(_CROWD)]
    heard = await asyncio.gather(*(ground.clients.ask(case, manner) for case, manner in crowd))
    went = sum(one.ending is Ending.LEFT for one in heard)
    return Done(f"{_CROWD} clients: {', '.join(manners)}; {went} of them went before the end", made=went > 0)


_GROUPS: Final[dict[str, Callable[[Ground, Planned], Awaitable[Done]]]] = {
    "kill": _kill,
    "stop": _stop,
    "oom": _oom,
    "twin": _twin,
    "forkserver": _forkserver,
    "fds": _fds,
    "disk": _disk,
    "channel": _channel,
    "kv": _kv,
    "clients": _clients,
}
