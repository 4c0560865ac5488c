"""Nothing outlives what it belongs to: processes of engines, and of the supervisor, ended by force."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
from product import Server

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


async def gone(processes: list[psutil.Process], timeout_s: float = 6.0) -> None:
    async with asyncio.timeout(timeout_s):
        while [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
            await asyncio.sleep(0.05)


async def engine(server: Server, name: str) -> dict[str, object]:
    return next(e for e in (await server.node())["engines"] if e["name"] == name)


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
