"""GPUs by name, and in which precision they multiply."""

from __future__ import annotations

import pytest

from appliance.costs.formats import Format
from appliance.costs.gpus import A100, B200, GPUS, H100, H200, Gpu, gpu
from appliance.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h100", H100),
        ("H100-SXM5-80GB", H100),
        ("NVIDIA H100 80GB HBM3", H100),
        ("NVIDIA A100-SXM4-80GB", A100),
        ("a100", A100),
        ("NVIDIA H200", H200),
        ("b200_sxm", B200),
    ],
)
def test_a_gpu_is_known_by_any_of_its_names(name: str, expected: Gpu) -> None:
    assert gpu(name) is expected


@pytest.mark.parametrize(
    "name",
    ["", "H1000", "NVIDIA H100 PCIe", "H100 NVL", "NVIDIA A100-SXM4-40GB", "NVIDIA GH200 480GB", "GB200", "MI300X"],
)
def test_another_card_is_not_taken_for_a_sister(name: str) -> None:
    with pytest.raises(ConfigError, match=r"known are a100, h100, h200, b200, A100-SXM4-80GB"):
        gpu(name)


@pytest.mark.parametrize(
    ("on", "stored", "flops_s"),
    [
        (A100, Format.BF16, 312e12),
        (A100, Format.FP8, 312e12),  # no such tensor cores: widened
        (H100, Format.FP8, 1978.9e12),
        (H100, Format.NVFP4, 989.4e12),
        (H100, Format.MXFP4, 989.4e12),
        (H100, Format.INT4, 989.4e12),
        (B200, Format.NVFP4, 9000e12),
        (B200, Format.MXFP4, 4500e12),  # with FP8 activations
    ],
)
def test_weights_are_multiplied_in_the_best_precision_that_there_is(on: Gpu, stored: Format, flops_s: float) -> None:
    assert on.peak(stored).flops_s == flops_s


def test_scales_take_their_bits() -> None:
    assert (Format.NVFP4.bytes, Format.MXFP4.bytes, Format.FP8.bytes, Format.BF16.bytes) == (0.5625, 0.53125, 1.0, 2.0)


@pytest.mark.parametrize("one", GPUS.values(), ids=lambda one: one.name)
def test_what_is_reached_is_less_than_what_is_printed(one: Gpu) -> None:
    peaks = [peak for peak in (one.bf16, one.fp8, one.fp4) if peak]
    assert all(0.5 < peak.reachable < 1 for peak in peaks)
    assert sorted(peak.flops_s for peak in peaks) == [peak.flops_s for peak in peaks]
    assert one.memory_bytes_s > one.nvlink_bytes_s > one.pcie_bytes_s


@pytest.mark.parametrize(
    ("on", "reported_mib", "torch_gib"),
    [(A100, 81_920, 79.15), (H100, 81_559, 79.11), (H200, 143_771, 139.80), (B200, 183_359, 178.35)],
)
def test_memory_is_what_the_driver_and_torch_report(on: Gpu, reported_mib: int, torch_gib: float) -> None:
    """nvidia-smi's total; and what torch says in "GPU 0 has a total capacity of"."""
    assert on.memory_bytes == reported_mib << 20
    assert on.usable_bytes / (1 << 30) == pytest.approx(torch_gib, abs=0.01)
