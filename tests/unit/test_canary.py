"""The test of a pair of engines: a small request through both legs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from router_fakes import ASK, STREAM, Engine, House, failing, holding, house, until

from appliance.channel import CANARY, HandoffEnded
from appliance.router import canary
from web.openai import _ID

pytestmark = pytest.mark.usefixtures("brisk")


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_TICK_S", 0.02)
    monkeypatch.setattr(canary, "_WORD_S", 0.2)
    monkeypatch.setattr(canary, "_PATIENCE_S", 1.0)
    monkeypatch.setattr("appliance.router.pairs._AGAIN_NS", 20_000_000)


def ended(key: str, error: str | None = None) -> HandoffEnded:
    return HandoffEnded(
        lease=key, producer="e0", ok=error is None, bytes=64, tokens=8, start_ns=0, end_ns=1, error=error
    )


def telling(built: House, error: str | None = None) -> None:
    """The decode engine says how the hand-off went, as EngineCore would."""

    async def script(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        built.router.fold("e1", ended(built["e0"].seen[-1]["kv_transfer_params"]["request"], error))
        return web.json_response({"choices": [{"text": "a"}]})

    built["e1"].script = script


def known(built: House) -> tuple[bool | None, bool, str | None]:
    pairs = built.router.pairs(0)
    return (pairs[0].ok, pairs[0].in_use, pairs[0].error) if pairs else (None, True, None)


async def test_an_idle_pair_is_tested_and_nobody_is_bothered_with_it(short: Path) -> None:
    async with house(short, canary_s=30) as built:
        telling(built)
        await until(lambda: known(built)[0] is True)
        key = built["e0"].seen[0]["kv_transfer_params"]["request"]
        assert key.startswith(CANARY)
        assert (built["e0"].seen[0]["max_tokens"], built["e1"].seen[0]["max_tokens"]) == (1, 2)
        assert key in built.ledger.cancelled
        assert built.router.counts().total == 0
        assert built.timelines.recent(9) == []
        await asyncio.sleep(0.1)
        assert len(built["e0"].seen) == 1, "it works: not again for a while"


async def test_while_somebody_is_served_there_are_no_tests(short: Path) -> None:
    async with house(short, canary_s=0.05) as built:
        telling(built)
        built["e0"].script = holding()
        task, _ = built.asking(ASK)
        await built["e0"].reached.wait()
        await asyncio.sleep(0.2)
        assert len(built["e0"].seen) == 1
        built["e0"].hold.set()
        await task


async def test_a_broken_pair_is_not_used_and_is_used_again_when_it_works(short: Path) -> None:
    async with house(short, canary_s=30) as built:
        telling(built, "the memory of e0 can't be mapped")
        await until(lambda: not known(built)[1])
        client = await built.ask(STREAM)
        assert client.fields["x-unsplit-reason"] == (
            "no two engines share their KV memory: e0 to e1: the memory of e0 can't be mapped"
        )
        telling(built)
        await until(lambda: known(built)[:2] == (True, True))
        assert "x-unsplit-reason" not in (await built.ask(ASK)).fields


async def test_a_decode_engine_that_says_nothing_of_the_hand_off_fails_the_test(short: Path) -> None:
    async with house(short, canary_s=30) as built:
        await until(lambda: not known(built)[1])
        assert "does not say that it has fetched the KV" in (known(built)[2] or "")


async def test_a_prefill_engine_that_keeps_nothing_proves_nothing(short: Path) -> None:
    """All its leases may be taken."""
    async with house(short, canary_s=30) as built:

        async def forgets(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            return web.json_response({"choices": [], "kv_transfer_params": None})

        built["e0"].script = forgets
        await until(lambda: known(built)[2] is not None)
        assert known(built) == (None, True, "e0 has kept no KV")


async def test_a_fault_in_a_test_does_not_end_the_tests(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(short, canary_s=0.05) as built:
        monkeypatch.setattr(canary.legs, "kept", lambda answer: 1 / 0)
        await until(lambda: known(built)[2] == "the test itself failed: see the log")
        monkeypatch.undo()
        telling(built)
        await until(lambda: known(built)[0] is True)


async def test_a_pair_that_does_not_answer_does_not_hold_up_another(short: Path) -> None:
    async with house(short, "pdd", canary_s=30) as built:
        built["e1"].script = holding()
        await until(lambda: len(built["e2"].seen) > 0, 0.8)


async def test_nobody_can_call_a_request_a_test(short: Path) -> None:
    async with house(short) as built:
        await built.ask(ASK, id="canary.x")
        assert not built["e0"].seen[0]["kv_transfer_params"]["request"].startswith(CANARY)
        assert not _ID.fullmatch(CANARY + "x")


@pytest.mark.parametrize("status", [404, 500])
async def test_what_an_engine_refuses_proves_nothing_of_the_pair(short: Path, status: int) -> None:
    async with house(short, canary_s=30) as built:
        built["e0"].script = failing(status, "not me")
        await until(lambda: known(built)[2] is not None)
        assert known(built) == (None, True, f"e0 answered {status} to a test of the hand-off: not me")


async def test_nor_does_silence(short: Path) -> None:
    async with house(short, canary_s=30) as built:
        built["e1"].script = holding()
        await until(lambda: known(built)[2] is not None)
        assert known(built) == (None, True, "no answer within 1 s")
        await until(lambda: built["e1"].aborted == 1)
        assert built["e0"].seen[0]["kv_transfer_params"]["request"] in built.ledger.cancelled


async def test_a_failed_hand_off_of_somebodys_is_looked_into(short: Path) -> None:
    async with house(short, canary_s=30) as built:
        telling(built)
        await until(lambda: known(built)[0] is True)
        telling(built, "gone")
        built.router.fold("e1", ended("somebody.1", "gone"))
        await until(lambda: known(built) == (False, False, "gone"))
