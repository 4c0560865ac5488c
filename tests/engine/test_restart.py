"""A rolling restart and other engines under load, and an engine that is drained: no request fails, and answers stay the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from product import Server

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
CLIENTS = 6


def body(number: int) -> dict[str, Any]:
    prompt = [number % 7] * (40 * (number % 5) + 1)
    return {"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, "stream": number % 2 == 0}


def text(answer: Any) -> str:
    events = answer.events if answer.body.startswith(b"data:") else [answer.json]
    return "".join(choice["text"] for event in events for choice in event.get("choices", ()))


@asynccontextmanager
async def clients(server: Server) -> AsyncIterator[list[int]]:
    """That ask all the time; every answer is the one it was before. Yields the numbers of those answered."""
    expected = {number: text(await server.post("/v1/completions", body(number))) for number in range(70)}
    over = asyncio.Event()
    served: list[int] = []

    async def client(number: int) -> None:
        while not over.is_set():
            answer = await server.post("/v1/completions", body(number))
            assert answer.status == 200, answer.body[:500]
            assert text(answer) == expected[number]
            served.append(number)
            number = (number + CLIENTS) % 70

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
        yield served
        over.set()


async def test_a_rolling_restart_fails_nobody(server: Server) -> None:
    async with clients(server) as served:
        await asyncio.sleep(0.5)
        assert (await server.post("/api/restart", {})).status == 202
        assert (await server.post("/api/restart", {})).status == 409
        async with asyncio.timeout(120):
            while not all(e["epoch"] == 2 and e["peers"] for e in (await server.node())["engines"]):
                await asyncio.sleep(0.2)
        await asyncio.sleep(0.5)
    assert len(served) > 10 * CLIENTS
    node = await server.until_idle()
    assert node["requests"]["failed"] == 0
    assert [engine["cause"] for engine in node["engines"]] == [None, None]


async def test_engines_come_and_go_under_load_and_fail_nobody(server: Server) -> None:
    async with clients(server) as served:
        for layout, engines in (("2b", 2), ("1b", 1), ("1p1d", 2)):
            answer = await server.post("/api/topology", {"topology": layout})
            assert answer.status == 202, answer.body
            async with asyncio.timeout(120):
                while not _is(await server.node(), layout, engines):
                    await asyncio.sleep(0.2)
            since = len(served)
            while len(served) < since + 2 * CLIENTS:
                await asyncio.sleep(0.05)
    async with asyncio.timeout(30):
        while (await server.post("/v1/completions", body(1))).headers["x-decode-engine"] != "e1":
            await asyncio.sleep(0.1)
    assert (await server.until_idle())["requests"]["failed"] == 0


def _is(node: dict[str, Any], layout: str, engines: int) -> bool:
    ready = [engine for engine in node["engines"] if engine["state"] == "ready"]
    return node["topology"] == layout and len(ready) == len(node["engines"]) == engines


async def test_a_drained_engine_is_left_out_and_comes_back(server: Server) -> None:
    assert (await server.post("/api/engines/e1/drain", {"force": True})).status == 202
    async with asyncio.timeout(10):
        while (await server.node())["engines"][1]["state"] != "draining":
            await asyncio.sleep(0.05)
    answer = await server.post("/v1/completions", body(1))
    assert (answer.status, answer.headers["x-decode-engine"]) == (200, "e0")
    assert "e1 is draining" in answer.headers["x-unsplit-reason"]
    assert (await server.post("/api/engines/e1/resume", {})).status == 202
    async with asyncio.timeout(10):
        while (await server.post("/v1/completions", body(1))).headers["x-decode-engine"] != "e1":
            await asyncio.sleep(0.05)
