"""What ``make gpu-check`` makes of what it is told; on a machine without a GPU it is told little."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.checks.movers import Moved
from appliance.costs import huggingface
from appliance.records import Card, Inventory
from bench import gpu_check, gpu_engines, gpu_transport
from bench.figures import Summary
from bench.gpu_report import Finding, at_least, at_most, failed, not_run, written

GIB = 1 << 30


def run(monkeypatch: pytest.MonkeyPatch, inventory: Inventory, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    return gpu_check.main(lambda: inventory)


def card(index: int, **more: Any) -> Card:
    return Card(
        index=index, uuid=f"GPU-{index}", name="H100", **{"memory_bytes": 80 * GIB, "free_bytes": 79 * GIB, **more}
    )


# ---- the command


@pytest.mark.parametrize(
    ("inventory", "said"),
    [
        (Inventory(cards=()), "no GPU: not run. NVML tells of none on this machine.\n"),
        (Inventory(cards=(), trouble="restart the machine"), "no GPU: not run. restart the machine.\n"),
    ],
)
def test_without_a_gpu_nothing_is_run_and_no_report_is_written(
    inventory: Inventory,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    report = tmp_path / "report.md"
    assert run(monkeypatch, inventory, "--report", str(report)) == 0
    assert capsys.readouterr().out == said
    assert not report.exists()


@pytest.mark.parametrize(("well", "code"), [(True, 0), (False, 1)])
def test_with_one_all_of_it_is_in_the_report_and_a_failure_in_the_exit_code(
    well: bool, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inventory = Inventory(cards=(card(0), card(1, mig=True)), driver="580.82")
    suites: list[tuple[str, ...]] = []
    used: list[tuple[int, ...]] = []

    def transport(cards: tuple[Card, ...], directory: Path) -> list[Finding]:
        used.append(tuple(one.index for one in cards))
        return [Finding("a way", "12.0 GB/s", well)]

    def tested(suite: tuple[str, ...]) -> Finding:
        suites.append(suite)
        return Finding(f"pytest {' '.join(suite)}", "passed", True)

    monkeypatch.setattr(gpu_check, "_pytest", tested)
    monkeypatch.setattr(gpu_transport, "findings", transport)
    report = tmp_path / "report.md"
    assert run(monkeypatch, inventory, "--report", str(report)) == code
    text = report.read_text()
    assert suites == [("tests/kv", "-m", "gpu"), ("tests/gpu",)]
    assert used == [(0,)], "a GPU in parts is left out, and said"
    assert "| a GPU | not run: GPU 1: it is cut into parts (MIG)" in text
    assert "GPUs 0: H100, 1: H100; driver 580.82; torch" in text
    assert "| engines | not run: vLLM's CUDA build is not installed" in text
    assert ("**NOT WELL**" in text) is not well


# ---- figures


def test_a_bound_that_is_not_met_or_not_measured_is_a_failure() -> None:
    assert at_least("x", 0.8, 0.8).well
    assert not at_least("x", 0.79, 0.8).well
    assert at_most("x", 100.0, 100.0, " µs") == Finding("x", "100 µs, wanted is at most 100 µs", True)
    assert at_most("x", None, 1.0).well is False
    assert not failed([not_run("x", "y"), Finding("x", "told")])
    assert failed([Finding("x", "well", True), Finding("x", "not", False)])


def test_the_report_is_a_table_for_each_part() -> None:
    text = written("T", "about", [("A", [Finding("x|y", "a|b", True)]), ("B", [])])
    assert text.startswith("# T\n\nabout\n\n## A\n\n| what | figure | |\n|---|---|---|\n| x|y | a/b | well |\n\n## B\n")


def moved(**more: Any) -> Moved:
    return Moved(
        **{"peer": "gpu0", "bytes_s": 400e9, "limit_bytes_s": 410e9, "seconds": 40e-6, "device_bytes_s": 1e12, **more}
    )


def judged(pieces: int, *, same: bool = False, **more: Any) -> dict[str, bool | None]:
    return {one.what: one.well for one in gpu_transport.judged("way", moved(**more), pieces, same=same)}


def test_small_transfers_are_held_to_a_time_and_large_ones_to_a_rate() -> None:
    assert judged(1) == {"way": True, "way: all of it": True}
    assert judged(1, seconds=150e-6)["way: all of it"] is False
    assert judged(16) == {"way": True}
    assert judged(256) == {"way": True, "way: of a plain copy over the same way": True}
    assert judged(256, bytes_s=300e9)["way: of a plain copy over the same way"] is False


def test_on_one_gpu_it_is_also_held_to_a_copy_within_a_process() -> None:
    assert judged(1024, same=True)["way: of a copy within one process"] is False
    assert judged(1024, same=True, bytes_s=900e9, limit_bytes_s=1e12)["way: of a copy within one process"] is True
    assert judged(1024, same=True, device_bytes_s=None)["way: of a copy within one process"] is False


def test_what_did_not_arrive_and_what_took_a_detour_is_said() -> None:
    assert judged(16, error="3 of 16 pieces arrived with other bytes") == {"way": False}
    [told] = gpu_transport.judged("way", moved(staged=True), 16, same=False)
    assert told.said == "400.0 GB/s, 40 µs each, every byte right by way of the host's memory"


# ---- engines


@pytest.mark.parametrize("name", gpu_engines.SHAPES)
def test_a_shape_is_a_models_own_with_the_demos_vocabulary(name: str, tmp_path: Path) -> None:
    made = gpu_engines.shaped(name, tmp_path)
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"][0].endswith("ForCausalLM")
    assert (made / "tokenizer.json").is_file()
    assert huggingface.read(made).vocabulary == 1536
    assert huggingface.read(made).layers == huggingface.read(gpu_engines.presets.described(name)).layers


def test_prompts_are_whole_blocks_and_one_token_more() -> None:
    assert [len(prompt) % 256 for prompt in gpu_engines.prompts()] == [1] * 5
    assert gpu_engines.prompts() == gpu_engines.prompts()


def test_answers_are_held_against_each_other_one_by_one() -> None:
    assert gpu_engines.identical("m", ["a", "b"], ["a", "b"]).well
    found = gpu_engines.identical("m", ["a", "b"], ["a", "c"])
    assert (found.well, found.said) == (False, "1 of 2 identical (32 tokens each)")


def timeline(size: int | None, seconds: float, **more: Any) -> dict[str, Any]:
    return {"transfer_bytes": size, "stages": [{"name": "transfer", "duration_s": seconds}], **more}


def test_hand_offs_are_told_by_requests_timelines() -> None:
    found = gpu_engines.handed_over(
        "m", [timeline(10_000_000, 0.001), timeline(20_000_000, 0.001), timeline(None, 0.0)]
    )
    assert (found.well, found.said) == (True, "2 of 15 MB, 1.00 ms, 15.0 GB/s (medians); 0 computed again")
    assert gpu_engines.handed_over("m", [timeline(10, 0.001, recomputed=True)]).well is False
    assert gpu_engines.handed_over("m", []).well is False


def test_errors_of_a_run_are_failures_and_times_are_only_told() -> None:
    fields = dict.fromkeys(("ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "itl_p99_s"), None)
    summary = Summary(
        n=10, errors=0, first_error=None, duration_s=1.0, requests_s=10.0, ttft_p50_s=0.1, itl_p50_s=0.01, **fields
    )
    assert gpu_engines.told("m", "1p1d", summary).well is None
    assert "TTFT 100.0 ms / —, ITL 10.0 ms / —" in gpu_engines.told("m", "1p1d", summary).said
