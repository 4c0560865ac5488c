"""What the supervisor relies on in an engine, whether that is vLLM or simulated: the same assertions for both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from pair import Engine, Pair, SimulatedPair

from appliance.channel import (
    FirstToken,
    HandoffEnded,
    Heartbeat,
    LeaseEnded,
    LeaseGranted,
    OutputTokens,
    PeerOpened,
    Release,
    Scheduled,
    Step,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")
_RANDOM = random.Random(77)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def simulated(random_model: Path) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        running = SimulatedPair(Path(name), random_model)
        await running.start()
        yield running
        await running.stop()


@pytest.fixture(params=["vllm", "simulated"])
def engines(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue("pair" if request.param == "vllm" else "simulated")
    return found


@pytest_asyncio.fixture(loop_scope="session")
async def peers(engines: Pair) -> AsyncIterator[Pair]:
    """They know each other for one test: other files want the same pair to be strangers."""
    both = (engines.e1, engines.e0), (engines.e0, engines.e1)
    for consumer, producer in both:
        opened = await engines.introduce(consumer, producer)
        assert isinstance(opened, PeerOpened)
        assert opened.error is None
    yield engines
    for consumer, producer in both:
        await engines.part(consumer, producer)


def body(tokens: int = 300, output: int = 20, **more: Any) -> dict[str, Any]:
    """With a prompt that nobody has sent before."""
    prompt = [_RANDOM.randrange(256) for _ in range(tokens)]
    return {"model": "m", "prompt": prompt, "max_tokens": output, "ignore_eos": True, "temperature": 0, **more}


async def streamed(engine: Engine, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a whole stream."""
    assert engine.session is not None
    fields = {**request, "stream": True, "stream_options": {"include_usage": True}}
    async with engine.session.post("http://engine/v1/completions", json=fields) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        *blocks, rest = (await answer.read()).split(b"\n\n")
    assert (blocks[-1], rest) == (b"data: [DONE]", b"")
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks[:-1]]


def since(engine: Engine, mark: int, kind: type[Any]) -> list[Any]:
    return [message for message in engine.messages[mark:] if isinstance(message, kind)]


async def test_it_says_what_it_is_and_that_it_turns(engines: Pair) -> None:
    ready = engines.e0.ready
    assert ready is not None
    assert min(ready.kv_blocks, ready.block_tokens, ready.max_batched_tokens, ready.max_running) > 0
    assert ready.max_model_len == 4096
    mark = len(engines.e0.messages)
    await engines.e0.idle_free_blocks()
    await engines.e0.idle_free_blocks()
    first, second = since(engines.e0, mark, Heartbeat)[:2]
    assert 0.5 < (second.at_ns - first.at_ns) * 1e-9 < 2


async def test_a_stream_is_whole_and_says_what_the_answer_in_one_piece_says(engines: Pair) -> None:
    request = body(output=24)
    whole = await engines.e0.post("/v1/completions", request)
    events = await streamed(engines.e0, request)
    *choices, usage = events
    assert "".join(event["choices"][0]["text"] for event in choices) == whole["choices"][0]["text"]
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 24
    assert usage["usage"]["prompt_tokens"] == 300
    assert usage["choices"] == []
    assert (
        [event["choices"][0]["finish_reason"] for event in choices][-1]
        == whole["choices"][0]["finish_reason"]
        == "length"
    )
    assert len({event["id"] for event in events}) == 1


async def test_a_chat_has_a_role_and_content(engines: Pair) -> None:
    messages = [{"role": "user", "content": "Tell me a story."}]
    answer = await engines.e0.post("/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 5})
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 5


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"model": "other"}, 404), ({"prompt": [1] * 4096}, 400), ({"max_tokens": 0}, 400), ({"prompt": []}, 400)],
)
async def test_what_can_not_be_is_refused_in_openai_shape(engines: Pair, fields: dict[str, Any], status: int) -> None:
    assert engines.e0.session is not None
    async with engines.e0.session.post("http://engine/v1/completions", json={**body(), **fields}) as answer:
        assert answer.status == status
        error = (await answer.json())["error"]
    assert error["message"]
    assert {"type", "param", "code"} <= error.keys()


async def test_every_token_is_in_a_step_and_all_blocks_come_back(engines: Pair) -> None:
    engine = engines.e0
    assert engine.ready is not None
    before = await engine.idle_free_blocks()
    mark = len(engine.messages)
    params = {"request": "counted", "tee": 1}
    await engine.post("/v1/completions", body(700, 30, kv_transfer_params=params))
    free = await engine.idle_free_blocks()
    steps = since(engine, mark, Step)
    assert sum(step.prompt_tokens for step in steps) == 700
    assert sum(step.decode_tokens for step in steps) == 29
    assert all(step.prompt_tokens + step.decode_tokens <= 512 for step in steps)
    assert all(later.start_ns >= earlier.start_ns for earlier, later in itertools.pairwise(steps))
    assert free == before == engine.ready.kv_blocks


async def test_what_becomes_of_a_request_is_said_once_and_in_order(engines: Pair) -> None:
    engine, mark = engines.e0, len(engines.e0.messages)
    key = f"told-{_RANDOM.random()}"
    await engine.post("/v1/completions", body(200, 12, kv_transfer_params={"request": key, "tee": 1}))
    await engine.idle_free_blocks()
    [scheduled] = since(engine, mark, Scheduled)
    [first] = since(engine, mark, FirstToken)
    assert (scheduled.request, scheduled.phase, scheduled.prompt_tokens) == (key, "prefill", 200)
    assert first.request == key
    assert first.at_ns >= scheduled.at_ns
    said = [item for message in since(engine, mark, OutputTokens) for item in message.items]
    assert {(name, number) for name, number, _ in said} == {(key, 0)}
    assert sum(len(tokens) for *_, tokens in said) == 12


async def test_a_request_that_the_router_does_not_know_is_nobodys(engines: Pair) -> None:
    engine, mark = engines.e0, len(engines.e0.messages)
    await engine.post("/v1/completions", body(50, 4))
    await engine.idle_free_blocks()
    assert since(engine, mark, Scheduled) == since(engine, mark, FirstToken) == since(engine, mark, OutputTokens) == []


async def test_kv_is_held_fetched_and_given_back(peers: Pair) -> None:
    e0, e1 = peers.e0, peers.e1
    assert e0.ready is not None
    request = body(400, 10)
    expected = await e0.post("/v1/completions", {**request, "prompt": [*request["prompt"][1:], 3]})
    mark0, mark1 = len(e0.messages), len(e1.messages)
    key = f"held-{_RANDOM.random()}"
    ticket = await peers.prefill(key, request)
    granted = await e0.until(LeaseGranted, lease=key)
    assert (granted.tokens, granted.consumers) == (400, 1)
    assert granted.blocks == math.ceil(400 / e0.ready.block_tokens)
    assert (ticket["engine"], ticket["tokens"], ticket["request"]) == ("e0", 400, key)
    answer = await peers.decode(request, ticket)
    assert answer["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"] == 10
    ended = await e1.until(HandoffEnded, lease=key)
    assert (ended.ok, ended.producer, ended.tokens) == (True, "e0", 400)
    assert ended.bytes > 0
    assert ended.end_ns > ended.start_ns
    assert [step.prompt_tokens for step in since(e1, mark1, Step) if step.prompt_tokens] == [1]
    assert e0.core is not None
    e0.core.send(Release(lease=key, reason="released"))
    assert (await peers.ended(key)).reason == "released"
    assert await e0.idle_free_blocks() == e0.ready.kv_blocks
    assert len([message for message in since(e0, mark0, LeaseEnded) if message.lease == key]) == 1


async def test_a_lease_ends_by_its_last_consumer_by_cancellation_or_by_its_deadline(peers: Pair) -> None:
    e0 = peers.e0
    assert e0.core is not None
    assert e0.ready is not None
    await peers.prefill("two", body(), consumers=2)
    e0.core.send(Release(lease="two", reason="released"))
    await asyncio.sleep(0.2)
    assert [message for message in e0.heard(LeaseEnded) if message.lease == "two"] == []
    e0.core.send(Release(lease="two", reason="released"))
    assert (await peers.ended("two")).reason == "released"
    await peers.prefill("cancelled", body(), consumers=2)
    e0.core.send(Release(lease="cancelled", reason="cancelled"))
    assert (await peers.ended("cancelled")).reason == "cancelled"
    await peers.prefill("late", body(), ttl_s=0.3)
    assert (await peers.ended("late")).reason == "expired"
    assert await e0.idle_free_blocks() == e0.ready.kv_blocks
    for key in ("two", "cancelled", "late"):
        await peers.prefill(key, body())  # an id whose lease has ended may be used again
        e0.core.send(Release(lease=key, reason="cancelled"))
        await e0.until(LeaseEnded, count=2, lease=key)


async def test_kv_that_is_held_no_more_is_computed_again(peers: Pair) -> None:
    request, e0, e1 = body(300, 6), peers.e0, peers.e1
    ticket = await peers.prefill("gone", request)
    assert e0.core is not None
    e0.core.send(Release(lease="gone", reason="cancelled"))
    await peers.ended("gone")
    mark = len(e1.messages)
    answer = await peers.decode(request, ticket)
    assert answer["usage"]["completion_tokens"] == 6
    ended = await e1.until(HandoffEnded, lease="gone")
    assert (ended.ok, ended.bytes) == (False, 0)
    assert ended.error
    assert sum(step.prompt_tokens for step in since(e1, mark, Step)) == 300


async def test_a_peer_that_was_closed_is_not_read_any_more(peers: Pair) -> None:
    request = body(300, 6)
    ticket = await peers.prefill("closed", request)
    await peers.part(peers.e1, peers.e0)
    assert (await peers.decode(request, ticket))["usage"]["completion_tokens"] == 6
    assert not (await peers.e1.until(HandoffEnded, lease="closed")).ok
    assert peers.e0.core is not None
    peers.e0.core.send(Release(lease="closed", reason="cancelled"))
    await peers.ended("closed")


@pytest.mark.parametrize("stream", [True, False])
async def test_whoever_leaves_is_aborted(engines: Pair, stream: bool) -> None:
    engine = engines.e0
    assert engine.session is not None
    assert engine.ready is not None
    request = body(200, 3000, stream=stream)
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(0.5), engine.session.post("http://engine/v1/completions", json=request) as answer:
            await answer.read()
    mark = len(engine.messages)
    assert await engine.idle_free_blocks() == engine.ready.kv_blocks
    assert sum(step.decode_tokens for step in since(engine, mark, Step)) < 1000


async def test_several_sequences_are_told_apart(peers: Pair) -> None:
    request, e0, e1 = body(150, 8, n=2, temperature=1.0, seed=4), peers.e0, peers.e1
    ticket = await peers.prefill("several", request, consumers=2)
    mark = len(e1.messages)
    answer = await peers.decode(request, {**ticket, "tee": 2})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 16
    await e1.until(HandoffEnded, count=2, lease="several")
    await e1.idle_free_blocks()
    said: dict[int, int] = {}
    for message in since(e1, mark, OutputTokens):
        for name, number, tokens in message.items:
            assert name == "several"
            said[number] = said.get(number, 0) + len(tokens)
    assert said == {0: 8, 1: 8}
    assert e0.core is not None
    e0.core.send(Release(lease="several", reason="cancelled"))
    await peers.ended("several")
