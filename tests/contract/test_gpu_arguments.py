"""What engines on GPUs would be started with, against the vLLM that is installed: it knows every argument, and reads it as it is meant."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from appliance import presets
from appliance.config import Config, RouterConfig
from appliance.records import Role
from appliance.supervisor import refused
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import GpuSeat, Model, arguments, gpu_specs
from appliance.supervisor.topology import parse
from bench import gpu_engines

pytest.importorskip("vllm", reason="the CPU engine is not installed")


@pytest.mark.parametrize("name", presets.names())
@pytest.mark.parametrize("size", [1, 4])
def test_vllm_understands_what_a_presets_engines_are_told(name: str, size: int) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    preset = presets.load(name)
    seat = GpuSeat(
        name="e0",
        role=Role.PREFILL,
        gpus=tuple(f"GPU-{index}" for index in range(size)),
        memory_fraction=0.4567,
        token_budget=8192,
        places=256,
    )
    [spec] = gpu_specs(
        Config(router=RouterConfig(continue_streams=True)),
        [seat],
        Model(preset.repository, name, False),
        arguments=preset.args,
        context=preset.context,
        near={},
    )
    parser: Any = FlexibleArgumentParser
    read = make_arg_parser(parser()).parse_args(list(spec.arguments))
    validate_parsed_serve_args(read)
    assert (read.model, read.served_model_name) == (preset.repository, [name])
    assert (read.tensor_parallel_size, read.max_model_len) == (size, preset.context)
    assert (read.max_num_batched_tokens, read.max_num_seqs) == (8192, 256)
    assert read.gpu_memory_utilization == 0.456, "never more than there is"
    assert not read.enforce_eager


_ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@pytest.fixture
def unchanged() -> Iterator[None]:
    """vLLM sets variables of its process when it is configured."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in presets.names() for layout in presets.load(name).layouts.values()]
)
def test_it_makes_the_configuration_of_it_that_was_meant(name: str, layout: str, short: Path, tmp_path: Path) -> None:
    """All that an engine runs with, by the build that is installed; models are looked at as far as their config.json goes."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    preset, model = presets.load(name), json.loads(presets.described(name).joinpath("config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**model, "architectures": [_ARCHITECTURES[model["model_type"]]]}))
    place = parse(layout).places[-1]
    seat = GpuSeat(
        name=place.name,
        role=place.role,
        gpus=tuple(f"GPU-{index}" for index in range(place.tensor_parallel)),
        memory_fraction=0.45,
        token_budget=3072,
        places=48,
        kv_bytes=5 << 30,
    )
    source = Model(str(tmp_path), name, True)
    [spec] = gpu_specs(Config(), [seat], source, arguments=preset.args, context=preset.context, near={})
    runtime = Runtime(short)
    told = arguments(spec, runtime, Config(), 1, 1)
    runtime.remove()
    made: Any = AsyncEngineArgs.from_cli_args(_parser().parse_args(told[told.index("--") + 1 :]))
    found = made.create_engine_config(UsageContext.OPENAI_API_SERVER)
    assert (found.model_config.max_model_len, found.parallel_config.tensor_parallel_size) == (
        preset.context,
        place.tensor_parallel,
    )
    scheduler = found.scheduler_config
    assert (made.max_num_batched_tokens, scheduler.max_num_seqs) == (3072, 48)
    if not found.model_config.use_mla:  # of which the build for CPUs computes whole prompts, where there is no AMX
        assert scheduler.max_num_batched_tokens == 3072
    assert scheduler.get_scheduler_cls().__name__ == "recording_scheduler"
    assert (found.cache_config.gpu_memory_utilization, found.cache_config.kv_cache_memory_bytes) == (0.45, 5 << 30)
    transfer = found.kv_transfer_config
    assert (transfer.kv_connector, transfer.kv_role) == ("ApplianceConnector", "kv_both")
    assert transfer.kv_connector_extra_config["transport"] == "cuda_ipc"


@pytest.mark.parametrize("name", gpu_engines.SHAPES)
def test_the_shapes_of_gpu_check_are_read_as_models_that_vllm_has(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    config = AutoConfig.from_pretrained(gpu_engines.shaped(name, tmp_path))
    assert config.vocab_size == 1536
    assert set(config.architectures) <= set(ModelRegistry.get_supported_archs())


# ---- what is not to be given


def _parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = FlexibleArgumentParser
    return make_arg_parser(parser())


def test_what_is_refused_is_refused_by_all_of_its_names_and_nothing_else_is() -> None:
    names = refused.ON_SHARED_GPUS
    options = _parser()._option_string_actions
    assert set(names) <= set(options), "vLLM knows what is refused"
    for name in names:
        aliases = [one for one in options[name].option_strings if not one.startswith("--no-")]
        assert set(aliases) <= set(names)
    assert [one for one in options if one not in names and refused.meant(one, names) is not None] == []


@pytest.mark.parametrize(
    "spelling", ["--kv-transfer-config.kv_role", "--kv_transfer_config.kv_role", "--kv-transfer-c.kv_role"]
)
def test_vllm_does_take_such_spellings_for_the_argument_itself(spelling: str) -> None:
    """And puts what they say in the place of what was said before."""
    ours = ["--kv-transfer-config", '{"kv_connector": "ApplianceConnector", "kv_role": "kv_both"}']
    assert _parser().parse_args(ours).kv_transfer_config.kv_connector == "ApplianceConnector"
    assert _parser().parse_args([*ours, spelling, "kv_producer"]).kv_transfer_config.kv_connector is None
    assert refused.meant(spelling, refused.ON_GPUS) == "--kv-transfer-config"


# ---- GPUs by their UUIDs


class Driver:
    """NVML, as far as vLLM asks it for a GPU's place."""

    def __init__(self, *uuids: str) -> None:
        self._uuids = uuids

    def nvmlInitWithFlags(self, flags: int) -> int:
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        place = ctypes.c_void_p(self._uuids.index(uuid.value.decode()) + 1)
        ctypes.memmove(handle, ctypes.byref(place), ctypes.sizeof(place))
        return 0

    def nvmlDeviceGetIndex(self, handle: Any, index: Any) -> int:
        index._obj.value = (ctypes.cast(handle, ctypes.c_void_p).value or 0) - 1
        return 0


def test_vllm_finds_its_gpus_by_the_uuids_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.third_party import pynvml

    if importlib.util.find_spec("vllm._C_stable_libtorch") is None:  # of the CUDA build alone; nothing of it is called
        monkeypatch.setitem(sys.modules, "vllm._C_stable_libtorch", ModuleType("vllm._C_stable_libtorch"))
    from vllm.platforms.cuda import NvmlCudaPlatform

    monkeypatch.setattr(pynvml, "nvmlLib", Driver("GPU-a", "GPU-b", "GPU-c", "GPU-d"))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    seat = GpuSeat(
        name="e0",
        role=Role.BOTH,
        gpus=("GPU-d", "GPU-b"),
        memory_fraction=0.9,
        token_budget=1,
        places=1,
        sees=("GPU-a",),
    )
    [spec] = gpu_specs(Config(), [seat], Model("m", "m", True), arguments=(), context=None, near={})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", spec.environment["CUDA_VISIBLE_DEVICES"])
    assert [NvmlCudaPlatform.device_id_to_physical_device_id(rank) for rank in range(2)] == [3, 1]
    assert [NvmlCudaPlatform.visible_device_id_to_physical_device_id(one) for one in range(3)] == [3, 1, 0]
    assert [NvmlCudaPlatform.logical_device_id_to_visible_device_id(rank) for rank in range(2)] == [0, 1]


def test_queues_between_ranks_take_what_check_says() -> None:
    import inspect

    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    from appliance.checks.machine import QUEUE_BYTES

    said = inspect.signature(MessageQueue.__init__).parameters
    assert said["max_chunk_bytes"].default * said["max_chunks"].default == QUEUE_BYTES
