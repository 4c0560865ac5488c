"""One request through the router: what both legs are sent, and what the client gets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from router_fakes import (
    ASK,
    DONE,
    EVENTS,
    STREAM,
    TRANSFER,
    Client,
    Engine,
    House,
    asked,
    failing,
    fails,
    holding,
    house,
    last,
    legs,
    obliging,
)

from appliance.channel import HandoffEnded, LeaseGranted, Scheduled
from appliance.errors import RequestError
from appliance.router.client import Response
from appliance.router.connection import Taker

# ---- how it should go


async def test_a_stream_is_split_and_its_bytes_are_untouched(pair: House) -> None:
    client = await pair.ask(STREAM)
    assert (client.status, client.body, client.ended) == (200, b"".join(EVENTS), True)
    assert client.fields["content-type"] == "text/event-stream; charset=utf-8"
    assert (client.fields["x-prefill-engine"], client.fields["x-decode-engine"]) == ("e0", "e1")
    assert "x-unsplit-reason" not in client.fields
    assert legs(pair) == [("prefill", "e0", "ok"), ("decode", "e1", "ok")]
    assert (last(pair).outcome, last(pair).split, last(pair).status) == ("ok", True, 200)


async def test_an_unstreamed_answer_is_split(pair: House) -> None:
    client = await pair.ask(ASK)
    assert (client.status, client.json["by"]) == (200, "e1")
    assert client.fields["content-length"] == str(len(client.body))


async def test_what_the_legs_are_sent(pair: House) -> None:
    await pair.ask(STREAM)
    [first], [second] = pair["e0"].seen, pair["e1"].seen
    offer = first.pop("kv_transfer_params")
    assert first == {"model": "demo", "prompt": "to be", "max_tokens": 1}
    assert (offer["do_remote_decode"], offer["consumers"], offer["ttl_s"]) == (True, 1, 60.0)
    assert second == {**STREAM, "kv_transfer_params": {**TRANSFER, "tee": 1}}
    assert offer["request"] in pair.ledger.cancelled


async def test_an_error_of_the_clients_is_passed_on_from_the_prefill_leg(pair: House) -> None:
    pair["e0"].script = failing(400, "the prompt is too long")
    client = await pair.ask(STREAM)
    assert (client.status, client.json["error"]["message"]) == (400, "the prompt is too long")
    assert pair["e1"].seen == []
    assert (last(pair).outcome, last(pair).error) == ("failed", "the prompt is too long")
    assert (last(pair).attempts, last(pair).split, pair.router.counts().split) == (1, False, 0)


async def test_an_error_of_the_clients_is_passed_on_from_the_decode_leg(pair: House) -> None:
    pair["e1"].script = failing(400, "max_tokens is absurd")
    client = await pair.ask(STREAM)
    assert (client.status, client.json["error"]["message"]) == (400, "max_tokens is absurd")
    assert legs(pair) == [("prefill", "e0", "ok"), ("decode", "e1", "error")]


async def test_what_cannot_be_split_runs_whole_and_says_why(pair: House) -> None:
    client = await pair.ask({**ASK, "echo": True})
    assert client.fields["x-prefill-engine"] == client.fields["x-decode-engine"]
    assert client.fields["x-unsplit-reason"].startswith("echo")
    [body] = pair["e0"].seen + pair["e1"].seen
    assert set(body.pop("kv_transfer_params")) == {"request"}
    assert body == {**ASK, "echo": True}


async def test_a_prefill_leg_that_kept_nothing_is_decoded_whole(pair: House) -> None:
    async def keeps_nothing(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"kv_transfer_params": None})

    pair["e0"].script = keeps_nothing
    client = await pair.ask(STREAM)
    assert client.body == b"".join(EVENTS)
    assert client.fields["x-prefill-engine"] == client.fields["x-decode-engine"] == "e1"
    assert client.fields["x-unsplit-reason"] == "e0 kept no KV"
    assert legs(pair) == [("prefill", "e0", "ok"), ("whole", "e1", "ok")]


async def test_n_is_what_the_prefill_leg_keeps_its_kv_for(pair: House) -> None:
    await pair.ask({**ASK, "n": 3})
    assert pair["e0"].seen[0]["kv_transfer_params"]["consumers"] == 3
    assert (pair["e0"].seen[0]["n"], pair["e1"].seen[0]["n"]) == (1, 3)


@pytest.mark.parametrize("layout", ["b", "bb"])
async def test_engines_that_do_both_are_aggregated(short: Path, layout: str) -> None:
    async with house(short, layout) as built:
        clients = [await built.ask(STREAM) for _ in range(4)]
        assert {client.fields["x-unsplit-reason"] for client in clients} == {"aggregated"}
        assert {client.fields["x-decode-engine"] for client in clients} == set(built.engines)


async def test_equal_decode_engines_take_turns(short: Path) -> None:
    async with house(short, "pddd") as built:
        engines = [(await built.ask(ASK)).fields["x-decode-engine"] for _ in range(6)]
        assert engines == ["e1", "e2", "e3"] * 2


async def test_a_large_body_goes_through(pair: House) -> None:
    await pair.ask({**ASK, "prompt": "x" * (3 << 20)})
    assert len(pair["e1"].seen[0]["prompt"]) == 3 << 20


async def test_a_messages_request_runs_whole(pair: House) -> None:
    client = await pair.ask({"model": "demo", "messages": []}, path="/v1/messages", query=b"beta=true")
    assert client.fields["x-unsplit-reason"] == "messages are not split yet"
    assert pair["e0"].targets + pair["e1"].targets == ["/v1/messages?beta=true"]


@pytest.mark.parametrize("true", ["true", 1, True])
async def test_whether_it_is_a_stream_is_what_the_engine_says(pair: House, true: object) -> None:
    """vLLM takes more than ``true`` for true."""
    await pair.ask({**ASK, "stream": true})
    assert last(pair).stream
    assert (await pair.ask(ASK)).status == 200
    assert not last(pair).stream


async def test_done_is_no_piece_of_the_answer(pair: House) -> None:
    pair["e1"].script = fails(EVENTS[0], EVENTS[1], DONE)
    await pair.ask(STREAM)
    assert last(pair).output_chunks == 2
    assert len(pair.timelines.gaps) == 1


# ---- ids and headers


async def test_engines_are_told_the_requests_id(pair: House) -> None:
    client = await pair.ask(ASK, id="abc-1")
    assert client.fields["x-request-id"] == "abc-1"
    assert pair["e0"].headers[0]["x-request-id"] == "abc-1-prefill"
    assert pair["e1"].headers[0]["x-request-id"] == "abc-1"


async def test_one_id_used_twice_makes_two_leases(pair: House) -> None:
    await asyncio.gather(*(pair.ask(ASK, id="same") for _ in range(2)))
    assert len({body["kv_transfer_params"]["request"] for body in pair["e0"].seen}) == 2


async def test_a_request_id_in_the_body_is_left_to_vllm(pair: House) -> None:
    await pair.ask({**ASK, "request_id": "mine"})
    assert "x-request-id" not in pair["e1"].headers[0]


async def test_credentials_and_routing_hints_stay_here(pair: House) -> None:
    secret = {"authorization": "Bearer s", "cookie": "c", "x-data-parallel-rank": "7", "x-vllm-priority": "-9"}
    await pair.ask(ASK, headers={**secret, "traceparent": "00-1"})
    for headers in pair["e0"].headers + pair["e1"].headers:
        told = set(headers)
        assert told == {"host", "content-type", "content-length", "traceparent", "x-request-id"}


@pytest.mark.parametrize(
    "body", [{**ASK, "kv_transfer_params": {}}, {**ASK, "vllm_xargs": {"kv_transfer_params": "x"}}]
)
async def test_a_clients_transfer_parameters_reach_no_engine(pair: House, body: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="not accepted") as caught:
        await pair.ask(body)
    assert caught.value.status == 400
    assert pair["e0"].seen == pair["e1"].seen == []
    counts = pair.router.counts()
    assert (counts.failed, counts.refused, counts.failed_here) == (1, 1, 0), "it is the client's own"


async def test_server_timing_sums_to_ttft_and_has_the_engines_marks(pair: House) -> None:
    async def tells(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        key, now = pair["e0"].seen[0]["kv_transfer_params"]["request"], asyncio.get_running_loop().time
        at = int(now() * 1e9)
        pair.timelines.fold("e0", Scheduled(request=key, phase="prefill", at_ns=at, prompt_tokens=5))
        pair.timelines.fold("e0", LeaseGranted(lease=key, blocks=1, tokens=5, consumers=1, ttl_s=60, at_ns=at))
        ended = HandoffEnded(lease=key, producer="e0", ok=True, bytes=77, tokens=5, start_ns=at, end_ns=at)
        pair.timelines.fold("e1", ended)
        return await obliging(engine, request, body)

    pair["e1"].script = tells
    client = await pair.ask(STREAM)
    said = dict(stage.split(";dur=") for stage in client.fields["server-timing"].split(", "))
    timeline = last(pair)
    assert [stage.name for stage in timeline.stages] == list(said)
    assert len(said) == 7
    assert sum(map(float, said.values())) == pytest.approx((timeline.ttft_s or 0) * 1e3, abs=0.01)
    assert (timeline.prompt_tokens, timeline.transfer_bytes, timeline.recomputed) == (5, 77, False)


async def test_what_engines_have_said_by_the_first_byte_is_in_it(pair: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that arrive together with the first bytes are folded before the head is made."""
    original = Response.some

    async def some(self: Response, taker: Taker | None = None) -> bytes:
        data = await original(self, taker)
        key = pair["e0"].seen[0]["kv_transfer_params"]["request"]
        said = Scheduled(request=key, phase="prefill", at_ns=1, prompt_tokens=5)
        asyncio.get_running_loop().call_soon(pair.timelines.fold, "e0", said)
        return data

    monkeypatch.setattr(Response, "some", some)
    client = Client()
    told: list[int | None] = []
    start = client.start

    async def starting(status: int, headers: list[tuple[bytes, bytes]]) -> None:
        told.append(last(pair).prompt_tokens)
        await start(status, headers)

    monkeypatch.setattr(client, "start", starting)
    await pair.router.serve(asked(STREAM), client)
    assert told == [5]


async def test_a_prefill_engine_is_free_again_while_the_answer_is_decoded(pair: House) -> None:
    pair["e1"].script = holding()
    task, _ = pair.asking(STREAM)
    await pair["e1"].reached.wait()
    assert (pair.router.in_flight("e0"), pair.router.outstanding_prompt_tokens("e0")) == (0, 0)
    assert (pair.router.in_flight("e1"), pair.router.outstanding_prompt_tokens("e1")) == (1, 0)
    pair["e1"].hold.set()
    await task


# ---- routes that cost no model step


async def test_models_are_an_engines_answer(pair: House) -> None:
    client = await pair.ask(b"", method="GET", path="/v1/models", id="m")
    assert client.json["data"] == [{"id": "demo"}]
    assert client.fields["x-request-id"] == "m"
    assert pair.router.counts().total == 0


async def test_models_come_from_another_engine_if_the_first_is_gone(pair: House) -> None:
    await pair["e0"].stop()
    assert (await pair.ask(b"", method="GET", path="/v1/models")).json["of"] == "e1"


async def test_tokenize_refuses_transfer_parameters_too(pair: House) -> None:
    with pytest.raises(RequestError, match="not accepted"):
        await pair.ask({"prompt": "x", "kv_transfer_params": {"a": 1}}, path="/tokenize")
    assert (await pair.ask({"prompt": "x"}, path="/tokenize")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/inference/v1/generate", 404),
        ("POST", "/v1/nothing", 404),
        ("POST", "/sleep", 404),
        ("GET", "/v1/responses/resp_1", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
async def test_other_routes_are_refused(pair: House, method: str, path: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        await pair.ask(ASK, method=method, path=path)
    assert caught.value.status == status
    assert pair["e0"].seen == pair["e1"].seen == []
