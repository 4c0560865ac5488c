"""``pd-appliance plan``, as it is called; and the presets that it knows."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import GIB, FakeDriver, FakeGpu, geforce, h100, installed
from rich.console import Console
from typer.testing import CliRunner

from appliance import demo, presets
from appliance.cli import app
from appliance.cli import plan as command
from appliance.costs import huggingface
from appliance.errors import ConfigError
from appliance.records import Inventory
from appliance.supervisor.specs import DEMO_CONTEXT
from appliance.supervisor.topology import parse


def plan(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def planned(*arguments: str) -> dict[str, Any]:
    return json.loads(plan(*arguments, "--json"))


@pytest.mark.parametrize(("model", "recipe"), [("gpt-oss-120b", "1p1d@tp4"), ("llama-3.3-70b-fp8", "4p4d")])
def test_published_recipes_are_feasible_on_eight_h100(model: str, recipe: str) -> None:
    found = planned("--model", model, "--gpus", "8xH100")
    assert found["predicted"]
    assert found["given"]
    by_layout = {one["layout"]: one for one in found["layouts"]}
    assert found["gpus"][0]["memory_bytes"] == (81_559 - 551) << 20, "as CUDA has them, and not 80 GiB"
    assert by_layout[recipe]["feasible"]
    assert found["best"] in by_layout
    assert all(one["reason"] for one in found["layouts"])


@pytest.mark.parametrize("name", presets.names())
def test_each_preset_fits_where_it_says_that_it_does(name: str) -> None:
    for gpus, layout in presets.load(name).layouts.items():
        found = {one["layout"]: one for one in planned("--model", name, "--gpus", gpus)["layouts"]}
        assert found[layout]["feasible"], (gpus, found[layout]["reason"])
        parse(layout)


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_s_layouts_are_good_for_its_traffic(name: str) -> None:
    """But on one GPU, which two engines share: nothing is predicted of these."""
    for gpus, layout in presets.load(name).layouts.items():
        found = planned("--model", name, "--gpus", gpus)
        one = {one["layout"]: one for one in found["layouts"]}[layout]
        if not gpus.startswith("1x"):
            assert one["plan"]["predicted"]["most_rate_s"] > found["traffic"]["rate"], gpus
            assert one["plan"]["feasible"], (gpus, one["reason"])


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_s_requests_are_no_longer_than_its_model_can(name: str) -> None:
    positions = huggingface.positions(presets.described(name))
    assert positions is not None
    assert presets.load(name).context <= positions


def test_requests_that_are_longer_than_the_model_can_are_refused() -> None:
    """vLLM does not start with such a --max-model-len."""
    with pytest.raises(ConfigError, match=r"200,000 tokens are more .* 40,960\): --context 40960 is the most"):
        plan("--model", "qwen3-8b", "--gpus", "2xH100", "--context", "200000")
    assert planned("--model", "qwen3-8b", "--gpus", "2xH100", "--context", "40960")["context"] == 40_960


def test_the_table_has_the_best_of_each_shape_and_json_all() -> None:
    asked = ("--model", "llama-3.3-70b-fp8", "--gpus", "8xH100")
    said, found = plan(*asked), planned(*asked)
    feasible = {one["layout"] for one in found["layouts"] if one["feasible"]}
    rows = {layout for layout in feasible if re.search(rf"[ →│]{layout} ", said)}
    shapes = {re.sub(r"\d+(?=[pdb])", "", layout) for layout in feasible}
    assert {re.sub(r"\d+(?=[pdb])", "", layout) for layout in rows} == shapes
    assert len(rows) == len(shapes), "the preset's is the best of its own"
    assert "2p1d@tp2:tp4" in rows, "as in Dynamo's recipe for one node"
    assert f"{len(feasible) - len(rows)} more layouts fit" in said
    everything = plan(*asked, "--all")
    assert all(re.search(rf"[ →│]{layout} ", everything) for layout in feasible)


def test_the_table_says_what_is_predicted_for_which_traffic_and_what_to_take() -> None:
    said = plan("--model", "gpt-oss-120b", "--gpus", "8xH100")
    assert "gpt-oss-120b: 116.8 billion parameters" in said
    assert "8 × H100-SXM5-80GB (not here)" in said
    assert "PREDICTED by a cost model" in said
    assert "8 requests/s of 2000 prompt and 500 output tokens" in said
    assert "Take " in said
    assert "The preset has 1p1d@tp4 for 8xH100." in said


def test_what_does_not_fit_is_shown_with_why_where_it_is_asked_for() -> None:
    asked = ("--model", "deepseek-v3", "--gpus", "8xH200")
    assert "4p4d" not in plan(*asked)
    assert "24 layouts do not fit; --all shows why." in plan(*asked)
    assert "4p4d" in plan(*asked, "--all")


def test_more_traffic_and_a_longer_context_change_what_is_predicted() -> None:
    few = planned("--model", "llama-3.1-8b", "--gpus", "2xH100", "--rate", "1")
    many = planned("--model", "llama-3.1-8b", "--gpus", "2xH100", "--rate", "15")

    def load(found: dict[str, Any]) -> float:
        return float(
            next(one for one in found["layouts"] if one["layout"] == "2b")["plan"]["predicted"]["prefill_load"]
        )

    assert load(few) < load(many)


def test_the_gpus_of_this_machine_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml as nv

    from appliance.gpu.nvml import machine

    gpus = [h100(uuid=f"GPU-{index}", used_bytes=GIB, links=[None]) for index in range(4)]
    gpus[2].used_bytes = 45 * GIB
    gpus[2].processes = [(1, 44 * GIB)]
    monkeypatch.setattr(command, "machine", lambda: machine(lambda: nv))
    with installed(FakeDriver(*gpus)):
        said = plan("--model", "llama-3.1-8b")
        found = planned("--model", "llama-3.1-8b")
    assert "Not used: GPU 2: 56% of its memory is taken by" in said
    assert not found["given"]
    assert {uuid for one in found["layouts"] for seat in one["seats"] for uuid in seat["gpus"]} == {
        "GPU-0",
        "GPU-1",
        "GPU-3",
    }


def here(monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu) -> None:
    """A machine with these."""
    import pynvml as nv

    from appliance.gpu.nvml import machine

    def there() -> Inventory:
        with installed(FakeDriver(*gpus)):
            return machine(lambda: nv)

    monkeypatch.setattr(command, "machine", there)


def test_gpus_that_the_cost_model_does_not_know_are_planned_for_without_a_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here(monkeypatch, *(geforce(uuid=f"GPU-{index}", used_bytes=GIB) for index in range(2)))
    assert "nothing can be predicted here: as few GPUs per engine as will do" in plan("--model", "qwen3-8b")
    found = planned("--model", "qwen3-8b")
    assert found["best"] == "1b@tp2", "one of 24 GiB has no room for a request of 40,960 tokens"
    assert all(not one["plan"] or one["plan"]["predicted"] is None for one in found["layouts"])


@pytest.mark.parametrize(("named", "best"), [("0", "1p1d"), ("1,0", "2b"), ("0,-1", "1p1d")])
def test_only_gpus_that_cuda_may_see_are_planned_for(named: str, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, *(h100(uuid=f"GPU-{index}", used_bytes=GIB, links=[None]) for index in range(3)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = planned("--model", "llama-3.1-8b")
    assert found["best"] == best
    assert {card["index"] for card in found["gpus"]} == {int(one) for one in named.split(",") if one != "-1"}


@pytest.mark.parametrize("named", ["", " ", "-1", "NoDevFiles"])
def test_where_cuda_may_see_none_it_is_said(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, h100(used_bytes=GIB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    with pytest.raises(ConfigError, match=f"CUDA_VISIBLE_DEVICES={named!r} shows none of its GPUs.: name some with"):
        plan("--model", "qwen3-8b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "gpt-oss-120b", "--gpus", "many"), "write how many and which, as in 8xH100"),
        (("--model", "gpt-oss-120b", "--gpus", "0xH100"), "write how many and which, as in 8xH100"),
        (("--model", "gpt-oss-120b", "--gpus", "8xRTX"), "no GPU 'RTX' is known; known are a100"),
        (
            ("--model", "no-such-model", "--gpus", "8xH100"),
            "model 'no-such-model': no such preset, and no such directory",
        ),
        (("--model", "gpt-oss-120b"), "this machine has no GPU to plan for: name some with --gpus"),
    ],
)
def test_what_can_not_be_understood_says_what_would_be_right(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(command, "machine", lambda: Inventory(cards=()))
    with pytest.raises(ConfigError, match=None) as refused:
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt-oss-120b", 116.8),  # its model card
        ("gpt-oss-20b", 20.9),
        ("llama-3.1-8b", 8.03),
        ("qwen3-8b", 8.2),
        ("llama-3.3-70b-fp8", 70.6),
        ("deepseek-v3", 671.0),
    ],
)
def test_presets_are_as_large_as_published(name: str, billions: float) -> None:
    assert huggingface.read(presets.described(name)).parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_a_name_that_is_no_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no preset 'nothing'; there are deepseek-v3, gpt-oss-120b"):
        presets.load("nothing")


def test_the_commands_of_a_layout_are_shown() -> None:
    said = plan("--model", "gpt-oss-120b", "--gpus", "8xH100", "--layout", "1p1d@tp4")
    assert "e0 (prefill) on GPU 0–3" in said
    assert "CUDA_VISIBLE_DEVICES=GPU-4,GPU-5,GPU-6,GPU-7" in said
    assert said.count("--tensor-parallel-size 4") == 2
    assert "--max-num-batched-tokens 8192" in said
    assert "--max-num-batched-tokens 2048" in said
    assert "e0 (" in plan("--model", "qwen3-8b", "--gpus", "1xH100", "--show-commands")


def test_the_commands_of_a_layout_that_can_not_be_are_refused() -> None:
    for layout, said in (
        ("9p9d", "topology '9p9d' takes 18 GPUs, and 8 can be used"),
        ("8b", "topology '8b' does not fit: "),
    ):
        with pytest.raises(ConfigError) as refused:
            plan("--model", "deepseek-v3", "--gpus", "8xH200", "--layout", layout)
        assert said in str(refused.value)


def test_the_commands_are_in_json_too() -> None:
    found = planned("--model", "gpt-oss-120b", "--gpus", "8xH100", "--layout", "1p1d@tp4")["commands"]
    assert [(one["engine"], one["role"], len(one["gpus"])) for one in found] == [
        ("e0", "prefill", 4),
        ("e1", "decode", 4),
    ]
    assert found[1]["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-4,GPU-5,GPU-6,GPU-7"
    assert "--tensor-parallel-size" in found[0]["arguments"]
    assert planned("--model", "qwen3-8b", "--gpus", "1xH100", "--show-commands")["commands"]
    assert "commands" not in planned("--model", "qwen3-8b", "--gpus", "1xH100")
    with pytest.raises(ConfigError, match="topology '1p1d@tp3' takes 6 GPUs, and 2 can be used"):
        plan("--model", "qwen3-8b", "--gpus", "2xH100", "--json", "--layout", "1p1d@tp3")


def test_where_nothing_fits_the_reasons_are_shown() -> None:
    asked = ("--model", "deepseek-v3", "--gpus", "2xH100")
    for more in ((), ("--all",), ("--show-commands",)):
        said = " ".join(plan(*asked, *more, code=1).split())
        assert "fits on none of these GPUs: 1b@tp2 is the nearest: each GPU has 72.8 GiB for an engine" in said
        assert "--all shows" not in said
        assert "1p1d" in said
    found = json.loads(plan(*asked, "--json", code=1))
    assert found["best"] is None
    assert all(one["reason"] for one in found["layouts"])


@pytest.mark.parametrize("option", ["--rate", "--prompt", "--output", "--ttft", "--itl"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_what_is_no_number_is_not_planned_with(option: str, value: str) -> None:
    assert "Invalid value" in plan("--model", "qwen3-8b", "--gpus", "2xH100", option, value, code=2)


def test_that_prompts_are_cut_is_said() -> None:
    asked = ("--model", "qwen3-8b", "--gpus", "2xH100")
    assert "100% of the prompts, or of the answers, would be longer" in plan(*asked, "--context", "16")
    assert planned(*asked, "--context", "16")["clipped"] == 1
    assert "would be longer" not in plan(*asked)
    assert planned(*asked)["clipped"] == 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("gpt-oss-12b", "no such preset, .* did you mean gpt-oss-120b or gpt-oss-20b. there are deepseek-v3"),
        ("openai/gpt-oss-120b", r"hf download openai/gpt-oss-120b config\.json --local-dir DIRECTORY has"),
        ("a" * 300, "model 'a{200}': no such preset"),
        ("~nobody-here/model", "model '~nobody-here/model': no such preset"),
    ],
)
def test_a_model_that_is_not_there_says_what_works(model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan("--model", model, "--gpus", "2xH100")


def test_the_demo_model_is_planned() -> None:
    found = planned("--model", "demo", "--gpus", "2xH100", "--show-commands")
    assert (found["model"], found["clipped"], found["context"]) == (demo.MODEL_NAME, 0, DEMO_CONTEXT)
    assert "--enable-auto-tool-choice" in found["commands"][0]["arguments"], "as serve starts it"


def test_paths_are_shown_as_they_are_and_the_file_is_its_directory_s(tmp_path: Path) -> None:
    directory = tmp_path / "my:fire:[b]model"
    shutil.copytree(presets.described("qwen3-8b"), directory)
    said = plan("--model", str(directory / "config.json"), "--gpus", "2xH100", "--show-commands")
    assert said.startswith("my:fire:[b]model: 8.2 billion")
    assert f"--model '{directory}' --served-model-name 'my:fire:[b]model'" in said
    assert "These do not run by themselves" in said


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
def test_figures_are_whole_in_narrow_terminals(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Console", partial(Console, force_terminal=True, color_system=None))
    monkeypatch.setenv("COLUMNS", str(width))
    said = plan("--model", "llama-3.3-70b-fp8", "--gpus", "8xH100")
    assert max(map(len, said.splitlines())) <= width
    table = said.partition("PREDICTED")[2].partition("└")[0]
    assert "…" not in table
    assert re.search(r"→ │ 6p1d@tp1:tp2 │ +451,394 │", table)
    assert ("100% │" in table) is (width >= 80)
    assert ("6p1d@tp1:tp2: meets the targets" in said) is (width < 110), (
        "reasons are below where they have no room beside"
    )
