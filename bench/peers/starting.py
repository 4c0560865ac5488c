"""Contestants that serve real answers, as processes: started, waited for, measured at rest, ended.

Each is started anew for each repetition and alone: NIXL's threads take a core each also at rest, which would be taken from whoever is
measured then; and what one start has been lucky with is no other repetition's luck.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from appliance.supervisor.specs import share
from bench import measure, servers
from bench.load import Completes, Plan, Target, Turns, bodies
from bench.peers.contestants import SPLIT, Contestant, Kind
from bench.peers.environments import DELAY_VARIABLE, RECIPES, Environment
from bench.peers.records import Handed
from bench.records import Usage
from bench.servers import MODEL_NAME, Server, ServerError, Serving

_START_S: Final = 600.0  # a bound, not a budget: how long it took is in the table
_TRANSFER: Final = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
_AS_OURS: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
_AS_OURS_ARGUMENTS: Final = ("--distributed-executor-backend", "uni")
_AT_REST_S: Final = 20.0
_BYTES: Final = "vllm:nixl_bytes_transferred_sum"
_SECONDS: Final = "vllm:nixl_xfer_time_seconds_sum"
_LOST: Final = ("vllm:nixl_num_failed_transfers_total", "vllm:nixl_num_kv_expired_reqs_total")


class Totals(NamedTuple):
    """Of hand-offs since a start."""

    bytes: float
    seconds: float
    lost: float  # transfers that failed, and prompts whose KV nobody fetched in time


@dataclass(frozen=True, kw_only=True)
class Running:
    """One contestant, ready. ``servers`` by part; the last one of NIXL's engines decodes."""

    contestant: Contestant
    target: Completes
    servers: dict[str, Server]
    page_s: float | None
    first_token_s: float

    async def at_rest(self) -> list[Usage]:
        if self.contestant.kind is Kind.APPLIANCE:
            parts = await measure.parts_of(self.servers["appliance"])
        else:
            parts = {name: measure.family(server) for name, server in self.servers.items()}
        return await measure.at_rest(self.contestant.key, parts, _AT_REST_S)

    def ended(self) -> str | None:
        """Which part of it has ended, with what."""
        over = (one for one in self.servers.values() if one.returncode is not None)
        return next((f"{one.name} ended with {one.returncode}:\n{one.log[-1000:]}" for one in over), None)

    async def transferred(self) -> Totals | None:
        """Of all hand-offs so far, as NIXL's engines tell; None for all others."""
        if self.contestant.kind is not Kind.NIXL:
            return None
        texts = [(await self.servers[role].read("/metrics")).decode() for role in ("prefill", "decode")]
        return nixl_totals("\n".join(texts))

    async def handed_over(self, before: Totals | None, requests: int) -> Handed | None:
        """Of the last ``requests`` ones. Ours are timed while bytes are copied; NIXL's until its engine has seen that they are there."""
        if before is not None and (after := await self.transferred()) is not None:
            moved, took_s, missed = (late - early for late, early in zip(after, before, strict=True))
        elif self.contestant == SPLIT:
            timelines = await self.servers["appliance"].json(f"/api/requests?limit={requests}")
            transfers = measure.transfers_of(timelines)
            moved, took_s = sum(one.bytes for one in transfers), sum(one.duration_s for one in transfers)
            missed = requests - sum(one["split"] and not one["recomputed"] for one in timelines)
        else:
            return None
        return Handed(bytes_s=moved / took_s if took_s > 0 else None, missed=round(missed))


def nixl_totals(metrics: str) -> Totals:
    """Of all transfers, from vLLM's Prometheus text."""
    found = dict.fromkeys((_BYTES, _SECONDS, *_LOST), 0.0)
    for line in metrics.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in found:
            found[name] += float(line.rpartition(" ")[2])
    return Totals(found[_BYTES], found[_SECONDS], sum(found[name] for name in _LOST))


def seats(contestant: Contestant, cores: Sequence[int]) -> list[tuple[int, ...]]:
    """The cores of each engine, as the appliance shares them out to its own."""
    mine = share(cores, 0, contestant.share)
    return [share(mine, number, contestant.engines) for number in range(contestant.engines)]


def engine_environment(contestant: Contestant, seat: Sequence[int], cores: Sequence[int]) -> dict[str, str]:
    """As our own engines have it: the worker inside EngineCore, nothing compiled. An engine on all cores is left to the kernel; one on
    some is put there by ``seated``, or, as it comes, computes there.
    """
    found = servers.vllm_environment(len(seat))
    if not contestant.as_it_comes:
        return found | _AS_OURS
    return found if len(seat) == len(cores) else {**found, "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, seat))}


def engine_command(contestant: Contestant, path: Path, model: Path) -> list[str]:
    """See ``engine_environment``."""
    return servers.vllm_command(path, model) + list(() if contestant.as_it_comes else _AS_OURS_ARGUMENTS)


def seated(contestant: Contestant, engines: Iterable[tuple[Server, Sequence[int]]]) -> None:
    """Every thread of each engine on its own cores, as the appliance's are.

    vLLM's NIXL connector puts the computing thread of any CPU engine on the last core, so that without this two engines share one and
    leave the other idle. As it comes, it stays so.
    """
    if contestant.as_it_comes:
        return
    for server, seat in engines:
        for process in measure.family(server):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, seat)


@asynccontextmanager
async def running(contestant: Contestant, directory: Path, model: Path, number: int) -> AsyncIterator[Running]:
    """``number`` is one of its own for each start. Raises ``ServerError`` if it doesn't start."""
    start = {Kind.VLLM: _vllm, Kind.NIXL: _nixl, Kind.APPLIANCE: _appliance}[contestant.kind]
    async with start(contestant, directory, model, number) as one:
        yield one


@asynccontextmanager
async def _appliance(contestant: Contestant, directory: Path, model: Path, number: int) -> AsyncIterator[Running]:
    serving = Serving(layout=contestant.layout, start_s=_START_S)
    async with servers.appliance(directory, model, number, serving) as (server, start):
        yield Running(
            contestant=contestant,
            target=server.target,
            servers={"appliance": server},
            page_s=start.page_s,
            first_token_s=start.first_token_s,
        )


@asynccontextmanager
async def _vllm(contestant: Contestant, directory: Path, model: Path, number: int) -> AsyncIterator[Running]:
    began, cores = time.perf_counter(), sorted(os.sched_getaffinity(0))
    async with AsyncExitStack() as stack:
        engines = {}
        for place, seat in enumerate(seats(contestant, cores)):
            path = directory / f"{contestant.key}-{number}-{place}.sock"
            command, environment = engine_command(contestant, path, model), engine_environment(contestant, seat, cores)
            process = servers.process(
                f"{contestant.title}, engine {place}", command, environment, _engine(path), path.with_suffix(".log")
            )
            engines[f"e{place}"] = await stack.enter_async_context(process)
        await _ready(engines.values())
        seated(contestant, zip(engines.values(), seats(contestant, cores), strict=True))
        target = Turns([server.target for server in engines.values()]) if len(engines) > 1 else engines["e0"].target
        yield Running(
            contestant=contestant,
            target=target,
            servers=engines,
            page_s=None,
            first_token_s=await _first_token_s(target, began),
        )


@asynccontextmanager
async def _nixl(contestant: Contestant, directory: Path, model: Path, number: int) -> AsyncIterator[Running]:
    began, cores = time.perf_counter(), sorted(os.sched_getaffinity(0))
    python = Environment(RECIPES[contestant.requires]).python
    async with AsyncExitStack() as stack:
        parts, paths = {}, {}
        for role, seat in zip(("prefill", "decode"), seats(contestant, cores), strict=True):
            path = paths[role] = directory / f"{contestant.key}-{number}-{role}.sock"
            environment = {**engine_environment(contestant, seat, cores), **_nixl_environment(contestant)}
            command = [*engine_command(contestant, path, model), "--kv-transfer-config", json.dumps(_TRANSFER)]
            process = servers.process(
                f"{contestant.title}, {role}", command, environment, _engine(path), path.with_suffix(".log"), python
            )
            parts[role] = await stack.enter_async_context(process)
        await _ready(parts.values())
        seated(contestant, zip(parts.values(), seats(contestant, cores), strict=True))
        proxy = await stack.enter_async_context(_proxy(directory / f"proxy-{number}.log", paths))
        await _ready([proxy])
        yield Running(
            contestant=contestant,
            target=proxy.target,
            servers={"proxy": proxy, **parts},
            page_s=None,
            first_token_s=await _first_token_s(proxy.target, began),
        )


def _nixl_environment(contestant: Contestant) -> dict[str, str]:
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(servers.free_port()),
        DELAY_VARIABLE: str(contestant.thread_delay_us),
    }


@asynccontextmanager
async def _proxy(log: Path, paths: dict[str, Path]) -> AsyncIterator[Server]:
    port = servers.free_port()
    command = ["-m", "bench.peers.proxy", "--port", str(port)]
    command += ["--prefill", str(paths["prefill"]), "--decode", str(paths["decode"])]
    target = Target(f"http://127.0.0.1:{port}")
    async with servers.process("the proxy", command, {"PYTHONPATH": str(servers.ROOT)}, target, log) as server:
        yield server


def _engine(path: Path) -> Target:
    return Target("http://engine", path)


async def _ready(parts: Iterable[Server]) -> None:
    """Raises ``ServerError`` for the first that isn't."""
    await asyncio.gather(*map(_healthy, parts))


async def _healthy(server: Server) -> None:
    server.start_s = _START_S
    await server.until(lambda: server.answers("/health"))


async def _first_token_s(target: Completes, began: float) -> float:
    """Seconds from ``began`` until the first token of the first request."""
    sent = time.perf_counter()
    one = await target.complete(bodies(Plan(model=MODEL_NAME, requests=1, prompt_tokens=16, output_tokens=2))[0])
    if one.ttft_s is None:
        raise ServerError(f"the first request failed: {one.error}")
    return sent - began + one.ttft_s
