"""The GPUs of the node, one row each. Pure, like ``web.contexts``."""

from __future__ import annotations

from typing import Final

from appliance.records import GpuSnapshot, NodeSnapshot
from web import words
from web.contexts import Context

_REASONS: Final = {
    "gpu_idle": "idle",
    "sw_power_cap": "power limit",
    "hw_power_brake": "power brake",
    "hw_slowdown": "hardware slowdown",
    "hw_thermal_slowdown": "too hot",
    "sw_thermal_slowdown": "too hot",
    "sync_boost": "waits for others",
    "application_clocks": "set so",
}
_HARMLESS: Final = ("gpu_idle", "application_clocks")


class GpuContext(Context, frozen=True, kw_only=True):
    """One row of ``gpus.html``. Shares are in percent, None where they are not told."""

    index: int
    engine: str
    tensor: str
    tensor_percent: int | None
    dram: str
    dram_percent: int | None
    nvlink: str
    clock: str
    slowed: str | None  # why its clocks are down, where that is no good
    power: str
    temperature: str
    memory: str
    errors: str | None  # of its memory, and those that the driver has told of


class GpusContext(Context, frozen=True, kw_only=True):
    """``gpus.html``."""

    name: str  # of all of them
    gpus: tuple[GpuContext, ...]


def gpus(snapshot: NodeSnapshot) -> GpusContext:
    """Nothing for a node without GPUs."""
    names = dict.fromkeys(gpu.name for gpu in snapshot.gpus)
    name = f"{len(snapshot.gpus)} \u00d7 {', '.join(names)}" if names else ""
    return GpusContext(name=name, gpus=tuple(map(_gpu, snapshot.gpus)))


def _gpu(gpu: GpuSnapshot) -> GpuContext:
    return GpuContext(
        index=gpu.index,
        engine=gpu.engine or words.DASH,
        tensor=words.percent(gpu.tensor),
        tensor_percent=_percent(gpu.tensor),
        dram=words.percent(gpu.dram),
        dram_percent=_percent(gpu.dram),
        nvlink=words.traffic_rate(gpu.nvlink_bytes_s),
        clock=words.DASH if gpu.clock_mhz is None else f"{gpu.clock_mhz:,.0f} MHz",
        slowed=slowed(gpu),
        power=words.DASH if gpu.power_w is None else f"{gpu.power_w:.0f} W",
        temperature=words.DASH if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} \u00b0C",
        memory=words.memory(gpu.memory_used_bytes),
        errors=errors(gpu),
    )


def _percent(share: float | None) -> int | None:
    return None if share is None else round(100 * min(1.0, share))


def slowed(gpu: GpuSnapshot) -> str | None:
    """Why its clocks are down, where that is no good."""
    reasons = [
        _REASONS.get(reason, reason.replace("_", " ")) for reason in gpu.clock_reasons if reason not in _HARMLESS
    ]
    return words.listing(list(dict.fromkeys(reasons))) or None


def errors(gpu: GpuSnapshot) -> str | None:
    """Of its memory, and those that the driver has told of."""
    found = []
    if gpu.ecc_uncorrected:
        found.append(f"{gpu.ecc_uncorrected} ECC, uncorrected")
    if gpu.ecc_corrected:
        found.append(f"{gpu.ecc_corrected:,} ECC, corrected")
    if gpu.xids:
        found.append("Xid " + ", ".join(str(xid) for xid in dict.fromkeys(gpu.xids)))
    return "; ".join(found) or None
