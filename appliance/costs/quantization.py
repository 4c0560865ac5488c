"""Which parts of a model are quantized, and how, from ``quantization_config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from appliance.costs.formats import Format
from appliance.errors import ConfigError

_KNOWN: Final = "fp8, mxfp4, awq, gptq, modelopt and compressed-tensors"
_SKIPPING: Final = ("ignore", "modules_to_not_convert", "exclude_modules")
_ALGORITHMS: Final = {"FP8": Format.FP8, "NVFP4": Format.NVFP4, "W4A16_AWQ": Format.INT4, "MXFP4": Format.MXFP4}
_BITS: Final = {("float", 8): Format.FP8, ("float", 4): Format.NVFP4, ("int", 8): Format.INT8, ("int", 4): Format.INT4}


class Formats(msgspec.Struct, frozen=True):
    """By part of the model. Embedding, head and router stay BF16: no method that we know touches them."""

    attention: Format = Format.BF16
    dense: Format = Format.BF16
    shared: Format = Format.BF16
    experts: Format = Format.BF16
    kv: Format = Format.BF16
    block: int = 0  # numbers that share one scale, along each side of a matrix; 0: not in blocks


def formats(config: Mapping[str, Any]) -> Formats:
    """Of a ``config.json``. A part that is left out in some layers counts as left out in all.

    Raises:
        ConfigError: a method that isn't known.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return Formats()
    weights = _weights(quantization)
    skipped = [name for key in _SKIPPING for name in quantization.get(key) or ()]
    plain = [name for name in skipped if "expert" not in name]

    def of(modules: Sequence[str], *names: str) -> Format:
        return Format.BF16 if any(name in module for module in modules for name in names) else weights

    return Formats(
        attention=of(plain, "attn", "attention", "q_proj", "q_a_proj"),
        dense=of(plain, "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
        shared=of(skipped, "shared_expert"),
        experts=of(skipped, ".experts"),
        kv=_kv(quantization),
        block=max(quantization.get("weight_block_size") or (0,)),
    )


def _weights(quantization: Mapping[str, Any]) -> Format:
    method = str(quantization.get("quant_method", "")).lower()
    if method in ("fp8", "fbgemm_fp8"):
        return Format.FP8
    if method == "mxfp4":
        return Format.MXFP4
    if method in ("awq", "gptq", "gptq_marlin", "auto-round"):
        return _of_bits("int", quantization.get("bits", quantization.get("w_bit", 4)))
    if method in ("modelopt", "modelopt_fp4", "compressed-tensors") and (found := _of_groups(quantization)):
        return found
    raise ConfigError(f"quantization_config of method {method!r} is not known, or says no format; known are {_KNOWN}")


def _of_groups(quantization: Mapping[str, Any]) -> Format | None:
    if algorithm := quantization.get("quant_algo"):
        return _ALGORITHMS.get(str(algorithm).upper())
    groups = quantization.get("config_groups") or {}
    weights = next((group.get("weights") for group in groups.values() if group.get("weights")), None)
    return _of_bits(str(weights.get("type", "int")), weights.get("num_bits")) if weights else None


def _of_bits(kind: str, bits: object) -> Format:
    if found := _BITS.get((kind, int(str(bits)))):
        return found
    raise ConfigError(f"quantization_config has weights of {bits} {kind} bits; known are 4 and 8")


def _kv(quantization: Mapping[str, Any]) -> Format:
    scheme = quantization.get("kv_cache_scheme") or {}
    algorithm = str(quantization.get("kv_cache_quant_algo") or "").upper()
    eight = algorithm == "FP8" or (scheme.get("type") == "float" and scheme.get("num_bits") == 8)
    return Format.FP8 if eight else Format.BF16
