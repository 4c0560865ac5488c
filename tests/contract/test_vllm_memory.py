"""vLLM's KV memory, of which ``engine/kv/layout.py`` has the form: its views, its orders, and how its heads are shared out."""

from __future__ import annotations

import inspect
from math import prod
from typing import Any

import pytest
import torch
from vllm.config import ModelConfig
from vllm.config.cache import CacheConfig
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.linear import QKVParallelLinear
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheLayout,
    KVCacheSpecKind,
    KVCacheTensor,
    MambaSpec,
    SlidingWindowSpec,
    compute_layout_strides,
    create_kv_cache_views,
    get_kv_cache_spec_kind,
)

from appliance.engine.kv.layout import BY_TOKEN, heads_of, plane_of

BLOCKS, LAYERS = 4, 3


def spec(**changes: Any) -> FullAttentionSpec:
    values = {"block_size": 8, "num_kv_heads": 2, "head_size": 4, "dtype": torch.float16}
    return FullAttentionSpec(**{**values, **changes})


@pytest.mark.parametrize(
    ("layout", "kernel"),
    [*((layout, None) for layout in KVCacheLayout), (KVCacheLayout.LBHNC, 4), (KVCacheLayout.LBNHC, 4)],
)
def test_every_view_is_one_of_blocks_heads_tokens_and_content(layout: KVCacheLayout, kernel: int | None) -> None:
    """And the planes of all layers lie side by side in the memory, each byte in one cell."""
    one = spec()
    layer, block, *_ = compute_layout_strides(one, BLOCKS, LAYERS, layout)
    size = BLOCKS * LAYERS * one.page_size_bytes
    names = [f"layer {number}" for number in range(LAYERS)]
    tensor = KVCacheTensor(size=size, layers=names, layer_stride=layer, block_stride=block)
    memory = torch.zeros(size, dtype=torch.int8)
    views = create_kv_cache_views(memory, one, BLOCKS, layout, tensor, kernel_block_size=kernel)
    covered = []
    for name, view in zip(names, views, strict=True):
        split = view.shape[0] // BLOCKS
        plane = plane_of(
            layer=name,
            storage=0,
            offset=int(view.storage_offset()) * view.element_size(),
            shape=list(view.shape),
            strides=list(view.stride()),
            item=view.element_size(),
            split=split,
            heads=heads_of(0, 1, 2),
        )
        assert plane.by_head
        assert plane.size == one.unpadded_page_size_bytes == one.page_size_bytes
        for number in range(BLOCKS):
            covered += [
                plane.offset
                + number * plane.stride
                + p * plane.parts.stride
                + h * plane.slots.stride
                + n * plane.states.stride
                + c
                for p in range(plane.parts.count)
                for h in range(plane.slots.count)
                for n in range(plane.states.count)
                for c in range(plane.cell)
            ]
    assert sorted(covered) == list(range(size))
    assert prod(views[0].shape) * views[0].element_size() * LAYERS == size


def test_names_of_layouts_are_their_dimensions() -> None:
    for layout in KVCacheLayout:
        assert [("LBHNC").index(letter) for letter in layout.name] == list(layout.stride_order)


def test_kinds_of_groups() -> None:
    assert {kind.value for kind in KVCacheSpecKind} >= BY_TOKEN
    assert get_kv_cache_spec_kind(spec()) is KVCacheSpecKind.FULL_ATTENTION
    sliding = SlidingWindowSpec(block_size=8, num_kv_heads=2, head_size=4, dtype=torch.float16, sliding_window=16)
    assert get_kv_cache_spec_kind(sliding) is KVCacheSpecKind.SLIDING_WINDOW
    mamba = MambaSpec(block_size=8, shapes=((4,),), dtypes=(torch.float16,))
    assert get_kv_cache_spec_kind(mamba).value not in BY_TOKEN


def test_heads_are_shared_out_as_we_say() -> None:
    source = inspect.getsource(QKVParallelLinear)
    assert "self.num_kv_head_replicas = divide(tp_size, self.total_num_kv_heads)" in source
    assert "shard_rank = self.tp_rank // self.num_kv_head_replicas" in source
    assert callable(ModelConfig.get_total_num_kv_heads)


def test_a_latent_says_that_it_is_not_shared_out() -> None:
    assert spec().max_tp_shards is None
    assert "max_tp_shards=1" in inspect.getsource(MLAAttention.get_kv_cache_spec)


def test_the_order_of_memory_is_known_to_workers() -> None:
    cache = CacheConfig()
    cache.kv_cache_layout = "LBHNC"
    assert cache.get_resolved_kv_cache_layout() is KVCacheLayout.LBHNC


def test_cpu_workers_are_spawned_as_spares_expect() -> None:
    assert 'os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"' in inspect.getsource(CpuPlatform)
