"""The fork server is killed, and clients stall or vanish: everybody else is served, and nothing is held for those who have gone."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from conftest import Scene, failed

from bench.checker import Kind, judge
from bench.clients import Manner

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_the_fork_server_is_killed_and_no_engine_is_harmed(scene: Scene) -> None:
    await scene.whole()
    before = [engine["epoch"] for engine in (await scene.node())["engines"]]
    first = scene.ground.fork_server()
    assert first is not None

    async def killed() -> None:
        first.send_signal(signal.SIGKILL)
        await asyncio.sleep(1.0)

    assert failed(await scene.under_load(killed)) == []
    assert [engine["epoch"] for engine in (await scene.node())["engines"]] == before
    assert scene.ground.fork_server() is None, "killed, and reaped"

    async def next_start() -> None:
        engine = await scene.ground.engine("e1")
        assert await scene.ground.post("/api/engines/e1/restart") == 202
        await scene.again("e1", engine["epoch"])

    assert failed(await scene.under_load(next_start)) == []
    second = scene.ground.fork_server()
    assert second is not None and second.pid != first.pid
    await scene.idle()


async def test_clients_that_stall_or_vanish_cost_nobody_else_anything(scene: Scene) -> None:
    await scene.whole()
    plainly = [case for case in scene.cases if case.streams][:3]
    manners = [Manner.STALLS, Manner.SLOW, Manner.LEAVES_EARLY, Manner.LEAVES_LATE, Manner.HALF_CLOSES] * 4
    odd = [
        asyncio.create_task(scene.ground.clients.ask(scene.cases[number % len(scene.cases)], manner))
        for number, manner in enumerate(manners)
    ]
    began_s = time.monotonic()
    for case in plainly:
        verdict = judge(case, scene.expected[case.name], await scene.ground.clients.ask(case))
        assert verdict.kind is Kind.RIGHT, verdict
    assert time.monotonic() - began_s < 30
    for number, (manner, heard) in enumerate(zip(manners, await asyncio.gather(*odd), strict=True)):
        case = scene.cases[number % len(scene.cases)]
        wanted = {Kind.RIGHT} if manner is Manner.SLOW else {Kind.RIGHT, Kind.LEFT}  # a short answer was whole by then
        assert judge(case, scene.expected[case.name], heard).kind in wanted, (manner, heard)
    await scene.idle()
