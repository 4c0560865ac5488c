"""The bench of peers: its pure parts, its store, what is installed how, and the small servers of its own. No peer is installed or run."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import psutil
import pytest
from aiohttp import web

from appliance.supervisor.specs import cpu_environment
from bench import servers
from bench.figures import Result, summarise
from bench.load import Plan, Target, Turns, bodies, drive
from bench.peers import budgets, frontends, loads, run
from bench.peers.budgets import Outcome
from bench.peers.contestants import (
    CONTESTANTS,
    DYNAMO,
    PREFILL,
    RELAY,
    REPLICAS,
    SPLIT,
    STOCK,
    SUPERVISOR,
    TUNED,
    VLLM,
    Contestant,
    chosen,
    turns,
)
from bench.peers.environments import RECIPES, Environment, InstallError, Recipe, digest, edited, install, locked, steps
from bench.peers.loads import FULL, QUICK, Load, Scale
from bench.peers.pacer import TOKEN, Pacer, Stream, ending
from bench.peers.proxy import Proxy, RefusedError, decode_body, length, prefill_body
from bench.peers.records import Handed, Measured, Report, Setup, Started, Streamed
from bench.peers.report import markdown
from bench.peers.starting import Running, engine_command, engine_environment, nixl_totals, seated, seats
from bench.peers.store import OtherResultsError, Store
from bench.records import Usage
from bench.servers import ServerError

C1 = Load(prompt_tokens=256, concurrency=1)
C16 = Load(prompt_tokens=256, concurrency=16)
OPEN = Load(prompt_tokens=256, share=0.3)


# ---- who, and in which order


def test_all_are_chosen_unless_some_are_named_and_names_are_checked() -> None:
    assert chosen([]) == CONTESTANTS and len({one.key for one in CONTESTANTS}) == len(CONTESTANTS)
    assert chosen(["nixl-tuned", "vllm"]) == (VLLM, TUNED)
    with pytest.raises(ValueError, match=r"no such peers: nixl; there are vllm, replicas"):
        chosen(["nixl", "vllm"])


def test_each_repetition_begins_with_another_and_neighbours_change() -> None:
    orders = [turns(CONTESTANTS, number) for number in range(3)]
    assert all(set(order) == set(CONTESTANTS) and len(order) == len(CONTESTANTS) for order in orders)
    assert len({order[0] for order in orders}) == 3
    assert len({order[order.index(TUNED) - 1] for order in orders}) > 1
    assert turns((), 2) == ()


@pytest.mark.parametrize("of", [CONTESTANTS, (PREFILL, SPLIT, TUNED), (VLLM, SPLIT, TUNED)])
@pytest.mark.parametrize("repetition", range(4))
def test_whose_ratios_count_come_one_after_the_other(of: tuple[Contestant, ...], repetition: int) -> None:
    order = turns(of, repetition)
    others = {TUNED, PREFILL} & set(of)
    assert {abs(order.index(SPLIT) - order.index(one)) for one in others} == {1}


# ---- what is asked


def test_closed_loops_are_all_cells_and_frontends_have_none() -> None:
    cells = [(load.prompt_tokens, load.concurrency) for load in loads.closed(SPLIT, FULL)]
    assert cells == [(tokens, clients) for tokens in (256, 2048) for clients in (1, 4, 16)]
    assert loads.closed(DYNAMO, FULL) == () == loads.opened(DYNAMO, FULL, {256: 1.0})
    assert {(load.output_tokens, load.concurrency) for load in loads.closed(PREFILL, FULL)} == {(1, 16)}
    assert loads.opened(PREFILL, FULL, {256: 1.0}) == ()


def test_a_peer_as_it_comes_is_asked_once_and_not_by_most() -> None:
    assert {load.concurrency for load in loads.closed(STOCK, FULL)} == {1, 4}
    assert loads.closed(STOCK, FULL, 1) == () == loads.opened(STOCK, FULL, {256: 1.0})
    assert loads.closed(STOCK, QUICK) == loads.closed(SPLIT, QUICK)


def test_open_loops_are_only_where_a_capacity_is_known() -> None:
    assert loads.opened(SPLIT, FULL, {}) == ()
    assert [load.share for load in loads.opened(SPLIT, FULL, {2048: 1.5})] == [0.3, 0.6, 0.8]
    assert all(load.prompt_tokens == 2048 for load in loads.opened(SPLIT, FULL, {2048: 1.5}))
    assert loads.opened(VLLM, FULL, {256: 1.0}) == (), "no budget is about it"
    both = {256: 1.0, 2048: 1.0}
    for asked in (loads.closed(TUNED, FULL), loads.opened(TUNED, FULL, both)):
        assert {load.prompt_tokens for load in asked} == {256, 2048}
    assert {load.prompt_tokens for load in loads.closed(TUNED, FULL, 0, (256,))} == {256}
    assert {load.prompt_tokens for load in loads.opened(TUNED, FULL, both, (2048,))} == {2048}


def test_capacity_is_the_median_with_most_clients_of_what_was_measured_in_every_repetition() -> None:
    c4, long = Load(prompt_tokens=256, concurrency=4), Load(prompt_tokens=2048, concurrency=16)
    held = [(c4, 99.0), (C16, 12.0), (C16, 10.0), (C16, 11.0), (OPEN, 500.0), (long, 2.0), (long, 2.0)]
    assert loads.capacities(held, FULL) == {256: 11.0}, "the long ones have been measured twice"


def test_at_least_five_requests_per_client_and_equal_rates_for_all() -> None:
    for load in loads.closed(SPLIT, FULL):
        assert loads.plan(load, FULL, "m", 0, {}).requests >= 5 * (load.concurrency or 0)
    one = loads.plan(OPEN, FULL, "m", 0, {256: 10.0})
    assert (one.rate, one.requests) == (3.0, 120)
    assert loads.plan(OPEN, FULL, "m", 0, {256: 0.1}).requests == FULL.open_requests_min


def test_all_are_asked_the_same_prompts() -> None:
    [alone] = loads.closed(PREFILL, QUICK)
    [same] = loads.closed(SPLIT, QUICK)
    plans = [loads.plan(load, QUICK, "m", loads.seed(load, QUICK, 0), {}) for load in (alone, same)]
    assert [body["prompt"] for body in bodies(plans[0])] == [body["prompt"] for body in bodies(plans[1])]


def test_no_prompt_comes_twice_to_a_server() -> None:
    some = loads.closed(SPLIT, QUICK) + loads.opened(SPLIT, QUICK, {256: 5.0})
    plans = [loads.plan(load, QUICK, "m", loads.seed(load, QUICK, 0), {256: 5.0}) for load in some]
    plans += [*(loads.warming(plan, QUICK) for plan in plans), *loads.first(QUICK, "m")]
    prompts = [tuple(body["prompt"]) for plan in plans for body in bodies(plan)]
    assert len(set(prompts)) == len(prompts)
    assert all(loads.warming(plan, QUICK).rate is None for plan in plans), "warm-ups are closed loops"


def test_files_of_loads_have_names_of_their_own() -> None:
    every = [*loads.closed(SPLIT, FULL), *loads.closed(PREFILL, FULL), *loads.opened(SPLIT, FULL, {256: 1, 2048: 1})]
    assert len({load.key for load in every}) == len(every) == 14


# ---- which cores


def test_cores_are_shared_out_as_the_appliance_does() -> None:
    assert seats(VLLM, (0, 1)) == [(0, 1)]
    assert seats(REPLICAS, (0, 1)) == [(0,), (1,)] == seats(TUNED, (0, 1))
    assert seats(PREFILL, (0, 1, 2, 3)) == [(0, 1)]
    assert engine_environment(STOCK, (0, 1), (0, 1))["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    part = engine_environment(STOCK, (2, 3), (0, 1, 2, 3))
    assert (part["VLLM_CPU_OMP_THREADS_BIND"], part["OMP_NUM_THREADS"]) == ("2,3", "2")


def test_peers_engines_are_told_what_ours_are_but_for_one_that_is_as_it_comes() -> None:
    ours = cpu_environment(1)
    told = engine_environment(TUNED, (0,), (0, 1))
    assert {name: told.get(name) for name in ours if name != "PYTHONUNBUFFERED"} == {
        name: value for name, value in ours.items() if name != "PYTHONUNBUFFERED"
    }
    assert "uni" in engine_command(TUNED, Path("s"), Path("m"))
    assert "uni" not in engine_command(STOCK, Path("s"), Path("m"))
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in engine_environment(STOCK, (0,), (0, 1))
    assert int(told["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > 600, "a proxy's connection may rest while a prompt is computed"


async def test_whatever_core_an_engine_has_chosen_it_is_put_on_its_own(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    command = [
        "-c",
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); print(flush=True)",
    ]
    log = tmp_path / "log"
    async with servers.process("an engine", command, {}, Target("http://engine", tmp_path / "s"), log) as server:
        while not server.log:
            await asyncio.sleep(0.02)
        seated(STOCK, [(server, (core,))])
        assert len(os.sched_getaffinity(server.pid)) == len(os.sched_getaffinity(0)), "as it comes"
        seated(TUNED, [(server, (core,))])
        threads = psutil.Process(server.pid).threads()
        assert len(threads) == 2 and {frozenset(os.sched_getaffinity(one.id)) for one in threads} == {frozenset({core})}


def test_transfers_are_told_by_metrics() -> None:
    text = '# HELP vllm:nixl_bytes_transferred\nvllm:nixl_bytes_transferred_sum{engine="0"} 3e+06\n'
    text += 'vllm:nixl_xfer_time_seconds_sum{engine="0"} 0.5\nvllm:nixl_xfer_time_seconds_bucket{le="1"} 9\n'
    text += 'vllm:nixl_num_failed_transfers_total{engine="0"} 2.0\nvllm:nixl_num_kv_expired_reqs_total 1\n'
    assert nixl_totals(text) == (3e6, 0.5, 3.0)
    assert nixl_totals("") == (0.0, 0.0, 0.0)


async def test_of_ours_prompts_count_that_were_computed_where_the_answer_was_made() -> None:
    class Told:
        async def json(self, path: str) -> list[dict[str, Any]]:
            copied = {"transfer_bytes": 4000, "transfer_copies": 2}
            stages = [{"name": "transfer", "duration_s": 0.002}]
            return [
                {"split": split, "recomputed": again, "stages": stages, **copied}
                for split, again in ((True, False), (True, True), (False, False))
            ]

    servers: Any = {"appliance": Told()}
    one = Running(contestant=SPLIT, target=Answers(), servers=servers, page_s=None, first_token_s=1.0)
    assert await one.handed_over(None, 4) == Handed(bytes_s=2e6, missed=3), "of one nothing is known"
    plain = Running(contestant=VLLM, target=Answers(), servers=servers, page_s=None, first_token_s=1.0)
    assert await plain.handed_over(None, 4) is None


# ---- what is installed, and how


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_requirements_are_pinned(name: str) -> None:
    text = RECIPES[name].requirements.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines and all("==" in line for line in lines)
    assert len(locked(text)) == len(lines)


def test_whoever_requires_an_environment_has_a_recipe_for_it() -> None:
    assert {one.requires for one in CONTESTANTS} - {""} == set(RECIPES)


def test_pip_installs_into_the_peer_s_environment_and_looks_for_nothing_else(tmp_path: Path) -> None:
    environment = Environment(RECIPES["nixl"], tmp_path)
    venv, pip = steps(environment, "/ours/python")
    assert venv[:3] == ["/ours/python", "-m", "venv"] and venv[-1] == str(tmp_path / "nixl") and "--clear" in venv
    assert pip[pip.index("--python") + 1] == str(tmp_path / "nixl" / "bin" / "python")
    assert "--no-deps" in pip and pip[-2:] == ["-r", str(RECIPES["nixl"].requirements)]


def test_an_environment_is_made_anew_when_what_it_is_made_of_changes() -> None:
    recipe = RECIPES["nixl"]
    other = Recipe(name="nixl", shares=True)
    found = {digest(recipe, "a==1"), digest(recipe, "a==2"), digest(other, "a==1"), digest(recipe, "a==1", "3.12")}
    assert len(found) == 4 and digest(recipe, "a==1") in found


def test_a_peer_s_file_is_edited_only_where_it_is_as_expected() -> None:
    assert edited("a = 0\nb", "a = 0", "a = 5") == "a = 5\nb"
    for text in ("b", "a = 0\na = 0"):
        with pytest.raises(ValueError, match="not once"):
            edited(text, "a = 0", "a = 5")


class Commands:
    """In the place of processes."""

    def __init__(self, packages: Path, fails: str = "") -> None:
        self.ran: list[str] = []
        self._packages = packages
        self._fails = fails

    async def __call__(self, name: str, command: list[str]) -> None:
        self.ran.append(command[2])
        if command[2] == self._fails:
            raise InstallError("no network")
        self._packages.mkdir(parents=True, exist_ok=True)
        (self._packages / "thing.py").write_text("delay = 0\n")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recipe:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "peers-x.txt").write_text("x==1\n")
    monkeypatch.setattr("bench.peers.environments.ROOT", tmp_path)
    return Recipe(name="x", shares=True, edits=(("thing.py", "delay = 0", "delay = 5"),))


async def test_an_environment_is_made_once_and_shares_packages(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, tmp_path: Path
) -> None:
    environment, said = Environment(recipe, tmp_path / "cache"), list[str]()
    commands = Commands(environment.packages)
    monkeypatch.setattr("bench.peers.environments._run", commands)
    await install(environment, said.append)
    await install(environment, said.append)
    assert commands.ran == ["venv", "pip"] and len(said) == 1 and environment.made
    assert (environment.packages / "thing.py").read_text() == "delay = 5\n"
    assert (environment.packages / "shared.pth").read_text().strip().endswith("site-packages")


async def test_an_environment_that_was_not_finished_is_begun_again(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, tmp_path: Path
) -> None:
    environment = Environment(recipe, tmp_path / "cache")
    monkeypatch.setattr("bench.peers.environments._run", Commands(environment.packages, fails="pip"))
    with pytest.raises(InstallError, match="no network"):
        await install(environment, lambda _: None)
    assert not environment.made


# ---- what is kept


def measured(
    one: Contestant, load: Load, repetition: int = 0, *, ttft_s: float = 0.1, n: int = 10, **more: Any
) -> Measured:
    results = [Result(ok=True, tokens=2, ttft_s=ttft_s, tpot_s=0.005, gaps_s=[0.005]) for _ in range(n)]
    summary = summarise(results, more.pop("duration_s", 1.0))
    return Measured(contestant=one.key, repetition=repetition, load=load, rate=None, summary=summary, **more)


def setup(scale: Scale = FULL, **machine: str) -> Setup:
    return Setup(scale=scale, kv_cache_bytes=1 << 20, machine={"cores": "2", "load average before": "0.1", **machine})


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    store.open(setup())
    assert not store.has(TUNED, C16, 0)
    handed = Handed(bytes_s=5e9, missed=0)
    store.keep(measured(TUNED, C16, handed=handed))
    again = Store(tmp_path / "out")
    assert again.has(TUNED, C16, 0)
    assert not (again.has(STOCK, C16, 0) or again.has(TUNED, C16, 1) or again.has(TUNED, OPEN, 0))
    assert again.measured() == [measured(TUNED, C16, handed=handed)]
    assert not list(tmp_path.rglob("*.part"))


def test_results_of_another_scale_or_machine_are_not_mixed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open(setup())
    assert store.open(setup(**{"load average before": "7"})) == setup(), (
        "how busy it was does not make it another machine"
    )
    for other in (setup(QUICK), setup(cores="8")):
        with pytest.raises(OtherResultsError, match="--out"):
            store.open(other)


def test_rates_stay_as_they_were_when_open_loops_began(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep_rates({256: 10.0})
    store.keep_rates({256: 12.0, 2048: 1.5})
    assert store.rates() == {256: 10.0, 2048: 1.5}


# ---- the run, over contestants that are not there


class Answers:
    async def complete(self, body: dict[str, Any], due_ns: int | None = None) -> Result:
        await asyncio.sleep(0.01)
        tokens = body["max_tokens"]
        return Result(ok=True, tokens=tokens, ttft_s=0.01, tpot_s=0.001, gaps_s=[0.001] * (tokens - 1))


class Idle(Running):
    def ended(self) -> str | None:
        return None

    async def at_rest(self) -> list[Usage]:
        return [Usage(server=self.contestant.key, part="engine", processes=1, pss_bytes=1, idle_cpu=0.5)]

    async def transferred(self) -> None:
        return None

    async def handed_over(self, before: object, requests: int) -> None:
        return None


class Stage:
    """Starts whatever is asked for; ``broken`` do not start."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.streamed: list[str] = []
        self.broken: set[str] = set()
        self.kind: type[Running] = Idle

    def running(self, one: Contestant, directory: Path, model: Path, number: int) -> Stage:
        self.started.append(one.key)
        self._one = one
        return self

    async def __aenter__(self) -> Running:
        if self._one.key in self.broken:
            raise ServerError("it ended with 1:\n\x1b[31mno such device\x1b[0m")
        return self.kind(contestant=self._one, target=Answers(), servers={}, page_s=None, first_token_s=9.0)

    async def __aexit__(self, *_: object) -> None: ...

    async def measure(
        self, one: Contestant, scale: Scale, directory: Path, model: Path, repetition: int, number: int
    ) -> Streamed:
        self.streamed.append(one.key)
        if one.key in self.broken:
            raise ServerError("no answer")
        return streamed(one, 10.0)

    async def install(self, environment: Environment, say: object) -> None:
        if environment.recipe.name in self.broken:
            raise InstallError("pip ended with 1")

    async def model(self, directory: Path) -> Path:
        return directory


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    one = Stage()
    monkeypatch.setattr(run, "running", one.running)
    monkeypatch.setattr(run.frontends, "measure", one.measure)
    monkeypatch.setattr(run, "install", one.install)
    monkeypatch.setattr(run, "make_model", one.model)
    monkeypatch.setattr(run, "_SETTLE_S", 0.0)
    monkeypatch.setattr(run, "_CALIBRATES_S", 0.0)
    return one


def quick(out: Path, *only: str) -> int:
    return run.main(["--quick", "--out", str(out), "--only", *only])


def test_closed_loops_come_first_then_open_ones_at_what_nixl_held(stage: Stage, tmp_path: Path) -> None:
    assert quick(tmp_path, "1p1d", "nixl-tuned", "relay") == 0
    assert stage.started == ["1p1d", "nixl-tuned"] * 2 and stage.streamed == ["relay"]
    assert Store(tmp_path).has_start(SPLIT, 0) and Store(tmp_path).has_start(TUNED, 0)
    assert all(one.ttfts_s == (0.01,) * one.summary.n for one in Store(tmp_path).measured())
    store = Store(tmp_path)
    assert {(one.contestant, one.load.share) for one in store.measured()} == {
        (key, share) for key in ("1p1d", "nixl-tuned") for share in (None, 0.6)
    }
    [held] = [one.summary.requests_s for one in store.measured() if one.contestant == "nixl-tuned" and one.rate is None]
    assert store.rates() == {256: pytest.approx(held)}
    rates = [one.rate for one in store.measured() if one.rate is not None]
    assert rates == [pytest.approx(0.6 * held)] * 2
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == {}


def test_what_is_there_is_not_measured_again(stage: Stage, tmp_path: Path) -> None:
    quick(tmp_path, "1p1d", "nixl-tuned", "relay")
    stage.started.clear()
    stage.streamed.clear()
    assert quick(tmp_path, "1p1d", "nixl-tuned", "relay") == 0
    assert (stage.started, stage.streamed) == ([], [])
    next(tmp_path.glob("runs/load-256-32-c1.1p1d.0.json")).unlink()
    quick(tmp_path, "1p1d", "nixl-tuned", "relay")
    assert stage.started == ["1p1d"], "only what is missing"
    stage.started.clear()
    next(tmp_path.glob("runs/start.1p1d.0.json")).unlink()
    quick(tmp_path, "1p1d", "nixl-tuned", "relay")
    assert stage.started == ["1p1d"], "nor is what it takes at rest"
    assert Store(tmp_path).has_start(SPLIT, 0)


def test_who_does_not_start_is_listed_and_the_others_go_on(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.broken = {"nixl-tuned", "dynamo"}  # what one says on its way out has colours
    assert quick(tmp_path, "nixl-tuned", "vllm", "dynamo", "relay") == 1
    assert stage.started == ["vllm", "nixl-tuned", "nixl-tuned"] and stage.streamed == ["relay"]
    text = capsys.readouterr().out
    assert "| vLLM + NIXL 1p1d, tuned | given up | not started, or ended: it ended with 1: no such device |" in text
    assert "| Dynamo's frontend | given up | not installed: pip ended with 1 |" in text
    stage.broken = set()
    stage.started.clear()
    assert quick(tmp_path, "nixl-tuned", "vllm") == 0
    once = "| vLLM + NIXL 1p1d, tuned | a try in repetition 1 | it ended with 1: no such device |"
    assert capsys.readouterr().out.count(once) == 2, "a later run does not hide what an earlier one saw"
    assert stage.started == ["nixl-tuned", "nixl-tuned"], "tried again, and now open loops have a rate"


def test_nobody_is_measured_who_does_not_answer(stage: Stage, tmp_path: Path) -> None:
    class Dead(Idle):
        def ended(self) -> str | None:
            return "engine e0 ended with -9"

    stage.kind = Dead
    assert quick(tmp_path, "vllm") == 1
    assert stage.started == ["vllm", "vllm"] and not Store(tmp_path).measured()
    assert "ended with -9" in json.loads((tmp_path / "report.json").read_text())["failed"]["vllm"]


def test_a_rate_is_none_that_the_peer_held_with_errors(stage: Stage, tmp_path: Path) -> None:
    class Fails(Answers):
        n = 0

        async def complete(self, body: dict[str, Any], due_ns: int | None = None) -> Result:
            self.n += 1
            return Result(error="reset") if self.n % 3 == 0 else await super().complete(body, due_ns)

    stage.kind = lambda **more: Idle(**{**more, "target": Fails()})  # type: ignore[assignment]
    assert quick(tmp_path, "nixl-tuned") == 0
    assert Store(tmp_path).rates() == {} and {one.load.share for one in Store(tmp_path).measured()} == {None}


def test_one_that_ends_under_load_is_listed_and_what_it_had_done_stays(stage: Stage, tmp_path: Path) -> None:
    class Ends(Idle):
        async def at_rest(self) -> list[Usage]:
            raise aiohttp.ServerDisconnectedError

    stage.kind = Ends
    assert quick(tmp_path, "vllm") == 1
    assert json.loads((tmp_path / "report.json").read_text())["failed"].keys() == {"vllm"}
    assert len(Store(tmp_path).measured()) == 1 and not Store(tmp_path).started()


def test_an_unknown_name_starts_nothing(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick(tmp_path / "out", "nobody") == 1
    assert stage.started == [] and "no such peers: nobody" in capsys.readouterr().err


def test_a_frontend_is_tried_twice_too(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.broken = {"relay"}
    assert quick(tmp_path, "relay", "supervisor") == 1
    assert stage.streamed == ["relay", "relay", "supervisor"]
    assert capsys.readouterr().out.count("a try in repetition 1 | no answer |") == 2


# ---- what Dynamo is told


def test_dynamo_s_engine_paces_tokens_whatever_the_load(tmp_path: Path) -> None:
    frontends.write_timing(tmp_path / "t.npz", 8.0)
    with np.load(tmp_path / "t.npz") as found:
        assert set(found["decode_itl"].flat) == {8.0}
        sizes = [len(found[name]) for name in ("decode_active_kv_tokens", "decode_context_length")]
        assert found["decode_itl"].shape == tuple(sizes) and len(found["prefill_isl"]) == len(found["prefill_ttft_ms"])


def test_dynamo_s_model_has_a_chat_template_and_text_for_every_token(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"):
        (model / name).write_text('{"kept": 1, "vocab_size": 2}')
    place = frontends.write_description(model, tmp_path / "described")
    found = {path.stem: json.loads(path.read_text()) for path in place.iterdir()}
    assert "model" not in found, "no weights"
    assert found["tokenizer_config"]["kept"] == 1 and "messages" in found["tokenizer_config"]["chat_template"]
    vocabulary = found["tokenizer"]["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(found["config"]["vocab_size"])) and vocabulary["b"] == 1


# ---- figures


def streamed(one: Contestant, us: float, repetition: int = 0, **more: Any) -> Streamed:
    fields = {
        "streams": 64,
        "events": 100,
        "events_per_token": 1.0,
        "pace_ms": 8.0,
        "memory_bytes": 1 << 20,
        "errors": 0,
    }
    return Streamed(contestant=one.key, repetition=repetition, cpu_us_per_event=us, **{**fields, **more})


ONCE = msgspec.structs.replace(FULL, repetitions=1)
TWO = msgspec.structs.replace(ONCE, prompts=(256,), clients=(1, 16))


def report(*, measured: tuple[Measured, ...] = (), scale: Scale = ONCE, **more: Any) -> Report:
    fields: dict[str, Any] = {
        "versions": {"ours": {"python": "3"}},
        "rates": {},
        "started": (),
        "streamed": (),
        "failed": {},
    }
    return Report(setup=setup(scale), measured=measured, **{**fields, **more})


def verdict(one: Report, what: str) -> budgets.Verdict:
    [found] = [verdict for verdict in budgets.verdicts(one) if what in verdict.what]
    return found


def test_ratios_are_of_the_same_repetition() -> None:
    runs = [measured(SPLIT, OPEN, 0, ttft_s=0.1), measured(TUNED, OPEN, 0, ttft_s=0.2)]
    runs += [measured(SPLIT, OPEN, 1, ttft_s=0.9), measured(TUNED, OPEN, 2, ttft_s=0.1)]
    assert budgets.ratios(runs, SPLIT, TUNED, OPEN, lambda one: one.ttft_p50_s) == (0.5,)
    assert budgets.ratios(runs, SPLIT, TUNED, C16, lambda one: one.ttft_p50_s) == ()


@pytest.mark.parametrize(("ours_s", "outcome"), [(0.15, Outcome.MET), (0.17, Outcome.MISSED)])
def test_open_loops_against_nixl(ours_s: float, outcome: Outcome) -> None:
    one = report(measured=(measured(SPLIT, OPEN, ttft_s=ours_s), measured(TUNED, OPEN, ttft_s=0.2)))
    assert verdict(one, "prompt 256, output 32, open loop at 0.3 of what nixl holds: TTFT p50").outcome is outcome
    assert (
        verdict(one, "prompt 256, output 32, open loop at 0.6 of what nixl holds: TTFT p50").outcome is Outcome.UNKNOWN
    )


OPEN_P50 = "prompt 256, output 32, open loop at 0.3 of what nixl holds: TTFT p50"


def outcome(*ours_s: float, scale: Scale = FULL) -> Outcome:
    """Of so many repetitions, against 0.2 s."""
    runs = [measured(SPLIT, OPEN, number, ttft_s=value) for number, value in enumerate(ours_s)]
    theirs = [measured(TUNED, OPEN, number, ttft_s=0.2) for number in range(len(ours_s))]
    return verdict(report(measured=(*runs, *theirs), scale=scale), OPEN_P50).outcome


def test_nothing_is_said_before_every_repetition_and_what_is_not_so_in_all_is_unclear() -> None:
    assert outcome(0.1, 0.1) is Outcome.PARTLY
    assert outcome(0.1, 0.1, 0.17) is Outcome.UNCLEAR
    assert (outcome(0.1, 0.1, 0.15), outcome(0.2, 0.17, 0.3)) == (Outcome.MET, Outcome.MISSED)


@pytest.mark.parametrize("fails", [SPLIT, TUNED])
def test_where_requests_failed_on_either_side_nothing_is_won(fails: Contestant) -> None:
    results = [Result(ok=True, tokens=2, ttft_s=0.1, tpot_s=0.005), Result(error="reset")]
    failed = Measured(contestant=fails.key, repetition=0, load=OPEN, rate=None, summary=summarise(results, 1.0))
    well = measured(TUNED if fails == SPLIT else SPLIT, OPEN)
    found = [one for one in budgets.verdicts(report(measured=(failed, well))) if "open loop at 0.3" in one.what]
    assert {one.outcome for one in found if "prompt 256" in one.what} == {Outcome.INVALID}


@pytest.mark.parametrize("missed", [0, 1])
def test_where_prompts_were_not_split_nothing_is_won(missed: int) -> None:
    ours = measured(SPLIT, OPEN, ttft_s=0.1, handed=Handed(bytes_s=1e9, missed=missed))
    one = report(measured=(ours, measured(TUNED, OPEN, ttft_s=0.2)))
    assert verdict(one, OPEN_P50).outcome is (Outcome.INVALID if missed else Outcome.MET)


def test_the_slowest_are_met_where_they_are_so_in_each_repetition_too() -> None:
    def found(*each_s: float) -> Outcome:
        ours = [measured(SPLIT, OPEN, number, ttft_s=value, ttfts_s=(0.1,) * 99) for number, value in enumerate(each_s)]
        theirs = [measured(TUNED, OPEN, number, ttft_s=0.2, ttfts_s=(0.2,) * 99) for number in range(3)]
        what = "prompt 256, output 32, open loop at 0.3 of what nixl holds: TTFT p99"
        return verdict(report(measured=(*ours, *theirs), scale=FULL), what).outcome

    assert (found(0.1, 0.1, 0.1), found(0.1, 0.1, 0.19)) == (Outcome.MET, Outcome.UNCLEAR)


@pytest.mark.parametrize(("slow_in", "ratio"), [(1, 1.0), (3, 1 / 3)])
def test_the_slowest_are_those_of_all_repetitions_together(slow_in: int, ratio: float) -> None:
    """One slow request of 297 is above the 99th hundredth, three are it."""
    quick, slow = (0.1,) * 99, (0.1,) * 98 + (0.3,)
    runs = [measured(SPLIT, OPEN, number, ttfts_s=quick) for number in range(3)]
    runs += [measured(TUNED, OPEN, number, ttfts_s=slow if number < slow_in else quick) for number in range(3)]
    what = "open loop at 0.3 of what nixl holds: TTFT p99 of all repetitions"
    found = [one for one in budgets.verdicts(report(measured=tuple(runs), scale=FULL)) if what in one.what]
    assert [one.found for one in found] == [(pytest.approx(ratio),), ()]


def test_req_s_held_against_nixl_and_an_engine_that_only_prefills() -> None:
    alone = Load(prompt_tokens=256, output_tokens=1, concurrency=16)
    one = report(measured=(measured(SPLIT, C16, n=13), measured(TUNED, C16, n=10), measured(PREFILL, alone, n=14)))
    assert verdict(one, "prompt 256, 16 at once: against NIXL tuned").found == (pytest.approx(1.3),)
    assert verdict(one, "prompt 256, 16 at once: against NIXL tuned").outcome is Outcome.MET
    assert verdict(one, "prompt 256, 16 at once: against an engine that only prefills").outcome is Outcome.MISSED


def test_a_layout_is_judged_in_its_worst_load_against_the_best_of_all() -> None:
    one = report(
        measured=(
            *(measured(SPLIT, C16, n=20), measured(VLLM, C16, n=10), measured(REPLICAS, C16, n=15)),
            *(measured(TUNED, C16, n=5), measured(TUNED, C1, n=5), measured(REPLICAS, C1, n=6)),
            *(measured(SPLIT, C1, n=9), measured(VLLM, C1, n=10)),
        )
    )
    found = verdict(one, "appliance 1p1d, req/s against the best of all")
    assert found.found == (pytest.approx(0.9),) and found.outcome is Outcome.PARTLY, "two loads of six"
    both = msgspec.structs.replace(one, setup=setup(TWO))
    assert verdict(both, "appliance 1p1d, req/s against the best of all").outcome is Outcome.MISSED
    without = msgspec.structs.replace(both, measured=tuple(run for run in one.measured if run.contestant != TUNED.key))
    assert verdict(without, "appliance 1p1d, req/s").outcome is Outcome.UNKNOWN, "one who may be the best is missing"


@pytest.mark.parametrize(
    ("c1", "c16", "outcome"),
    [
        ((100, 100, 100), (96, 96, 96), Outcome.MET),
        ((100, 100, 80), (96, 96, 96), Outcome.UNCLEAR),  # in a load that is not the worst at the median
        ((90, 90, 90), (96, 80, 96), Outcome.MISSED),
    ],
)
def test_a_layout_meets_it_in_every_repetition_of_every_load(
    c1: tuple[int, ...], c16: tuple[int, ...], outcome: Outcome
) -> None:
    runs = [
        measured(one, load, number, n=100 if one != SPLIT else ours[number])
        for load, ours in ((C1, c1), (C16, c16))
        for one in (SPLIT, VLLM, REPLICAS, TUNED)
        for number in range(3)
    ]
    scale = msgspec.structs.replace(TWO, repetitions=3)
    assert verdict(report(measured=tuple(runs), scale=scale), "appliance 1p1d, req/s against").outcome is outcome


def test_the_best_is_so_at_the_median_and_not_by_luck() -> None:
    runs = [measured(one, C1, number, n=10) for one in (SPLIT, REPLICAS, TUNED) for number in range(3)]
    runs += [measured(VLLM, C1, number, n=n) for number, n in enumerate((5, 5, 20))]
    scale = msgspec.structs.replace(TWO, clients=(1,), repetitions=3)
    found = verdict(report(measured=tuple(runs), scale=scale), "appliance 1p1d, req/s against the best of all")
    assert found.found == (1.0, 1.0, 1.0) and found.outcome is Outcome.MET
    assert verdict(report(measured=(measured(SPLIT, C16),)), "appliance 1p1d, req/s").outcome is Outcome.UNKNOWN


def test_a_token_s_cost_against_relay_and_dynamo() -> None:
    one = report(streamed=(streamed(RELAY, 20.0), streamed(SUPERVISOR, 25.0), streamed(DYNAMO, 24.0)))
    assert verdict(one, "against the raw relay").outcome is Outcome.MET
    assert verdict(one, "against Dynamo's frontend").outcome is Outcome.MISSED
    several = report(streamed=(streamed(RELAY, 20.0), streamed(SUPERVISOR, 25.0, events_per_token=0.5)))
    assert verdict(several, "against the raw relay").found == (pytest.approx(0.625),), "several tokens in an event"
    busy = report(streamed=(streamed(RELAY, 20.0, pace_ms=12.0), streamed(SUPERVISOR, 25.0)))
    assert verdict(busy, "against the raw relay").outcome is Outcome.UNKNOWN, "engines did not keep their pace"
    lost = report(streamed=(streamed(RELAY, 20.0, pace_ms=12.0, errors=1), streamed(SUPERVISOR, 25.0)))
    assert verdict(lost, "against the raw relay").outcome is Outcome.INVALID, "nor does that hide what failed"


def test_added_time_is_through_less_past_it() -> None:
    one = streamed(SUPERVISOR, 25.0, ttft_through_s=(0.0205, 0.05), ttft_direct_s=(0.02, 0.04))
    assert verdict(report(streamed=(one,)), "16 under way: p50").found == (pytest.approx(0.0005),)
    assert verdict(report(streamed=(one,)), "16 under way: p99").outcome is Outcome.MISSED
    for through_s, outcome in ((0.0195, Outcome.MET), (0.018, Outcome.UNCLEAR)):
        quicker = streamed(SUPERVISOR, 25.0, ttft_through_s=(through_s, 0.05), ttft_direct_s=(0.02, 0.04))
        assert verdict(report(streamed=(quicker,)), "16 under way: p50").outcome is outcome, "noise of more than 1 ms"


async def test_times_to_the_first_token_are_taken_in_turns_and_with_prompts_of_their_own() -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    class Named(Answers):
        def __init__(self, name: str) -> None:
            self.name = name

        async def complete(self, body: dict[str, Any], due_ns: int | None = None) -> Result:
            asked.append((self.name, tuple(body["prompt"])))
            return Result(ok=True, tokens=body["max_tokens"], ttft_s=len(asked) / 1000)

    found = await frontends._ttfts_s([Named("through"), Named("past")], QUICK, 0)  # type: ignore[list-item]
    names = [name for name, _ in itertools.groupby(name for name, _ in asked)]
    assert names == ["through", "past"] * 4 and len(set(asked)) == len(asked) == 8 * QUICK.first_requests
    assert [len(one) for one in found] == [2, 2] and found[0] < found[1]


def test_standing_costs_are_sums_over_parts() -> None:
    usages = tuple(
        Usage(server="1p1d", part=part, processes=1, pss_bytes=pss << 20, idle_cpu=idle)
        for part, pss, idle in (
            ("supervisor", 44, 0.006),
            ("e0", 1000, 0.01),
            ("e1", 1000, 0.01),
            ("fork server", 180, 0.0),
        )
    )
    one = report(started=(Started(contestant="1p1d", repetition=0, page_s=0.4, first_token_s=13.0, usages=usages),))
    assert verdict(one, "CPU of everything at rest").found == (pytest.approx(0.026),)
    assert verdict(one, "memory of the supervisor").outcome is Outcome.MET
    assert verdict(one, "memory of two engines").outcome is Outcome.MISSED
    assert verdict(one, "first token after the start").outcome is Outcome.MISSED


def test_without_results_every_budget_is_there_and_none_is_met() -> None:
    found = budgets.verdicts(report())
    assert len(found) > 20 and {one.outcome for one in found} == {Outcome.UNKNOWN}
    assert markdown(report()).count("not measured yet") == 4


def test_the_table_is_rectangular_and_has_medians_spread_ratios_and_errors() -> None:
    runs = [measured(one, C16, number, ttft_s=0.1 * (number + 1)) for one in (SPLIT, VLLM) for number in range(3)]
    text = markdown(
        report(measured=(*runs, measured(STOCK, C16, n=0)), rates={256: 10.0}, failed={"dynamo": "no\nnetwork"})
    )
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, block
    assert "| appliance 1p1d | 200.0 (100.0–300.0) |" in text and "| 0 of 30 |" in text
    assert "| 1p1d over vLLM, one engine on all cores | 1.00 (1.00–1.00) |" in text
    assert "| Dynamo's frontend | given up | no network |" in text and "10.00 req/s at prompt 256" in text


def test_a_quick_run_judges_nothing() -> None:
    usage = Usage(server="1p1d", part="supervisor", processes=1, pss_bytes=44 << 20, idle_cpu=0.5)
    started = Started(contestant="1p1d", repetition=0, page_s=0.4, first_token_s=13.0, usages=(usage,))
    whole = markdown(report(started=(started,)))
    assert "| 1p1d: page answers after the start | ≤ 1.5 s | 0.40 s | met |" in whole
    assert "**missed**" in whole and "judge nothing" not in whole
    quick = markdown(report(started=(started,), scale=QUICK))
    assert "| 1p1d: page answers after the start | ≤ 1.5 s | 0.40 s | not judged |" in quick
    assert "missed" not in quick and "judge nothing" in quick


# ---- the load client's turns, the proxy and the pacer


async def test_replicas_are_asked_in_turn() -> None:
    class Counts(Answers):
        n = 0

        async def complete(self, body: dict[str, Any], due_ns: int | None = None) -> Result:
            self.n += 1
            return await super().complete(body, due_ns)

    both = [Counts(), Counts()]
    summary, _ = await drive(Turns(both), Plan(model="m", requests=7, prompt_tokens=1, output_tokens=2, concurrency=3))
    assert (summary.errors, [one.n for one in both]) == (0, [4, 3])


BODY = {"model": "m", "prompt": [1], "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}


def test_the_prefill_leg_wants_one_token_and_the_kv_kept() -> None:
    asked = prefill_body({**BODY, "min_tokens": 4})
    assert (asked["max_tokens"], asked["stream"]) == (1, False)
    assert not {"stream_options", "min_tokens"} & set(asked)
    assert asked["kv_transfer_params"]["do_remote_decode"] is True


def test_the_decode_leg_is_the_client_s_request_and_where_its_kv_is() -> None:
    params = {"remote_block_ids": [[1]], "do_remote_prefill": True}
    assert decode_body(BODY, {"kv_transfer_params": params}) == {**BODY, "kv_transfer_params": params}
    with pytest.raises(RefusedError, match="kv_transfer_params"):
        decode_body(BODY, {"choices": []})


def test_length_is_found_whatever_its_case() -> None:
    assert length(b"POST / HTTP/1.1\r\nContent-LENGTH:  12\r\nx: 1\r\n\r\n") == 12
    assert length(b"GET / HTTP/1.1\r\n\r\n") == 0


class Pair:
    """A prefill and a decode engine that are not there."""

    def __init__(self) -> None:
        self.prefills: list[dict[str, Any]] = []
        self.decodes: list[dict[str, Any]] = []
        self.full = False

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def prefill(self, request: web.Request) -> web.Response:
        self.prefills.append(body := await request.json())
        if self.full:
            return web.json_response({"error": "no room"}, status=503)
        return web.json_response({"kv_transfer_params": {"remote": body["prompt"]}})

    async def decode(self, request: web.Request) -> web.StreamResponse:
        self.decodes.append(body := await request.json())
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(body["max_tokens"]):
            await answer.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        await answer.write(b"data: [DONE]\n\n")
        return answer


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Pair, Target]]:
    one, runners = Pair(), []
    for name in ("prefill", "decode"):
        app = web.Application()
        app.router.add_post("/v1/completions", getattr(one, name))
        app.router.add_get("/health", one.health)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.UnixSite(runners[-1], str(tmp_path / name)).start()
    proxy = Proxy(str(tmp_path / "prefill"), str(tmp_path / "decode"))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Target(f"http://127.0.0.1:{port}") as target:
        yield one, target
    for runner in runners:
        await runner.cleanup()


async def test_the_proxy_splits_requests_over_kept_connections(pair: tuple[Pair, Target]) -> None:
    engines, target = pair
    plan = Plan(model="m", requests=9, prompt_tokens=5, output_tokens=4, concurrency=3)
    summary, _ = await drive(target, plan)
    assert (summary.n, summary.errors, summary.first_error) == (9, 0, None)
    assert [body["max_tokens"] for body in engines.prefills] == [1] * 9
    assert all(body["kv_transfer_params"] == {"remote": body["prompt"]} for body in engines.decodes)
    assert {tuple(body["prompt"]) for body in engines.decodes} == {tuple(body["prompt"]) for body in bodies(plan)}
    async with target.session.get(target.url("/health")) as answer:
        assert answer.status == 200


async def test_a_refusal_of_the_prefill_engine_is_told(pair: tuple[Pair, Target]) -> None:
    engines, target = pair
    engines.full = True
    plan = Plan(model="m", requests=2, prompt_tokens=5, output_tokens=4)
    summary, _ = await drive(target, plan)
    assert summary.errors == 2 and "no room" in (summary.first_error or "")
    assert engines.decodes == []
    engines.full = False
    assert (await drive(target, plan))[0].errors == 0, "its connection is still good"


async def test_the_pacer_gives_every_stream_a_token_per_turn(tmp_path: Path) -> None:
    pacer = Pacer(0.001)
    server = await asyncio.get_running_loop().create_unix_server(lambda: Stream(pacer), str(tmp_path / "s"))
    running = asyncio.create_task(pacer.run())
    async with server, Target("http://pacer", tmp_path / "s") as target:
        plan = Plan(model="m", requests=4, prompt_tokens=2, output_tokens=5, concurrency=2)
        summary, results = await drive(target, plan)
    running.cancel()
    assert (summary.errors, summary.first_error) == (0, None)
    assert all(one.tokens == 5 and len(one.gaps_s) == 4 for one in results), "one event for each"
    assert TOKEN.startswith(b"%x\r\ndata: " % (len(TOKEN) - len(b"%x\r\n" % len(TOKEN)) - 2)) and b"[DONE]" in ending(5)
