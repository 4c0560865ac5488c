"""What engines on GPUs would be started with, against the vLLM that is installed: it knows every argument, and reads it as it is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance import presets
from appliance.config import Config, RouterConfig
from appliance.records import Role
from appliance.supervisor.specs import GpuSeat, Model, gpu_specs
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


@pytest.mark.parametrize("name", gpu_engines.SHAPES)
def test_the_shapes_of_gpu_check_are_read_as_models_that_vllm_has(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    config = AutoConfig.from_pretrained(gpu_engines.shaped(name, tmp_path))
    assert config.vocab_size == 1536
    assert set(config.architectures) <= set(ModelRegistry.get_supported_archs())
