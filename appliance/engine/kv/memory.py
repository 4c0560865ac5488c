"""What the KV memory of this engine is, told from vLLM's configuration: the layout of a rank, and what decides its meaning."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import vllm
from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs, get_kv_cache_spec_kind

from appliance.engine.kv.layout import BY_TOKEN, Group, Heads, Layout, Plane, held_of, plane_of
from appliance.errors import HandoffError

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig, KVCacheGroupSpec

_WITHIN_A_BLOCK: Final = str.maketrans("", "", "LB")  # of a layout's name, such as LBNHC: heads and tokens


def refuse(vllm_config: VllmConfig) -> None:
    """Raises ``HandoffError`` for an engine whose KV can't be handed over, whatever the peer is."""
    parallel = vllm_config.parallel_config
    for size, what in (
        (parallel.pipeline_parallel_size, "pipeline stages (--pipeline-parallel-size)"),
        (parallel.decode_context_parallel_size, "ranks that share out its tokens (--decode-context-parallel-size)"),
        (parallel.prefill_context_parallel_size, "ranks that share out its tokens (--prefill-context-parallel-size)"),
    ):
        if size > 1:
            raise HandoffError(
                f"the KV of an engine with {size} {what} can't be handed over: use tensor-parallel ranks"
            )


def block_bytes(group: KVCacheGroupSpec) -> int:
    """Of a block of all layers of a group, on this rank."""
    return sum(_spec(group, name).page_size_bytes for name in group.layer_names)


def _spec(group: KVCacheGroupSpec, layer: str) -> AttentionSpec:
    """Of one layer: where those of a group differ in size, each has its own."""
    spec: Any = group.kv_cache_spec
    return spec.kv_cache_specs[layer] if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def layout_of(
    vllm_config: VllmConfig,
    config: KVCacheConfig,
    views: dict[str, torch.Tensor],
    index: dict[int, int],
    storage_bytes: tuple[int, ...],
) -> Layout:
    """Of this rank. ``index``: of each storage, by where it begins."""
    groups = []
    for group in config.kv_cache_groups:
        kind = get_kv_cache_spec_kind(group.kv_cache_spec).value
        planes = tuple(
            _plane(vllm_config, config.num_blocks, name, views[name], _spec(group, name), index)
            for name in (group.layer_names if kind in BY_TOKEN else ())
        )
        groups.append(Group(kind, group.kv_cache_spec.block_size, planes))
    return Layout(tuple(groups), storage_bytes)


def _plane(
    vllm_config: VllmConfig, blocks: int, layer: str, view: torch.Tensor, spec: AttentionSpec, index: dict[int, int]
) -> Plane:
    split, rest = divmod(view.shape[0], blocks)
    plane = plane_of(
        layer=layer,
        storage=index[view.untyped_storage().data_ptr()],
        offset=int(view.storage_offset()) * view.element_size(),
        shape=list(view.shape),
        strides=list(view.stride()),
        item=view.element_size(),
        split=split,
        heads=_heads(vllm_config, spec),
    )
    if rest or plane.size != spec.unpadded_page_size_bytes:
        raise HandoffError(
            f"the KV cache of layer {layer} is not laid out block by block (shape {list(view.shape)} for "
            f"{blocks} blocks of {spec.unpadded_page_size_bytes} bytes): it can't be handed over"
        )
    return plane


def _heads(vllm_config: VllmConfig, spec: AttentionSpec) -> Heads:
    parallel, of_model = vllm_config.parallel_config, vllm_config.model_config.get_total_num_kv_heads()
    return held_of(parallel.rank, parallel.tensor_parallel_size, spec.num_kv_heads, spec.max_tp_shards, of_model)


def traits_of(vllm_config: VllmConfig, views: dict[str, torch.Tensor]) -> dict[str, str]:
    """All that decides what the bytes of a cell mean. How many there are, and of which heads, the layout says."""
    model, context = vllm_config.model_config, vllm_config.compilation_config.static_forward_context
    backends = sorted({context[name].get_attn_backend().get_name() for name in views if name in context})
    layout = vllm_config.cache_config.get_resolved_kv_cache_layout().name
    return {
        "vllm": vllm.__version__,
        "model": str(model.model),
        "revision": str(model.revision),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "hf_config": sha256(model.hf_config.to_json_string(use_diff=False).encode()).hexdigest()[:16],
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "attention": ",".join(backends),
        "kv_dtype": ",".join(sorted({str(view.dtype) for view in views.values()})),
        "order": layout.translate(_WITHIN_A_BLOCK),
    }
