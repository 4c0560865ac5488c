"""The load client against a fake server whose pace and faults are known."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from bench import measure, report
from bench.figures import Result, Summary, percentile, result, summarise
from bench.load import Plan, Target, bodies, drive, due_times_s, main, table
from bench.memcpy import POOL_BYTES, Memory
from bench.records import AGGREGATED, APPLIANCE, Cell, Handoffs, Report, Run, StartUp, Transfer, Usage

MS = 1_000_000
PLAN = Plan(model="m", requests=8, prompt_tokens=5, output_tokens=4, concurrency=3)


class Fake:
    """Streams ``max_tokens`` events; ``fault`` says how it fails."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.running = self.most_running = 0
        self.fault: str | None = None
        self.connections: set[int] = set()
        self.hold_s = 0.005

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.connections.add(id(request.transport))
        if self.fault == "status":
            return web.json_response({"error": {"message": "no engine"}}, status=503)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(self.hold_s)
        await self._answer(response, body["max_tokens"] - (self.fault == "short"))
        self.running -= 1
        return response

    async def _answer(self, response: web.StreamResponse, tokens: int) -> None:
        await response.write(b": a comment\n\n")
        for _ in range(tokens):
            await response.write(b'data: {"choices": [{"text": ""}]}\n\n')
        if self.fault == "error":
            await response.write(b'data: {"error": {"message": "engine died"}}\n\n')
        usage = {"choices": [], "usage": {"completion_tokens": tokens}}
        await response.write(f"data: {json.dumps(usage)}\n\n".encode())
        if self.fault != "cut":
            await response.write(b"data: [DONE]\n\n")


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[tuple[Fake, Target]]:
    server = Fake()
    app = web.Application()
    app.router.add_post("/v1/completions", server.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    async with Target("http://engine", tmp_path / "s") as target:
        yield server, target
    await runner.cleanup()


async def test_closed_loop_keeps_concurrency_and_counts_all(fake: tuple[Fake, Target]) -> None:
    server, target = fake
    done: list[Result] = []
    summary, results = await drive(target, PLAN, done.append)
    assert (summary.n, summary.errors, summary.first_error) == (8, 0, None)
    assert (
        server.most_running == 3 == len(server.connections)
    )  # each answer read to its end, so that they are used again
    assert results == done and all(one.tokens == 4 and len(one.gaps_s) == 3 for one in results)
    assert summary.ttft_p50_s is not None and summary.ttft_p50_s >= 0.005
    assert summary.requests_s == pytest.approx(8 / summary.duration_s)


async def test_prompts_are_fresh_seeded_and_within_the_vocabulary(fake: tuple[Fake, Target]) -> None:
    server, target = fake
    await drive(target, PLAN)
    prompts = [tuple(body["prompt"]) for body in server.seen]
    assert len(set(prompts)) == 8 and all(len(prompt) == 5 and max(prompt) < 256 for prompt in prompts)
    assert sorted(prompts) == sorted(tuple(body["prompt"]) for body in bodies(PLAN))
    other = Plan(model="m", requests=8, prompt_tokens=5, output_tokens=4, seed=1)
    assert bodies(other)[0]["prompt"] != bodies(PLAN)[0]["prompt"]
    assert all(body["stream"] and body["ignore_eos"] and body["max_tokens"] == 4 for body in server.seen)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("status", "503"), ("short", "3 tokens"), ("error", "engine died"), ("cut", "DONE")],
)
async def test_every_fault_is_an_error_and_no_time(fake: tuple[Fake, Target], fault: str, said: str) -> None:
    server, target = fake
    server.fault = fault
    summary, results = await drive(target, PLAN)
    assert (summary.n, summary.errors, summary.requests_s) == (8, 8, 0.0)
    assert said in (summary.first_error or "")
    assert all(one.ttft_s is None and not one.gaps_s for one in results)
    assert summary.ttft_p50_s is None


async def test_nobody_listening_is_an_error(tmp_path: Path) -> None:
    async with Target("http://engine", tmp_path / "none") as target:
        summary, _ = await drive(target, PLAN)
    assert summary.errors == 8


async def test_open_loop_does_not_wait_for_answers(fake: tuple[Fake, Target]) -> None:
    server, target = fake
    server.hold_s = 0.3
    plan = Plan(model="m", requests=8, prompt_tokens=5, output_tokens=4, rate=200.0)
    summary, _ = await drive(target, plan)
    assert summary.errors == 0 and server.most_running == 8


def test_arrivals_are_poisson_at_the_rate_asked_for() -> None:
    plan = Plan(model="m", requests=4000, prompt_tokens=1, output_tokens=1, rate=5.0)
    times = due_times_s(plan)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == due_times_s(plan) and min(gaps) >= 0
    assert times[-1] == pytest.approx(4000 / 5.0), "chance changes when they come, and not how many"
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)
    others = msgspec.structs.replace(plan, seed=7, arrivals=plan.seed)
    assert due_times_s(others) == times != due_times_s(msgspec.structs.replace(others, arrivals=None))
    few = [msgspec.structs.replace(plan, requests=40, seed=seed) for seed in range(5)]
    assert {round(due_times_s(one)[-1], 6) for one in few} == {8.0}
    with pytest.raises(ValueError, match="rate"):
        due_times_s(PLAN)


def test_times_of_one_answer() -> None:
    one = result(10 * MS, [15 * MS, 17 * MS, 21 * MS], 22 * MS, tokens=3, wanted=3)
    assert one.ok and one.ttft_s == pytest.approx(0.005) and one.total_s == pytest.approx(0.012)
    assert one.tpot_s == pytest.approx(0.003) and one.gaps_s == pytest.approx([0.002, 0.004])


def test_tokens_that_share_an_event_count_each_for_tpot() -> None:
    one = result(0, [10 * MS, 16 * MS], 16 * MS, tokens=4, wanted=4)
    assert one.tpot_s == pytest.approx(0.002) and one.gaps_s == pytest.approx([0.006])


def test_single_token_has_no_tpot() -> None:
    assert result(0, [MS], MS, tokens=1, wanted=1).tpot_s is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentile_is_nearest_rank(share: float, value: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == value
    assert percentile([None], share) is None


def test_table_shows_absent_as_a_dash() -> None:
    text = table(PLAN, summarise([Result(error="x")], 1.0))
    head, rule, row = text.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert "c3" in row and row.count("—") == 6


async def test_command_line_writes_table_and_json(
    fake: tuple[Fake, Target], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--requests", "3", "--prompt-tokens", "2", "--output-tokens", "2", "--concurrency", "2"]
    arguments = ["--url", "http://engine", "--uds", str(tmp_path / "s"), "--model", "m", *sizes]
    status = await asyncio.to_thread(main, [*arguments, "--json", str(tmp_path / "f.json")])
    assert status == 0
    assert "| c2 | 2 | 2 | 3 | 0 |" in capsys.readouterr().out
    written = json.loads((tmp_path / "f.json").read_text())
    assert set(written["summary"]) == set(Summary.__struct_fields__) and len(written["requests"]) == 3


def _run(server: str, repetition: int, ttft_s: float | None) -> Run:
    good = [Result(ok=True, tokens=2, ttft_s=ttft_s, tpot_s=0.004, gaps_s=[0.004])] if ttft_s else [Result(error="x")]
    return Run(server=server, repetition=repetition, cell=Cell(256, 1), summary=summarise(good, 1.0))


def test_ratios_are_of_pairs_and_leave_out_what_has_no_partner() -> None:
    runs = [_run(APPLIANCE, 0, 0.2), _run(AGGREGATED, 0, 0.1), _run(AGGREGATED, 1, 0.2), _run(APPLIANCE, 1, 0.1)]
    runs += [_run(APPLIANCE, 2, 9.0), _run(APPLIANCE, 3, None), _run(AGGREGATED, 3, 0.1)]
    found = report.ratios(runs, Cell(256, 1), lambda one: one.ttft_p50_s)
    assert found == pytest.approx([2.0, 0.5])
    assert report.ratios(runs, Cell(256, 4), lambda one: one.ttft_p50_s) == []


def test_spread() -> None:
    assert report.spread([0.3, None, 0.1, 0.2], 1e3) == "200.0 (100.0–300.0)"
    assert report.spread([2.0], digits=2) == "2.00" and report.spread([None]) == "—"


def _timeline(bytes_moved: int | None, duration_s: float, recomputed: bool = False) -> dict[str, Any]:
    stages = [{"name": "queue", "duration_s": 5.0}, {"name": "transfer", "duration_s": duration_s}]
    return {
        "stages": stages,
        "transfer_bytes": bytes_moved,
        "transfer_copies": 4,
        "recomputed": recomputed,
        "split": True,
    }


def test_transfers_are_those_whose_bytes_arrived() -> None:
    timelines = [_timeline(8 << 20, 0.002), _timeline(None, 0.002), _timeline(0, 0.0), _timeline(9, 0.1, True)]
    assert measure.transfers_of(timelines) == (Transfer(bytes=8 << 20, copies=4, duration_s=0.002),)


def test_memmove_copies_all_it_says_and_refuses_what_does_not_fit() -> None:
    with Memory() as memory:
        one = memory.measure(1 << 20, 64 << 10, rounds=3)
        assert (one.total_bytes, one.copies) == (1 << 20, 16)
        assert 0 < one.fastest_s <= one.median_s <= one.slowest_s
        with pytest.raises(ValueError, match="fit"):
            memory.measure(2 * POOL_BYTES)


def test_report_has_every_part_and_rectangular_tables() -> None:
    with Memory() as memory:
        copied = memory.measure(1 << 20, rounds=3)
    moved = Handoffs(
        repetition=0,
        cell=Cell(256, 1),
        requests=5,
        split=4,
        recomputed=0,
        transfers=(Transfer(bytes=1 << 20, copies=16, duration_s=copied.median_s * 2),),
        memmove=copied,
        memmove_alike=None,
    )
    whole = Report(
        started=0.0,
        duration_s=60.0,
        repetitions=1,
        output_tokens=32,
        kv_cache_bytes=512 << 20,
        machine={"cores": "2"},
        versions={"python": "3.11"},
        start_ups=(
            StartUp(server=APPLIANCE, repetition=0, page_s=0.9, engines_ready_s={"e0": 7.0}, first_token_s=8.0),
        ),
        usages=(Usage(server=APPLIANCE, part="supervisor", processes=1, pss_bytes=64 << 20, idle_cpu=0.01),),
        runs=(_run(APPLIANCE, 0, 0.2), _run(AGGREGATED, 0, 0.1)),
        handoffs=(moved,),
    )
    text = report.markdown(whole)
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, block
    assert "| TTFT p50 ms | 200.0 | 100.0 | 2.00 |" in text and "4 of 5" in text and "| 0.50 |" in text
