"""Engines that are forked: they live without the fork server, are started again by a new one, and are quick to come back."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest
from product import Server

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
PROMPT = {"model": "m", "prompt": [5] * 300, "max_tokens": 4, "temperature": 0}


async def leaders(server: Server) -> list[int]:
    return [engine["pid"] for engine in (await server.node())["engines"]]


async def fork_servers(server: Server) -> list[psutil.Process]:
    """Children of the supervisor that lead no engine."""
    engines = await leaders(server)
    return [child for child in psutil.Process(server.process.pid).children() if child.pid not in engines]


async def test_engines_are_the_supervisors_own_children(server: Server) -> None:
    for pid in await leaders(server):
        assert psutil.Process(pid).ppid() == server.process.pid
        assert os.getsid(pid) == pid
    [fork_server] = await fork_servers(server)
    assert fork_server.num_threads() == 1, "what has threads can't be forked safely"


async def test_every_process_has_a_name_of_its_own(server: Server) -> None:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    names = [" ".join(process.cmdline()).strip() for process in processes]
    for name in ("fork server", "e0 API", "e0 EngineCore", "e1 API", "e1 EngineCore"):
        assert names.count(f"pd-appliance: {name}") == 1, "a spare that nobody took would still be called fork server"


async def test_each_process_of_an_engine_keeps_to_its_cores(server: Server) -> None:
    for engine in (await server.node())["engines"]:
        leader = psutil.Process(engine["pid"])
        for process in (leader, *leader.children(recursive=True)):
            assert process.cpu_affinity() == engine["cores"]


async def test_engines_live_on_without_it_and_a_new_one_forks_the_next(server: Server) -> None:
    [first] = await fork_servers(server)
    before = await leaders(server)
    answer = (await server.post("/v1/completions", PROMPT)).json["choices"]
    first.send_signal(signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert await leaders(server) == before
    again = await server.post("/v1/completions", PROMPT)
    assert (again.status, again.headers["x-decode-engine"]) == (200, "e1")
    os.kill(before[1], signal.SIGKILL)
    async with asyncio.timeout(60):
        while (await leaders(server))[1] in (None, before[1]) or not await whole(server):
            await asyncio.sleep(0.2)
    [second] = await fork_servers(server)
    assert second.pid != first.pid
    again = await server.post("/v1/completions", PROMPT)
    assert (again.json["choices"], again.headers["x-decode-engine"]) == (answer, "e1")


async def whole(server: Server) -> bool:
    return all(engine["state"] == "ready" and engine["peers"] for engine in (await server.node())["engines"])
