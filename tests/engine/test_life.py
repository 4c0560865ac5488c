"""One server, whose processes are looked at, stopped and killed, one after the other; the supervisor last.

Engines are forked: they live without the fork server, and are quick to come back. A process that is stopped is noticed, although
/health may go on saying 200, and named. Nothing outlives what it belongs to.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from product import Server

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]
PROMPT = {"model": "m", "prompt": [5] * 300, "max_tokens": 4, "temperature": 0}
NOTICED_S = 5.0


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


async def test_an_engine_of_one_rank_has_one_thread_of_gloo_s(server: Server) -> None:
    """Each of them wakes a hundred times a second, for nothing."""
    for leader in await leaders(server):
        [core] = [child for child in psutil.Process(leader).children() if "EngineCore" in " ".join(child.cmdline())]
        names = [path.read_text() for path in Path(f"/proc/{core.pid}/task").glob("*/comm")]
        assert sum(name.startswith("gloo") for name in names) == 1


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


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


async def gone(processes: list[psutil.Process], timeout_s: float = 6.0) -> None:
    async with asyncio.timeout(timeout_s):
        while [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
            await asyncio.sleep(0.05)


async def ready_again(server: Server, name: str, epoch: object) -> None:
    async with asyncio.timeout(90):
        while (now := await engine(server, name))["state"] != "ready" or now["epoch"] == epoch or not now["peers"]:
            await asyncio.sleep(0.2)


def loaded(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def test_the_supervisor_maps_neither_torch_nor_vllm(server: Server) -> None:
    maps = loaded(server.process.pid)
    assert "libtorch" not in maps and "/torch/" not in maps and "/vllm/" not in maps
    pid = (await engine(server, "e0"))["pid"]
    assert isinstance(pid, int)
    assert "libtorch" in loaded(pid), "the test can tell"


@pytest.mark.parametrize("victim", ["api", "core"])
async def test_killing_one_process_of_an_engine_ends_all_of_it_and_it_comes_back(server: Server, victim: str) -> None:
    before = await engine(server, "e1")
    assert isinstance(before["pid"], int)
    processes = family(before["pid"])
    core = next(process for process in processes if "EngineCore" in process.name())
    os.kill(before["pid"] if victim == "api" else core.pid, signal.SIGKILL)
    await gone(processes)
    await ready_again(server, "e1", before["epoch"])
    after = await engine(server, "e1")
    assert after["restarts"] == int(str(before["restarts"])) + 1
    assert after["cause"]
    body = {"model": "m", "prompt": list(range(200)), "max_tokens": 8, "temperature": 0}
    answer = await server.post("/v1/completions", body)
    assert answer.status == 200
    assert (answer.headers["x-prefill-engine"], answer.headers["x-decode-engine"]) == ("e0", "e1"), answer.headers.get(
        "x-unsplit-reason"
    )


async def test_sigkill_of_the_supervisor_leaves_nothing(server: Server) -> None:
    """Runs last: the server does not come back."""
    processes = family(server.process.pid)
    assert len(processes) >= 5
    server.process.kill()
    await server.process.wait()
    await gone(processes)
