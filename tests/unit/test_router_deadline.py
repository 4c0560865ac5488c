"""How long a request may take: in the queue, and in all."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest
from router_fakes import ASK, EVENTS, STREAM, Client, House, endless, fails, holding, house, last, queued, until

from appliance.errors import RequestError

SHORT = {"x-request-timeout": "0.2"}


@pytest.mark.parametrize("said", ["0", "-1", "soon", "", "1e3", "nan", "inf", "1" * 10])
async def test_a_timeout_that_is_none_is_refused(pair: House, said: str) -> None:
    with pytest.raises(RequestError, match="number of seconds") as caught:
        await pair.ask(ASK, headers={"x-request-timeout": said})
    assert (caught.value.status, caught.value.param) == (400, "x-request-timeout")
    assert pair.router.counts().failed == 1


async def test_an_answer_in_time_knows_nothing_of_it(pair: House) -> None:
    client = await pair.ask(STREAM, headers={"x-request-timeout": "60"})
    assert client.body == b"".join(EVENTS)


@pytest.mark.parametrize("engine", ["e0", "e1"])
async def test_what_is_not_there_in_time_is_504_and_nothing_of_it_goes_on(pair: House, engine: str) -> None:
    pair[engine].script = holding()
    with pytest.raises(RequestError, match=r"not complete after 0\.2 s.*x-request-timeout") as caught:
        await pair.ask(ASK, headers=SHORT)
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    await until(lambda: pair[engine].aborted == 1)
    assert (last(pair).outcome, last(pair).status) == ("failed", 504)


async def test_a_stream_that_is_not_complete_in_time_ends_with_an_error(pair: House) -> None:
    pair["e1"].script = endless
    client = await pair.ask(STREAM, headers=SHORT)
    assert client.ended
    assert b"deadline_exceeded" in client.chunks[-1]
    assert b"[DONE]" not in client.body
    assert last(pair).outcome == "failed"
    await until(lambda: pair["e1"].aborted == 1)


async def test_the_owner_decides_how_long_is_the_longest(short: Path) -> None:
    async with house(short, request_timeout_s=0.2) as built:
        built["e0"].script = holding()
        with pytest.raises(RequestError, match=r"0\.2 s"):
            await built.ask(ASK, headers={"x-request-timeout": "900"})


class Deaf(Client):
    """Reads the first bytes, and no more."""

    async def send(self, chunk: bytes) -> None:
        if self.chunks:
            await asyncio.sleep(3600)
        await super().send(chunk)

    def send_now(self, chunk: bytes) -> bool:
        return False


async def test_a_client_that_does_not_read_is_not_waited_for(pair: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.router.request._FAREWELL_S", 0.1)
    monkeypatch.setattr("router_fakes.Client", Deaf)
    pair["e1"].script = endless
    async with asyncio.timeout(5):
        client = await pair.ask(STREAM, headers=SHORT)
    assert not client.ended, "so that its connection is closed"
    assert last(pair).outcome == "failed"


async def test_who_waits_too_long_for_an_engine_is_shed(short: Path) -> None:
    async with house(short, queue_timeout_s=0.2) as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
        built["e0"].script = holding()
        task, _ = built.asking(ASK)
        await built["e0"].reached.wait()
        with pytest.raises(RequestError, match="queue_timeout_s") as caught:
            await built.ask(ASK)
        assert (caught.value.status, caught.value.code) == (429, "queue_timeout")
        assert caught.value.retry_after_s is not None
        assert (built.router.counts().failed, built.router.counts().refused) == (1, 0)
        built["e0"].hold.set()
        await task
        await until(built.idle)


async def test_a_flood_makes_room_for_others(short: Path) -> None:
    async with house(short, queue_capacity=2) as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
        built["e0"].script = holding()
        flood = [built.asking(ASK, peer="10.0.0.1")[0] for _ in range(3)]
        await until(lambda: queued(built, 2))
        single, client = built.asking(ASK, peer="10.0.0.2")
        with pytest.raises(RequestError, match="2 requests already wait") as caught:
            await flood[2]
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        built["e0"].hold.set()
        await asyncio.gather(*flood[:2], single)
        assert client.status == 200


async def test_keys_that_nobody_verifies_make_no_client(short: Path) -> None:
    async with house(short, queue_capacity=2) as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
        built["e0"].script = holding()
        asking = [
            built.asking(ASK, headers={"authorization": f"Bearer sk-{number}"}, peer="10.0.0.1")[0]
            for number in range(3)
        ]
        await until(lambda: queued(built, 2))
        with pytest.raises(RequestError, match="2 requests already wait"):
            await built.ask(ASK, headers={"authorization": "Bearer sk-9"}, peer="10.0.0.1")
        built["e0"].hold.set()
        await asyncio.gather(*asking)


async def test_one_that_can_not_be_served_is_not_waited_for_for_ever(pair: House) -> None:
    """Of routes that any engine answers at once."""
    for engine in pair.engines.values():
        engine.script = holding()
    with pytest.raises(RequestError, match=r"no answer within 0\.2 s") as caught:
        await pair.ask({"prompt": "x"}, path="/tokenize", headers=SHORT)
    assert caught.value.status == 504


class Stuck(Client):
    """Takes all but the last piece."""

    async def send(self, chunk: bytes) -> None:
        if chunk.endswith(b"[DONE]\n\n"):
            await asyncio.sleep(3600)
        await super().send(chunk)


async def test_an_end_that_the_client_has_not_had_is_no_end(pair: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_fakes.Client", Stuck)
    pair["e1"].script = fails(*EVENTS)
    client = await pair.ask(STREAM, headers={"x-request-timeout": "0.5"})
    assert client.ended
    assert b"deadline_exceeded" in client.chunks[-1]
    assert last(pair).outcome == "failed"


@pytest.mark.parametrize("deadline", [number / 500 for number in range(1, 16)])
async def test_whenever_it_fires_nothing_is_left(pair: House, deadline: float) -> None:
    pair["e1"].script = fails(*EVENTS)
    for body in (ASK, STREAM):
        with contextlib.suppress(RequestError):
            await pair.ask(body, headers={"x-request-timeout": str(deadline)})
        await until(pair.idle)
        assert len(pair.router._journal) == 0
