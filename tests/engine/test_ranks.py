"""The product over engines of two ranks each: answers, what its processes are, and the death of one rank."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from product import Server, appliance

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
LENGTHS = (1, 64, 127, 128, 129, 300, 513, 900, 1025, 2000)
_prompts = random.Random(5)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(random_model: Path) -> AsyncIterator[Server]:
    before = shared_memory()
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with appliance(Path(name), random_model, layout="1p1d@tp2") as running:
            yield running
    assert shared_memory() <= before, "queues and segments would pile up with every start"


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def completion(length: int) -> dict[str, Any]:
    prompt = [_prompts.randrange(256) for _ in range(length)]
    return {"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}


async def whole(server: Server, bodies: list[dict[str, Any]]) -> list[str]:
    """As e0 answers alone, with nothing of earlier requests."""
    connector = aiohttp.UnixConnector(str(server.runtime / "e0.sock"))
    texts = []
    async with aiohttp.ClientSession(connector=connector) as session:
        for body in bodies:
            async with session.post("http://engine/v1/completions", json={**body, "cache_salt": "whole"}) as answer:
                assert answer.status == 200, await answer.text()
                texts.append((await answer.json())["choices"][0]["text"])
    return texts


@pytest.mark.parametrize("at_once", [1, 8])
async def test_split_answers_are_those_of_one_engine(server: Server, at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)
    before = (await server.node())["handoffs"]
    bodies = [completion(length) for length in LENGTHS]

    async def one(body: dict[str, Any]) -> Any:
        async with gate:
            return await server.post("/v1/completions", body)

    answers = await asyncio.gather(*(one(body) for body in bodies))
    assert [answer.json["choices"][0]["text"] for answer in answers] == await whole(server, bodies)
    for answer in answers:
        assert (answer.headers["x-prefill-engine"], answer.headers["x-decode-engine"]) == ("e0", "e1")
    after = (await server.until_idle())["handoffs"]
    assert after["count"] - before["count"] == len(LENGTHS)
    assert after["failed"] == before["failed"], after["last_error"]


async def test_each_rank_is_a_process_with_a_name_that_knows_its_cores(server: Server) -> None:
    for engine in (await server.node())["engines"]:
        leader = psutil.Process(engine["pid"])
        family = [leader, *leader.children(recursive=True)]
        names = [" ".join(process.cmdline()).strip() for process in family]
        for part in ("API", "EngineCore", "rank 0", "rank 1"):
            assert names.count(f"pd-appliance: {engine['name']} {part}") == 1, names
        assert {tuple(process.cpu_affinity()) for process in family} == {tuple(engine["cores"])}


async def test_an_engine_that_loses_a_rank_is_started_again(server: Server) -> None:
    body = completion(300)
    [expected] = await whole(server, [body])
    engine = (await server.node())["engines"][1]
    [rank] = [
        process
        for process in psutil.Process(engine["pid"]).children(recursive=True)
        if "e1 rank 1" in " ".join(process.cmdline())
    ]
    rank.send_signal(signal.SIGKILL)
    answer = await server.post("/v1/completions", body)
    assert (answer.status, answer.json["choices"][0]["text"]) == (200, expected)
    async with asyncio.timeout(90):
        while not await again(server, engine["epoch"]):
            await asyncio.sleep(0.2)
    answer = await server.post("/v1/completions", body)
    assert answer.json["choices"][0]["text"] == expected
    assert answer.headers["x-decode-engine"] == "e1"


async def again(server: Server, epoch: int) -> bool:
    """Both serve and know each other, e1 in a later life."""
    engines = (await server.node())["engines"]
    return engines[1]["epoch"] > epoch and all(e["state"] == "ready" and len(e["peers"]) == 1 for e in engines)
