"""How numbers are stored, and in which precision a GPU multiplies what is stored so."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """What tensor cores multiply in."""

    BF16 = "bf16"  # FP16 runs at the same rate
    FP8 = "fp8"
    FP4 = "fp4"


class Format(StrEnum):
    """How weights or KV lie in memory."""

    BF16 = "bf16"  # FP16 as well
    FP8 = "fp8"  # scales per tensor, channel or block of 128x128: not counted
    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    INT8 = "int8"  # weights only
    INT4 = "int4"  # weights only: AWQ, GPTQ

    @property
    def bytes(self) -> float:
        """Of one number, with its part of the scales."""
        return _BITS[self] / 8

    @property
    def precision(self) -> Precision:
        """What it is multiplied in where the GPU can; where it can't, weights are widened to BF16 on the way."""
        return _PRECISIONS.get(self, Precision.BF16)


_BITS = {
    Format.BF16: 16.0,
    Format.FP8: 8.0,
    Format.INT8: 8.0,
    Format.NVFP4: 4 + 8 / 16,  # an FP8 scale per 16 numbers (NVIDIA, "Introducing NVFP4")
    Format.MXFP4: 4 + 8 / 32,  # an E8M0 scale per 32 numbers (OCP Microscaling Formats 1.0)
    Format.INT4: 4 + (16 + 4) / 128,  # an FP16 scale and a zero point per group of 128
}
_PRECISIONS = {
    Format.FP8: Precision.FP8,
    Format.NVFP4: Precision.FP4,
    Format.MXFP4: Precision.FP8,  # activations in FP8 on Blackwell: TensorRT-LLM's W4A8_MXFP4_MXFP8, and vLLM's
}
