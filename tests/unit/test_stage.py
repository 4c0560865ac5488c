"""What ``serve --engine sim`` plays: a preset as it says itself, unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance import presets
from appliance.cli import app
from appliance.cli.asked import counted
from appliance.cli.cast import Cast, cast
from appliance.config import load
from appliance.costs.gpus import gpu
from appliance.errors import ConfigError

MODEL = Path(__file__).parent / "configs" / "llama-3.1-8b"


def played(model: str, gpus: str = "", **settings: Any) -> Cast:
    given = {"engine.kind": "sim", "model.path": model, **{name.replace("_", "."): it for name, it in settings.items()}}
    return cast(load(None, {}, {name: ("a test", value) for name, value in given.items()}), None, gpus)


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_plays_on_the_gpus_in_the_layout_and_with_the_context_that_it_says(name: str) -> None:
    preset = presets.load(name)
    where, layout = next(iter(preset.layouts.items()))
    count, kind = counted(where)
    found = played(name)
    assert (found.layout, found.remark) == (layout, " (simulated)")
    assert {plan.gpu for plan in found.plans} == {kind.name}
    assert {index for plan in found.plans for index in plan.indexes} <= set(range(count))
    assert {plan.settings.max_model_len for plan in found.plans} == {preset.context}
    assert found.notes[:2] == (
        f"GPUs: {count} × {kind.name} (simulated)",
        f"{layout}: the preset's for {where}; --topology takes another one",
    )


@pytest.mark.parametrize(
    ("name", "where", "layout"),
    [(name, where, layout) for name in presets.names() for where, layout in presets.load(name).layouts.items()],
)
def test_it_plays_on_each_of_the_gpus_that_it_has_a_layout_for(name: str, where: str, layout: str) -> None:
    found = played(name, where.lower())
    assert found.layout == layout
    assert {plan.settings.max_model_len for plan in found.plans} == {presets.load(name).context}


def test_what_is_asked_for_wins() -> None:
    found = played("gpt-oss-120b", "4xH200", topology_layout="2p2d", engine_args=("--max-model-len", "9000"))
    assert found.layout == "2p2d"
    assert [plan.gpu for plan in found.plans] == ["H200-SXM-141GB"] * 4
    assert {plan.settings.max_model_len for plan in found.plans} == {9000}
    assert found.notes[:2] == ("GPUs: 4 × H200-SXM-141GB (simulated)", "2p2d: as it was asked for")


def test_on_other_gpus_the_layout_is_that_which_serve_would_take_there() -> None:
    found = played("llama-3.1-8b", "3xH200")
    assert found.layout == "3b"
    assert found.notes[1].startswith("3b: what serve would take on such GPUs (pd-appliance plan)")
    with pytest.raises(ConfigError, match="fits on none of these GPUs"):
        played("deepseek-v3", "1xH100")


def test_two_engines_share_one_gpu_with_half_of_it_each() -> None:
    alone, (first, second) = played("qwen3-8b", "2xH100").plans[0], played("qwen3-8b", "1xH100").plans
    assert (first.indexes, second.indexes) == (range(1), range(1))
    assert first.settings.kv_blocks < second.settings.kv_blocks < alone.settings.kv_blocks / 2, "by their steps' sizes"
    assert first.memory_bytes + second.memory_bytes < gpu(first.gpu).memory_bytes
    assert first.kind == f"{alone.kind}, shared by 2"
    assert "engines that share GPU 0 are simulated with half of its memory and half of its speed each" in (
        played("qwen3-8b", "1xH100").notes
    )


def test_a_directory_plays_as_it_was_configured() -> None:
    found = played(str(MODEL))
    assert (found.layout, len(found.plans)) == ("1p1d", 2)
    assert {plan.gpu for plan in found.plans} == {"H100-SXM5-80GB"}
    assert found.notes[1] == "1p1d: what is usual; --topology takes another one"


def test_requests_that_are_too_long_for_the_kv_are_cut_and_it_is_said() -> None:
    found = played(str(MODEL), "1xH100", topology_layout="1p1d", engine_args=("--max-model-len", "900000"))
    assert found.plans[0].settings.max_model_len < 900_000
    assert f"requests are cut to {found.plans[0].settings.max_model_len:,} tokens" in found.notes[-1]
    assert "vLLM would not start for 900,000 (--max-model-len)" in found.notes[-1]


def test_a_node_that_changes_its_layout_stays_on_its_gpus() -> None:
    found = played("llama-3.3-70b-nvfp4", "8xB200").remake("1p1d@tp4", 0)
    assert [plan.gpu for plan in found.plans] == ["B200-SXM-180GB"] * 2
    assert found.notes[1:3] == ("1p1d@tp4: as it was asked for", "e0 (prefill) on GPU 0–3; e1 (decode) on GPU 4–7")
    assert found.remake("8b", 2).notes[1] == "8b: as it was asked for"


@pytest.mark.parametrize(
    ("gpus", "settings", "said"),
    [
        ("8xRTX", {"engine_kind": "sim"}, "no GPU 'RTX' is known"),
        ("many", {"engine_kind": "sim"}, "write how many and which, as in 8xH100"),
        ("2xH100", {"engine_kind": "sim", "topology_layout": "5b"}, r"layout 5b needs 5 GPUs and hardware\.gpus is 2"),
        ("2xH100", {"engine_kind": "vllm"}, "CUDA_VISIBLE_DEVICES says which real ones to use"),
    ],
)
def test_gpus_that_can_not_be_are_refused(gpus: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        played(str(MODEL), gpus, **settings)


def test_a_scenario_says_itself_which_gpus_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the scenario says which GPUs there are; leave it out"):
        cast(load(None, {}, {}), tmp_path / "s.toml", "8xH100")


def test_the_dry_run_says_all_of_it() -> None:
    done = CliRunner().invoke(app, ["serve", "--engine", "sim", "--model", "deepseek-v3", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("deepseek-v3 as 1b@tp8 (simulated)\nGPUs: 8 × H200-SXM-141GB (simulated)\n")
