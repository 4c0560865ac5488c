"""Clients that leave, whenever: nothing of their requests is left on any engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from router_fakes import (
    ASK,
    EVENTS,
    STREAM,
    Client,
    Engine,
    House,
    asked,
    endless,
    holding,
    house,
    last,
    one_of_two_waits,
    stream,
    until,
)

PHASES: dict[str, tuple[str, Callable[[House], bool]]] = {
    "prefilling": ("e0", lambda built: len(built["e0"].seen) == 1),
    "decoding": ("e1", lambda built: len(built["e1"].seen) == 1),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole answer", "stream"])
async def test_a_client_that_leaves_aborts_the_leg(pair: House, phase: str, body: dict[str, Any]) -> None:
    name, reached = PHASES[phase]
    pair[name].script = holding()
    task, client = pair.asking(body)
    await until(lambda: reached(pair))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: pair[name].aborted == 1)
    assert not client.started
    assert (last(pair).outcome, last(pair).legs[-1].outcome) == ("cancelled", "cancelled")
    assert pair.router.counts().cancelled == 1
    assert last(pair).split is (pair.router.counts().split == 1) is (phase == "decoding")


async def test_a_client_that_leaves_in_mid_stream_aborts_the_leg(pair: House) -> None:
    pair["e1"].script = endless
    task, client = pair.asking(STREAM)
    await client.first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: pair["e1"].aborted == 1)
    assert (last(pair).outcome, last(pair).status) == ("cancelled", 200)


async def test_a_client_that_leaves_with_the_last_event_was_served(pair: House) -> None:
    async def lingering(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(engine, request, EVENTS)
        await engine.hold.wait()
        return response

    pair["e1"].script = lingering
    task, client = pair.asking(STREAM)
    await until(lambda: client.body.endswith(b"data: [DONE]\n\n"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (last(pair).outcome, pair.router.counts().ok) == ("ok", 1)


async def test_a_client_that_leaves_the_queue_takes_nothing_with_it(short: Path) -> None:
    async with house(short) as built:
        first, second = await one_of_two_waits(built)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert built.router.queue_snapshot(0).depth == 0
        built["e0"].hold.set()
        await first
        assert built.idle()
        assert len(built["e0"].seen) == 1


async def test_a_client_whose_connection_breaks_is_one_that_left(pair: House) -> None:
    class Broken(Client):
        async def send(self, chunk: bytes) -> None:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await pair.router.serve(asked(STREAM), Broken())
    assert last(pair).outcome == "cancelled"


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_cancelled_anywhere_nothing_is_left(pair: House, steps: int) -> None:
    """The loop turns a fixed number of times, then the client leaves: whatever the request was doing."""
    task, _ = pair.asking(STREAM)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(pair.idle)
