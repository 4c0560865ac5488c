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
from bench.checker import Case
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


@dataclass(frozen=True)
class Ground:
    """What faults have to work on. ``cases`` are requests that odd clients send."""

    server: Server
    runtime: Path
    state: Path
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


async def apply(ground: Ground, planned: Planned) -> str:
    """Let it happen; returns once it is over. In words, what was done: a victim that is just being started can't be hit."""
    return await _GROUPS[planned.group](ground, planned)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


# ---- processes


async def _kill(ground: Ground, planned: Planned) -> str:
    return _signal(await ground.process(planned.victim, planned.variant), signal.SIGKILL)


async def _stop(ground: Ground, planned: Planned) -> str:
    """``EngineCore 4 s``: who, and for how long; without that, for good."""
    who, _, rest = planned.variant.partition(" ")
    family = await ground.family(planned.victim)
    chosen = family if who == "all" else [one for one in [await ground.process(planned.victim, who)] if one]
    told = [_signal(one, signal.SIGSTOP) for one in chosen]
    if rest:
        await asyncio.sleep(float(rest.removesuffix(" s")))
        told += [_signal(one, signal.SIGCONT) for one in chosen]
    return "; ".join(told) or "there was no such process"


def _signal(process: psutil.Process | None, number: signal.Signals) -> str:
    if process is None:
        return "there was no such process"
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return f"{process.pid} had just ended"
    return f"{number.name} to {process.pid}"


async def _forkserver(ground: Ground, planned: Planned) -> str:
    if planned.variant.startswith("stop"):
        server = ground.fork_server()
        told = _signal(server, signal.SIGSTOP)
        core = _signal(await ground.process(planned.victim, "EngineCore"), signal.SIGKILL)
        await asyncio.sleep(3.0)
        return f"{told}; {core}; {_signal(server, signal.SIGCONT)}"
    told = _signal(ground.fork_server(), signal.SIGKILL)
    if planned.variant == "kill with an engine":
        told += "; " + _signal(await ground.process(planned.victim, "API"), signal.SIGKILL)
    return told


# ---- limits


async def _oom(ground: Ground, planned: Planned) -> str:
    """No more private memory than it has now: the next allocation of any size fails, as it would on a full machine."""
    who, _, _ = planned.variant.partition(" ")
    process = await ground.process(planned.victim, who)
    if process is None:
        return "there was no such process"
    return lower_data_limit(process, 0)


def lower_data_limit(process: psutil.Process, spare_bytes: int) -> str:
    """``RLIMIT_DATA`` counts private writable memory, and is held against each new mapping of it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData"))
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (used + spare_bytes, used + spare_bytes))
    return f"RLIMIT_DATA of {process.pid} is {(used + spare_bytes) >> 20} MiB"


async def _fds(ground: Ground, planned: Planned) -> str:
    if planned.variant == "connections":
        return await _crowded(ground)
    leader = await ground.process(planned.victim, "API") if "kill" in planned.variant else None
    with few_descriptors(ground.supervisor, 0 if leader else _SPARE_DESCRIPTORS) as limit:
        told = f", {_signal(leader, signal.SIGKILL)}" if leader else ""
        await asyncio.sleep(_FDS_S)
    return f"RLIMIT_NOFILE was {limit} for {_FDS_S:.0f} s{told}"


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


async def _crowded(ground: Ground) -> str:
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
    return f"{len(writers)} silent connections, half as many descriptors, for {_FDS_S:.0f} s"


# ---- directories


async def _disk(ground: Ground, planned: Planned) -> str:
    where, _, how = planned.variant.partition(" ")
    directory = ground.state if where == "state" else ground.runtime
    with full(directory) if how == "full" else read_only(directory):
        await asyncio.sleep(1.0)
        told = ""
        if where == "runtime":  # it is needed when an engine starts
            told = ", " + _signal(await ground.process(planned.victim, "EngineCore"), signal.SIGKILL)
        await asyncio.sleep(_DISK_S)
    return f"{where} directory {how} for {_DISK_S + 1:.0f} s{told}"


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
    """Not a byte is left on its file system: for a ``small`` one."""
    if shutil.disk_usage(directory).total > _SMALL_BYTES:
        raise ValueError(f"{directory} is on a file system that is not ours to fill")
    filler = directory / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """By a mount on itself where we may mount; else by its mode, which binds everybody but root."""
    mode, path = directory.stat().st_mode, str(directory)
    mounted = may_mount() and _ran("mount", "--bind", path, path)
    try:
        _ran("mount", "-o", "remount,bind,ro", path) if mounted else directory.chmod(0o500)
        yield
    finally:
        _ran("umount", "--lazy", path) if mounted else directory.chmod(mode)


@functools.cache
def may_mount() -> bool:
    """Not every root may: one in a container often may not."""
    with tempfile.TemporaryDirectory() as place:
        mounted = _ran("mount", "-t", "tmpfs", "none", place)
        return mounted and _ran("umount", place)


def _ran(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True, timeout=10).returncode == 0


# ---- handshakes and clients


async def _channel(ground: Ground, planned: Planned) -> str:
    return await impostors.call_channel(ground.runtime / "channel", planned.variant, planned.victim)


async def _twin(ground: Ground, planned: Planned) -> str:
    epoch = (await ground.engine(planned.victim))["epoch"]
    return await impostors.call_as(ground.runtime / "channel", planned.victim, epoch, planned.variant)


async def _kv(ground: Ground, planned: Planned) -> str:
    """Somebody else answers for the victim's memory while its peer, started anew, wants to map it."""
    sockets = sorted(ground.runtime.glob(f"{planned.victim}-*-0.kv"), key=lambda path: path.stat().st_mtime)
    if not sockets:
        return "there was no KV socket"
    if planned.variant == "callers":
        return await impostors.call_kv(sockets[-1])
    engines = [engine["name"] for engine in (await ground.server.json("/api/node"))["engines"]]
    other = next(name for name in engines if name != planned.victim)
    before = (await ground.engine(other))["epoch"]
    async with impostors.in_place_of(sockets[-1], planned.variant) as asked:
        status = await ground.post(f"/api/engines/{other}/restart")
        await _until(lambda: _asked(ground, other, before, asked), _ENTERING_S)
        await asyncio.sleep(1.0)
    return f"an impostor at {sockets[-1].name} was asked {len(asked)} times by {other} (restart: {status})"


async def _asked(ground: Ground, name: str, epoch: int, asked: list[str]) -> bool:
    engine = await ground.engine(name)
    return bool(asked) and engine["epoch"] > epoch


async def _until(check: Callable[[], Awaitable[bool]], patience_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while not await check():
                await asyncio.sleep(0.1)


async def _clients(ground: Ground, planned: Planned) -> str:
    leave = (Manner.LEAVES_EARLY, Manner.LEAVES_LATE, Manner.HALF_CLOSES)
    manners = leave if planned.variant == "leave" else (Manner.STALLS,)
    count = len(ground.cases)
    crowd = [(ground.cases[n % count], manners[n % len(manners)]) for n in range(_CROWD)]
    await asyncio.gather(*(ground.clients.ask(case, manner) for case, manner in crowd))
    return f"{_CROWD} clients: {', '.join(manners)}"


_GROUPS: Final[dict[str, Callable[[Ground, Planned], Awaitable[str]]]] = {
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
