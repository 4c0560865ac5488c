"""What is measured of a tree: the way of a token and of a request over engines that are not there, and the whole over real ones.

The bench is this tree's own; only what serves is another's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from bench import measure, servers
from bench.compare.trees import Tree
from bench.load import Plan, drive
from bench.peers import frontends
from bench.peers.loads import Scale
from bench.records import Usage
from bench.servers import MODEL_NAME, Server, ServerError, Serving

_SCALE: Final = Scale(stream_s=15.0, first_requests=120)
_PROMPT_TOKENS: Final = 256
_OUTPUT_TOKENS: Final = 32
_LOADS: Final = {1: 12, 4: 32, 16: 96}  # clients at once, and requests
_MS, _US, _MIB = 1e3, 1e6, 2**-20
Figures = dict[str, float]
Suite = Callable[[Tree, Path, Path, int], Awaitable[Figures]]


async def tokens(tree: Tree, directory: Path, model: Path, number: int) -> Figures:
    """Simulated engines, a token every 8 ms to each of 64 streams. Raises ``ServerError``."""
    async with frontends.supervisor(directory, None, number, tree.path) as front:
        found = await frontends.loaded(front, tree.name, _SCALE, number)
    if found.errors or not found.ttft_through_s or not found.ttft_direct_s:
        raise ServerError(f"{tree.name}: {found.errors or 'some'} requests over simulated engines failed")
    return {
        "CPU of the supervisor per streamed token, µs": found.cpu_us_per_event,
        "memory of the supervisor with 64 streams, MiB": found.memory_bytes * _MIB,
        "TTFT p50, some 16 answers under way, simulated engines, ms": found.ttft_through_s[0] * _MS,
        "TTFT p50 that the supervisor adds, ms": (found.ttft_through_s[0] - found.ttft_direct_s[0]) * _MS,
    }


async def engines(tree: Tree, directory: Path, model: Path, number: int) -> Figures:
    """Real vLLM engines, ``1p1d``: starts, loads, rest. Raises ``ServerError``."""
    async with servers.appliance(directory, model, number, Serving(tree=tree.path)) as (server, start):
        found: Figures = {"start until the page, s": start.page_s or 0.0}
        found["start until the first token, s"] = start.first_token_s
        for clients, requests in _LOADS.items():
            found |= await _loaded(server, clients, requests, number)
        found |= _at_rest(await measure.usages(server))
    return found


async def _loaded(server: Server, clients: int, requests: int, number: int) -> Figures:
    plan = Plan(
        model=MODEL_NAME,
        requests=requests,
        prompt_tokens=_PROMPT_TOKENS,
        output_tokens=_OUTPUT_TOKENS,
        concurrency=clients,
        seed=1000 * number + clients,
    )
    summary, _ = await drive(server.target, plan)
    if summary.errors:
        raise ServerError(f"{summary.errors} of {summary.n} requests failed, first: {summary.first_error}")
    await asyncio.sleep(1.0)
    return {
        f"requests/s, {clients} at once": summary.requests_s,
        f"TTFT p50, {clients} at once, ms": (summary.ttft_p50_s or 0.0) * _MS,
        f"TPOT p50, {clients} at once, ms": (summary.tpot_p50_s or 0.0) * _MS,
    }


def _at_rest(usages: list[Usage]) -> Figures:
    supervisor = next(one for one in usages if one.part == "supervisor")
    return {
        "CPU at rest, all processes, % of a core": 100 * sum(one.idle_cpu for one in usages),
        "CPU at rest, supervisor, % of a core": 100 * supervisor.idle_cpu,
        "memory, all processes, MiB": sum(one.pss_bytes for one in usages) * _MIB,
    }


SUITES: Final[dict[str, Suite]] = {"tokens": tokens, "engines": engines}
MORE_IS_BETTER: Final = ("requests/s",)  # how such figures' names begin
