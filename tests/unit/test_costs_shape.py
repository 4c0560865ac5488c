"""Models from their ``config.json``, against what their makers say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.costs.formats import Format
from appliance.costs.huggingface import positions, read
from appliance.costs.shape import Kind, ModelShape
from appliance.errors import ConfigError

CONFIGS = Path(__file__).parent / "configs"


def config(model: str, **changes: Any) -> dict[str, Any]:
    """Of that model, changed; ``None`` takes a key away."""
    found = {**json.loads((CONFIGS / model / "config.json").read_text()), **changes}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama-2-7b", 6.738),
        ("llama-3.1-8b", 8.030),
        ("llama-3.3-70b", 70.554),
        ("llama-3.1-405b", 405.853),
        ("mistral-7b-v0.1", 7.242),
        ("mistral-7b-v0.3", 7.248),
        ("mixtral-8x7b", 46.703),
        ("qwen3-30b-a3b", 30.532),
        ("qwen3-235b-a22b", 235.094),
        ("gpt-oss-20b", 20.91),  # model card, arXiv:2508.10925, table 1
        ("gpt-oss-120b", 116.83),
        ("deepseek-v3", 671.03),
        ("gemma-2-9b", 9.241),
        ("gemma-3-27b", 27.016),  # arXiv:2503.19786, table 1: 1,416 M of embedding and 25,600 M of the rest
        ("opt-13b", 12.853),
        ("bloom-176b", 176.247),
    ],
)
def test_parameters_are_those_published(model: str, billions: float) -> None:
    assert read(CONFIGS / model).parameters / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "billions", "with_embedding"),
    [
        ("gpt-oss-20b", 3.61, False),  # its card counts the head and not the embedding
        ("gpt-oss-120b", 5.13, False),
        ("mixtral-8x7b", 12.9, True),  # the others count both
        ("qwen3-30b-a3b", 3.3, True),
        ("qwen3-235b-a22b", 22.0, True),
        ("deepseek-v3", 37.0, True),
    ],
)
def test_active_parameters_are_those_published(model: str, billions: float, with_embedding: bool) -> None:
    shape = read(CONFIGS / model)
    active = shape.active_parameters + with_embedding * shape.vocabulary * shape.hidden
    assert active / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("llama-3.1-8b", 128 << 10),
        ("llama-3.3-70b", 320 << 10),
        ("llama-3.1-405b", 516_096),  # arXiv:2505.09343, table 1
        ("deepseek-v3", 70_272),  # the same: 576 numbers in each of 61 layers
        ("opt-13b", 800 << 10),  # vLLM, arXiv:2309.06180, section 3
        ("qwen3-30b-a3b", 96 << 10),
        ("llama-3.3-70b-fp8", 160 << 10),
    ],
)
def test_kv_per_token_is_that_published(model: str, expected: int) -> None:
    assert read(CONFIGS / model).kv_bytes_per_token() == expected


def test_sliding_layers_keep_their_window() -> None:
    shape = read(CONFIGS / "gpt-oss-120b")
    layer = 2 * 8 * 64 * 2
    assert (shape.sliding_layers, shape.full_layers, shape.window) == (18, 18, 128)
    assert shape.kv_bytes(100) == 36 * 100 * layer
    assert shape.kv_bytes(10_000) == 18 * (10_000 + 128) * layer


@pytest.mark.parametrize(
    ("model", "sliding", "window"),
    [
        ("gemma-2-9b", 21, 4096),
        ("gemma-3-27b", 52, 1024),
        ("mistral-7b-v0.1", 32, 4096),
        ("mistral-7b-v0.3", 0, 0),
        ("qwen3-30b-a3b", 0, 0),
    ],
)
def test_windows_of_other_families(model: str, sliding: int, window: int) -> None:
    shape = read(CONFIGS / model)
    assert (shape.sliding_layers, shape.window) == (sliding, window)


def test_a_window_that_is_not_used_is_none() -> None:
    assert read(config("mistral-7b-v0.1", model_type="qwen2", use_sliding_window=False)).sliding_layers == 0


@pytest.mark.parametrize(("model", "gibibytes"), [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8)])
def test_weights_are_as_large_as_the_checkpoint(model: str, gibibytes: float) -> None:
    """arXiv:2508.10925, table 1."""
    assert read(CONFIGS / model).weight_bytes() / 2**30 == pytest.approx(gibibytes, rel=0.01)


@pytest.mark.parametrize(
    ("model", "width"), [("llama-3.3-70b", 2.0), ("llama-3.3-70b-fp8", 1.0), ("llama-3.3-70b-nvfp4", 4.5 / 8)]
)
def test_embedding_and_head_stay_wide(model: str, width: float) -> None:
    shape = read(CONFIGS / model)
    ends, norms = 2 * 128_256 * 8192, shape.extra_parameters
    assert shape.weight_bytes() == (shape.parameters - ends - norms) * width + 2 * ends


def by_kind(shape: ModelShape, tp: int = 1) -> dict[Kind, Format]:
    return {part.kind: part.format for part in shape.parts(tp)}


def test_only_what_is_quantized_is_small() -> None:
    oss, r1 = by_kind(read(CONFIGS / "gpt-oss-120b")), by_kind(read(CONFIGS / "deepseek-r1-nvfp4"))
    assert (oss[Kind.EXPERTS], oss[Kind.ATTENTION], oss[Kind.HEAD]) == (Format.MXFP4, Format.BF16, Format.BF16)
    assert (r1[Kind.EXPERTS], r1[Kind.SHARED], r1[Kind.ATTENTION]) == (Format.NVFP4, Format.NVFP4, Format.BF16)
    assert by_kind(read(CONFIGS / "qwen3-30b-a3b-nvfp4"))[Kind.EXPERTS] is Format.NVFP4


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "awq", "bits": 4}, Format.INT4),
        ({"quant_method": "gptq", "bits": 8}, Format.INT8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            Format.FP8,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            Format.NVFP4,
        ),
    ],
)
def test_other_ways_to_quantize(quantization: dict[str, Any], expected: Format) -> None:
    assert read(config("llama-3.1-8b", quantization_config=quantization)).dense_format is expected


@pytest.mark.parametrize(
    ("ignored", "wide"),
    [
        ("re:.*self_attn.*", {Kind.ATTENTION}),
        ("model.layers.*.mlp.experts", {Kind.EXPERTS}),
        ("model.layers.3.mlp.shared_experts.gate_proj", {Kind.SHARED}),
        ("model.layers.0.mlp.down_proj", {Kind.DENSE}),
        ("model.layers.4.mlp.gate", set()),  # the router, which is wide anyway
    ],
)
def test_what_is_left_out_stays_wide(ignored: str, wide: set[Kind]) -> None:
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", ignored]}
    kinds = by_kind(read(config("deepseek-v3", quantization_config=quantization)))
    always = {Kind.ROUTER, Kind.HEAD, Kind.EMBEDDING}
    assert {kind for kind, stored in kinds.items() if stored is Format.BF16} == wide | always


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "bitnet"}, {"quant_method": "gptq", "bits": 3}, {"quant_method": "modelopt"}]
)
def test_a_way_that_is_not_known_is_refused(quantization: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"quantization_config .* known are"):
        read(config("llama-3.1-8b", quantization_config=quantization))


def test_the_engine_may_keep_kv_otherwise() -> None:
    shape = read(CONFIGS / "llama-3.1-8b", kv_format=Format.FP8)
    assert shape.kv_bytes_per_token() == 64 << 10


def test_tensor_parallelism_shares_weights_and_copies_kv_heads() -> None:
    """Qwen3 has 4 KV heads: on 8 ranks each is there twice, with its weights."""
    shape = read(CONFIGS / "qwen3-30b-a3b")
    assert shape.weight_bytes(4) == pytest.approx(shape.weight_bytes() / 4, rel=0.01)
    assert shape.weight_bytes(8) > shape.weight_bytes() / 8
    assert [shape.kv_bytes_per_token(tp) for tp in (1, 4, 8)] == [96 << 10, 24 << 10, 24 << 10]


def test_a_latent_kv_is_whole_on_every_rank() -> None:
    shape = read(CONFIGS / "deepseek-v3")
    assert shape.kv_bytes_per_token(8) == shape.kv_bytes_per_token(1) == 70_272


@pytest.mark.parametrize(("model", "tp"), [("llama-3.1-8b", 3), ("opt-13b", 16), ("llama-3.1-8b", 0)])
def test_ranks_that_heads_can_not_be_shared_by_are_refused(model: str, tp: int) -> None:
    with pytest.raises(ConfigError, match=rf"heads, which {tp} ranks can't share; possible are 1, 2"):
        read(CONFIGS / model).weight_bytes(tp)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"]
)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"of mine has no {key}.*a whole number above 0 would be right"):
        read(config("llama-3.1-8b", **{key: None}), name="mine")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": "eight"}, "num_key_value_heads: 'eight'; a whole number above 0 and not above 32"),
        ({"num_key_value_heads": [8]}, r"num_key_value_heads: \[8\]; a whole number"),
        ({"num_key_value_heads": -8}, "num_key_value_heads: -8; a whole number"),
        ({"num_key_value_heads": 8.5}, "num_key_value_heads: 8.5; a whole number"),
        ({"num_key_value_heads": 64}, "num_key_value_heads: 64; a whole number above 0 and not above 32"),
        ({"num_key_value_heads": 7}, "num_key_value_heads: 7, which 32 heads can't share evenly"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True; a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000; a whole number above 0 and not above 4,096"),
        ({"sliding_window": "4k"}, "sliding_window: '4k'; a whole number of 0 or more"),
        ({"sliding_window": -1}, "sliding_window: -1; a whole number of 0 or more"),
        ({"head_dim": -128}, "head_dim: -128; a whole number above 0"),
        ({"hidden_size": 16, "head_dim": None}, "hidden_size: 16, which 32 heads can't share evenly, and no head_dim"),
        ({"layer_types": ["full_attention"] * 64}, "64 layer_types for 32 layers; one for each"),
        ({"layer_types": "full_attention"}, "layer_types: 'full_attention'; a list of texts"),
        ({"text_config": "llama"}, "text_config: 'llama'; an object"),
        ({"model_type": 7}, "model_type: 7; a text"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no'; true or false"),
        ({"num_experts": [8]}, r"num_experts: \[8\]; a whole number"),
        ({"hidden_size": "x" * 200}, "hidden_size: 'x{59}…; a whole number"),
        ({"quantization_config": "fp8"}, "quantization_config: 'fp8'; an object"),
        ({"quantization_config": ["fp8"]}, "quantization_config: .*; an object"),
        ({"quantization_config": {"quant_method": "gptq", "bits": "four"}}, "bits: 'four'; a whole number"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": []}},
            "config_groups: .*; an object",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": 1}}},
            "config_groups in quantization_config in .* has g: 1; an object",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "kv_cache_scheme": "fp8"}},
            "kv_cache_scheme: 'fp8'; an object",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": "128"}},
            "weight_block_size: .*; a list of whole",
        ),
    ],
)
def test_a_value_that_can_not_be_is_told_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(config("llama-3.1-8b", **changes), name="mine")


def test_more_experts_per_token_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_experts_per_tok: 129; a whole number above 0 and not above 128"):
        read(config("qwen3-30b-a3b", num_experts_per_tok=129))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_position_embeddings": -5}, "max_position_embeddings: -5; a whole number above 0"),
        ({"max_position_embeddings": "8k"}, "max_position_embeddings: '8k'; a whole number above 0"),
        ({"max_position_embeddings": 4096, "rope_scaling": "linear"}, "rope_scaling: 'linear'; an object"),
        (
            {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": "2"}},
            "factor: '2'; a number above 0",
        ),
    ],
)
def test_positions_that_can_not_be_are_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("llama-3.1-8b", **changes)))
    with pytest.raises(ConfigError, match=said):
        positions(tmp_path)


@pytest.mark.parametrize("content", [b'{"model_type": "\xff"}', b"\xff\xfe", b"[1]", b"[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"can't be read as a model's config\.json"):
        read(tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b", "gemma-3-27b", "llama-3.3-70b-nvfp4"]
    ),
    st.data(),
)
def test_whatever_a_config_says_it_is_a_shape_or_refused_in_words(model: str, data: st.DataObject) -> None:
    """Nothing else is raised, and no shape is of less than nothing."""
    whole = config(model)
    odd = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.lists(st.integers())
        | st.just({"a": 1})
    )
    part = whole.get("text_config", whole)
    for key in data.draw(st.lists(st.sampled_from(sorted(part)), min_size=1, max_size=3)):
        part[key] = data.draw(odd)
    if "quantization_config" in whole and data.draw(st.booleans()):
        whole["quantization_config"] = data.draw(
            st.dictionaries(st.sampled_from(["quant_method", "ignore", "quant_algo"]), odd)
        )
    try:
        shape = read(whole)
    except ConfigError:
        return
    assert shape.parameters > 0
    assert shape.kv_bytes(1000) > 0


def test_ernie_s_experts_are_read() -> None:
    """ERNIE-4.5-21B-A3B: 21 billion parameters and 3 active ones by its model card; the keys of vLLM's ernie45_moe.py."""
    shape = read(
        {
            "model_type": "ernie4_5_moe",
            "hidden_size": 2560,
            "num_hidden_layers": 28,
            "num_attention_heads": 20,
            "num_key_value_heads": 4,
            "intermediate_size": 12_288,
            "moe_num_experts": 64,
            "moe_k": 6,
            "moe_intermediate_size": 1536,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 27,
            "moe_layer_interval": 1,
            "moe_capacity": [64, 64, 64],
            "moe_gate": "topk",
            "moe_use_aux_free": True,
            "vocab_size": 103_424,
            "tie_word_embeddings": True,
        }
    )
    assert (shape.dense_layers, shape.moe_layers, shape.experts, shape.active_experts) == (1, 27, 64, 6)
    assert shape.parameters / 1e9 == pytest.approx(21.8, rel=0.01)
    assert shape.active_parameters / 1e9 == pytest.approx(3.3, rel=0.1)


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "gpt_bigcode", "nemotron_h", "mystery", ""])
def test_models_of_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"has model_type '{kind}', of which nothing is known here"):
        read(config("llama-3.1-8b", model_type=kind))


@pytest.mark.parametrize("key", ["moe_experts_total", "NumExperts", "conv_kernel", "mamba_chunk_size", "ssm_cfg"])
def test_keys_of_experts_and_states_that_are_not_read_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}, which is not covered"):
        read(config("llama-3.1-8b", **{key: 4}))
    assert read(config("llama-3.1-8b", **{key: 0})).layers == 32


def test_quantization_may_be_told_by_an_older_name() -> None:
    """As vLLM reads it."""
    told = {"quant_method": "fp8"}
    assert read(config("llama-3.1-8b", compression_config=told)).dense_format is Format.FP8


def test_a_missing_key_of_an_expert_is_named() -> None:
    with pytest.raises(ConfigError, match="no moe_intermediate_size"):
        read(config("qwen3-30b-a3b", moe_intermediate_size=None))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer_types": ["linear_attention"] * 32}, "linear_attention"),
        ({"interleave_moe_layer_step": 2}, "interleave_moe_layer_step"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size"),
        ({"hybrid_override_pattern": "M-M-M*-M-"}, "hybrid_override_pattern"),  # Nemotron-H
        ({"linear_attn_config": {"kda_layers": [1, 2, 3]}}, "linear_attn_config"),  # Kimi Linear
        ({"linear_num_key_heads": 16}, "linear_num_key_heads"),  # Qwen3-Next
        ({"layers_block_type": ["mamba", "attention"]}, "layers_block_type"),  # Jamba, Bamba, Zamba
        ({"attn_layer_period": 8}, "attn_layer_period"),
        ({"mamba_d_state": 16}, "mamba_d_state"),
        ({"ssm_state_size": 128}, "ssm_state_size"),
        ({"attn_type_list": [0, 0, 1]}, "attn_type_list"),  # MiniMax-01
        ({"index_topk": 2048}, "index_topk"),  # DeepSeek-V3.2
        ({"global_head_dim": 512, "num_global_key_value_heads": 4}, "global_head_dim"),  # Gemma 4
        ({"num_kv_shared_layers": 20}, "num_kv_shared_layers"),  # Gemma 3n
    ],
)
def test_attention_of_another_kind_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named}, which is not covered"):
        read(config("llama-3.1-8b", **change))


def test_what_is_switched_off_stands_against_nothing() -> None:
    assert (
        read(config("llama-3.1-8b", attention_chunk_size=None, num_kv_shared_layers=0, layers_block_type=[])).layers
        == 32
    )


@pytest.mark.parametrize(("model", "possible"), [("qwen3-235b-a22b", (1, 2, 4)), ("qwen3-30b-a3b", (1, 2))])
def test_scales_in_blocks_are_not_cut_up(model: str, possible: tuple[int, ...]) -> None:
    """vllm-project/vllm issue 17569: 1,536 inner numbers are 192 on each of eight ranks, and a scale is for 128."""
    plain = read(config(model))
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    shape = read(config(model, quantization_config=blocks))
    assert tuple(tp for tp in (1, 2, 4, 8) if shape.unshared(tp) is None) == possible
    assert all(plain.unshared(tp) is None for tp in (1, 2, 4, 8))
    with pytest.raises(ConfigError, match="with a scale for every 128, which 8 ranks can't share; possible are 1, 2"):
        shape.weight_bytes(8)


def test_mlps_that_ranks_can_not_share_are_refused() -> None:
    shape = read(config("llama-3.1-8b", intermediate_size=14_338))
    assert shape.unshared(2) is None
    assert "MLPs of an inner size of 14338, which 4 ranks can't share; possible are 1, 2" in (shape.unshared(4) or "")


def test_quantization_may_be_told_in_a_file_beside_it(tmp_path: Path) -> None:
    """ModelOpt up to 0.29, as vLLM reads it."""
    (tmp_path / "config.json").write_text(json.dumps(config("llama-3.1-8b")))
    plain = read(tmp_path)
    told = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(told))
    found = read(tmp_path)
    assert found == read(tmp_path / "config.json", name=tmp_path.name)
    assert (found.dense_format, found.kv_format) == (Format.FP8, Format.FP8)
    assert found.weight_bytes() < 0.6 * plain.weight_bytes()
    (tmp_path / "config.json").write_text(
        json.dumps(config("llama-3.1-8b", quantization_config={"quant_method": "mxfp4"}))
    )
    assert read(tmp_path).dense_format is Format.MXFP4, "the config's own comes first"
    (tmp_path / "config.json").write_text(json.dumps(config("llama-3.1-8b")))
    (tmp_path / "hf_quant_config.json").write_text("no JSON")
    with pytest.raises(ConfigError, match=r"hf_quant_config\.json can't be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131_072),
        ({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "yarn", "factor": 32.0}}, 131_072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16_384),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
    ],
)
def test_positions_are_those_that_vllm_allows(tmp_path: Path, changes: dict[str, Any], expected: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("llama-3.1-8b", **changes)))
    assert positions(tmp_path) == expected


def test_some_layers_may_be_dense() -> None:
    shape = read(config("qwen3-30b-a3b", mlp_only_layers=[0, 1], decoder_sparse_step=1))
    assert (shape.dense_layers, shape.moe_layers, shape.dense_size) == (2, 46, 6144)
    assert read(config("qwen3-30b-a3b", decoder_sparse_step=2)).moe_layers == 24


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no JSON")
    with pytest.raises(ConfigError, match=r"config\.json can't be read"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere can't be read"):
        read(tmp_path / "nowhere")


def test_a_model_is_named_after_its_directory() -> None:
    assert read(CONFIGS / "llama-3.1-8b").name == read(CONFIGS / "llama-3.1-8b" / "config.json").name == "llama-3.1-8b"
    assert read(config("llama-3.1-8b")).name == "llama"
