"""Legs that fail before an answer has begun: tried elsewhere, or told as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from router_fakes import (
    ASK,
    EVENTS,
    STREAM,
    Engine,
    House,
    Script,
    failing,
    holding,
    house,
    last,
    legs,
    one_of_two_waits,
)

from appliance.errors import RequestError
from appliance.records import EngineState


async def test_a_decode_engine_that_is_gone_does_not_fail_the_request(pair: House) -> None:
    await pair["e1"].stop()
    client = await pair.ask(STREAM)
    assert client.body == b"".join(EVENTS)
    assert client.fields["x-decode-engine"] == "e0"
    assert client.fields["x-unsplit-reason"] == "no decode engine is ready (e1 has just failed this request)"
    assert legs(pair) == [("prefill", "e0", "ok"), ("decode", "e1", "unreachable"), ("whole", "e0", "ok")]
    assert (last(pair).attempts, pair.router.counts().retried) == (2, 1)


async def test_a_prefill_engine_that_is_gone_does_not_fail_the_request(pair: House) -> None:
    await pair["e0"].stop()
    client = await pair.ask(ASK)
    assert client.json["by"] == "e1"
    assert legs(pair) == [("prefill", "e0", "unreachable"), ("whole", "e1", "ok")]


async def test_another_decode_engine_is_tried_and_the_prefill_engine_is_not_blamed(short: Path) -> None:
    async with house(short, "pdd") as built:
        built["e1"].script = failing(500)
        client = await built.ask(STREAM)
        assert client.fields["x-decode-engine"] == "e2"
        assert client.fields["x-prefill-engine"] == "e0"
        assert [leg for leg in legs(built) if leg[1] == "e0"] == [("prefill", "e0", "ok")] * 2


async def test_an_engines_failure_is_passed_on_once_all_have_failed(pair: House) -> None:
    pair["e0"].script = pair["e1"].script = failing(500, "out of order")
    client = await pair.ask(STREAM)
    assert (client.status, client.json["error"]["message"]) == (500, "out of order")
    assert last(pair).outcome == "failed"


async def test_a_living_engines_failure_is_not_asked_for_again(short: Path) -> None:
    async with house(short, "b") as built:
        built["e0"].script = failing(500)
        assert (await built.ask(ASK)).status == 500
        assert len(built["e0"].seen) == 1


@pytest.mark.parametrize(("status", "said"), [(404, "the model can't do /v1/embeddings"), (403, "answered 403")])
async def test_errors_of_another_shape_are_told_in_openais(pair: House, status: int, said: str) -> None:
    async def other(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"detail": "Not Found"}, status=status)

    pair["e0"].script = pair["e1"].script = other
    client = await pair.ask({"input": "x"}, path="/v1/embeddings")
    assert client.status == status
    assert said in client.json["error"]["message"]
    assert client.fields["content-length"] == str(len(client.body))


async def test_all_engines_gone_is_said(pair: House) -> None:
    await pair["e0"].stop()
    await pair["e1"].stop()
    with pytest.raises(RequestError, match="can't be reached") as caught:
        await pair.ask(STREAM)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
    assert last(pair).attempts == 3


async def deadly(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    engine.break_connections()
    return web.Response()


@pytest.mark.parametrize(
    "poison", [deadly, failing(500, "EngineCore encountered an issue. See …")], ids=["cut", "said"]
)
@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole answer", "stream"])
async def test_a_request_that_two_engines_did_not_survive_is_given_to_no_third(
    short: Path, body: dict[str, Any], poison: Script
) -> None:
    async with house(short, "bbb", attempts=5) as built:
        for engine in built.engines.values():
            engine.script = poison
        with pytest.raises(RequestError, match="e0 and e1 ended while they worked on this request") as caught:
            await built.ask(body)
        assert (caught.value.status, caught.value.code) == (503, "engine_lost")
        assert built["e2"].seen == []
        assert (last(built).outcome, last(built).attempts) == ("failed", 2)


async def test_one_engine_lost_twice_is_no_proof_against_the_request(short: Path) -> None:
    async with house(short, "b", attempts=3) as built:
        built["e0"].script = deadly
        with pytest.raises(RequestError, match="3 attempts"):
            await built.ask(ASK)
        assert len(built["e0"].seen) == 3


async def test_engines_that_cannot_be_reached_prove_nothing(short: Path) -> None:
    async with house(short, "bbb") as built:
        await built["e0"].stop()
        await built["e1"].stop()
        assert (await built.ask(ASK)).json["by"] == "e2"


async def test_an_answer_cut_short_is_tried_elsewhere(pair: House) -> None:
    async def cut(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"id":')
        engine.break_connections()
        return response

    pair["e1"].script = cut
    client = await pair.ask(ASK)
    assert client.json["by"] == "e0"


async def test_a_restarted_engine_is_met_on_a_new_connection(pair: House) -> None:
    await pair.ask(ASK)
    old = pair["e1"]
    await old.stop()
    old.view = msgspec.structs.replace(old.view, epoch=2)
    await old.start()
    assert (await pair.ask(ASK)).json["by"] == "e1"
    assert last(pair).attempts == 1


async def test_connections_are_kept_for_one_life_of_an_engine(pair: House) -> None:
    for _ in range(2):
        await pair.ask(ASK)
    pair["e1"].view = msgspec.structs.replace(pair["e1"].view, epoch=2)
    await pair.ask(ASK)
    first, second, third = pair["e1"].connections
    assert first == second != third


async def test_requests_of_a_lost_engine_are_tried_elsewhere_at_once(pair: House) -> None:
    pair["e1"].script = holding()
    task, client = pair.asking(STREAM)
    await pair["e1"].reached.wait()
    pair["e1"].view = msgspec.structs.replace(pair["e1"].view, state=EngineState.BACKOFF)
    pair.router.engine_lost("e1", 1)
    await task
    assert client.fields["x-decode-engine"] == "e0"
    assert client.fields["x-unsplit-reason"] == "no decode engine is ready (e1 is backoff)"


@pytest.mark.parametrize("name", ["e0", "e1"])
async def test_a_whole_answer_that_is_given_up_is_a_503(pair: House, name: str) -> None:
    pair[name].script = holding()
    task, client = pair.asking(ASK)
    await pair[name].reached.wait()
    pair.router.abandon()
    with pytest.raises(RequestError, match="has shut down before this answer was complete") as caught:
        await task
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "draining", 10.0)
    assert not client.started
    assert last(pair).outcome == "failed"


async def test_what_waits_in_the_queue_is_given_up_too(short: Path) -> None:
    async with house(short) as built:
        first, second = await one_of_two_waits(built)
        built.router.abandon()
        for task in (first, second):
            with pytest.raises(RequestError) as caught:
                await task
            assert (caught.value.status, caught.value.code) == (503, "draining")


async def test_a_lone_engine_that_says_it_is_dead_is_a_503_that_names_a_time_to_come_back(short: Path) -> None:
    async with house(short, "b", attempts=1) as built:
        built["e0"].script = failing(500, "EngineCore encountered an issue. See the stack trace above.")
        with pytest.raises(RequestError, match="EngineCore encountered an issue") as caught:
            await built.ask(ASK)
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "engine_lost", 1.0)
