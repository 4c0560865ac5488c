"""What must be as it was: looked at all the time, after the traffic, and after the end. The looking is thin; the judging is pure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import psutil

from bench.servers import Server

SHARED_MEMORY: Final = Path("/dev/shm")
_LOOK_S: Final = 0.2
_MEASURE_EVERY: Final = 10  # looks
_IDLE_S: Final = 60.0
_GONE_S: Final = 10.0
_GROWTH: Final = 1.10
_GROWTH_BYTES: Final = 8 << 20
_GROWTH_FDS: Final = 4
_FEW_SAMPLES: Final = 20


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """``whole``: every engine is ready and knows every other. None if the page's JSON did not come."""

    at_s: float
    whole: bool | None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Of the supervisor."""

    at_s: float
    pss_bytes: int
    descriptors: int


class Watch:
    """Looks at a server for as long as it is run. Times are seconds of ``time.monotonic``."""

    def __init__(self, server: Server) -> None:
        self.looks: list[Look] = []
        self.usages: list[Usage] = []
        self.node: dict[str, Any] | None = None
        self._server = server
        self._seen: set[psutil.Process] = set()
        self._count = 0

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        self.node = await _node(self._server)
        self.looks.append(Look(at_s=time.monotonic(), whole=is_whole(self.node) if self.node else None))
        with contextlib.suppress(psutil.Error):
            supervisor = psutil.Process(self._server.pid)
            self._seen |= {supervisor, *supervisor.children(recursive=True)}
            if self._count % _MEASURE_EVERY == 0:
                pss, fds = supervisor.memory_full_info().pss, supervisor.num_fds()
                self.usages.append(Usage(at_s=time.monotonic(), pss_bytes=pss, descriptors=fds))
        self._count += 1

    async def left_processes(self) -> list[str]:
        """Once the server has ended: what lives on of all that it ever had. Waits a while for what is ending."""
        deadline = time.monotonic() + _GONE_S
        while (left := [one for one in self._seen if _lives(one)]) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return [f"process {one.pid} lives on" for one in left]


async def _node(server: Server) -> dict[str, Any] | None:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
        async with asyncio.timeout(5.0):
            node: dict[str, Any] = await server.json("/api/node")
            return node
    return None


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


# ---- judged


def is_whole(node: dict[str, Any]) -> bool:
    """Every engine is ready, and has mapped the memory of all others."""
    engines = node["engines"]
    return all(one["state"] == "ready" and len(one["peers"]) == len(engines) - 1 for one in engines)


def held(node: dict[str, Any]) -> list[str]:
    """What an idle node must not have: requests, leases, blocks that are not free."""
    found = []
    for one in node["engines"]:
        busy = {name: one[name] for name in ("running", "waiting", "fetching", "in_flight") if one[name]}
        if busy or one["state"] != "ready":
            found.append(f"{one['name']} is {one['state']}: {busy}")
        if one["kv_blocks_free"] != one["kv_blocks_total"]:
            found.append(f"{one['name']} has {one['kv_blocks_free']} of {one['kv_blocks_total']} KV blocks free")
    if leases := node["ledger"]["leases"]:
        found.append(f"the ledger has {len(leases)} leases: {leases[:3]}")
    if node["queue"]["depth"] or node["queue"]["in_flight"]:
        found.append(f"the queue has {node['queue']['depth']}, and {node['queue']['in_flight']} are in flight")
    return found


def growth(usages: Sequence[Usage]) -> list[str]:
    """What of the supervisor has grown between the first and the last fifth; the very first samples are of its start."""
    if len(usages) < _FEW_SAMPLES:
        return []
    part = len(usages) // 5
    first, last = usages[part // 2 : part // 2 + part], usages[-part:]
    (old, old_fds), (new, new_fds) = (
        (_median(some, "pss_bytes"), _median(some, "descriptors")) for some in (first, last)
    )
    found = []
    if new > old * _GROWTH + _GROWTH_BYTES:
        found.append(f"the supervisor's memory grew from {old / 2**20:.1f} to {new / 2**20:.1f} MiB")
    if new_fds > old_fds + max(_GROWTH_FDS, old_fds // 2):
        found.append(f"the supervisor's descriptors grew from {old_fds:.0f} to {new_fds:.0f}")
    return found


def _median(usages: Iterable[Usage], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in usages))


# ---- looked for


async def after_traffic(server: Server, descriptors_before: int) -> list[str]:
    """Problems of a server that nobody asks anything any more. Waits for it to become idle."""
    deadline = time.monotonic() + _IDLE_S
    while (found := await _held(server, descriptors_before)) and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return found + await _strays(server)


async def _held(server: Server, descriptors_before: int) -> list[str]:
    node = await _node(server)
    idle = ["/api/node does not answer"] if node is None else held(node)
    return idle + _descriptors(server, descriptors_before)


async def _strays(server: Server) -> list[str]:
    """Descendants of the supervisor that are of no engine and no fork server, and zombies."""
    node = await _node(server)
    try:
        children = psutil.Process(server.pid).children()
    except psutil.NoSuchProcess:
        return []  # told by _descriptors
    leaders = {engine["pid"] for engine in node["engines"]} if node else set()
    found = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(child.cmdline())
            if child.pid not in leaders and "fork" not in title:
                found.append(f"a stray process {child.pid}, {child.status()}: {title[:80]}")
    return found


def _descriptors(server: Server, before: int) -> list[str]:
    try:
        now = psutil.Process(server.pid).num_fds()
    except psutil.NoSuchProcess:
        return ["the supervisor has ended"]
    return [f"{before} descriptors were open before the traffic, {now} after it"] if now > before + _GROWTH_FDS else []


def shared_memory() -> set[str]:
    return set(os.listdir(SHARED_MEMORY))


def left_files(before: set[str], runtime_parent: Path) -> list[str]:
    """Files in /dev/shm that nobody has open and that were not there before, and what is left of the runtime directory."""
    new = {name for name in shared_memory() - before if not _in_use(str(SHARED_MEMORY / name))}
    left = [path for path in runtime_parent.glob("*") if runtime_parent.exists()]
    return [f"/dev/shm/{name} is left" for name in sorted(new)] + [f"{path} is left" for path in left]


def _in_use(path: str) -> bool:
    """Somebody else's, if anybody on the machine has it mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if path in maps.read_text():
                return True
    return False
