"""What GPUs read."""

from __future__ import annotations

import msgspec


class GpuSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one GPU reads. Activities are shares of the time since the last reading, 0 to 1; None is what it does not tell."""

    index: int
    uuid: str
    name: str
    engine: str | None = None  # that it belongs to
    clock_mhz: float | None = None  # of its multiprocessors
    clock_max_mhz: float | None = None
    clock_reasons: tuple[
        str, ...
    ] = ()  # why it is not at its highest, in NVML's words: gpu_idle, hw_thermal_slowdown, …
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    busy: float | None = None  # some kernel runs
    tensor: float | None = None  # tensor cores at work
    dram: float | None = None  # of the memory's bandwidth
    nvlink_bytes_s: float | None = None  # in and out
    ecc_corrected: int | None = None  # memory errors since its last reset
    ecc_uncorrected: int | None = None
    xids: tuple[int, ...] = ()  # errors that the driver has told of
    sm: float | None = None  # multiprocessors at work
    throttled: tuple[Throttled, ...] = ()  # for how long what has held its clocks down; only what the driver counts
    pcie_bytes_s: float | None = None  # in and out
    pcie_generation: int | None = None  # of its link now; an idle link is slow on purpose
    pcie_generation_max: int | None = None  # that GPU and slot can do
    pcie_lanes: int | None = None
    pcie_lanes_max: int | None = None
    pcie_replays: int | None = None  # packets that had to be sent again
    nvlink_errors: int | None = None  # checksums that were wrong, and what had to be sent again
    rows_remapped: int | None = None  # of its memory, for want of the ones that it had
    others: tuple[GpuProcess, ...] | None = None  # that are on it and no engine's; None where that can't be told


class Throttled(msgspec.Struct, frozen=True, kw_only=True):
    """How long one of NVML's reasons has held a GPU's clocks down, since its driver was loaded."""

    reason: str
    total_s: float


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody else's process on a GPU."""

    pid: int
    name: str | None = None
    memory_bytes: int | None = None
    busy: float | None = None  # share of the time in which its kernels had multiprocessors
