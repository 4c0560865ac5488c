"""A ``ModelShape`` from a Hugging Face ``config.json``, without transformers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.costs import families
from appliance.costs.formats import Format
from appliance.costs.keys import Keys
from appliance.costs.quantization import formats
from appliance.costs.shape import Latent, ModelShape
from appliance.errors import ConfigError

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd", "n_embed"),
    "heads": ("num_attention_heads", "n_head"),
    "inner": ("intermediate_size", "ffn_dim", "n_inner"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "active": ("num_experts_per_tok", "experts_per_token", "moe_k"),
    "shared": ("n_shared_experts", "moe_num_shared_experts"),
}
_MOST_LAYERS: Final = 4096
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
_LAYER_TYPES: Final = ("full_attention", "sliding_attention")
_OTHER_KINDS: Final = re.compile(
    r"attention_chunk_size|interleave_moe_layer_step"  # Llama 4
    r"|.*mamba.*|ssm_.*|.*linear_attn.*|linear_(num|key|value|conv).*|.*recurrent.*|.*lightning.*|conv_L_cache"  # states
    r"|.*hybrid.*|.*block_types?|attn_type_list|attn_layer_(period|offset|indices)|full_attention_interval"  # of both kinds
    r"|index_topk|.*indexer.*|compress_ratios?|.*sparse_attention.*"  # DeepSeek-V3.2 and later
    r"|global_head_dim|num_global_key_value_heads|num_kv_shared_layers"  # Gemma 3n and 4: layers differ in what they keep
)
_OF_EXPERTS: Final = re.compile(
    r"(?i).*(moe|expert|ssm|mamba|conv).*"
)  # whoever has such a key is not what the others say
_READ: Final = {key for ours in ("experts", "active", "shared") for key in _ALIASES[ours]}.union(
    ("moe_intermediate_size", "moe_layer_freq", "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
    ("shared_expert_intermediate_size", "use_moe"),
)
_NO_SIZE: Final = re.compile(
    r"(?i).*(aux|loss|dropout|capacity|norm|jitter|bias|gate|dtype|statics|group).*"
)  # of experts
_SEPARATE: Final = "hf_quant_config.json"  # ModelOpt up to 0.29 has the quantization there; vLLM reads it, too


def read(source: Path | Mapping[str, Any], name: str | None = None, kv_format: Format | None = None) -> ModelShape:
    """The model that a ``config.json`` describes.

    Args:
        source: the file, a directory with it, or what it says.
        name: for messages; else the directory's or the ``model_type``.
        kv_format: what the engine is told to keep KV in; else what the checkpoint asks for, else BF16.

    Raises:
        ConfigError: something that a shape needs is missing or can't be, or the model is of a kind that isn't covered. Names the key.
    """
    outer = _with_quantization(source) if isinstance(source, Path) else source
    named = name or (_directory(source) if isinstance(source, Path) else str(outer.get("model_type", "model")))
    return _shape(_Config(outer, named), kv_format)


def positions(source: Path) -> int | None:
    """The longest text that the model can take, in tokens; None where its ``config.json`` does not say. Raises ``ConfigError``.

    As vLLM works it out (``config/model.py``): longer than it says where positions are interpolated, by ways that do not count themselves.
    """
    outer = Keys(_load(source), f"the config.json of {_directory(source)}")
    inner = outer.table("text_config")
    text = inner if inner.values else outer
    found = text.whole("max_position_embeddings", least=1)
    scaling, parameters = text.table("rope_scaling"), text.table("rope_parameters")
    stretched = scaling if scaling.values else parameters
    if found is None:
        return None
    counts = (stretched.text("rope_type") or stretched.text("type")) in ("linear", "dynamic")
    gemma3 = "gemma3" in outer.text("model_type")  # whose positions are stretched already
    return int(found * (stretched.number("factor") or 1.0)) if counts and not gemma3 else found


def _with_quantization(path: Path) -> Mapping[str, Any]:
    """What ``config.json`` says, and what a file beside it says of quantization where it does not."""
    outer = _load(path)
    beside = (path if path.is_dir() else path.parent) / _SEPARATE
    if outer.get("quantization_config") or outer.get("compression_config") or not beside.is_file():
        return outer
    told = Keys(_decoded(beside, f"{beside} can't be read"), str(beside)).table("quantization")
    return {**outer, "quantization_config": {"quant_method": "modelopt", **told.values}}


def _load(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    return _decoded(file, f"{file} can't be read as a model's config.json")


def _decoded(file: Path, trouble: str) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"{trouble}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # no UTF-8 is a ValueError
        raise ConfigError(f"{trouble}: {error}") from error


def _directory(path: Path) -> str:
    return path.name if path.is_dir() else path.resolve().parent.name


class _Config(Keys):
    """The text part of a ``config.json``, with defaults."""

    def __init__(self, outer: Mapping[str, Any], name: str) -> None:
        whole = Keys(outer, f"the config.json of {name}")
        text = whole.table("text_config")
        self.name, self.kind = name, text.text("model_type") or whole.text("model_type")
        inherited = {key: outer[key] for key in _INHERITED if key in outer}
        own = {**inherited, **text.values} if text.values else outer
        super().__init__({**_DEFAULTS.get(self.kind, {}), **own}, whole.where)

    def size(self, ours: str, **within: int) -> int:
        """Of what must be there, under one of its names."""
        return self.need(*_ALIASES[ours], **within)


_INHERITED: Final = ("quantization_config", "compression_config", "tie_word_embeddings")


def _shape(config: _Config, kv_format: Format | None) -> ModelShape:
    _refuse(config)
    layers, hidden, heads = config.size("layers", most=_MOST_LAYERS), config.size("hidden"), config.size("heads")
    sliding, window = _sliding(config, layers)
    stored = formats(config)
    positions = config.whole("max_position_embeddings") or 0 if config.kind == "opt" else 0  # learned ones
    return ModelShape(
        name=config.name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_size=_head_size(config, hidden, heads),
        vocabulary=config.need("vocab_size"),
        gated=config.kind not in families.TWO_MATRICES,
        latent=_latent(config),
        sliding_layers=sliding,
        window=window,
        tied=config.flag("tie_word_embeddings", config.kind in families.TIED),
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
    """Models of other kinds would be costed wrongly without a word."""
    types = [one for one in config.texts("layer_types") if one not in _LAYER_TYPES]
    keys = [key for key, value in config.values.items() if value and _foreign(key)]
    if what := types[:1] + keys[:1]:
        raise ConfigError(
            f"{config.name} has {what[0]}, which is not covered; full, grouped, sliding and latent attention and mixtures of experts are"
        )
    if config.kind not in families.KNOWN:
        near = difflib.get_close_matches(config.kind, families.KNOWN, n=1)
        raise ConfigError(
            f"{config.where} has model_type {config.kind!r}, of which nothing is known here{f' (there is {near[0]})' if near else ''}: "
            "how such models call their sizes would be a guess"
        )


def _foreign(key: str) -> bool:
    """Whether it makes a model something that is not known here."""
    unread = _OF_EXPERTS.fullmatch(key) and key not in _READ and not _NO_SIZE.fullmatch(key)
    return bool(unread or _OTHER_KINDS.fullmatch(key))


def _kv_heads(config: _Config, heads: int) -> int:
    found = config.whole("num_key_value_heads", least=1, most=heads) or heads
    if heads % found:
        raise ConfigError(f"{config.where} has num_key_value_heads: {found}, which {heads} heads can't share evenly")
    return found


def _head_size(config: _Config, hidden: int, heads: int) -> int:
    found = config.whole("head_dim", least=1)
    if found is None and hidden % heads:
        raise ConfigError(
            f"{config.where} has hidden_size: {hidden}, which {heads} heads can't share evenly, and no head_dim; "
            "one or the other would be right"
        )
    return found or hidden // heads


def _mlps(config: _Config, layers: int, hidden: int) -> dict[str, Any]:
    moe_layers = _moe_layers(config, layers) if config.whole(*_ALIASES["experts"]) else 0
    if not moe_layers:
        plain = config.kind in ("bloom", "gpt2") and not config.whole("n_inner")
        return {"dense_layers": layers, "dense_size": 4 * hidden if plain else config.size("inner")}
    size = config.size("inner") if config.kind in families.EXPERTS_ONLY else config.need("moe_intermediate_size")
    experts = config.size("experts")
    shared = config.whole("shared_expert_intermediate_size") or (config.whole(*_ALIASES["shared"]) or 0) * size
    return {
        "dense_layers": layers - moe_layers,
        "dense_size": config.size("inner") if moe_layers < layers else 0,
        "moe_layers": moe_layers,
        "experts": experts,
        "active_experts": config.size("active", most=experts),
        "expert_size": size,
        "shared_size": shared,
    }


def _moe_layers(config: _Config, layers: int) -> int:
    """DeepSeek's first layers are dense; Qwen names those that are, or every n-th one is not; ERNIE says from where to where (vLLM's
    ``ernie45_moe.py``).
    """
    if not config.flag("use_moe", True):
        return 0
    dense, first = config.wholes("mlp_only_layers"), config.whole("first_k_dense_replace") or 0
    step = config.whole("decoder_sparse_step", "moe_layer_freq", "moe_layer_interval") or 1
    start, end = config.whole("moe_layer_start_index") or 0, config.whole("moe_layer_end_index")
    within = range(max(first, start), layers if end is None else min(layers, end + 1))
    return sum(1 for layer in within if layer not in dense and (layer - first + 1) % step == 0)


def _latent(config: _Config) -> Latent | None:
    if not (rank := config.whole("kv_lora_rank")):
        return None
    return Latent(
        kv_rank=rank,
        query_rank=config.whole("q_lora_rank") or None,
        nope_size=config.need("qk_nope_head_dim"),
        rope_size=config.need("qk_rope_head_dim"),
        value_size=config.need("v_head_dim"),
    )


def _sliding(config: _Config, layers: int) -> tuple[int, int]:
    """How many layers slide, and over how many tokens."""
    window, types = config.whole("sliding_window"), config.texts("layer_types")
    if types and len(types) != layers:
        raise ConfigError(
            f"{config.where} has {len(types)} layer_types for {layers} layers; one for each would be right"
        )
    if not window or not config.flag("use_sliding_window", True):
        return 0, 0
    if types:
        return sum(one == "sliding_attention" for one in types), window
    period = config.whole("sliding_window_pattern") or families.SLIDING_PERIOD.get(config.kind, 0)
    return (layers - layers // period if period else layers), window
