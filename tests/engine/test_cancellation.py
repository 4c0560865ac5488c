"""A thousand requests, a third of them left by their clients at random moments: nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from product import Server, appliance

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]
REQUESTS, AT_ONCE, LEAVING = 1000, 32, 1 / 3
GROWTH_BYTES = 32 << 20
NO_KERNEL_CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}
"""oneDNN keeps 1,024 compiled matrix products, one per shape: some 150 MiB that come with the first thousands of decode batches,
and in which a leak would not be seen."""
KEEP_ALIVE_S = 6.5  # by then every idle connection has been closed, by this client and to engines


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(random_model: Path) -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with appliance(Path(name), random_model, environment=NO_KERNEL_CACHE) as running:
            yield running


def body(rng: random.Random) -> dict[str, Any]:
    prompt = [rng.randrange(256) for _ in range(rng.choice([1, 20, 120, 130, 300, 900]))]
    return {
        "model": "m",
        "prompt": prompt,
        "max_tokens": rng.choice([1, 4, 16]),
        "temperature": 0.8,
        "seed": 1,
        "stream": rng.random() < 0.5,
        "n": rng.choice([1, 1, 1, 2]),
    }


def files_and_memory(server: Server) -> dict[str, tuple[int, int]]:
    """Open files and unique memory of each process of ours."""
    leader = psutil.Process(server.process.pid)
    processes = [leader, *leader.children(recursive=True)]
    return {f"{p.pid} {p.name()}": (p.num_fds(), p.memory_full_info().uss) for p in processes}


async def one(server: Server, rng: random.Random, outcomes: Counter[str]) -> None:
    request = body(rng)
    leaves_after_s = rng.expovariate(1 / 0.5) if rng.random() < LEAVING else None
    try:
        async with asyncio.timeout(leaves_after_s):
            answer = await server.post("/v1/completions", request)
        outcomes[str(answer.status)] += 1
        if request["stream"]:
            assert answer.events, "a stream that says it is whole"
    except TimeoutError:
        outcomes["left"] += 1


async def storm(server: Server, count: int, seed: int) -> Counter[str]:
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated() -> None:
        async with gate:
            await one(server, rng, outcomes)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(gated())
    return outcomes


async def test_a_thousand_requests_a_third_of_them_left(server: Server) -> None:
    await storm(server, 400, seed=1)  # pools, caches and connections find their size
    await server.until_idle()
    await asyncio.sleep(KEEP_ALIVE_S)
    before = files_and_memory(server)
    outcomes = await storm(server, REQUESTS, seed=2)
    node = await server.until_idle(timeout_s=60)
    assert set(outcomes) == {"200", "left"}, outcomes
    assert outcomes["left"] > REQUESTS / 8, outcomes
    ledger = node["ledger"]
    assert ledger["granted"] == ledger["released"] + ledger["cancelled"] + ledger["expired"]
    assert ledger["expired"] == 0, "expiry is the last resort; cancellation releases"
    await asyncio.sleep(KEEP_ALIVE_S)
    after = files_and_memory(server)
    assert after.keys() == before.keys(), "no process came or went"
    for name, (files, memory) in after.items():
        assert files <= before[name][0] + 4, (name, before[name], after[name])
        assert memory <= before[name][1] + GROWTH_BYTES, (name, before[name], after[name])


async def test_leaving_in_each_phase_alone_frees_everything(server: Server) -> None:
    """Deterministic moments: at once, while prefilling, between the legs, while streaming."""
    rng = random.Random(9)
    prompt = [rng.randrange(256) for _ in range(2500)]
    for delay_s in (0.0, 0.02, 0.08, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.6):
        request = {"model": "m", "prompt": [*prompt[1:], rng.randrange(256)], "max_tokens": 200, "stream": True}
        rng.shuffle(prompt)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await server.post("/v1/completions", request)
    node = await server.until_idle()
    assert node["ledger"]["expired"] == 0
