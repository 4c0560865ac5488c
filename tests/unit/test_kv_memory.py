"""Engines whose KV can't be handed over are refused when they start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the CPU engine is not installed")

import torch
from vllm.v1.kv_cache_interface import (
    EncoderOnlyAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from appliance.engine.kv.memory import refuse
from appliance.errors import HandoffError

FULL: dict[str, Any] = {"block_size": 16, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
SLIDING = SlidingWindowSpec(**FULL, sliding_window=64)
LATENT = MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, dtype=torch.float32)


def config(**sizes: int) -> Any:
    usual = {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1, "prefill_context_parallel_size": 1}
    return SimpleNamespace(parallel_config=SimpleNamespace(**{**usual, **sizes}))


def memory(*specs: KVCacheSpec) -> Any:
    groups = [SimpleNamespace(layer_names=[f"layers.{n}"], kv_cache_spec=spec) for n, spec in enumerate(specs)]
    return SimpleNamespace(kv_cache_groups=groups)


@pytest.mark.parametrize("specs", [(FullAttentionSpec(**FULL),), (FullAttentionSpec(**FULL), SLIDING), (LATENT,)])
def test_groups_of_tokens_are_taken(specs: tuple[KVCacheSpec, ...]) -> None:
    refuse(config(), memory(*specs))


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (
            "pipeline_parallel_size",
            "2 pipeline stages (--pipeline-parallel-size) can't be handed over: use tensor-parallel",
        ),
        ("decode_context_parallel_size", "--decode-context-parallel-size"),
        ("prefill_context_parallel_size", "--prefill-context-parallel-size"),
    ],
)
def test_other_kinds_of_parallelism(size: str, says: str) -> None:
    with pytest.raises(HandoffError) as caught:
        refuse(config(**{size: 2}), memory(SLIDING))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (MambaSpec(block_size=16, shapes=((4,),), dtypes=(torch.float32,)), "mamba"),
        (EncoderOnlyAttentionSpec(**FULL), "encoder_only_attention"),
    ],
)
def test_layers_with_another_kind_of_state(spec: KVCacheSpec, kind: str) -> None:
    with pytest.raises(
        HandoffError, match=f"layers such as layers.1 keep their KV as {kind}, which can't be handed over"
    ):
        refuse(config(), memory(SLIDING, spec))
