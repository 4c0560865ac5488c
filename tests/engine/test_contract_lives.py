"""Drain, death and return of an engine in the product, whether that is vLLM or simulated: the same assertions for both."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from product import Answer, Server, appliance

LLAMA = Path(__file__).parents[1] / "unit" / "configs" / "llama-3.1-8b"
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["vllm", "sim"])
async def server(request: pytest.FixtureRequest, random_model: Path) -> AsyncIterator[Server]:
    model = random_model if request.param == "vllm" else LLAMA  # that one would be too quick where nothing is computed
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with appliance(Path(name), model, kind=request.param) as running:
            yield running


def body(output: int = 100) -> dict[str, Any]:
    prompt = [number % 250 for number in range(400)]
    return {"model": "m", "prompt": prompt, "max_tokens": output, "ignore_eos": True, "temperature": 0, "stream": True}


def said(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return "".join(event["choices"][0]["text"] for event in answer.events)


async def until(server: Server, name: str, **fields: object) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            engine = next(one for one in (await server.node())["engines"] if one["name"] == name)
            if all(engine[field] == value for field, value in fields.items()):
                return dict(engine)
            await asyncio.sleep(0.1)


async def test_an_engine_that_drains_gets_nothing_new_and_answers_what_it_has(server: Server) -> None:
    expected = said(await server.post("/v1/completions", body()))
    running = asyncio.create_task(server.post("/v1/completions", body()))
    await asyncio.sleep(0.1)
    assert (await server.post("/api/engines/e1/drain", {"force": True})).status == 202
    await until(server, "e1", state="draining")
    other = await server.post("/v1/completions", body())
    assert (said(other), other.headers["x-decode-engine"]) == (expected, "e0")
    assert said(await running) == expected
    assert (await server.post("/api/engines/e1/resume", {})).status == 202
    await until(server, "e1", state="ready")
    again = await server.post("/v1/completions", body())
    assert (said(again), again.headers["x-decode-engine"]) == (expected, "e1")


@pytest.mark.parametrize("victim", ["e0", "e1"])
async def test_a_stream_survives_either_engine(server: Server, victim: str) -> None:
    expected = said(await server.post("/v1/completions", body(300)))
    engine = await until(server, victim, state="ready")
    running = [asyncio.create_task(server.post("/v1/completions", body(300))) for _ in range(4)]
    await asyncio.sleep(0.25)
    os.killpg(engine["pid"], signal.SIGKILL)
    for task in running:
        assert said(await task) == expected
    back = await until(server, victim, state="ready", epoch=engine["epoch"] + 1)
    assert back["pid"] != engine["pid"]
    other = "e1" if victim == "e0" else "e0"
    await until(server, other, peers=[victim])
    await until(server, victim, peers=[other])
    after = await server.post("/v1/completions", body(300))
    assert (said(after), after.headers["x-prefill-engine"], after.headers["x-decode-engine"]) == (expected, "e0", "e1")
    await server.until_idle()


async def test_an_engine_that_stands_still_is_replaced(server: Server) -> None:
    engine = await until(server, "e1", state="ready")
    os.killpg(engine["pid"], signal.SIGSTOP)
    back = await until(server, "e1", state="ready", epoch=engine["epoch"] + 1)
    assert back["restarts"] == engine["restarts"] + 1
    assert said(await server.post("/v1/completions", body()))
