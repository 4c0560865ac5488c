"""Descriptors, disk space, writable directories and memory run out, under traffic: said, survived, and made good."""

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


async def test_without_descriptors_nothing_under_way_is_lost_and_the_page_comes_back(scene: Scene) -> None:
    await scene.whole()
    outcomes = await scene.under_load(lambda: scene.apply("fds", "limit"))
    assert {one.verdict.kind for one in failed(outcomes)} <= {Kind.REFUSED, Kind.FAILED}
    assert await scene.ground.server.answers("/")
    assert failed(await scene.under_load(lambda: asyncio.sleep(0.5))) == []
    await scene.whole()
    await scene.idle()


async def test_silent_connections_use_up_descriptors_for_as_long_as_they_stay(scene: Scene) -> None:
    await scene.whole()
    before = scene.ground.supervisor.num_fds()
    await scene.under_load(lambda: scene.apply("fds", "connections"))
    assert await scene.ground.server.answers("/")
    assert failed(await scene.under_load(lambda: asyncio.sleep(0.5))) == []
    await scene.idle()
    async with asyncio.timeout(20):
        while scene.ground.supervisor.num_fds() > before + 8:
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_a_state_directory_that_can_not_be_written_to_disturbs_nobody(scene: Scene, how: str) -> None:
    if how == "full" and not faults.may_mount():
        pytest.skip("a file system to be filled can't be mounted here")
    await scene.whole()
    made = faults.full if how == "full" else faults.read_only

    async def unwritable() -> None:
        with made(scene.ground.state):
            await asyncio.sleep(2.0)
            assert await scene.ground.server.answers("/")

    assert failed(await scene.under_load(unwritable)) == []


async def test_an_engine_that_ends_while_there_are_no_descriptors_comes_back(scene: Scene) -> None:
    await scene.whole()
    before = await scene.ground.engine("e1")

    async def scarce() -> None:
        await scene.apply("fds", "limit and a kill", "e1")
        await scene.again("e1", before["epoch"])

    await scene.under_load(scarce)
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
