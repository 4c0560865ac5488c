"""Which parts of a model are quantized, and how, from ``quantization_config``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.costs.formats import Format
from appliance.costs.keys import Keys
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


def formats(config: Keys) -> Formats:
    """Of a ``config.json``. A part that is left out in some layers counts as left out in all.

    Raises:
        ConfigError: a method that isn't known, or a value that can't be.
    """
    ours, older = config.table("quantization_config"), config.table("compression_config")  # vLLM reads either
    quantization = ours if ours.values else older
    if not quantization.values:
        return Formats()
    weights = _weights(quantization)
    skipped = [name for key in _SKIPPING for name in quantization.texts(key)]
    plain = [name for name in skipped if "expert" not in name]

    def of(modules: Sequence[str], *names: str) -> Format:
        return Format.BF16 if any(name in module for module in modules for name in names) else weights

    return Formats(
        attention=of(plain, "attn", "attention", "q_proj", "q_a_proj"),
        dense=of(plain, "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
        shared=of(skipped, "shared_expert"),
        experts=of(skipped, ".experts"),
        kv=_kv(quantization),
        block=max(quantization.wholes("weight_block_size"), default=0),
    )


def _weights(quantization: Keys) -> Format:
    method = quantization.text("quant_method").lower()
    if method in ("fp8", "fbgemm_fp8"):
        return Format.FP8
    if method == "mxfp4":
        return Format.MXFP4
    if method in ("awq", "gptq", "gptq_marlin", "auto-round"):
        return _of_bits("int", quantization.whole("bits", "w_bit") or 4)
    if method in ("modelopt", "modelopt_fp4", "compressed-tensors") and (found := _of_groups(quantization)):
        return found
    raise ConfigError(f"quantization_config of method {method!r} is not known, or says no format; known are {_KNOWN}")


def _of_groups(quantization: Keys) -> Format | None:
    if algorithm := quantization.text("quant_algo"):
        return _ALGORITHMS.get(algorithm.upper())
    groups = [group.table("weights") for group in quantization.tables("config_groups")]
    weights = next((one for one in groups if one.values), None)
    return _of_bits(weights.text("type") or "int", weights.need("num_bits")) if weights else None


def _of_bits(kind: str, bits: int) -> Format:
    if found := _BITS.get((kind, bits)):
        return found
    raise ConfigError(f"quantization_config has weights of {bits} {kind} bits; known are 4 and 8")


def _kv(quantization: Keys) -> Format:
    scheme = quantization.table("kv_cache_scheme")
    eight = scheme.text("type") == "float" and scheme.whole("num_bits") == 8
    return Format.FP8 if eight or quantization.text("kv_cache_quant_algo").upper() == "FP8" else Format.BF16
