"""A ``ModelShape`` from a Hugging Face ``config.json``, without transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.costs.formats import Format
from appliance.costs.quantization import formats
from appliance.costs.shape import Latent, ModelShape
from appliance.errors import ConfigError

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd", "n_embed"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
    "inner": ("intermediate_size", "ffn_dim", "n_inner"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts"),
    "active": ("num_experts_per_tok", "experts_per_token"),
}
# What a config.json may leave to transformers' class of that model_type.
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
    },
    "gemma2": {"sliding_window": 4096},
}
_TIED: Final = ("bloom", "gemma", "gemma2", "gemma3_text", "gpt2", "opt")  # where the config.json says nothing
_TWO_MATRICES: Final = ("bloom", "gpt2", "gpt_neox", "opt", "phi", "starcoder2")  # per MLP
_EXPERTS_ONLY: Final = ("gpt_oss", "mixtral")  # whose intermediate_size is an expert's
_SLIDING_PERIOD: Final = {"gemma2": 2, "gemma3_text": 6}  # every n-th layer is full, the others slide
_LAYER_TYPES: Final = ("full_attention", "sliding_attention")
_OTHER_KINDS: Final = re.compile(
    r"attention_chunk_size|interleave_moe_layer_step"  # Llama 4
    r"|.*mamba.*|ssm_.*|.*linear_attn.*|linear_(num|key|value|conv).*|.*recurrent.*|.*lightning.*|conv_L_cache"  # states
    r"|.*hybrid.*|.*block_types?|attn_type_list|attn_layer_(period|offset|indices)|full_attention_interval"  # of both kinds
    r"|index_topk|.*indexer.*|compress_ratios?|.*sparse_attention.*"  # DeepSeek-V3.2 and later
    r"|global_head_dim|num_global_key_value_heads|num_kv_shared_layers"  # Gemma 3n and 4: layers differ in what they keep
)
_SEPARATE: Final = "hf_quant_config.json"  # ModelOpt up to 0.29 has the quantization there; vLLM reads it, too


def read(source: Path | Mapping[str, Any], name: str | None = None, kv_format: Format | None = None) -> ModelShape:
    """The model that a ``config.json`` describes.

    Args:
        source: the file, a directory with it, or what it says.
        name: for messages; else the directory's or the ``model_type``.
        kv_format: what the engine is told to keep KV in; else what the checkpoint asks for, else BF16.

    Raises:
        ConfigError: something that a shape needs is missing, or the model is of a kind that isn't covered. Names the key.
    """
    outer = _with_quantization(source) if isinstance(source, Path) else source
    named = name or (_directory(source) if isinstance(source, Path) else str(outer.get("model_type", "model")))
    return _shape(_Config(outer, named), kv_format)


def positions(source: Path) -> int | None:
    """The longest text that the model can take, in tokens; None where its ``config.json`` does not say. Raises ``ConfigError``.

    As vLLM works it out (``config/model.py``): longer than it says where positions are interpolated, by ways that do not count themselves.
    """
    outer = _load(source)
    inner = outer.get("text_config")
    text = inner if isinstance(inner, dict) else outer
    found, stretched = (
        text.get("max_position_embeddings"),
        text.get("rope_scaling") or text.get("rope_parameters") or {},
    )
    if not isinstance(found, int) or found < 1:
        return None
    counts = (stretched.get("rope_type") or stretched.get("type")) in ("linear", "dynamic")
    gemma3 = "gemma3" in str(outer.get("model_type"))  # whose positions are stretched already
    return int(found * (stretched.get("factor") or 1.0)) if counts and not gemma3 else found


def _with_quantization(path: Path) -> Mapping[str, Any]:
    """What ``config.json`` says, and what a file beside it says of quantization where it does not."""
    outer = _load(path)
    beside = (path if path.is_dir() else path.parent) / _SEPARATE
    if outer.get("quantization_config") or not beside.is_file():
        return outer
    try:
        told = msgspec.json.decode(beside.read_bytes(), type=dict[str, Any]).get("quantization") or {}
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{beside} can't be read: {error}") from error
    return {**outer, "quantization_config": {"quant_method": "modelopt", **told}}


def _load(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"{file} can't be read as a model's config.json: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file} can't be read as a model's config.json: {error}") from error


def _directory(path: Path) -> str:
    return path.name if path.is_dir() else path.resolve().parent.name


class _Config:
    """The text part of a ``config.json``, with defaults; what must be there is asked for by our names."""

    def __init__(self, outer: Mapping[str, Any], name: str) -> None:
        text = outer.get("text_config") or {}
        kind = text.get("model_type") or outer.get("model_type", "")
        inherited = {key: outer[key] for key in ("quantization_config", "tie_word_embeddings") if key in outer}
        self.name, self.kind = name, str(kind)
        self.all: Mapping[str, Any] = {**_DEFAULTS.get(self.kind, {}), **(inherited if text else outer), **text}

    def need(self, ours: str) -> int:
        """Raises ``ConfigError`` if it's under none of its names."""
        keys = _ALIASES.get(ours, (ours,))
        found = next((self.all[key] for key in keys if self.all.get(key) is not None), None)
        if not isinstance(found, int) or found < 1:
            names = " or ".join(keys)
            raise ConfigError(f"the config.json of {self.name} has no {names}; a whole number above 0 would be right")
        return found

    def number(self, *keys: str) -> int:
        """The first that's there; 0 without any."""
        return int(next((self.all[key] for key in keys if self.all.get(key) is not None), 0))


def _shape(config: _Config, kv_format: Format | None) -> ModelShape:
    _refuse(config)
    layers, hidden, heads = config.need("layers"), config.need("hidden"), config.need("heads")
    sliding, window = _sliding(config, layers)
    stored = formats(config.all)
    positions = config.number("max_position_embeddings") if config.kind == "opt" else 0  # learned ones
    return ModelShape(
        name=config.name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=config.number("num_key_value_heads") or heads,
        head_size=config.number("head_dim") or hidden // heads,
        vocabulary=config.need("vocabulary"),
        gated=config.kind not in _TWO_MATRICES,
        latent=_latent(config),
        sliding_layers=sliding,
        window=window,
        tied=bool(config.all.get("tie_word_embeddings", config.kind in _TIED)),
        extra_parameters=(2 * layers + 1 + positions) * hidden,
        attention_format=stored.attention,
        dense_format=stored.dense,
        shared_format=stored.shared,
        expert_format=stored.experts,
        kv_format=kv_format or stored.kv,
        scale_block=stored.block,
        **_mlps(config, layers, hidden),
    )


def _refuse(config: _Config) -> None:
    """Attention of other kinds would be costed wrongly without a word."""
    types = [one for one in config.all.get("layer_types") or () if one not in _LAYER_TYPES]
    keys = [key for key, value in config.all.items() if value and _OTHER_KINDS.fullmatch(key)]
    if what := types[:1] + keys[:1]:
        raise ConfigError(
            f"{config.name} has {what[0]}, which is not covered; full, grouped, sliding and latent attention and mixtures of experts are"
        )


def _mlps(config: _Config, layers: int, hidden: int) -> dict[str, Any]:
    if not config.number(*_ALIASES["experts"]):
        if config.kind in ("bloom", "gpt2") and not config.number("n_inner"):
            return {"dense_layers": layers, "dense_size": 4 * hidden}
        return {"dense_layers": layers, "dense_size": config.need("inner")}
    moe_layers = _moe_layers(config, layers)
    size = config.need("inner") if config.kind in _EXPERTS_ONLY else config.need("moe_intermediate_size")
    return {
        "dense_layers": layers - moe_layers,
        "dense_size": config.need("inner") if moe_layers < layers else 0,
        "moe_layers": moe_layers,
        "experts": config.need("experts"),
        "active_experts": config.need("active"),
        "expert_size": size,
        "shared_size": config.number("shared_expert_intermediate_size") or config.number("n_shared_experts") * size,
    }


def _moe_layers(config: _Config, layers: int) -> int:
    """DeepSeek's first layers are dense; Qwen names those that are, or every n-th one is not."""
    dense = config.all.get("mlp_only_layers") or ()
    step = config.number("decoder_sparse_step", "moe_layer_freq") or 1
    first = config.number("first_k_dense_replace")
    return sum(1 for layer in range(first, layers) if layer not in dense and (layer - first + 1) % step == 0)


def _latent(config: _Config) -> Latent | None:
    if not config.number("kv_lora_rank"):
        return None
    return Latent(
        kv_rank=config.need("kv_lora_rank"),
        query_rank=config.number("q_lora_rank") or None,
        nope_size=config.need("qk_nope_head_dim"),
        rope_size=config.need("qk_rope_head_dim"),
        value_size=config.need("v_head_dim"),
    )


def _sliding(config: _Config, layers: int) -> tuple[int, int]:
    """How many layers slide, and over how many tokens."""
    window = config.number("sliding_window")
    if not window or config.all.get("use_sliding_window") is False:
        return 0, 0
    if types := config.all.get("layer_types"):
        return sum(one == "sliding_attention" for one in types), window
    period = config.number("sliding_window_pattern") or _SLIDING_PERIOD.get(config.kind, 0)
    return (layers - layers // period if period else layers), window
