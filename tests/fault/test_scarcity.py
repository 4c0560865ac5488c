"""Descriptors, disk space, writable directories and memory run out, under traffic: said, survived, and made good."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from conftest import Scene, failed

from bench import faults
from bench.checker import Kind

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
    if how == "full" and os.geteuid() != 0:
        pytest.skip("only root may make a file system to be filled")
    await scene.whole()
    made = faults.full if how == "full" else faults.read_only

    async def unwritable() -> None:
        with made(scene.ground.state):
            await asyncio.sleep(2.0)
            assert await scene.ground.server.answers("/")

    assert failed(await scene.under_load(unwritable)) == []


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_an_engine_comes_back_when_the_runtime_directory_can_be_written_to_again(scene: Scene, how: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount file systems")
    await scene.whole()
    before = await scene.ground.engine("e1")
    made = faults.full if how == "full" else faults.read_only

    async def unwritable() -> None:
        with made(scene.ground.runtime):
            os.kill(before["pid"], signal.SIGKILL)
            async with asyncio.timeout(20):
                while (await scene.ground.engine("e1"))["epoch"] == before["epoch"]:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(3.0)
        await scene.again("e1", before["epoch"])

    assert failed(await scene.under_load(unwritable)) == []
    await scene.idle()


async def test_an_engine_core_out_of_memory_is_replaced_and_the_cause_is_told(scene: Scene) -> None:
    await scene.whole()
    before = await scene.ground.engine("e1")

    async def scarce() -> None:
        await scene.apply("oom", "EngineCore data", "e1")
        await scene.again("e1", before["epoch"])

    outcomes = await scene.under_load(scarce)
    assert failed(outcomes) == []
    cause = (await scene.ground.engine("e1"))["cause"]
    assert "memory" in cause and "kv_cache_bytes" in cause
    await scene.idle()
