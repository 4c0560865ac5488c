"""``pd-appliance serve`` on machines of every kind, by NVML's binding over a driver that is not there: what it would start, and why."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pynvml as nv
import pytest
from fake_nvml import GIB, FakeDriver, FakeGpu, a100, geforce, h100, installed
from typer.testing import CliRunner

from appliance.checks import software
from appliance.cli import app, cast, on_gpus
from appliance.config import Config
from appliance.errors import ConfigError, NotNowError
from appliance.gpu.inventory import described
from appliance.gpu.nvml import machine
from appliance.records import Inventory
from appliance.supervisor.specs import resolve_model

Serve = Callable[..., str]


def gpus(count: int, **changes: Any) -> list[FakeGpu]:
    return [h100(**{"uuid": f"GPU-{at}", "used_bytes": GIB, "links": [None] * 18, **changes}) for at in range(count)]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """What ``serve --dry-run`` says on a machine with these GPUs."""
    monkeypatch.setattr(software, "builds", lambda *_: "cuda")
    monkeypatch.setattr(software, "runtime", lambda *_: (13, 0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(driver: FakeDriver, *arguments: str, model: str = "llama-3.1-8b") -> str:
        def there() -> Inventory:
            with installed(driver):
                return machine(lambda: nv)

        monkeypatch.setattr(cast, "machine", there)
        result = CliRunner().invoke(app, ["serve", "--dry-run", "--model", model, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.mark.parametrize(
    ("count", "layout", "where"),
    [
        (1, "1p1d", "e0 (prefill) on GPU 0; e1 (decode) on GPU 0"),
        (2, "2b", "e0 (both) on GPU 0; e1 (both) on GPU 1"),
        (3, "3b", "e2 (both) on GPU 2"),
        (8, "8b", "e7 (both) on GPU 7"),
    ],
)
def test_all_of_them_are_used(serve: Serve, count: int, layout: str, where: str) -> None:
    said = serve(FakeDriver(*gpus(count)))
    assert said.startswith(f"llama-3.1-8b as {layout}\nGPUs: {count} × NVIDIA H100 80GB HBM3, driver 580.82.07\n")
    assert where in said
    assert said.count("CUDA_VISIBLE_DEVICES=GPU-") == max(2, count)


def test_two_engines_on_one_gpu_have_half_of_it_each(serve: Serve) -> None:
    said = serve(FakeDriver(*gpus(1)))
    assert said.count("CUDA_VISIBLE_DEVICES=GPU-0 ") == 2
    assert said.count("--gpu-memory-utilization 0.460 --kv-cache-memory-bytes ") == 2
    assert "unpredicted; 1b would have one engine on all of it; --topology takes another one" in said


def test_a_large_model_gets_engines_of_several_gpus(serve: Serve) -> None:
    said = serve(FakeDriver(*gpus(8)), model="llama-3.3-70b-fp8")
    assert said.startswith("llama-3.3-70b-fp8 as 6p1d@tp1:tp2\n")
    assert "that are asked for, the highest of all" in said
    assert said.count("CUDA_VISIBLE_DEVICES=GPU-") == 7
    assert said.count("CUDA_VISIBLE_DEVICES=GPU-0,GPU-1 ") == said.count("--tensor-parallel-size 2") == 1
    assert said.count("--max-num-batched-tokens 4096") == 6, "there is no room for more on one GPU"
    assert "prefill steps of 4,096 tokens: more would leave too little room for KV" in said


def test_a_gpu_that_is_half_full_is_left_alone_where_there_are_others(serve: Serve) -> None:
    driver = FakeDriver(*gpus(3))
    driver.gpus[1].used_bytes, driver.gpus[1].processes = 40 * GIB, [(1, 39 * GIB)]
    said = serve(driver)
    assert "not used: GPU 1: 50% of its memory is taken by" in said
    assert "CUDA_VISIBLE_DEVICES=GPU-1" not in said
    assert "e1 (both) on GPU 2" in said


def test_an_only_gpu_that_is_half_full_is_used_for_what_is_left(serve: Serve) -> None:
    driver = FakeDriver(*gpus(1))
    driver.gpus[0].used_bytes, driver.gpus[0].processes = 40 * GIB, [(1, 39 * GIB)]
    said = serve(driver)
    assert "50% of GPU 0 is taken by others" in said
    assert "--gpu-memory-utilization 0.481" in said


def test_gpus_that_are_cut_into_parts_are_left_out(serve: Serve) -> None:
    driver = FakeDriver(*gpus(2))
    driver.gpus[0].mig = ["MIG-1"]
    said = serve(driver)
    assert "not used: GPU 0: it is cut into parts (MIG)" in said
    assert "nvidia-smi -i 0 -mig 0 makes it whole" in said
    assert "e0 (prefill) on GPU 1; e1 (decode) on GPU 1" in said


def test_without_peer_access_no_kv_is_handed_over_unless_it_is_asked_for(serve: Serve) -> None:
    driver = FakeDriver(*(h100(uuid=f"GPU-{at}", used_bytes=GIB, unreadable={1 - at}) for at in range(2)))
    assert "llama-3.1-8b as 2b" in serve(driver)
    said = serve(driver, "--topology", "1p1d")
    assert "KV goes through the host's memory, which is slower" in said
    assert "CUDA_VISIBLE_DEVICES=GPU-1,GPU-0" in said


def test_engines_may_see_each_others_gpus_after_their_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_APPLIANCE_ENGINE_SEE_ALL_GPUS", "true")
    said = serve(FakeDriver(*gpus(3)), "--topology", "1p1d@tp1:tp2")
    assert "CUDA_VISIBLE_DEVICES=GPU-2,GPU-0,GPU-1 " in said
    assert "CUDA_VISIBLE_DEVICES=GPU-0,GPU-1,GPU-2 " in said
    assert "host's memory" not in said


def test_of_mixed_kinds_one_is_taken_and_the_others_can_be(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(*gpus(2), a100(uuid="GPU-2", used_bytes=GIB))
    said = serve(driver)
    assert "GPUs: 2 × NVIDIA H100 80GB HBM3 and 1 × NVIDIA A100-SXM4-80GB" in said
    assert "not used: GPU 2: it is of another kind (NVIDIA A100-SXM4-80GB)" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert "e0 (prefill) on GPU 2; e1 (decode) on GPU 2" in serve(driver)


def test_of_mixed_kinds_the_one_that_the_model_fits_on_is_taken(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(*(geforce(uuid=f"GPU-{at}", used_bytes=GIB) for at in range(4)), *gpus(5)[4:])
    monkeypatch.setenv("PD_APPLIANCE_ENGINE_ARGS", '["--max-model-len", "90k"]')
    said = serve(driver, model="gpt-oss-120b")
    assert "gpt-oss-120b as 1b\n" in said
    assert "on NVIDIA GeForce RTX 4090, of which there is more memory in all, nothing fits" in said
    assert "e0 (both) on GPU 4" in said
    assert "e0 (both) on GPU 4" in serve(driver, "--topology", "1b", model="gpt-oss-120b")
    assert "RTX 4090, of which" not in serve(driver, model="qwen3-8b")


def test_the_remedy_that_is_nearest_is_told(serve: Serve) -> None:
    """Two GPUs without NVLink, of which neither has room for the weights, have some for shorter requests together."""
    driver = FakeDriver(*(geforce(uuid=f"GPU-{at}", used_bytes=8 * GIB) for at in range(2)))
    with pytest.raises(
        ConfigError, match=r"nearest: .* requests of up to [\d,]+ tokens would fit \(--context \d+, or --max-model-len"
    ):
        serve(driver, model="llama-3.1-8b")


def test_ranks_meet_over_pcie_where_somebody_asks_for_it(serve: Serve) -> None:
    driver = FakeDriver(*gpus(8, links=[]))
    assert "over PCIe" not in serve(driver, model="llama-3.3-70b-fp8")
    said = serve(driver, "--topology", "1p1d@tp4", model="llama-3.3-70b-fp8")
    assert "e0 (prefill) on GPU 0–3; e1 (decode) on GPU 4–7" in said
    assert "its ranks meet over PCIe, which is slower and not predicted" in said


def test_without_peer_access_the_layouts_left_out_are_said(serve: Serve) -> None:
    driver = FakeDriver(*(h100(uuid=f"GPU-{at}", used_bytes=GIB, unreadable={1 - at}) for at in range(2)))
    said = serve(driver)
    assert "the highest of those that hand KV over from GPU to GPU or not at all: 1 split layout is left out" in said
    assert "highest of all" not in said


def test_a_gpu_that_is_lost_is_said(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(*gpus(3))
    driver.gpus[1].refused = {"*": nv.NVML_ERROR_GPU_IS_LOST}
    said = serve(driver)
    assert "e1 (both) on GPU 2" in said
    assert "not used: GPU 1: it does not answer (GPU is lost); dmesg says why (Xid)" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ConfigError, match=r"names '1', which is no GPU .* GPU 1: it does not answer"):
        serve(driver)
    alone = FakeDriver(*gpus(1, refused={"*": nv.NVML_ERROR_GPU_IS_LOST}))
    with pytest.raises(NotNowError, match=r"has no GPU that answers: GPU 0: it does not answer \(GPU is lost\)"):
        serve(alone)


def test_what_vllm_is_told_of_memory_and_context_is_planned_with(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*arguments: str) -> str:
        monkeypatch.setenv("PD_APPLIANCE_ENGINE_ARGS", json.dumps(arguments))
        return serve(FakeDriver(*gpus(2)))

    def rate(said: str) -> float:
        found = re.search(r"up to ([\d.e+]+) requests/s", said)
        assert found is not None
        return float(found[1])

    assert rate(told("--gpu-memory-utilization", "0.5")) < rate(told())
    with pytest.raises(ConfigError, match=r"each GPU has 15\.8 GiB for an engine.* requests of up to"):
        told("--gpu-memory-utilization", "0.2", "--max-model-len", "100k")
    said = told("--max-model-len", "32k")
    assert said.count("--max-model-len") == 2, "once for each engine"
    assert "--max-num-batched-tokens 16384 --max-num-seqs 256" in told("--max-num-batched-tokens", "16384")


@pytest.mark.parametrize("model", ["gpt-oss-12b", "lama-3.1-8b"])
def test_a_preset_that_is_misspelt_is_not_looked_for_on_the_hub(serve: Serve, model: str) -> None:
    with pytest.raises(
        ConfigError, match=r"no such directory, and no such preset; did you mean (gpt-oss-120b|llama-3.1-8b)"
    ):
        serve(FakeDriver(*gpus(2)), model=model)


def test_kinds_that_the_cost_model_does_not_know_are_used_unpredicted(serve: Serve) -> None:
    said = serve(FakeDriver(*(geforce(uuid=f"GPU-{at}", used_bytes=GIB) for at in range(2))))
    assert "1b@tp2: nothing can be predicted here: as few GPUs per engine as will do, and each engine does both" in said
    assert "NVLink does not connect all of e0's GPUs (0, 1): its ranks meet over PCIe" in said


def test_engines_are_put_on_near_cores_but_on_none_that_the_appliance_may_not_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    cards = described(2, "H100", 80 * GIB).cards
    near = [
        msgspec.structs.replace(card, cores=cores) for card, cores in zip(cards, ((0, 1, 64), (65, 66)), strict=True)
    ]
    found = on_gpus.seat(Config(), resolve_model(Config()), Inventory(cards=tuple(near)), "1p1d")
    assert [spec.cores for spec in found.specs] == [(0, 1), ()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mig": ["MIG-1"]}, r"it is cut into parts \(MIG\).*nvidia-smi -i 0 -mig 0 makes it whole"),
        ({"compute_mode": nv.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS}, "allows one process.*nvidia-smi -i 0 -c DEFAULT"),
        ({"compute_mode": nv.NVML_COMPUTEMODE_PROHIBITED}, "allows nobody; nvidia-smi -i 0 -c DEFAULT"),
        ({"used_bytes": 79 * GIB}, "99% of its memory is taken; end that, and it is used"),
        ({"refused": {"nvmlDeviceGetMemoryInfo": nv.NVML_ERROR_UNKNOWN}}, "can't be read; nvidia-smi says more"),
        (
            {"used_bytes": 66 * GIB, "processes": [(71, 65 * GIB)]},
            r"GPU 0 has 12.1 GiB for an engine \(83% of GPU 0 is taken by .* 71: ending",
        ),
    ],
)
def test_where_no_gpu_can_be_used_it_is_said_why_and_what_to_do(
    serve: Serve, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        serve(FakeDriver(*gpus(1, **changes)))


def test_a_driver_without_gpus_or_too_old_a_one_is_no_place_for_now(serve: Serve) -> None:
    with pytest.raises(NotNowError, match="tells of no GPU: nvidia-smi -L should list some"):
        serve(FakeDriver())
    driver = FakeDriver(*gpus(2))
    driver.version, driver.cuda = "550.54.15", 12040
    with pytest.raises(NotNowError, match=r"\(550.54.15\) runs CUDA up to 12.4.*install driver 580.65 or newer"):
        serve(driver)
    driver = FakeDriver(*gpus(2))
    driver.cannot_start = nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    with pytest.raises(NotNowError, match="the old one is still loaded: restart the machine"):
        serve(driver)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("3p1d", "topology '3p1d' takes 4 GPUs, and 1 can be used"),
        ("1b@tp2", "topology '1b@tp2' takes 2 GPUs, and 1 can be used"),
    ],
)
def test_a_layout_that_can_not_be_is_refused(serve: Serve, layout: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        serve(FakeDriver(*gpus(1)), "--topology", layout)


def test_beside_vllms_cpu_build_gpus_are_told_of_and_engines_run_on_the_cpu(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "builds", lambda *_: "cpu")
    said = serve(FakeDriver(*gpus(2)), model="demo")
    assert "engines run on the CPU beside 2 GPUs: vLLM's CPU build is installed; make serve installs the other" in said
    assert "CUDA_VISIBLE_DEVICES" not in said
    driver = FakeDriver()
    driver.cannot_start = nv.NVML_ERROR_DRIVER_NOT_LOADED
    assert "engines run on the CPU: NVIDIA's driver is not loaded" in serve(driver, model="demo")
    with pytest.raises(
        ConfigError, match="a preset for GPUs, and the vLLM that is installed here is built for the CPU"
    ):
        serve(FakeDriver(*gpus(2)))


# ---- models


def hub(tmp_path: Path, **changes: Any) -> Path:
    config = json.loads((Path(on_gpus.presets.__file__).parent / "llama-3.1-8b" / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | changes))
    return path


def test_of_a_model_on_the_hub_its_config_is_asked_for(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpus, "from_hub", lambda name: hub(tmp_path))
    said = serve(FakeDriver(*gpus(2)), model="org/model")
    assert "org/model as 2b" in said
    assert "--model org/model" in said
    assert "--max-model-len 32768" in said


def test_the_longest_request_is_no_longer_than_the_model_can_or_the_owner_says(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpus, "from_hub", lambda name: hub(tmp_path, max_position_embeddings=8192))
    assert "--max-model-len 8192" in serve(FakeDriver(*gpus(2)), model="org/model")
    monkeypatch.setenv("PD_APPLIANCE_ENGINE_ARGS", '["--max-model-len", "1000"]')
    said = serve(FakeDriver(*gpus(2)), model="org/model")
    assert said.count("--max-model-len") == 2, "once for each engine"
    assert "--max-model-len 1000" in said


def test_a_model_that_nothing_is_known_of_needs_a_layout(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Path:
        raise ConfigError(f"the config.json of {name} can't be had (no network)")

    monkeypatch.setattr(on_gpus, "from_hub", refuse)
    with pytest.raises(ConfigError, match=r"can't be had \(no network\). So no layout can be planned: name one, as in"):
        serve(FakeDriver(*gpus(2)), model="org/model")
    said = serve(FakeDriver(*gpus(2)), "--topology", "1p1d", model="org/model")
    assert "whether it fits shows when engines load it" in said
    assert "--max-model-len" not in said
