"""How much KV a request takes, against the vLLM that is installed: what it wants free before it starts (``costs/memory.py``)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance import presets
from appliance.costs import huggingface
from appliance.costs.memory import BLOCK_TOKENS, Memory
from appliance.costs.shape import ModelShape

pytest.importorskip("vllm", reason="the CPU engine is not installed")

GEMMA = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 62,
    "hidden_size": 5376,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "intermediate_size": 21504,
    "sliding_window": 1024,
}
ODD = GEMMA | {
    "num_hidden_layers": 25,
    "sliding_window_pattern": 2,
}  # 12 see all, 13 slide: groups of 13, one filled up


def shape_of(model: str | dict[str, Any]) -> ModelShape:
    return huggingface.read(presets.described(model) if isinstance(model, str) else model)


def wanted_by_vllm(shape: ModelShape, tp: int, context: int, budget: int) -> int:
    import torch
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec

    dtype = torch.bfloat16 if shape.kv_format.bytes == 2 else torch.float8_e4m3fn
    same: dict[str, Any] = {
        "block_size": BLOCK_TOKENS,
        "num_kv_heads": shape.kv_heads_on_rank(tp),
        "head_size": shape.head_size,
        "dtype": dtype,
    }
    specs: dict[str, KVCacheSpec] = {f"full {at}": FullAttentionSpec(**same) for at in range(shape.full_layers)}
    for at in range(shape.sliding_layers):
        specs[f"sliding {at}"] = SlidingWindowSpec(**same, sliding_window=shape.window)
    config: Any = SimpleNamespace(
        max_in_flight_tokens=2 * budget,
        model_config=SimpleNamespace(max_model_len=context),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
    )
    groups = _get_kv_cache_groups_uniform_page_size(specs)
    blocks = sum(
        -(-group.kv_cache_spec.max_memory_usage_bytes(config) // group.kv_cache_spec.page_size_bytes)
        for group in groups
    )
    layers = max(len(group.layer_names) for group in groups)
    return int(blocks * layers * groups[0].kv_cache_spec.page_size_bytes)


@pytest.mark.parametrize("model", ["gpt-oss-120b", "llama-3.1-8b", "llama-3.3-70b-fp8", GEMMA, ODD])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize(
    ("context", "budget"), [(131_072, 8192), (32_768, 8192), (32_768, 2048), (1000, 8192), (16, 16)]
)
def test_the_longest_request_takes_what_vllm_wants_free_for_it(
    model: str | dict[str, Any], tp: int, context: int, budget: int
) -> None:
    shape = shape_of(model)
    assert Memory(shape).kv_bytes(context, tp, 2 * budget) == wanted_by_vllm(shape, tp, context, budget)


def test_two_steps_are_in_flight_with_asynchronous_scheduling() -> None:
    from vllm.config import VllmConfig

    config = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        scheduler_config=SimpleNamespace(async_scheduling=True, max_num_batched_tokens=2048),
        use_v2_model_runner=True,
    )
    config.max_concurrent_batches = VllmConfig.max_concurrent_batches.fget(config)  # type: ignore[attr-defined]
    assert VllmConfig.max_in_flight_tokens.fget(config) == 2 * 2048  # type: ignore[attr-defined]
