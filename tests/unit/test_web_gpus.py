"""The table of GPUs."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.records import GpuSnapshot
from web import gpus, pages

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made


def test_a_node_without_gpus_shows_none() -> None:
    assert pages.sections(made.busy(0))["gpus"] == ""


def test_each_gpu_is_a_row_and_what_is_wrong_is_said_in_words() -> None:
    found = gpus.gpus(made.large(0))
    assert found.name == "8 \u00d7 H100-SXM5-80GB"
    assert [gpu.slowed for gpu in found.gpus if gpu.slowed] == ["too hot"]
    assert [gpu.errors for gpu in found.gpus if gpu.errors] == ["1 ECC, uncorrected; 812 ECC, corrected; Xid 94"]
    assert found.gpus[0].memory == "72\u00a0GiB"
    html = pages.sections(made.large(0))["gpus"]
    assert html.count("<tr") == 9


def test_what_a_gpu_does_not_tell_is_a_dash() -> None:
    [row] = gpus.gpus(made.node((), 0, gpus=(GpuSnapshot(index=0, uuid="GPU-1", name="A10"),))).gpus
    assert {row.tensor, row.dram, row.nvlink, row.clock, row.power, row.temperature, row.memory, row.engine} == {"—"}
    assert (row.tensor_percent, row.slowed, row.errors) == (None, None, None)


def test_idle_clocks_are_no_trouble_and_unknown_reasons_are_said_as_they_are() -> None:
    def slowed(*reasons: str) -> str | None:
        gpu = GpuSnapshot(index=0, uuid="GPU-1", name="A10", clock_reasons=reasons)
        return gpus.gpus(made.node((), 0, gpus=(gpu,))).gpus[0].slowed

    assert slowed("gpu_idle") is None
    assert slowed("sw_power_cap", "display_clock_setting") == "power limit and display clock setting"


def test_a_simulated_node_says_so_on_top_and_in_the_title() -> None:
    page = pages.render("page", pages.page(made.large(0), "127.0.0.1:8000"))
    assert "<title>simulated: Llama-3.3-70B · pd-appliance</title>" in page
    assert "<b>Simulated.</b>" in page
    assert "<b>Simulated.</b>" not in pages.render("page", pages.page(made.busy(0), "127.0.0.1:8000"))
