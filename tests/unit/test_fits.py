"""What steps take, kept from one process to the next; and never what a slow engine's take."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.channel import Step
from appliance.cli import kinds
from appliance.costs import fitted, line
from appliance.costs.fitted import StepModel
from appliance.records import EngineSnapshot, EngineState, NodeSnapshot, Role, Verdict
from appliance.supervisor.specs import EngineSpec
from appliance.telemetry import fits as module
from appliance.telemetry.fits import Fits
from appliance.telemetry.series import Series

KIND = "demo on 1 core"
BATCH = (0, 50, 50_000)
S = 1_000_000_000


def seconds(prompt: int, decode: int, context: int) -> float:
    return 0.004 + 6e-6 * (prompt + decode) + 3e-8 * context


def teach(model: StepModel, count: int = 3000, slow: float = 1.0, noise: float = 0.02) -> None:
    chance = random.Random(1)
    for _ in range(count):
        prompt, decode = chance.choice([0, 0, 300, 1500, 4000]), chance.randrange(1, 200)
        context = decode * chance.randrange(100, 2000) + prompt
        took_s = slow * chance.lognormvariate(0, noise) * seconds(prompt, decode, context)
        model.learn(prompt, decode, context, took_s, prompt * prompt // 2)


def fits(directory: Path, kind: str = KIND) -> Fits:
    return Fits(directory, {"e0": kind, "e1": kind}, lambda: 1.0)


def engine(name: str, slowdown: float | None) -> EngineSnapshot:
    return EngineSnapshot(name=name, role=Role.BOTH, state=EngineState.READY, epoch=1, slowdown=slowdown)


def node(*slowdowns: float | None, verdict: Verdict | None = None) -> NodeSnapshot:
    values: dict[str, Any] = dict.fromkeys(NodeSnapshot.__struct_fields__)
    engines = tuple(engine(f"e{number}", slowdown) for number, slowdown in enumerate(slowdowns))
    return NodeSnapshot(**{**values, "engines": engines, "verdict": verdict})


def changed(kept: dict[str, Any], **of_fit: Any) -> bytes:
    """A file with another fit."""
    model = kept["model"]
    return json.dumps({**kept, "model": {**model, "fit": {**model["fit"], **of_fit}}}).encode()


def called_slow(name: str) -> Verdict:
    return Verdict(state="bottleneck", summary="", since=0.0, engine=name, cause="decode_straggler_gpu")


# ---- one fit


def test_a_fit_that_was_kept_expects_the_same_and_goes_on_learning() -> None:
    model = StepModel()
    teach(model)
    again = StepModel(msgspec.json.decode(msgspec.json.encode(model.kept()), type=type(model.kept())))
    assert again.expected_s(*BATCH) == pytest.approx(model.expected_s(*BATCH), rel=1e-6)
    assert again.expected_s(400_000, 5000, 90_000_000, 8 * 10**10) is None
    assert (again.learnt, again.young, again.noise) == (3000, False, pytest.approx(0.02, abs=0.003))
    teach(again, 60_000, slow=2.0)
    assert again.expected_s(*BATCH) == pytest.approx(2 * seconds(*BATCH), rel=0.25)


def test_keeping_changes_nothing_for_the_one_that_is_kept() -> None:
    model = StepModel()
    teach(model, 3050)
    before = model.expected_s(*BATCH)
    model.kept()
    assert model.expected_s(*BATCH) == before
    assert model.expected_s(400_000, 5000, 90_000_000, 8 * 10**10) is None


# ---- files


def test_what_was_learnt_is_there_again(tmp_path: Path) -> None:
    first = fits(tmp_path)
    teach(first.model(KIND))
    first.save()
    found = fits(tmp_path).model(KIND)
    assert (found.learnt, found.young) == (3000, False)
    assert found.expected_s(*BATCH) == pytest.approx(seconds(*BATCH), rel=0.05)
    kept = json.loads(first.path(KIND).read_text())
    assert (kept["version"], kept["kind"], kept["saved"]) == (2, KIND, 1.0)
    assert kept["model"]["fit"]["noise"] == pytest.approx(0.02, abs=0.003)
    assert [path.suffix for path in first.path(KIND).parent.iterdir()] == [".json"], "nothing half-written is left"


def test_another_kind_knows_nothing_of_it(tmp_path: Path) -> None:
    first = fits(tmp_path)
    teach(first.model(KIND))
    first.save()
    assert fits(tmp_path).model("demo on 2 cores").learnt == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: b"",
        lambda kept: b"{",
        lambda kept: json.dumps({**kept, "version": 0}).encode(),
        lambda kept: json.dumps({**kept, "form": 99}).encode(),
        lambda kept: json.dumps({**kept, "kind": "another"}).encode(),
        lambda kept: changed(kept, targets=[1.0]),
        lambda kept: changed(kept, weight=None),
        lambda kept: changed(kept, weight=-1.0),
        lambda kept: changed(kept, products=[[-1.0] * 9] * 9),
        lambda kept: json.dumps({**kept, "model": {**kept["model"], "most": [0.0, 1.0]}}).encode(),
    ],
)
def test_a_file_that_can_not_be_right_is_ignored_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any
) -> None:
    first = fits(tmp_path)
    teach(first.model(KIND))
    first.save()
    first.path(KIND).write_bytes(change(json.loads(first.path(KIND).read_text())))
    with caplog.at_level(logging.WARNING):
        assert fits(tmp_path).model(KIND).learnt == 0
    assert [record for record in caplog.records if "learnt anew" in record.message]


def test_a_directory_that_can_not_be_written_to_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "fits").write_text("")
    found = fits(tmp_path)
    teach(found.model(KIND))
    with caplog.at_level(logging.WARNING):
        found.save()
    assert [record for record in caplog.records if "can't be kept" in record.message]


def test_too_little_is_not_kept_and_what_is_kept_already_is_not_written_again(tmp_path: Path) -> None:
    found = fits(tmp_path)
    teach(found.model(KIND), 900)
    found.save()
    assert not found.path(KIND).exists()
    teach(found.model(KIND), 600)
    found.save()
    found.path(KIND).unlink()
    teach(found.model(KIND), 400)
    found.save()
    assert not found.path(KIND).exists()


def test_steps_that_take_anything_are_not_kept(tmp_path: Path) -> None:
    """As on a machine that is shared: by such a line everybody would be slow, or nobody."""
    found = fits(tmp_path)
    teach(found.model(KIND), noise=0.6)
    found.save()
    assert not found.path(KIND).exists()


# ---- never from a time in which an engine is slow


@pytest.mark.parametrize(
    ("snapshot", "kept"),
    [
        (node(1.0, 1.05), True),
        (node(None, None), True),
        (node(1.0, 1.2), False),
        (node(1.0, 1.05, verdict=called_slow("e1")), False),
        (
            node(
                1.0,
                1.0,
                verdict=Verdict(state="bottleneck", summary="", since=0.0, cause="decode_saturated", engine="e1"),
            ),
            True,
        ),
    ],
)
def test_what_a_slow_engine_has_to_do_with_is_not_kept(tmp_path: Path, snapshot: NodeSnapshot, kept: bool) -> None:
    found = fits(tmp_path)
    teach(found.model(KIND))
    for _ in range(9):
        found.see(snapshot)
    found.see(node(1.0, 1.0))
    found.save()
    assert found.path(KIND).exists() is kept
    found.see(node(1.0, 1.0))
    found.save()
    assert found.path(KIND).exists(), "and when a whole time was well, it is"


def test_a_moment_in_which_one_stumbles_does_not_keep_it_from_being_kept(tmp_path: Path) -> None:
    """On a machine that others use, too, there are some in each minute, and the steps of such moments are not learnt."""
    found = fits(tmp_path)
    teach(found.model(KIND))
    for number in range(20):
        found.see(node(1.0, 2.0 if number % 5 == 0 else 1.0))
    found.save()
    assert found.path(KIND).exists()


async def test_it_is_saved_at_the_end(tmp_path: Path) -> None:
    found = fits(tmp_path)
    teach(found.model(KIND))
    seen = asyncio.Event()

    async def snapshots() -> AsyncIterator[NodeSnapshot]:
        yield node(1.0, 1.0)
        seen.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(found.run(snapshots()))
    await seen.wait()
    assert not found.path(KIND).exists()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert found.path(KIND).exists()


async def test_and_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    found = fits(tmp_path)
    teach(found.model(KIND))

    async def snapshots() -> AsyncIterator[NodeSnapshot]:
        yield node(1.0, 1.0)
        assert found.path(KIND).exists()

    await found.run(snapshots())


# ---- what it is for


def _steps(series: Series, count: int, slow: float) -> None:
    for number in range(count):
        end_ns = number * 20_000_000
        batch = (0, 40 + number % 20, 50_000)
        values: dict[str, Any] = dict.fromkeys(Step.__struct_fields__, 0)
        values |= {"prompt_tokens": batch[0], "decode_tokens": batch[1], "context_tokens": batch[2]}
        values |= {"start_ns": end_ns - int(slow * seconds(*batch) * S), "end_ns": end_ns}
        series.add(Step(**values), end_ns)


def test_slowness_older_than_the_process_is_seen_and_never_learnt(tmp_path: Path) -> None:
    first = fits(tmp_path)
    teach(first.model(KIND))
    first.save()
    model = fits(tmp_path).model(KIND)
    series = Series(1, model)
    _steps(series, 100, slow=1.5)
    assert series.slowdown() == pytest.approx(1.5, rel=0.05)
    _steps(series, 5000, slow=1.5)
    assert series.slowdown() == pytest.approx(1.5, rel=0.05)


def test_an_engine_that_has_become_quicker_sets_what_is_normal(tmp_path: Path) -> None:
    """What was kept may be of a time in which all were slow, and nobody could tell."""
    model = StepModel()
    teach(model, slow=1.6)
    series = Series(1, StepModel(model.kept()))
    for _ in range(12):
        _steps(series, 5000, slow=1.0)
    assert series.slowdown() == pytest.approx(1.0, abs=0.1)


# ---- declines of days


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a day has few steps."""
    monkeypatch.setattr(line, "_HALF_LIFE", 300)
    monkeypatch.setattr(fitted, "_SURE", 2_000)


def _day(directory: Path, slow: float, unix_s: float = 1.0) -> float:
    """A process that serves for a day; how slow its engine is said to be at the end."""
    found = Fits(directory, {"e0": KIND}, lambda: unix_s)
    series = Series(1, found.model(KIND))
    _steps(series, 1200, slow)
    found.see(node(series.slowdown()))
    found.save()
    return series.slowdown() or 0.0


@pytest.mark.usefixtures("short_memory")
def test_a_decline_of_a_little_every_day_adds_up_and_is_not_learnt(tmp_path: Path) -> None:
    first = fits(tmp_path)
    teach(first.model(KIND))
    first.save()
    told = [_day(tmp_path, 1.02**day) for day in range(18)]
    assert told[2] < 1.05, "which could be noise"
    assert told[-1] == pytest.approx(1.02**17 / 1.05, abs=0.04)
    assert fits(tmp_path).model(KIND).established == 1.0


@pytest.mark.usefixtures("short_memory")
def test_where_nothing_is_established_it_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would tell nothing."""
    monkeypatch.setattr(fitted, "_SURE", 10**9)
    first = fits(tmp_path)
    teach(first.model(KIND))
    first.save()
    assert max(_day(tmp_path, 1.02**day) for day in range(18)) < 1.08


@pytest.mark.usefixtures("short_memory")
def test_what_turns_out_to_have_been_slow_is_established_anew(tmp_path: Path) -> None:
    first = fits(tmp_path)
    teach(first.model(KIND), slow=1.4)
    first.save()
    for _ in range(4):
        _day(tmp_path, 1.0, unix_s=2.0)
    assert fits(tmp_path).model(KIND).established == 2.0
    assert max(_day(tmp_path, 1.02**day) for day in range(16)) == pytest.approx(1.02**15 / 1.05, abs=0.04)


# ---- kinds


def spec(**fields: Any) -> EngineSpec:
    values: dict[str, Any] = {"name": "e0", "role": Role.BOTH, "cores": (0, 1), "tensor_parallel": 1}
    values |= {"arguments": ("--model", "org/model", "--api-key", "secret"), "environment": {"HF_TOKEN": "hidden"}}
    return EngineSpec(**(values | fields))


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Abacus 9000\nflags\t: x\n")
    gpus = tmp_path / "driver" / "nvidia" / "gpus"
    for number, name in enumerate(("NVIDIA H100 80GB HBM3", "NVIDIA L4")):
        (gpus / f"0000:0{number}").mkdir(parents=True)
        (gpus / f"0000:0{number}" / "information").write_text(f"Model: \t\t {name}\nGPU UUID: \t GPU-{number}\n")
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri Jan 24\nGCC version: gcc 12\n"
    (tmp_path / "driver" / "nvidia" / "version").write_text(version)
    return tmp_path


def test_a_kind_says_what_it_is_and_no_secret(proc: Path) -> None:
    on_cpu, on_gpu = kinds.of(spec(), proc), kinds.of(spec(cores=(), gpus=("GPU-0",)), proc)
    assert on_cpu.startswith("org/model, 2 cores of Abacus 9000, 1 ranks, ")
    assert "torch " in on_cpu
    assert on_gpu.startswith("org/model, NVIDIA H100 80GB HBM3 (driver 570.86.15), 1 ranks, ")
    assert not any(secret in on_cpu for secret in ("secret", "hidden", "HF_TOKEN", "--api-key"))


@pytest.mark.parametrize(
    "other",
    [
        {"arguments": ("--model", "org/model", "--api-key", "other")},
        {"arguments": ("--model", "org/other", "--api-key", "secret")},
        {"environment": {}},
        {"cores": (0,)},
        {"cores": (), "gpus": ("GPU-0",)},
        {"cores": (), "gpus": ("GPU-1",)},
        {"tensor_parallel": 2},
    ],
)
def test_what_differs_is_another_kind(proc: Path, other: dict[str, Any]) -> None:
    assert kinds.of(spec(), proc) == kinds.of(spec(name="e7", role=Role.DECODE, cores=(4, 5)), proc)
    assert kinds.of(spec(), proc) != kinds.of(spec(**other), proc)


def test_another_driver_or_version_is_another_kind(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = spec(cores=(), gpus=("GPU-0",))
    before = kinds.of(mine, proc)
    version = proc / "driver" / "nvidia" / "version"
    version.write_text(version.read_text().replace("570.86.15", "575.1.2"))
    assert kinds.of(mine, proc) != before
    before = kinds.of(mine, proc)
    monkeypatch.setattr(kinds, "_version", lambda package: "9.9")
    assert kinds.of(mine, proc) != before


def test_a_model_directory_is_known_by_its_config(proc: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    config = tmp_path / "m" / "config.json"
    config.write_text("{}")
    mine = spec(arguments=("--model", str(tmp_path / "m")))
    before = kinds.of(mine, proc)
    assert before.startswith("m (config ")
    config.write_text('{"layers": 2}')
    assert kinds.of(mine, proc) != before
