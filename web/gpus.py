"""The GPUs of the node, one row each. Pure, like ``web.contexts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.records import EngineSnapshot, GpuSnapshot, NodeSnapshot
from web import words
from web.contexts import Context

_REASONS: Final = {
    "gpu_idle": "idle",
    "sw_power_cap": "power limit",
    "hw_power_brake": "power brake",
    "hw_slowdown": "hardware slowdown",
    "hw_thermal_slowdown": "too hot",
    "sw_thermal_slowdown": "too hot",
    "thermal": "too hot",
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
    throttled: str | None  # for how long its clocks have been down since the driver was loaded, and why
    pcie: str
    narrow: str | None  # its link, where lanes are missing
    errors: str | None  # of its memory, and those that the driver has told of
    others: str | None  # who else is on it


class GpusContext(Context, frozen=True, kw_only=True):
    """``gpus.html``."""

    name: str  # of all of them
    gpus: tuple[GpuContext, ...]
    notes: tuple[str, ...] = ()  # where engines are, and why there


def gpus(snapshot: NodeSnapshot) -> GpusContext:
    """Nothing for a node without GPUs of which nobody would expect any."""
    names = dict.fromkeys(gpu.name for gpu in snapshot.gpus)
    name = f"{len(snapshot.gpus)} \u00d7 {', '.join(names)}" if names else ""
    return GpusContext(
        name=name, gpus=tuple(_gpu(gpu, snapshot.engines) for gpu in snapshot.gpus), notes=snapshot.notes
    )


def _gpu(gpu: GpuSnapshot, engines: Sequence[EngineSnapshot]) -> GpuContext:
    return GpuContext(
        index=gpu.index,
        engine=_engines(gpu, engines),
        tensor=words.percent(gpu.tensor),
        tensor_percent=_percent(gpu.tensor),
        dram=words.percent(gpu.dram),
        dram_percent=_percent(gpu.dram),
        nvlink=words.traffic_rate(gpu.nvlink_bytes_s),
        clock=words.DASH if gpu.clock_mhz is None else f"{gpu.clock_mhz:,.0f} MHz",
        slowed=slowed(gpu),
        throttled=_throttled(gpu),
        pcie=_pcie(gpu),
        narrow=_narrow(gpu),
        power=words.DASH if gpu.power_w is None else f"{gpu.power_w:.0f} W",
        temperature=words.DASH if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} \u00b0C",
        memory=words.memory(gpu.memory_used_bytes),
        errors=errors(gpu),
        others=_others(gpu),
    )


def _engines(gpu: GpuSnapshot, engines: Sequence[EngineSnapshot]) -> str:
    """Several may share it."""
    sharing = [engine.name for engine in engines if gpu.uuid in engine.gpus]
    return ", ".join(sharing) or gpu.engine or words.DASH


def _percent(share: float | None) -> int | None:
    return None if share is None else round(100 * min(1.0, share))


def slowed(gpu: GpuSnapshot) -> str | None:
    """Why its clocks are down, where that is no good."""
    reasons = [
        _REASONS.get(reason, reason.replace("_", " ")) for reason in gpu.clock_reasons if reason not in _HARMLESS
    ]
    return words.listing(list(dict.fromkeys(reasons))) or None


def _throttled(gpu: GpuSnapshot) -> str | None:
    """Only what is worth a word."""
    parts = [
        f"{_REASONS.get(one.reason, one.reason.replace('_', ' '))}: {words.duration(one.total_s)}"
        for one in gpu.throttled
        if one.total_s >= 1 and one.reason not in _HARMLESS
    ]
    return f"Clocks held down since the driver was loaded: {', '.join(parts)}" if parts else None


def _pcie(gpu: GpuSnapshot) -> str:
    """Its rate, or else what the link is."""
    if gpu.pcie_bytes_s is not None:
        return words.traffic_rate(gpu.pcie_bytes_s)
    if gpu.pcie_lanes is None:
        return words.DASH
    return (
        f"\u00d7{gpu.pcie_lanes}"
        if gpu.pcie_generation_max is None
        else f"{gpu.pcie_generation_max}.0 \u00d7{gpu.pcie_lanes}"
    )


def _narrow(gpu: GpuSnapshot) -> str | None:
    """An idle link falls back to an older generation on purpose, and never to fewer lanes."""
    if gpu.pcie_lanes is None or gpu.pcie_lanes_max is None or gpu.pcie_lanes >= gpu.pcie_lanes_max:
        return None
    return f"{gpu.pcie_lanes} of {gpu.pcie_lanes_max} lanes"


def _others(gpu: GpuSnapshot) -> str | None:
    found = [f"{other.name or 'pid'} {other.pid} ({words.memory(other.memory_bytes)})" for other in gpu.others or ()]
    return f"shared with {words.listing(found)}" if found else None


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
