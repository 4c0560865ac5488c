"""Steps of known sizes for engines that are new: nobody's requests, gone as soon as somebody comes, and what they tell."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from router_fakes import ASK, Engine, House, failing, house, obliging, until
from test_collector import FakeRouter

from appliance.channel import Step
from appliance.config import Config
from appliance.records import EngineState, EngineView, Role
from appliance.router import calibration as module
from appliance.telemetry.calibration import Made, compared
from appliance.telemetry.collector import Collector
from appliance.telemetry.ledger import Ledger
from appliance.telemetry.timeline import Timelines

MS = 1_000_000


# ---- what is sent


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.01)
    monkeypatch.setattr(module, "_WORD_S", 0.01)


class Heard:
    """What the router tells of calibrations."""

    def __init__(self, built: House) -> None:
        self.said: list[tuple[str, int, bool]] = []
        built.router.calibration.told = lambda *what: self.said.append(what)


async def paced(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A token takes 10 µs."""
    await asyncio.sleep(1e-5 * len(body["prompt"]))
    return await obliging(engine, request, body)


def prompts(engine: Engine) -> list[int]:
    return [len(body["prompt"]) for body in engine.seen if body["max_tokens"] == 1]


async def test_an_engine_that_is_new_gets_prompts_of_growing_size_and_sequences_that_decode(short: Path) -> None:
    async with house(short, "b", calibrate_s=1.5) as built:
        heard, built["e0"].script = Heard(built), paced
        await until(lambda: ("e0", 1, False) in heard.said)
        first = prompts(built["e0"])[: prompts(built["e0"]).index(32, 1)]
        assert first == [32 << place for place in range(len(first))]
        assert 256 <= first[-1] <= 8192, "larger ones would have taken more than their share"
        together = [body for body in built["e0"].seen if body["max_tokens"] > 1]
        assert len(together) % 8 == 0
        assert len({tuple(body["prompt"][:16]) for body in built["e0"].seen}) > 0.9 * len(built["e0"].seen), (
            "no cache has them"
        )
        assert all("kv_transfer_params" not in body and body["ignore_eos"] for body in built["e0"].seen)


async def test_it_is_nobodys_request_and_ends_in_time(short: Path) -> None:
    async with house(short, "b", calibrate_s=0.3) as built:
        heard, built["e0"].script = Heard(built), paced
        began_s = asyncio.get_running_loop().time()
        assert built.router.not_ready() is None, "it delays nothing"
        await until(lambda: ("e0", 1, False) in heard.said)
        assert asyncio.get_running_loop().time() - began_s < 2.0
        assert (built.router.counts().total, built.timelines.recent(9), built.router.in_flight("e0")) == (0, [], 0)
        made = len(built["e0"].seen)
        await asyncio.sleep(0.1)
        assert len(built["e0"].seen) == made, "once for each life"
        built["e0"].view = msgspec.structs.replace(built["e0"].view, epoch=2)
        await until(lambda: ("e0", 2, False) in heard.said)
        assert len(built["e0"].seen) > made


async def test_whoever_comes_interrupts_it_and_what_is_left_is_made_up_for(short: Path) -> None:
    async with house(short, "b", calibrate_s=0.5) as built:
        heard = Heard(built)

        async def slow(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await asyncio.sleep(0 if body["prompt"] == ASK["prompt"] else 0.2)
            return await obliging(engine, request, body)

        built["e0"].script = slow
        await built["e0"].reached.wait()
        client = await asyncio.wait_for(built.ask(ASK), 0.15)
        assert client.status == 200
        await until(lambda: built["e0"].aborted == 1)
        await until(lambda: heard.said.count(("e0", 1, True)) == 2 and len(built["e0"].seen) > 2)
        await until(lambda: heard.said[-1] == ("e0", 1, False))
        made = len(built["e0"].seen)
        await asyncio.sleep(0.1)
        assert len(built["e0"].seen) == made


async def test_while_somebody_is_served_there_is_none(short: Path) -> None:
    async with house(short, "b") as built:

        async def held(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await engine.hold.wait()
            return await obliging(engine, request, body)

        built["e0"].script = held
        built.router.calibration._budget_s = 0.2
        task, _ = built.asking(ASK)
        again = asyncio.create_task(built.router.calibration.run())
        await asyncio.sleep(0.1)
        assert len(built["e0"].seen) == 1
        built["e0"].hold.set()
        await task
        await until(lambda: len(built["e0"].seen) > 5)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)


async def test_it_can_be_off(short: Path) -> None:
    async with house(short, "b") as built:
        await asyncio.sleep(0.1)
        assert built["e0"].seen == []


async def test_an_engine_that_refuses_is_left_alone(short: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(short, "b", calibrate_s=5.0) as built:
        heard, built["e0"].script = Heard(built), failing(404, "this model does not complete")
        with caplog.at_level(logging.WARNING):
            await until(lambda: ("e0", 1, False) in heard.said)
        assert len(built["e0"].seen) == 1
        assert "this model does not complete" in caplog.text


async def test_an_engine_that_is_not_ready_waits(short: Path) -> None:
    async with house(short, "b", calibrate_s=0.2) as built:
        built["e0"].view = msgspec.structs.replace(built["e0"].view, state=EngineState.DRAINING)
        await asyncio.sleep(0.05)
        seen = len(built["e0"].seen)
        await asyncio.sleep(0.25)
        assert len(built["e0"].seen) <= seen + 9


# ---- what it tells


def step(prompt: int, decode: int, took_ms: float, end_ns: int = 0) -> Step:
    values: dict[str, Any] = dict.fromkeys(Step.__struct_fields__, 0)
    batch = {"prompt_tokens": prompt, "decode_tokens": decode, "context_tokens": prompt + 90 * decode}
    return Step(**{**values, **batch, "start_ns": end_ns - int(took_ms * MS), "end_ns": end_ns})


def made(prefill: float = 1.0, decode: float = 1.0, expected: float | None = None) -> list[Made]:
    """Three rounds on an engine that takes so many times what it should."""
    found = []
    for _ in range(3):
        sizes = (32, 64, 128, 256, 512, 1024)
        found += [(step(size, 0, prefill * (10 + 0.05 * size)), 10 + 0.05 * size) for size in sizes]
        found += [(step(0, 8, decode * 12.0), 12.0)] * 9
    return [Made(one, None if expected is None else expected * should * 1e-3) for one, should in found]


def test_the_slow_one_stands_out_against_its_like() -> None:
    found = compared({"e0": made(), "e1": made(prefill=1.4), "e2": made(decode=1.3), "e3": made()})
    ratios = {name: one.against_like for name, one in found.items()}
    assert ratios == pytest.approx({"e0": 1.0, "e1": 1.4, "e2": 1.3, "e3": 1.0})
    assert found["e1"].like == ("e0", "e2", "e3")
    assert found["e1"].slowdown is None


def test_of_two_the_slower_one_is_slow() -> None:
    found = compared({"e0": made(), "e1": made(1.4, 1.4)})
    assert found["e0"].against_like == pytest.approx(1 / 1.4)
    assert found["e1"].against_like == pytest.approx(1.4)


def test_alone_it_is_compared_with_what_was_kept() -> None:
    found = compared({"e0": made(prefill=1.4, expected=1.0)})["e0"]
    assert (found.against_like, found.like, found.slowdown) == (None, (), pytest.approx(1.4))


def test_what_was_not_made_is_not_compared() -> None:
    few = [Made(step(32, 0, 10.0), None)]
    found = compared({"e0": made(), "e1": few, "e2": []})
    assert (found["e0"].against_like, found["e1"].against_like, "e2" in found) == (None, None, False)


# ---- what is learnt of it


class Two:
    topology = "2b"

    def views(self) -> list[EngineView]:
        return [
            EngineView(name=name, role=Role.BOTH, state=EngineState.READY, epoch=1, socket="") for name in ("e0", "e1")
        ]

    def command(self, name: str) -> list[str] | None:
        return None

    def logs(self, name: str) -> list[str] | None:
        return None


@pytest.fixture
def collector() -> Collector:
    ledger = Ledger(lambda engine, message: True)
    return Collector(Config(), Two(), FakeRouter(), ledger, Timelines(10), model_name="demo", version="1")


def calibrate(collector: Collector, engine: str, slow: float, end_ns: int = 0) -> int:
    collector.fold(engine, 1, step(1, 0, 1.0, end_ns), end_ns)
    collector.calibrating(engine, 1, True)
    for _ in range(4):
        for one in made(slow, slow):
            end_ns += one.step.end_ns - one.step.start_ns
            said = msgspec.structs.replace(one.step, start_ns=end_ns - int(one.seconds * 1e9), end_ns=end_ns)
            collector.fold(engine, 1, said, end_ns)
    collector.calibrating(engine, 1, False)
    return end_ns


@pytest.mark.parametrize("order", [("e0", "e1"), ("e1", "e0")])
def test_a_slow_engine_stands_out_and_teaches_nothing_from_its_calibration_on(
    collector: Collector, order: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """With nothing kept and nothing else to compare it with, whoever was ready first."""
    now_ns = 0
    for name in order:
        now_ns = calibrate(collector, name, 1.4 if name == "e1" else 1.0, now_ns)
    e0, e1 = collector.snapshot(now_ns).engines
    assert (e0.calibration.against_like, e1.calibration.against_like) == pytest.approx((1 / 1.4, 1.4))  # type: ignore[union-attr]
    assert "e1 took 1.40 times as long as e0" in caplog.text
    for _ in range(400):  # ordinary work on both
        for name, slow in (("e0", 1.0), ("e1", 1.4)):
            now_ns += 12 * MS
            collector.fold(name, 1, step(0, 8, slow * 12.0, now_ns), now_ns)
    e0, e1 = collector.snapshot(now_ns).engines
    assert e0.slowdown == pytest.approx(1.0, abs=0.03)
    assert e1.slowdown == pytest.approx(1.4, abs=0.05)


def test_that_one_is_slow_from_the_start_is_said_once_however_often_calibrations_end(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    now_ns = calibrate(collector, "e1", 1.4, calibrate(collector, "e0", 1.0))
    for _ in range(3):  # they were interrupted, and have gone on
        now_ns = calibrate(collector, "e0", 1.0, now_ns)
    assert [record.getMessage() for record in caplog.records] == ["e1 took 1.40 times as long as e0 for the same steps"]


def test_the_word_of_a_life_that_is_over_changes_nothing(collector: Collector) -> None:
    collector.calibrating("e0", 7, True)
    collector.calibrating("e9", 1, False)
    calibrate(collector, "e0", 1.0)
    collector.calibrating("e0", 7, False)
    assert collector.snapshot(0).engines[0].calibration is not None
