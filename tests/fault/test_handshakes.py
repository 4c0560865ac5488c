"""Broken handshakes under traffic: on the engine channel, and on the sockets where engines ask for each other's memory."""

from __future__ import annotations

import asyncio

import pytest
from conftest import Scene, failed

from appliance.channel import VERSION
from bench import impostors
from bench.schedule import NODE_FAULTS

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
WRONG = ("garbage", "truncated", "version", "closes")


async def test_broken_callers_of_the_channel_disturb_nobody(scene: Scene) -> None:
    await scene.whole()
    before = {engine["name"]: engine["epoch"] for engine in (await scene.node())["engines"]}

    async def all_at_once() -> None:
        told = await asyncio.gather(*(scene.apply("channel", variant) for variant in NODE_FAULTS["channel"]))
        assert all("closed" in one for one in told if "silence" not in one and "truncated" not in one), told

    assert failed(await scene.under_load(all_at_once)) == []
    assert {engine["name"]: engine["epoch"] for engine in (await scene.node())["engines"]} == before
    assert f"version {VERSION + 1} was received" in scene.ground.server.log, "it is said what was wrong"
    await scene.idle()


@pytest.mark.parametrize("variant", ["leaves", "garbage"])
async def test_a_second_end_of_a_living_engines_channel_costs_that_engine_only(scene: Scene, variant: str) -> None:
    """It can't be known which of the two is right: it is started again."""
    await scene.whole()
    engine = await scene.ground.engine("e1")

    async def twin() -> None:
        await scene.apply("twin", variant, "e1")
        await scene.again("e1", engine["epoch"])

    assert failed(await scene.under_load(twin)) == []
    await scene.idle()


async def test_whoever_answers_for_an_engines_memory_is_not_believed(scene: Scene) -> None:
    """e0's socket is in other hands when e1, started anew, wants to map its memory: again and again, until e0 answers itself."""
    await scene.whole()
    engine = await scene.ground.engine("e1")
    [socket] = scene.ground.runtime.glob(f"e0-{(await scene.ground.engine('e0'))['epoch']}-0.kv")
    said: set[str] = set()

    async def impostor() -> None:
        async with impostors.in_place_of(socket, *WRONG, "silence") as asked:
            assert await scene.ground.post("/api/engines/e1/restart") == 202
            async with asyncio.timeout(60):
                while len(asked) <= len(WRONG) + 1:
                    said.update((await scene.ground.engine("e1"))["peer_errors"])
                    await asyncio.sleep(0.05)
        await scene.again("e1", engine["epoch"])

    assert failed(await scene.under_load(impostor)) == []
    for cause in ("not an engine channel", "it ended after", f"version {VERSION + 1} was received", "timed out"):
        assert any("no KV handshake with e0" in one and cause in one for one in said), (cause, said)
    await scene.idle()


async def test_broken_callers_of_a_kv_socket_disturb_nobody(scene: Scene) -> None:
    await scene.whole()
    assert failed(await scene.under_load(lambda: scene.apply("kv", "callers", "e0"))) == []
    await scene.idle()
