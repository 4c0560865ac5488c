"""GPUs by name: what their makers say they can do, and the share of it that matrix products reach.

Peaks are dense: half of what data sheets print "with sparsity". Memory is what drivers report, which is neither the data sheet's GB nor as
many GiB: an "80GB" H100 has 81,559 MiB, of which the driver keeps some hundred for itself; what is left is the total that CUDA, and so
vLLM, sees (79.11 to 79.19 GiB, by the driver's version).
The reachable shares are measured: "Maximum Achievable Matmul FLOPS" of stas00/ml-engineering, compute/accelerator/README.md at
744d01e; where nobody has measured one, the next precision's stands in, which is said at the number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from appliance.costs.formats import Format, Precision
from appliance.errors import ConfigError


class Peak(msgspec.Struct, frozen=True):
    """Matrix products in one precision."""

    flops_s: float  # dense, by the data sheet
    reachable: float  # share of it, 0 to 1, that the best-shaped product measures


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. Bandwidths are by the data sheet; what of them is reached is ``roofline.Efficiency``'s business."""

    name: str
    bf16: Peak
    fp8: Peak | None = None  # None: no such tensor cores
    fp4: Peak | None = None
    memory_bytes: int  # as the driver reports it
    kept_bytes: int = 0  # of these, by the driver for itself
    memory_bytes_s: float
    nvlink_bytes_s: float  # each direction, all links together
    pcie_bytes_s: float  # each direction
    multiprocessors: int
    power_w: float  # thermal design power
    clock_hz: float  # the most that its multiprocessors run at
    source: str

    @property
    def usable_bytes(self) -> int:
        """What CUDA tells of as the total, and shares of its memory are shares of."""
        return self.memory_bytes - self.kept_bytes

    def peak(self, stored: Format) -> Peak:
        """That of matrix products with weights stored so; BF16's where there are no tensor cores for better."""
        found = {Precision.FP8: self.fp8, Precision.FP4: self.fp4}.get(stored.precision)
        if stored is Format.MXFP4 and self.fp4 is None:
            return self.bf16  # TensorRT-LLM's default on Hopper is W4A16_MXFP4: widened to BF16
        return found or self.bf16


_MIB: Final = 1 << 20

A100: Final = Gpu(
    name="A100-SXM4-80GB",
    bf16=Peak(312e12, 0.869),
    memory_bytes=81_920 * _MIB,
    kept_bytes=870 * _MIB,
    memory_bytes_s=2.039e12,
    nvlink_bytes_s=300e9,
    pcie_bytes_s=32e9,
    multiprocessors=108,
    power_w=400,
    clock_hz=1.410e9,
    source="NVIDIA A100 data sheet, 2021; Ampere white paper (multiprocessors, clock)",
)
H100: Final = Gpu(
    name="H100-SXM5-80GB",
    bf16=Peak(989.4e12, 0.803),
    fp8=Peak(1978.9e12, 0.709),
    memory_bytes=81_559 * _MIB,
    kept_bytes=551 * _MIB,
    memory_bytes_s=3.35e12,
    nvlink_bytes_s=450e9,
    pcie_bytes_s=64e9,
    multiprocessors=132,
    power_w=700,
    clock_hz=1.980e9,  # what the driver reports; the peaks are at 1.830e9
    source="NVIDIA H100 data sheet; Hopper white paper (multiprocessors)",
)
H200: Final = Gpu(
    name="H200-SXM-141GB",
    bf16=Peak(989.4e12, 0.803),
    fp8=Peak(1978.9e12, 0.734),
    memory_bytes=143_771 * _MIB,
    kept_bytes=616 * _MIB,
    memory_bytes_s=4.8e12,
    nvlink_bytes_s=450e9,
    pcie_bytes_s=64e9,
    multiprocessors=132,
    power_w=700,
    clock_hz=1.980e9,
    source="NVIDIA H200 data sheet",
)
B200: Final = Gpu(
    name="B200-SXM-180GB",
    bf16=Peak(2250e12, 0.776),
    fp8=Peak(4500e12, 0.763),
    fp4=Peak(9000e12, 0.736),  # 6,624 TFLOP/s of NVFP4, S. Bekman, 2026-10-02
    memory_bytes=183_359 * _MIB,
    kept_bytes=728 * _MIB,
    memory_bytes_s=8.0e12,
    nvlink_bytes_s=900e9,
    pcie_bytes_s=64e9,
    multiprocessors=148,
    power_w=1000,
    clock_hz=1.965e9,
    source="NVIDIA DGX B200 data sheet; HGX platform page; the driver's report (multiprocessors, clock)",
)
GPUS: Final[Mapping[str, Gpu]] = {gpu.name: gpu for gpu in (A100, H100, H200, B200)}
_FAMILIES: Final[Mapping[str, Gpu]] = {"A100": A100, "H100": H100, "H200": H200, "B200": B200}
_OTHER_CARDS: Final = re.compile(r"PCIE|NVL|40GB|GH200|GB200")


def gpu(name: str) -> Gpu:
    """By its name here, its family (``h100``), or what the driver calls it (``NVIDIA H100 80GB HBM3``).

    Raises:
        ConfigError: none of these; names those there are. A PCIe or NVL card is refused, for it is another card than its SXM sister.
    """
    plain = re.sub(r"[\s_/]+", "-", name.strip().upper())
    family = next((family for family in _FAMILIES if re.search(rf"(^|-){family}(-|$)", plain)), None)
    if family is None or _OTHER_CARDS.search(plain):
        known = ", ".join([*(name.lower() for name in _FAMILIES), *GPUS])
        raise ConfigError(f"no GPU {name!r} is known; known are {known} (SXM cards)")
    return _FAMILIES[family]
