"""The collector: what a snapshot says of each engine, and how readers are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from appliance.channel import CoreReady, Heartbeat, Step
from appliance.config import Config, TelemetryConfig
from appliance.records import (
    EngineSnapshot,
    EngineState,
    EngineView,
    NodeSnapshot,
    Pair,
    QueueSnapshot,
    RequestCounts,
    Role,
    Verdict,
)
from appliance.telemetry import collector as module
from appliance.telemetry import host
from appliance.telemetry.collector import Collector, engine_snapshot
from appliance.telemetry.ledger import Ledger
from appliance.telemetry.series import Series
from appliance.telemetry.timeline import Timelines

S = 1_000_000_000
NOW = 1000 * S
FIELDS = EngineSnapshot.__struct_fields__
READINGS = FIELDS[FIELDS.index("running") : FIELDS.index("last_step_age_s") + 1]  # what an engine reports


def view(name: str = "e0", role: Role = Role.BOTH, state: EngineState = EngineState.READY, **fields: Any) -> EngineView:
    values: dict[str, Any] = {"epoch": 1, "socket": f"/run/{name}", "pid": 4_000_000, "since_ns": NOW - 3 * S}
    return EngineView(name=name, role=role, state=state, **(values | fields))


def core_ready(blocks: int = 100) -> CoreReady:
    return CoreReady(
        kv_blocks=blocks,
        block_tokens=16,
        max_model_len=512,
        max_batched_tokens=2048,
        max_running=8,
        sockets=("/run/w0",),
        lease_table="/run/leases",
    )


def step(end_ns: int = NOW, took_ns: int = 10_000_000, **fields: Any) -> Step:
    values: dict[str, Any] = dict.fromkeys(("prompt_tokens", "leased", "prefix_queries", "prefix_hits"), 0)
    values |= {"decode_tokens": 1, "context_tokens": 50, "running": 1, "waiting": 2, "fetching": 3}
    values |= {"kv_free": 75, "preemptions": 4}
    return Step(start_ns=end_ns - took_ns, end_ns=end_ns, **(values | fields))


def heartbeat(at_ns: int = NOW, **fields: Any) -> Heartbeat:
    values: dict[str, Any] = {"running": 0, "waiting": 0, "fetching": 0, "kv_free": 100, "leased": 0}
    return Heartbeat(at_ns=at_ns, **(values | fields))


def series(*messages: CoreReady | Step | Heartbeat, at_ns: int = NOW) -> Series:
    found = Series(1)
    for message in messages:
        found.add(message, at_ns)
    return found


def seen(engine: EngineView, reports: Series | None, now_ns: int = NOW) -> EngineSnapshot:
    return engine_snapshot(engine, reports, now_ns, in_flight=0, outstanding=0, memory_bytes=None)


def readings(snapshot: EngineSnapshot) -> dict[str, Any]:
    return {name: getattr(snapshot, name) for name in READINGS}


# ---- one engine


def test_an_engine_that_has_said_nothing_has_no_readings() -> None:
    assert readings(seen(view(state=EngineState.STARTING), None)) == dict.fromkeys(READINGS)


def test_a_view_is_passed_on() -> None:
    made = view(stage="loading weights", progress=0.4, restarts=2, cause="killed", peers=("e1",), cores=(0, 1))
    found = engine_snapshot(made, None, NOW, in_flight=5, outstanding=700, memory_bytes=1 << 30)
    assert (found.stage, found.progress, found.restarts, found.cause) == ("loading weights", 0.4, 2, "killed")
    assert (found.peers, found.cores, found.epoch, found.pid) == (("e1",), (0, 1), 1, 4_000_000)
    assert (found.in_flight, found.outstanding_prompt_tokens, found.memory_bytes) == (5, 700, 1 << 30)
    assert found.in_state_s == pytest.approx(3.0)


def test_the_state_is_that_of_the_last_step_or_heartbeat() -> None:
    reports = series(core_ready(), heartbeat(NOW - 2 * S), step(NOW - S))
    found = seen(view(), reports)
    assert (found.running, found.waiting, found.fetching, found.kv_blocks_free) == (1, 2, 3, 75)
    assert (found.kv_blocks_total, found.block_tokens, found.preemptions) == (100, 16, 4)
    assert (found.kv_usage, found.last_step_age_s) == pytest.approx((0.25, 1.0))
    reports.add(heartbeat(NOW), NOW)
    idle = seen(view(), reports)
    assert (idle.running, idle.kv_usage, idle.preemptions, idle.last_step_age_s) == (0, 0.0, 4, 0.0)


def test_kv_usage_needs_to_know_the_total() -> None:
    found = seen(view(), series(step()))
    assert (found.kv_blocks_total, found.kv_usage, found.kv_blocks_free) == (None, None, 75)


def test_a_ready_and_idle_engine_has_rates_of_zero_and_no_mean_step() -> None:
    found = seen(view(), series(core_ready(), heartbeat()))
    assert (found.prompt_tokens_s, found.output_tokens_s, found.steps_s) == (0.0, 0.0, 0.0)
    assert (found.step_ms, found.prefix_hit_rate) == (None, None)


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.HUNG])
def test_an_engine_out_of_service_has_no_rates(state: EngineState) -> None:
    found = seen(view(state=state), series(core_ready(), step()))
    assert (found.prompt_tokens_s, found.output_tokens_s, found.steps_s, found.step_ms) == (None,) * 4


def test_rates_are_of_the_last_five_seconds() -> None:
    reports = series(step(NOW - 6 * S, prompt_tokens=9_999), at_ns=NOW - 6 * S)
    reports.add(step(NOW - S, took_ns=30_000_000, prompt_tokens=400, decode_tokens=2), NOW - S)
    reports.add(step(NOW, took_ns=10_000_000, prompt_tokens=100, decode_tokens=3), NOW)
    found = seen(view(), reports)
    rates = (found.prompt_tokens_s, found.output_tokens_s, found.steps_s, found.step_ms)
    assert rates == pytest.approx((100.0, 1.0, 0.4, 20.0))


def test_a_clock_read_before_the_last_step_makes_no_negative_age() -> None:
    assert seen(view(), series(step(NOW + S)), NOW).last_step_age_s == 0.0


# ---- the collector


class FakeNode:
    topology = "1p1d"

    def __init__(self) -> None:
        self.engines = [view("e0", Role.PREFILL), view("e1", Role.DECODE)]

    def views(self) -> list[EngineView]:
        return self.engines

    def command(self, name: str) -> list[str] | None:
        return None

    def logs(self, name: str) -> list[str] | None:
        return ["a line"] if name == "e0" else None

    def become(self, **fields: Any) -> None:
        self.engines[0] = msgspec.structs.replace(self.engines[0], **fields)


class FakeRouter:
    reason: str | None = None

    def not_ready(self) -> str | None:
        return self.reason

    def queue_snapshot(self, now_ns: int) -> QueueSnapshot:
        return QueueSnapshot(depth=3, capacity=10)

    def in_flight(self, engine: str) -> int:
        return {"e0": 2, "e1": 5}[engine]

    def outstanding_prompt_tokens(self, engine: str) -> int:
        return {"e0": 700, "e1": 0}[engine]

    def pairs(self, now_ns: int) -> tuple[Pair, ...]:
        return (Pair(prefill="e0", decode="e1", ok=True),)

    def counts(self) -> RequestCounts:
        return RequestCounts(total=9, ok=8, failed=1)


class House:
    def __init__(self, tick_s: float = 0.05) -> None:
        self.node, self.router, self.timelines = FakeNode(), FakeRouter(), Timelines(10)
        config = Config(telemetry=TelemetryConfig(tick_s=tick_s))
        ledger = Ledger(lambda engine, message: True)
        self.collector = Collector(
            config, self.node, self.router, ledger, self.timelines, model_name="demo", version="1.2"
        )

    def e0(self) -> EngineSnapshot:
        return self.collector.snapshot(NOW).engines[0]


@pytest.fixture
def house() -> House:
    return House()


@contextlib.asynccontextmanager
async def running(collector: Collector) -> AsyncIterator[None]:
    task = asyncio.create_task(collector.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_there_is_a_snapshot_before_it_runs(house: House) -> None:
    found = house.collector.latest()
    assert (found.model, found.version, found.topology, found.simulated) == ("demo", "1.2", "1p1d", False)
    assert (found.ready, found.reason, found.verdict) == (True, None, None)
    assert (found.queue.depth, found.requests.total) == (3, 9)
    assert [(e.name, e.in_flight, e.outstanding_prompt_tokens) for e in found.engines] == [("e0", 2, 700), ("e1", 5, 0)]
    assert found.engines[0].running is None


def test_the_node_is_ready_when_the_router_says_so(house: House) -> None:
    house.router.reason = "e0 is stopped"
    found = house.collector.snapshot(NOW)
    assert (found.ready, found.reason) == (False, "e0 is stopped")


def test_a_message_is_of_its_engine(house: House) -> None:
    house.collector.fold("e0", 1, step(running=6), NOW)
    e0, e1 = house.collector.snapshot(NOW).engines
    assert (e0.running, e1.running) == (6, None)


def test_messages_of_another_life_are_ignored(house: House) -> None:
    house.node.become(epoch=2)
    house.collector.fold("e0", 2, step(running=2), NOW)
    house.collector.fold("e0", 1, step(running=7), NOW)
    assert house.e0().running == 2
    house.node.become(epoch=3)
    assert readings(house.e0()) == dict.fromkeys(READINGS)


def test_a_new_life_heard_of_before_its_view_shows_once_the_view_is_there(house: House) -> None:
    house.collector.fold("e0", 2, step(running=2), NOW)
    assert house.e0().running is None
    house.node.become(epoch=2)
    assert house.e0().running == 2


@pytest.mark.parametrize("state", [EngineState.BACKOFF, EngineState.FAILED, EngineState.STOPPED])
def test_what_a_dead_life_said_is_dropped(house: House, state: EngineState) -> None:
    house.collector.fold("e0", 1, core_ready(), NOW)
    house.collector.fold("e0", 1, step(), NOW)
    house.node.become(state=state, pid=None)
    assert readings(house.e0()) == dict.fromkeys(READINGS)
    assert house.collector._series == {}


def test_first_tokens_of_recent_requests_are_shown(house: House) -> None:
    trace = house.timelines.begin("r1", "/v1/completions", True, NOW)
    trace.first_byte(NOW + S)
    trace.finish("ok", 200, NOW + 2 * S)
    found = house.collector.snapshot(NOW)
    assert (found.ttft_p50_s, found.ttft_p99_s) == pytest.approx((1.0, 1.0))
    assert [timeline.id for timeline in found.recent] == ["r1"]


def test_questions_about_requests_and_logs_are_passed_on(house: House) -> None:
    house.timelines.begin("r1", "/v1/completions", True, NOW)
    assert [timeline.id for timeline in house.collector.timelines(5)] == ["r1"]
    assert (house.collector.timeline("r1") or pytest.fail("r1 is unknown")).id == "r1"
    assert house.collector.timeline("r2") is None
    assert (house.collector.logs("e0"), house.collector.logs("e9")) == (["a line"], None)


def test_steps_are_told_one_by_one_and_of_many_the_latest(house: House) -> None:
    for number in range(2000):
        prompt, decode = (300, 0) if number % 2 else (0, 7)
        house.collector.fold("e0", 1, step(NOW, prompt_tokens=prompt, decode_tokens=decode), NOW)
    found = house.collector.steps("e0", 1996, 100)
    assert found is not None
    assert [(one.number, one.prompt_tokens, one.decode_tokens) for one in found] == [
        (1997, 0, 7), (1998, 300, 0), (1999, 0, 7), (2000, 300, 0)
    ]  # fmt: skip
    assert found[0].seconds == pytest.approx(0.01)
    assert found[0].time == pytest.approx(time.time() + (NOW - time.monotonic_ns()) * 1e-9, abs=1)
    assert [one.number for one in house.collector.steps("e0", 0, 2) or ()] == [1999, 2000]
    assert len(house.collector.steps("e0", 0, 9999) or ()) < 2000, "bounded"
    assert (house.collector.steps("e1", 0, 9), house.collector.steps("e9", 0, 9)) == ((), None)


async def test_the_knee_is_found_in_whatever_steps_there_were_and_rare_sizes_are_not_forgotten(house: House) -> None:
    for tokens in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        for _ in range(9):
            took_ns = int(1e9 * max(0.02, tokens * 4e-5))
            house.collector.fold(
                "e0", 1, step(NOW, took_ns, prompt_tokens=tokens, decode_tokens=0, context_tokens=tokens), NOW
            )
    for _ in range(5000):
        house.collector.fold("e0", 1, step(NOW, 20_000_000, prompt_tokens=64, decode_tokens=0, context_tokens=64), NOW)
    found = await house.collector.knee("e0")
    assert found is not None
    assert found.tokens == pytest.approx(450, rel=0.15)
    assert found.missing is None
    unknown = await house.collector.knee("e1")
    assert unknown is not None
    assert (unknown.tokens, unknown.missing) == (
        None,
        "no 3 steps of like size have been seen that prefill and hardly decode",
    )
    assert await house.collector.knee("e9") is None


# ---- ticks and readers


async def test_each_tick_is_told_beginning_with_the_latest(house: House) -> None:
    updates = house.collector.updates()
    first = await anext(updates)
    assert first is house.collector.latest()
    async with running(house.collector), asyncio.timeout(5):
        second, third = await anext(updates), await anext(updates)
    assert first.uptime_s < second.uptime_s < third.uptime_s
    assert third.supervisor.loop_delay_ms is not None
    assert third.supervisor.loop_delay_ms >= 0


async def test_a_fault_in_the_diagnosing_costs_the_verdict_alone_and_is_logged_once(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    well = Verdict(state="ok", summary="All is well.", since=0.0)
    fails = iter((False, True, True, False, True, True))

    def diagnose(_: NodeSnapshot) -> Verdict:
        if next(fails):
            raise ZeroDivisionError
        return well

    house.collector._diagnose = diagnose
    found, logged = [], []
    for number in range(6):
        house.collector._tick(NOW + number * S, 0.0)
        found.append(house.collector.latest())
        logged.append(len(caplog.records))
    assert [one.verdict for one in found] == [well, None, None, well, None, None]
    assert len({one.uptime_s for one in found}) == 6, "each is a new one"
    assert logged == [0, 1, 1, 1, 2, 2], "again once it has worked in between"
    assert caplog.records[0].exc_info is not None
    assert "what holds the node back can't be told" in caplog.text


async def test_a_slow_reader_skips_to_the_newest_and_then_waits(house: House) -> None:
    updates = house.collector.updates()
    await anext(updates)
    for now_ns in (NOW, NOW + S, NOW + 2 * S):
        house.collector._publish(house.collector.snapshot(now_ns))
    assert await anext(updates) is house.collector.latest()
    waiting = asyncio.ensure_future(anext(updates))
    await asyncio.sleep(0)
    assert not waiting.done()
    house.collector._publish(house.collector.snapshot(NOW + 3 * S))
    async with asyncio.timeout(5):
        assert await waiting is house.collector.latest()


async def test_all_readers_are_told(house: House) -> None:
    readers = [house.collector.updates() for _ in range(3)]
    for reader in readers:
        await anext(reader)
    waiting = asyncio.gather(*(anext(reader) for reader in readers))
    await asyncio.sleep(0)
    house.collector._publish(house.collector.snapshot(NOW))
    async with asyncio.timeout(5):
        assert set(map(id, await waiting)) == {id(house.collector.latest())}


async def test_a_late_loop_shows(house: House) -> None:
    updates = house.collector.updates()
    await anext(updates)
    async with running(house.collector), asyncio.timeout(5):
        await anext(updates)  # the collector already sleeps until the next tick, 50 ms from now
        _hold_up(0.15)
        delay_ms = (await anext(updates)).supervisor.loop_delay_ms
    assert delay_ms is not None
    assert delay_ms >= 99


def _hold_up(seconds: float) -> None:
    """Keep the loop from turning."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def test_memory_is_weighed_off_the_loop(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "session_memory_bytes", lambda pid: {4_000_000: 123}.get(pid))
    monkeypatch.setattr(module, "own_memory_bytes", lambda: 77)
    async with running(house.collector), asyncio.timeout(5):
        async for snapshot in house.collector.updates():
            if snapshot.supervisor.memory_bytes is not None:
                break
    assert snapshot.supervisor.memory_bytes == 77
    assert snapshot.engines[0].memory_bytes == 123


# ---- the machine


async def test_memory_is_weighed_the_more_rarely_the_longer_it_takes_and_again_when_engines_change(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[list[int]] = []
    took_s = [0.0]

    def weighed(leaders: list[int]) -> tuple[dict[int, int | None], float]:
        looks.append(leaders)
        return {}, took_s[0]

    monkeypatch.setattr(module, "_weighed", weighed)
    monkeypatch.setattr(module, "_MEMORY_S", 0.02)
    async with running(house.collector):
        await asyncio.sleep(0.3)
        often = len(looks)
        took_s[0] = 3600.0
        await asyncio.sleep(0.3)
        rarely = len(looks)
        await asyncio.sleep(0.3)
        assert often > 3 and len(looks) == rarely <= often + 1
        house.node.engines[0] = view("e0", Role.PREFILL, pid=4_000_007)
        await asyncio.sleep(0.3)
        house.node.engines[0] = view("e0", Role.PREFILL, state=EngineState.SUSPECT, pid=4_000_007)
        await asyncio.sleep(0.3)
    assert len(looks) == rarely + 2 and looks[-1][0] == 4_000_007


def test_own_memory_is_some() -> None:
    assert (host.own_memory_bytes() or 0) > 1 << 20


def test_a_session_is_weighed_with_who_has_left_it_and_with_orphans() -> None:
    """The leader has one child in a session of its own, and an orphaned grandchild in its own."""
    code = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import sys; sys.stdin.read()'], start_new_session=True)\n"
        "orphan, pid = os.pipe()\n"
        "between = os.fork()\n"
        "if not between:\n"
        "    grandchild = os.fork()\n"
        "    if grandchild:\n"
        "        os.write(pid, str(grandchild).encode())\n"
        "        os._exit(0)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.waitpid(between, 0)\n"
        "print(child.pid, os.read(orphan, 20).decode(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as leader:
        assert leader.stdout is not None
        others = {int(pid) for pid in leader.stdout.readline().split()}
        found = {process.pid for process in host._family(leader.pid)}
        size = host.session_memory_bytes(leader.pid)
        assert leader.stdin is not None
        leader.stdin.close()  # all three end
    assert found == {leader.pid, *others}
    assert size is not None
    assert size > 1 << 20


def test_a_session_that_is_gone_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True) as leader:
        pass
    assert host.session_memory_bytes(leader.pid) is None


def test_a_refused_reading_is_none_and_not_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: host.psutil.Process) -> int:
        raise host.psutil.AccessDenied(process.pid)

    monkeypatch.setattr(host, "_pss_bytes", refuse)
    assert host.session_memory_bytes(os.getpid()) is None
    assert host.own_memory_bytes() is None
