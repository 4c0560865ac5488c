"""``pd-appliance check`` on machines with GPUs, by NVML's binding over a driver that is not there. Nothing is moved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml as nv
import pytest
from fake_nvml import GIB, FakeDriver, h100, installed

from appliance.checks import software
from appliance.checks.line import Line, Standing
from appliance.cli import cast, check
from appliance.config import load
from appliance.gpu.nvml import machine
from appliance.records import Inventory

Check = Callable[..., dict[str, Line]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Check:
    """What is said of a machine with so many GPUs, by what it is said of."""
    driver = FakeDriver(*(h100(uuid=f"GPU-{at}", used_bytes=GIB, links=[None] * 18) for at in range(4)))

    def there() -> Inventory:
        with installed(driver):
            return machine(lambda: nv)

    monkeypatch.setattr(software, "builds", lambda *_: "cuda")
    monkeypatch.setattr(software, "runtime", lambda *_: (13, 0))
    monkeypatch.setattr(cast, "machine", there)
    monkeypatch.setattr(check, "inventory", there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))

    def run(**settings: Any) -> dict[str, Line]:
        given = {"model.path": "llama-3.1-8b", "server.port": 0, "server.state_dir": str(tmp_path), **settings}
        loaded = load(None, os.environ, {name: ("a test", value) for name, value in given.items()})
        return {line.what: line for line in check.lines(loaded, move=False)}

    return run


def test_a_presets_weights_are_its_repositorys(lines: Check) -> None:
    assert lines()["model"].said.startswith(
        "llama-3.1-8b: its weights are meta-llama/Llama-3.1-8B-Instruct's on the hub, and whether"
    )


def test_the_hosts_memory_is_looked_at_and_that_between_ranks_where_there_are_some(
    lines: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = lines(**{"topology.layout": "2p2d"})
    assert "processes of 4 GPUs take about 16.0 GiB" in alone["memory"].said
    assert "shared memory" not in alone
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=64 << 8, f_frsize=4096))
    found = lines(**{"topology.layout": "1p1d@tp2"})["shared memory"]
    assert (found.standing, found.said[:8]) == (Standing.BAD, "/dev/shm")


@pytest.mark.parametrize(("named", "there"), [("1,3", {"GPU 1", "GPU 3"}), ("GPU-2", {"GPU 2"}), ("0,-1,2", {"GPU 0"})])
def test_only_gpus_that_engines_may_see_are_listed(
    lines: Check, named: str, there: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = lines()
    assert {what for what in found if what.startswith("GPU ")} == there
    assert f"CUDA_VISIBLE_DEVICES={named}" in found["environment"].said


@pytest.mark.parametrize(
    ("named", "said"), [("7", "names '7', which is no GPU of this machine"), ("", "'' shows none of its GPUs")]
)
def test_a_list_that_names_none_is_said_to(
    lines: Check, named: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = lines()
    assert said in found["GPUs"].said
    assert found["engines"].standing is Standing.BAD
