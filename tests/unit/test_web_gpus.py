"""The table of GPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from appliance.records import GpuProcess, GpuSnapshot, Throttled
from web import gpus, views
from web.views import Asked

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made


def test_a_node_without_gpus_shows_none() -> None:
    assert made.sections(made.busy(0))["gpus"] == ""


def test_each_gpu_is_a_row_and_what_is_wrong_is_said_in_words() -> None:
    found = gpus.gpus(made.large(0))
    assert found.name == "8 \u00d7 H100-SXM5-80GB"
    assert [gpu.slowed for gpu in found.gpus if gpu.slowed] == ["too hot"]
    assert [gpu.errors for gpu in found.gpus if gpu.errors] == ["1 ECC, uncorrected; 812 ECC, corrected; Xid 94"]
    assert found.gpus[0].memory == "72\u00a0GiB"
    html = made.sections(made.large(0))["gpus"]
    assert html.count("<tr") == 9


def test_what_a_gpu_does_not_tell_is_a_dash() -> None:
    [row] = gpus.gpus(made.node((), 0, gpus=(GpuSnapshot(index=0, uuid="GPU-1", name="A10"),))).gpus
    shown = {row.tensor, row.dram, row.nvlink, row.pcie, row.clock, row.power, row.temperature, row.memory, row.engine}
    assert shown == {"—"}
    assert (row.tensor_percent, row.slowed, row.errors, row.throttled, row.narrow, row.others) == (None,) * 6


def test_why_engines_are_where_they_are_is_said_with_or_without_gpus() -> None:
    note = "engines run on the CPU: NVIDIA's driver is not loaded: modprobe nvidia loads it & dmesg says why"
    html = made.sections(msgspec.structs.replace(made.busy(0), notes=(note,)))["gpus"]
    assert "Why engines are where they are" in html
    assert "loads it &amp; dmesg says why" in html
    assert "<table" not in html


def row(**readings: Any) -> gpus.GpuContext:
    gpu = GpuSnapshot(index=0, uuid="GPU-1", name="A10", **readings)
    [found] = gpus.gpus(made.node((), 0, gpus=(gpu,))).gpus
    return found


def test_who_else_is_on_a_gpu_and_a_narrow_link_are_marked() -> None:
    others = (GpuProcess(pid=4711, name="python3", memory_bytes=12 << 30), GpuProcess(pid=4712))
    found = row(others=others, pcie_lanes=8, pcie_lanes_max=16, pcie_generation=1, pcie_generation_max=5)
    assert found.others == "shared with python3 4711 (12\u00a0GiB) and pid 4712 (—)"
    assert (found.pcie, found.narrow) == ("5.0 ×8", "8 of 16 lanes")
    assert row(others=(), pcie_lanes=16, pcie_lanes_max=16, pcie_generation=1, pcie_generation_max=5).narrow is None
    html = made.sections(made.node((), 0, gpus=(GpuSnapshot(index=0, uuid="GPU-1", name="A10", others=others),)))[
        "gpus"
    ]
    assert "shared with python3" in html
    assert 'class="tone-warn"' in html


def test_how_long_clocks_were_held_down_is_said_of_what_matters() -> None:
    held = (
        Throttled(reason="sw_power_cap", total_s=750),
        Throttled(reason="thermal", total_s=0.2),
        Throttled(reason="sync_boost", total_s=3),
    )
    assert row(throttled=held).throttled == (
        "Clocks held down since the driver was loaded: power limit: 12\u00a0min, waits for others: 3.00\u00a0s"
    )


def test_engines_that_share_a_gpu_are_all_named() -> None:
    gpu = GpuSnapshot(index=0, uuid="GPU-1", name="A10", engine="e0")
    both = tuple(made.engine(name, gpus=("GPU-1",)) for name in ("e0", "e1"))
    assert gpus.gpus(made.node(both, 0, gpus=(gpu,))).gpus[0].engine == "e0, e1"


def test_idle_clocks_are_no_trouble_and_unknown_reasons_are_said_as_they_are() -> None:
    def slowed(*reasons: str) -> str | None:
        gpu = GpuSnapshot(index=0, uuid="GPU-1", name="A10", clock_reasons=reasons)
        return gpus.gpus(made.node((), 0, gpus=(gpu,))).gpus[0].slowed

    assert slowed("gpu_idle") is None
    assert slowed("sw_power_cap", "display_clock_setting") == "power limit and display clock setting"


def test_a_simulated_node_says_so_on_top_and_in_the_title() -> None:
    page, view = made.OVERVIEW, made.OVERVIEW.view(Asked())
    html = views.paint(page, view, made.large(0), "/live/")
    assert "<title>simulated: Llama-3.3-70B · pd-appliance</title>" in html
    assert "<b>Simulated.</b>" in html
    assert "<b>Simulated.</b>" not in views.paint(page, view, made.busy(0), "/live/")
