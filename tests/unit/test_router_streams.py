"""Streams that have begun when something fails: they go on elsewhere, or end with an error and never with [DONE]."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from router_fakes import (
    ASK,
    BAD,
    DEAD,
    DONE,
    EVENTS,
    STREAM,
    Client,
    Engine,
    House,
    asked,
    breaking,
    endless,
    failing,
    fails,
    house,
    last,
    legs,
    obliging,
    stream,
)

from appliance.channel import OutputTokens
from appliance.records import EngineState
from appliance.router import admission


async def test_a_stream_that_begins_with_an_engines_error_is_tried_elsewhere(short: Path) -> None:
    async def dies(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        event = b'data: {"error": {"message": "EngineDead", "code": 500}}\n\n'
        return await stream(engine, request, [event, b"data: [DONE]\n\n"])

    async with house(short, "pdd") as built:
        built["e1"].script = dies
        assert (await built.ask(STREAM)).body == b"".join(EVENTS)
        assert ("decode", "e1", "error") in legs(built)


@pytest.mark.parametrize(
    "pieces",
    [
        (EVENTS[0], DEAD, DONE),
        (EVENTS[0], DEAD + DONE),
        (EVENTS[0] + DEAD + DONE,),
        (EVENTS[0], DEAD[:40], DEAD[40:] + DONE),
        (EVENTS[0], DEAD[:-1], DEAD[-1:], DONE),
        (EVENTS[0], DEAD[:9], DEAD[9:] + DONE),
    ],
    ids=["apart", "with DONE", "all in one", "cut", "cut before its end", "cut in its first word"],
)
async def test_a_stream_that_fails_midway_says_so_and_is_not_done(short: Path, pieces: tuple[bytes, ...]) -> None:
    """vLLM ends such a stream in order, with [DONE]: neither the client nor the books may take it for whole."""
    async with house(short, "b") as built:
        built["e0"].script = fails(*pieces)
        client = await built.ask(STREAM)
        if len(pieces) > 1:
            assert client.body == EVENTS[0] + DEAD
            assert (client.status, client.ended, last(built).status) == (200, True, 200)
        else:  # nothing had left yet
            assert (client.status, client.json["error"]["message"]) == (500, "EngineDead")
        assert last(built).outcome == "failed"
        assert "EngineDead" in (last(built).error or "")
        assert [leg.outcome for leg in last(built).legs] == ["error"]
        assert built.router.counts().ok == 0


@pytest.mark.parametrize("pieces", [(BAD + DONE,), (BAD, DONE), (BAD[:30], BAD[30:] + DONE)])
async def test_a_stream_that_begins_with_the_clients_error_has_failed(pair: House, pieces: tuple[bytes, ...]) -> None:
    pair["e1"].script = fails(*pieces)
    client = await pair.ask(STREAM)
    assert (client.status, client.body, client.ended) == (200, BAD, True)
    assert (last(pair).outcome, last(pair).error, last(pair).attempts) == ("failed", "too long", 1)
    assert legs(pair)[-1] == ("decode", "e1", "error")


class Counting(Client):
    """``room``: for how many pieces there is at first; then one has to wait, and so on."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = self._left = room
        self.at_once = self.waited = 0

    async def send(self, chunk: bytes) -> None:
        await asyncio.sleep(0.002 if self._room < 1000 else 0)
        await super().send(chunk)
        self._left = self._room
        self.waited += 1

    def send_now(self, chunk: bytes) -> bool:
        if not self._left:
            return False
        self._left -= 1
        self.at_once += 1
        return super().send_now(chunk)


@pytest.mark.parametrize("room", [0, 1, 3, 1000])
async def test_a_client_gets_all_in_order_whether_it_keeps_up_or_is_behind(pair: House, room: int) -> None:
    events = [b'data: {"choices":[{"text":"%d"}]}\n\n' % number for number in range(40)]

    async def script(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, event in enumerate(events):
            for piece in (event[:9], event[9:]) if number % 7 == 6 else (event,):
                await response.write(piece)
                await asyncio.sleep(0.001)
        await response.write(DONE)
        return response

    pair["e1"].script = script
    client = Counting(room)
    await pair.router.serve(asked(STREAM), client)
    assert client.body == b"".join(events) + DONE
    assert (last(pair).outcome, client.ended) == ("ok", True)
    if room == 0:
        assert client.at_once == 0
    elif room == 1000:
        assert client.at_once >= 10, "no task woke for these"
        assert client.waited >= 2, "but for the first and the last"


async def test_words_of_an_error_inside_an_answer_are_an_answer(pair: House) -> None:
    text = json.dumps({"choices": [{"text": 'data: {"error": {"message": "x", "code": 500}}\n\n'}]}).encode()
    pieces = (b"data: " + text + b"\n\n", DONE)
    pair["e1"].script = fails(*pieces)
    client = await pair.ask(STREAM)
    assert client.body == b"".join(pieces)
    assert last(pair).outcome == "ok"


async def test_a_client_that_leaves_at_a_streams_failure_was_not_served(pair: House) -> None:
    class Leaving(Client):
        async def send(self, chunk: bytes) -> None:
            await super().send(chunk)
            if b"error" in chunk:
                raise ConnectionResetError("gone")

    pair["e1"].script = fails(EVENTS[0], DEAD + DONE)
    with pytest.raises(ConnectionResetError):
        await pair.router.serve(asked(STREAM), Leaving())
    assert last(pair).outcome == "failed"


async def test_a_stream_that_ends_before_it_began_is_tried_elsewhere(pair: House) -> None:
    async def empty(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(engine, request, [])

    pair["e1"].script = empty
    assert (await pair.ask(STREAM)).body == b"".join(EVENTS)


@pytest.mark.parametrize("half", [b"", EVENTS[1][:9]], ids=["between events", "within an event"])
async def test_a_stream_that_ends_in_order_without_done_is_not_whole_and_goes_on_elsewhere(
    pair: House, half: bytes
) -> None:
    pair["e1"].script = fails(EVENTS[0] + half)
    client = await pair.ask(STREAM)
    assert client.body == b"".join(EVENTS)
    assert last(pair).attempts == 2


@pytest.mark.parametrize("half", [b"", EVENTS[1][:9]], ids=["between events", "within an event"])
async def test_a_stream_that_breaks_off_says_so_and_is_not_done(short: Path, half: bytes) -> None:
    async with house(short, attempts=1) as built:
        built["e1"].script = breaking(EVENTS[0], half)
        task, client = built.asking(STREAM)
        await client.first.wait()
        built["e1"].hold.set()
        await task
        assert client.body.startswith(EVENTS[0] + b'data: {"error":')
        event = json.loads(client.body.removeprefix(EVENTS[0] + b"data: "))
        assert event["error"]["code"] == "engine_lost"
        assert client.body.endswith(b"\n\n")
        assert client.ended
        assert (last(built).outcome, last(built).attempts) == ("failed", 1)
        assert last(built).legs[-1].status == 200
        assert last(built).error == "e1 ended in the middle of its answer"


@pytest.mark.parametrize("half", [b"", EVENTS[1][:9]], ids=["between events", "within an event"])
async def test_a_stream_that_breaks_off_goes_on_elsewhere(pair: House, half: bytes) -> None:
    pair["e1"].script = breaking(EVENTS[0], half)
    task, client = pair.asking(STREAM)
    await client.first.wait()
    key = pair["e0"].seen[0]["kv_transfer_params"]["request"]
    assert pair["e1"].seen[0]["kv_transfer_params"]["tee"] == 1
    pair.router.fold("e0", OutputTokens(items=((key, 0, (11, 12)), ("another", 0, (13,)))))
    pair["e1"].view = msgspec.structs.replace(pair["e1"].view, state=EngineState.BACKOFF)
    pair["e1"].hold.set()
    await asyncio.sleep(0.05)
    pair.router.fold(
        "e0", OutputTokens(items=((key, 0, (14,)),))
    )  # what it said last is heard after its connection has ended
    pair.router.engine_lost("e1", 1)
    await task
    assert client.body == b"".join(EVENTS)
    params = pair["e0"].seen[-1]["kv_transfer_params"]
    assert (params["forced"], params["tee"]) == ([[11, 12, 14]], 1)
    found = last(pair)
    assert (found.outcome, found.attempts, found.continued, found.status) == ("ok", 2, True, 200)
    assert legs(pair) == [("prefill", "e0", "ok"), ("decode", "e1", "unreachable"), ("whole", "e0", "ok")]
    assert sum(stage.duration_s for stage in found.stages) == pytest.approx(found.ttft_s)
    assert len(pair.router._journal) == 0


async def test_what_is_known_to_have_been_said_survives_another_failure(short: Path) -> None:
    async with house(short, "bbb", attempts=4) as built:
        built["e0"].script = breaking(EVENTS[0])
        built["e1"].script = failing(500)
        task, client = built.asking(STREAM)
        await client.first.wait()
        built.router.fold(
            "e0", OutputTokens(items=((built["e0"].seen[0]["kv_transfer_params"]["request"], 0, (11, 12)),))
        )
        built["e0"].view = msgspec.structs.replace(built["e0"].view, state=EngineState.BACKOFF)
        built["e0"].hold.set()
        await task
        assert client.body == b"".join(EVENTS)
        assert built["e2"].seen[0]["kv_transfer_params"]["forced"] == [[11, 12]]


async def test_a_stream_whose_engine_says_that_it_dies_goes_on_elsewhere(pair: House) -> None:
    dead = b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace", "code": 500}}\n\n'
    pair["e1"].script = fails(EVENTS[0], dead + DONE)
    client = await pair.ask(STREAM)
    assert client.body == b"".join(EVENTS)
    assert (last(pair).outcome, last(pair).continued) == ("ok", True)


ABORT = b'data: {"choices":[{"delta":{"content":""},"finish_reason":"abort"}]}\n\n'


async def test_a_stream_of_an_engine_that_was_told_to_end_goes_on_elsewhere(pair: House) -> None:
    """vLLM then ends its answers as if they were complete."""
    pair["e1"].script = fails(EVENTS[0], ABORT + DONE)
    client = await pair.ask(STREAM)
    assert client.body == b"".join(EVENTS)
    assert (last(pair).outcome, last(pair).continued) == ("ok", True)


async def test_and_so_is_an_answer_in_one_piece(pair: House) -> None:
    async def ends(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=b'{"choices":[{"text":"a","finish_reason":"abort"}]}', content_type="application/json")

    pair["e1"].script = ends
    client = await pair.ask(ASK)
    assert (client.status, client.json["by"]) == (200, "e0")
    assert legs(pair)[1] == ("decode", "e1", "unreachable")


async def test_a_stream_that_another_engine_answers_otherwise_ends_with_an_error(pair: House) -> None:
    other = b'data: {"choices":[{"delta":{"content":"z"}}]}\n\n'
    pair["e1"].script = fails(
        EVENTS[0], b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n'
    )

    async def otherwise(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (stream(engine, request, [other, DONE]) if body.get("stream") else obliging(engine, request, body))

    pair["e0"].script = otherwise
    client = await pair.ask(STREAM)
    assert client.body.startswith(EVENTS[0])
    assert b"another one can't go on" in client.body
    assert b'"z"' not in client.body.split(b'"error"')[0]
    assert b"[DONE]" not in client.body
    assert last(pair).outcome == "failed"


async def test_a_stream_without_any_engine_waits_for_one_to_come_back(short: Path) -> None:
    async with house(short, "b") as built:
        built["e0"].script = breaking(EVENTS[0])
        task, client = built.asking(STREAM)
        await client.first.wait()
        ready = built["e0"].view
        built["e0"].view = msgspec.structs.replace(ready, state=EngineState.BACKOFF)
        built.router.engine_lost("e0", 1)
        await asyncio.sleep(0.3)
        assert not task.done()
        built["e0"].script = obliging
        built["e0"].view = msgspec.structs.replace(ready, epoch=2)
        built.router.engines_changed()
        await task
        assert client.body == b"".join(EVENTS)


async def test_a_stream_is_told_when_none_comes_back(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_PATIENCE_S", 0.3)
    async with house(short, "b") as built:
        built["e0"].script = breaking(EVENTS[0])
        task, client = built.asking(STREAM)
        await client.first.wait()
        built["e0"].view = msgspec.structs.replace(built["e0"].view, state=EngineState.FAILED)
        built.router.engine_lost("e0", 1)
        await task
        assert b'"engine_lost"' in client.body
        assert client.ended
        assert (last(built).outcome, len(built.router._journal)) == ("failed", 0)


async def test_streams_of_other_routes_are_not_gone_on_with(pair: House) -> None:
    pair["e0"].script = pair["e1"].script = breaking(b"event: x\ndata: {}\n\n")
    task, client = pair.asking(STREAM, path="/v1/responses")
    await client.first.wait()
    pair["e0"].hold.set()
    pair["e1"].hold.set()
    await task
    assert b'"type":"error"' in client.body
    assert last(pair).attempts == 1


async def test_a_stream_of_an_engine_that_is_lost_goes_on_although_its_connection_still_stands(pair: House) -> None:
    """A stopped process is killed: that it has ended may be known before its sockets tell."""

    pair["e1"].script = endless
    task, client = pair.asking(STREAM)
    await client.first.wait()
    pair.router.engine_lost("e1", 1)
    async with asyncio.timeout(5):
        await task
    assert client.body == b"".join(EVENTS)
    assert [leg.error for leg in last(pair).legs if leg.engine == "e1"] != [None]


async def test_a_stream_that_is_given_up_ends_with_an_error_event(pair: House) -> None:
    pair["e1"].script = endless
    task, client = pair.asking(STREAM)
    await client.first.wait()
    pair.router.abandon()
    await task
    assert client.body.startswith(EVENTS[0])
    assert b"has shut down before this answer was complete" in client.body
    assert b"[DONE]" not in client.body
    assert (client.ended, last(pair).outcome) == (True, "failed")
