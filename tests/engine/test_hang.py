"""Each process of an engine is stopped in turn: that is noticed although /health may go on saying 200, named, and mended."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import psutil
import pytest
from product import Server

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
PROMPT = {"model": "m", "prompt": [5] * 300, "max_tokens": 4, "temperature": 0}
NOTICED_S = 5.0


async def engine(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(e for e in (await server.node())["engines"] if e["name"] == name)
    return found


def process(leader: int, kind: str) -> psutil.Process:
    found = [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]
    return next(p for p in found if kind in " ".join(p.cmdline()))


@pytest.mark.parametrize("name", ["e0", "e1"])
@pytest.mark.parametrize(("kind", "told"), [("EngineCore", "EngineCore"), ("API", "API process")])
async def test_a_stopped_process_is_noticed_named_and_replaced(server: Server, name: str, kind: str, told: str) -> None:
    expected = (await server.post("/v1/completions", PROMPT)).json["choices"]
    before = await engine(server, name)
    process(before["pid"], kind).send_signal(signal.SIGSTOP)
    began = time.monotonic()
    asked = asyncio.create_task(server.post("/v1/completions", PROMPT))  # it is sent there, and must not be lost
    async with asyncio.timeout(60):
        while (await engine(server, name))["state"] in ("ready", "suspect"):
            await asyncio.sleep(0.05)
    noticed_s = time.monotonic() - began
    cause = (await engine(server, name))["cause"]
    assert f"its {told} gave no sign of life" in cause
    assert noticed_s < NOTICED_S, "two seconds, or ten of the slowest step, and the look after that"
    answer = await asked
    assert (answer.status, answer.json["choices"]) == (200, expected)
    async with asyncio.timeout(60):
        while (now := await engine(server, name))["state"] != "ready" or not now["peers"]:
            await asyncio.sleep(0.1)
    assert now["epoch"] == before["epoch"] + 1
    assert (await server.post("/v1/completions", PROMPT)).json["choices"] == expected
