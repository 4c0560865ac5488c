"""Requests that wait for an engine: the window, the queue, draining, and engines that are not there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from router_fakes import (
    ASK,
    holding,
    house,
    one_of_two_waits,
    queued,
    until,
)

from appliance.channel import FirstToken, Scheduled
from appliance.errors import RequestError
from appliance.records import EngineState


async def test_the_window_holds_back_what_the_engine_could_not_begin(short: Path) -> None:
    async with house(short) as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
        built["e0"].script = holding()
        tasks = [built.asking(ASK)[0] for _ in range(3)]
        await built["e0"].reached.wait()
        snapshot = built.router.queue_snapshot(10**18)
        assert (snapshot.depth, snapshot.in_flight, len(built["e0"].seen)) == (2, 1, 1)
        assert snapshot.oldest_s is not None
        built["e0"].hold.set()
        await asyncio.gather(*tasks)
        assert built.idle()


async def test_an_estimate_gives_way_to_the_engines_count(short: Path) -> None:
    async with house(short) as built:
        built["e0"].script = holding()
        task, _ = built.asking(ASK)
        await built["e0"].reached.wait()
        key = built["e0"].seen[0]["kv_transfer_params"]["request"]
        built.timelines.fold("e0", Scheduled(request=key, phase="prefill", at_ns=1, prompt_tokens=3000))
        assert built.router.outstanding_prompt_tokens("e0") == 3000
        built["e0"].hold.set()
        await task
        assert built.idle()


async def test_a_whole_request_leaves_the_window_with_its_first_token(short: Path) -> None:
    async with house(short, "b") as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
        built["e0"].script = holding()
        tasks = [built.asking(ASK)[0] for _ in range(2)]
        await built["e0"].reached.wait()
        key = built["e0"].seen[0]["kv_transfer_params"]["request"]
        built.timelines.fold("e0", FirstToken(request=key, at_ns=1))
        await until(lambda: len(built["e0"].seen) == 2)
        built["e0"].hold.set()
        await asyncio.gather(*tasks)


async def test_a_full_queue_is_429(short: Path) -> None:
    async with house(short, queue_capacity=1) as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
        built["e0"].script = holding()
        tasks = [built.asking(ASK)[0] for _ in range(2)]
        await until(lambda: queued(built))
        with pytest.raises(RequestError) as caught:
            await built.ask(ASK)
        assert (caught.value.status, caught.value.retry_after_s) == (429, 5.0)
        counts = built.router.counts()
        assert (counts.failed, counts.refused, counts.failed_here) == (1, 0, 1), "the node had no room for it"
        built["e0"].hold.set()
        await asyncio.gather(*tasks)


async def test_draining_takes_nothing_new_and_ends_the_rest(short: Path) -> None:
    async with house(short) as built:
        built["e0"].script = holding()
        task, client = built.asking(ASK)
        await built["e0"].reached.wait()
        built.router.drain()
        with pytest.raises(RequestError) as caught:
            await built.ask(ASK)
        assert (caught.value.status, caught.value.code) == (503, "draining")
        assert built.router.not_ready() == "the appliance is shutting down and takes no new requests"
        built["e0"].hold.set()
        await task
        assert client.status == 200


async def test_a_request_that_is_tried_again_has_waited_since_it_came(short: Path) -> None:
    async with house(short, "pd") as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
        built["e1"].view = msgspec.structs.replace(built["e1"].view, max_batched_tokens=1)
        built["e0"].script = built["e1"].script = holding()
        first, _ = built.asking({**ASK, "echo": True})
        second, _ = built.asking({**ASK, "echo": True})
        await until(lambda: built["e0"].seen != [] and built["e1"].seen != [])
        arrived = min(trace.marks.arrived for trace in built.timelines._running)
        built["e0"].break_connections()  # the one that came first is tried again, and has to wait
        await until(lambda: queued(built))
        assert built.router.queue_snapshot(arrived + 10**9).oldest_s == 1.0
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def test_no_engine_yet_is_said_with_its_progress(short: Path) -> None:
    async with house(short) as built:
        for engine in built.engines.values():
            engine.view = msgspec.structs.replace(
                engine.view, state=EngineState.STARTING, stage="loading weights", progress=0.6
            )
        with pytest.raises(RequestError, match=r"e0 is starting \(loading weights, 60 %\)") as caught:
            await built.ask(ASK)
        assert (caught.value.status, caught.value.code) == (503, "no_engine_ready")
        with pytest.raises(RequestError, match="demo can't be served now"):
            await built.ask(b"", method="GET", path="/v1/models")


async def test_the_last_engine_going_down_ends_the_wait(short: Path) -> None:
    async with house(short) as built:
        first, second = await one_of_two_waits(built)
        for engine in built.engines.values():
            engine.view = msgspec.structs.replace(engine.view, state=EngineState.FAILED, cause="no memory")
        built.router.engines_changed()
        with pytest.raises(RequestError, match="e0 has failed: no memory; e1"):
            await second
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
