"""Descriptors, disk space, a writable runtime directory and memory run out, under traffic: said, survived, and made good."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest
from conftest import Scene, failed

from bench import faults
from bench.checker import Case, Kind
from bench.servers import MODEL_NAME

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
_ACCEPTED_S = 0.1  # a request that was sent so long before is under way


async def test_without_descriptors_nothing_under_way_is_lost_and_the_page_comes_back(scene: Scene) -> None:
    """What has been accepted is answered: rightly, or by an error that says what is wrong. Later callers may be refused."""
    await scene.whole()
    limited_s = float("inf")

    async def limit() -> None:
        nonlocal limited_s
        limited_s = time.monotonic()
        await scene.apply("fds", "limit")

    outcomes = await scene.under_load(limit, drops=True)
    under_way = [one for one in outcomes if one.sent_s < limited_s - _ACCEPTED_S and one.ended_s > limited_s]
    assert under_way, "nothing was under way, so nothing could be lost"
    lost = [one for one in under_way if one.verdict.kind not in (Kind.RIGHT, Kind.FAILED, Kind.LEFT)]
    assert lost == []
    assert any(one.verdict.kind is Kind.RIGHT for one in under_way), under_way
    assert await scene.ground.server.answers("/")
    assert failed(await scene.under_load(lambda: asyncio.sleep(0.5))) == []
    await scene.whole()
    await scene.idle()


async def test_silent_connections_use_up_descriptors_for_as_long_as_they_stay(scene: Scene) -> None:
    await scene.whole()
    before = scene.ground.supervisor.num_fds()
    await scene.under_load(lambda: scene.apply("fds", "connections"), drops=True)
    assert await scene.ground.server.answers("/")
    assert failed(await scene.under_load(lambda: asyncio.sleep(0.5))) == []
    await scene.idle()
    async with asyncio.timeout(20):
        while scene.ground.supervisor.num_fds() > before + 8:
            await asyncio.sleep(0.2)


async def test_an_engine_that_ends_while_there_are_no_descriptors_comes_back(scene: Scene) -> None:
    await scene.whole()
    before = await scene.ground.engine("e1")

    async def scarce() -> None:
        await scene.apply("fds", "limit and a kill", "e1")
        await scene.again("e1", before["epoch"])

    await scene.under_load(scarce, drops=True)
    await scene.idle()


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_an_engine_comes_back_when_the_runtime_directory_can_be_written_to_again(scene: Scene, how: str) -> None:
    if not faults.may_mount():
        pytest.skip("file systems can't be mounted here")
    await scene.whole()
    before = await scene.ground.engine("e1")
    made = faults.full if how == "full" else faults.read_only

    async def unwritable() -> None:
        with made(scene.ground.runtime):
            os.kill(before["pid"], signal.SIGKILL)
            await asyncio.sleep(4.0)
        await scene.again("e1", before["epoch"])

    assert failed(await scene.under_load(unwritable)) == []
    await scene.idle()


async def test_an_engine_core_out_of_memory_is_replaced_and_the_cause_is_told(scene: Scene) -> None:
    """Its next allocation fails; long prompts with many answers are sure to need one."""
    await scene.whole()
    before = await scene.ground.engine("e1")
    core = await scene.ground.process("e1", "EngineCore")
    assert core is not None

    async def scarce() -> None:
        faults.lower_data_limit(core, 0)
        async with asyncio.timeout(60):
            while (await scene.ground.engine("e1"))["epoch"] == before["epoch"]:
                heard = await asyncio.gather(*(scene.ground.clients.ask(hungry(number)) for number in range(6)))
                assert [one.status for one in heard] == [200] * 6
        await scene.whole()

    assert failed(await scene.under_load(scarce)) == []
    assert "memory" in (await scene.ground.engine("e1"))["cause"]
    await scene.idle()


def hungry(number: int) -> Case:
    prompt = random.Random(f"{number} {time.monotonic_ns()}").choices(range(256), k=3500)
    wanted = {"max_tokens": 16, "n": 4, "logprobs": 5, "seed": 1, "temperature": 1.0}
    return Case(name="hungry", path="/v1/completions", body={"model": MODEL_NAME, "prompt": prompt, **wanted})
