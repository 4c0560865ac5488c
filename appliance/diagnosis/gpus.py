"""What a GPU says of itself that would make an engine slow. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.records import EngineSnapshot, GpuSnapshot, NodeSnapshot

_HARMLESS: Final = ("gpu_idle", "application_clocks", "sync_boost")
_ORDINARY: Final = "sw_power_cap"  # a GPU at full work is held by its power limit, as its like are
_BELOW: Final = 0.9  # of their clock, from where on it is worse off than they are
_HELD: Final = 0.1  # of the time, in which clocks were held down
_NEIGHBOUR: Final = 0.05  # of a GPU's time, that somebody else takes


def gpu_trouble(engine: EngineSnapshot, trend: Sequence[NodeSnapshot]) -> str | None:
    """In words, by the first of its GPUs that says something."""
    first, now = {gpu.uuid: gpu for gpu in trend[0].gpus}, trend[-1]
    seconds = max(1e-3, now.uptime_s - trend[0].uptime_s)
    like = [other for other in now.engines if other.role is engine.role]
    for gpu in now.gpus:
        if not _is_of(gpu, engine):
            continue
        others = [one for one in now.gpus if one is not gpu and any(_is_of(one, other) for other in like)]
        if said := _said(gpu, first.get(gpu.uuid), seconds, others, _slowest(gpu, trend)):
            return f"GPU {gpu.index} {said}"
    return None


def _is_of(gpu: GpuSnapshot, engine: EngineSnapshot) -> bool:
    return gpu.engine == engine.name or gpu.uuid in engine.gpus


def _slowest(gpu: GpuSnapshot, trend: Sequence[NodeSnapshot]) -> float | None:
    """Its clock, MHz, where it was seen lowest."""
    seen = (one for moment in trend for one in moment.gpus if one.uuid == gpu.uuid)
    return min((one.clock_mhz for one in seen if one.clock_mhz is not None), default=None)


def _said(
    gpu: GpuSnapshot,
    before: GpuSnapshot | None,
    seconds: float,
    others: Sequence[GpuSnapshot],
    slowest_mhz: float | None,
) -> str | None:
    return (
        _slow_clock(gpu, others)
        or (_was_held(gpu, before, seconds, slowest_mhz) if before is not None else None)
        or (_errors(gpu, before) if before is not None else None)
        or _neighbour(gpu)
    )


def _slow_clock(gpu: GpuSnapshot, others: Sequence[GpuSnapshot]) -> str | None:
    reasons = [reason for reason in gpu.clock_reasons if reason not in _HARMLESS]
    if not reasons or gpu.clock_mhz is None or not gpu.clock_max_mhz:
        return None
    if reasons == [_ORDINARY] and not _is_below(gpu.clock_mhz, others):
        return None
    heat = f" at {gpu.temperature_c:.0f} °C" if gpu.temperature_c is not None and "thermal" in reasons[0] else ""
    return f"runs at {gpu.clock_mhz:,.0f} of {gpu.clock_max_mhz:,.0f} MHz ({reasons[0].replace('_', ' ')}){heat}"


def _is_below(clock_mhz: float, others: Sequence[GpuSnapshot]) -> bool:
    """The middle one of those that work, and on the same: decoding takes less power than prefill does."""
    working = sorted(one.clock_mhz for one in others if one.clock_mhz and "gpu_idle" not in one.clock_reasons)
    return bool(working) and clock_mhz < _BELOW * working[len(working) // 2]


def _was_held(gpu: GpuSnapshot, before: GpuSnapshot, seconds: float, slowest_mhz: float | None) -> str | None:
    """Between the looks at its clock, too."""
    seen = slowest_mhz is not None and gpu.clock_max_mhz is not None and slowest_mhz < gpu.clock_max_mhz
    low = f", at {slowest_mhz:,.0f} of {gpu.clock_max_mhz:,.0f} MHz when seen lowest" if seen else ""
    earlier = {one.reason: one.total_s for one in before.throttled}
    for one in gpu.throttled:
        share = min(1.0, (one.total_s - earlier.get(one.reason, one.total_s)) / seconds)
        if one.reason not in (*_HARMLESS, _ORDINARY) and share >= _HELD:
            return f"was held down {share:.0%} of the time ({one.reason.replace('_', ' ')}){low}"
    return None


def _errors(gpu: GpuSnapshot, before: GpuSnapshot) -> str | None:
    grown = (gpu.ecc_corrected or 0) - (before.ecc_corrected or 0)
    if grown > 0 and (gpu.ecc_uncorrected or gpu.xids):
        return f"has had {grown:,} memory errors corrected in the last seconds, and {gpu.ecc_uncorrected or 0} that could not be corrected"
    return None


def _neighbour(gpu: GpuSnapshot) -> str | None:
    """Somebody who is only there takes nothing but memory."""
    busiest = max(gpu.others or (), key=lambda other: other.busy or 0.0, default=None)
    if busiest is None or (busiest.busy or 0.0) < _NEIGHBOUR:
        return None
    return f"also works for {busiest.name or 'another process'} (pid {busiest.pid}), {busiest.busy:.0%} of the time"
