"""Virtual GPUs: they do what an engine's steps ask of them, and read what real ones would then read.

Power follows from what tensor cores and memory do, temperature follows power with some seconds' delay, and clocks fall where a fault has
taken the cooling. Nothing here is set to look like a fault: what reads wrong is wrong, and makes steps slower (``physics``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from appliance.costs.gpus import Gpu
from appliance.costs.roofline import StepCost
from appliance.records import GpuSnapshot, Throttled
from appliance.simulator.clock import Timer, VirtualClock

_IDLE_POWER: Final = 0.12  # of the thermal design power
_TENSOR_POWER: Final = 0.50  # of the rest, at full work
_DRAM_POWER: Final = 0.38
_AMBIENT_C: Final = 32.0
_RISE_C: Final = 46.0  # above ambient, at full power
_SLOWDOWN_C: Final = 88.0  # where a GPU takes its clocks back
_INERTIA_S: Final = 15.0
_CORRECTED_S: Final = 40.0  # memory errors per second, of a memory that has lost all of its bandwidth to them
_XID_CONTAINED: Final = 94  # "Contained ECC error" (NVIDIA, XID Errors)
_PCIE: Final = (5, 16)  # generation and lanes of an SXM board's link
_TOO_HOT: Final = "hw_thermal_slowdown"


class Wear(msgspec.Struct, frozen=True, kw_only=True):
    """What a fault has taken from one GPU, as shares lost."""

    clock: float = 0.0
    memory: float = 0.0


class VirtualGpus:
    """The GPUs of one engine. All do the same, as ranks do; only the first one can have a fault."""

    def __init__(self, hardware: Gpu, first: int, count: int, used_bytes: int, engine: str, timer: Timer) -> None:
        self._hardware = hardware
        self._first = first
        self._used_bytes = used_bytes
        self._engine = engine
        self._timer = timer
        self._read_ns = self._counted_ns = timer.now_ns
        self._temperatures = [_AMBIENT_C + _RISE_C * _IDLE_POWER] * count
        self._busy_s = self._tensor_s = self._dram_s = 0.0  # of steps that have begun; what comes later included
        self._step_s, self._until_ns = 0.0, timer.now_ns  # the last one, and its end
        self._copied_bytes = 0
        self._corrected = self._hot_s = 0.0
        self._uncorrected = 0
        self.wear = Wear()

    def ran(self, cost: StepCost, seconds: float, late_s: float = 0.0) -> None:
        """A step that takes so long begins ``late_s`` from now."""
        self._busy_s += seconds
        self._tensor_s += cost.matrix_s + cost.attention_s
        self._dram_s += cost.weights_s + cost.kv_s + cost.elementwise_s
        self._step_s, self._until_ns = seconds, self._timer.now_ns + int((seconds + late_s) * 1e9)

    def ended(self) -> None:
        """Their engine is gone, in the middle of a step or not."""
        self._busy_s = self._tensor_s = self._dram_s = 0.0
        self._until_ns = self._timer.now_ns

    def copied(self, size_bytes: int) -> None:
        """KV has come or gone over NVLink, of all ranks together."""
        self._copied_bytes += size_bytes

    def broke(self, wear: Wear) -> None:
        """A fault begins or ends. A memory that begins to lose words has one that can't be corrected."""
        self._count()
        if wear.memory > self.wear.memory:
            self._uncorrected += 1
        self.wear = wear

    def _count(self) -> None:
        """Errors and time without cooling, up to now."""
        now_ns = self._timer.now_ns
        seconds = (now_ns - self._counted_ns) * 1e-9
        self._corrected += self.wear.memory * _CORRECTED_S * seconds
        self._hot_s += seconds if self.wear.clock else 0.0
        self._counted_ns = now_ns

    def read(self) -> tuple[GpuSnapshot, ...]:
        """As ``nvidia-smi`` would, of the time since it was asked last."""
        now_ns = self._timer.now_ns
        self._count()
        seconds = max(1e-6, (now_ns - self._read_ns) * 1e-9)
        done = self._done(now_ns)
        busy = min(1.0, done * self._busy_s / seconds)
        tensor, dram = (min(busy, done * one / seconds) for one in (self._tensor_s, self._dram_s))
        rate = self._copied_bytes / seconds / len(self._temperatures)
        self._busy_s, self._tensor_s, self._dram_s = (
            (1 - done) * one for one in (self._busy_s, self._tensor_s, self._dram_s)
        )
        self._read_ns, self._copied_bytes = now_ns, 0
        return tuple(self._one(place, seconds, busy, tensor, dram, rate) for place in range(len(self._temperatures)))

    def _done(self, now_ns: int) -> float:
        """Share of what has begun that is done by now: a step may outlast many readings."""
        left_s = min(self._step_s, max(0.0, (self._until_ns - now_ns) * 1e-9))
        return max(0.0, 1 - left_s / self._busy_s) if self._busy_s else 1.0

    def _one(self, place: int, seconds: float, busy: float, tensor: float, dram: float, rate: float) -> GpuSnapshot:
        """The others wait for the first one where it is slow."""
        hardware, wear = self._hardware, self.wear if place == 0 else Wear()
        if place:
            tensor, dram = tensor * (1 - self.wear.clock), dram * (1 - self.wear.memory)
        clock = 1 - wear.clock
        load = _IDLE_POWER + (1 - _IDLE_POWER) * (_TENSOR_POWER * tensor * clock + _DRAM_POWER * dram + 0.12 * busy)
        self._warm(place, _SLOWDOWN_C if wear.clock else _AMBIENT_C + _RISE_C * load, seconds)
        return GpuSnapshot(
            index=self._first + place,
            uuid=uuid(self._first + place),
            name=hardware.name,
            engine=self._engine,
            clock_mhz=round(hardware.clock_hz * clock * 1e-6, 1),
            clock_max_mhz=round(hardware.clock_hz * 1e-6, 1),
            clock_reasons=_reasons(wear, busy),
            power_w=round(hardware.power_w * load, 1),
            power_limit_w=hardware.power_w,
            temperature_c=round(self._temperatures[place], 1),
            memory_used_bytes=self._used_bytes,
            memory_total_bytes=hardware.memory_bytes,
            busy=busy,
            tensor=tensor,
            dram=dram,
            nvlink_bytes_s=rate,
            ecc_corrected=int(self._corrected) if place == 0 else 0,
            ecc_uncorrected=self._uncorrected if place == 0 else 0,
            xids=(_XID_CONTAINED,) * self._uncorrected if place == 0 else (),
            sm=busy,
            throttled=(Throttled(reason=_TOO_HOT, total_s=round(self._hot_s, 3) if place == 0 else 0.0),),
            pcie_generation=_PCIE[0],
            pcie_generation_max=_PCIE[0],
            pcie_lanes=_PCIE[1],
            pcie_lanes_max=_PCIE[1],
            pcie_replays=0,
            nvlink_errors=0,
            rows_remapped=0,
            others=(),
        )

    def _warm(self, place: int, target_c: float, seconds: float) -> None:
        left = math.exp(-seconds / _INERTIA_S)
        self._temperatures[place] = target_c + (self._temperatures[place] - target_c) * left


def together(readings: Iterable[GpuSnapshot]) -> tuple[GpuSnapshot, ...]:
    """One for each GPU, as it would read itself: engines that share it each tell of their half."""
    found: dict[str, GpuSnapshot] = {}
    for one in readings:
        found[one.uuid] = _both(found[one.uuid], one) if one.uuid in found else one
    return tuple(found.values())


def _both(one: GpuSnapshot, other: GpuSnapshot) -> GpuSnapshot:
    """Both have half of all that the GPU does, so that what it does is the mean; memory and counters add up. Virtual ones tell it all."""
    held = max(one.throttled, other.throttled, key=lambda known: sum(reason.total_s for reason in known))
    return msgspec.structs.replace(
        one,
        clock_mhz=min(one.clock_mhz or 0.0, other.clock_mhz or 0.0),
        clock_reasons=_why_slow(one, other),
        power_w=_mean(one.power_w, other.power_w),
        temperature_c=max(one.temperature_c or 0.0, other.temperature_c or 0.0),
        memory_used_bytes=(one.memory_used_bytes or 0) + (other.memory_used_bytes or 0),
        busy=1 - (1 - (one.busy or 0.0)) * (1 - (other.busy or 0.0)),
        sm=_mean(one.sm, other.sm),
        tensor=_mean(one.tensor, other.tensor),
        dram=_mean(one.dram, other.dram),
        nvlink_bytes_s=(one.nvlink_bytes_s or 0.0) + (other.nvlink_bytes_s or 0.0),
        ecc_corrected=(one.ecc_corrected or 0) + (other.ecc_corrected or 0),
        ecc_uncorrected=(one.ecc_uncorrected or 0) + (other.ecc_uncorrected or 0),
        xids=one.xids + other.xids,
        throttled=held,
    )


def _why_slow(one: GpuSnapshot, other: GpuSnapshot) -> tuple[str, ...]:
    """It is idle where both are."""
    both = dict.fromkeys((*one.clock_reasons, *other.clock_reasons))
    idle = "gpu_idle" in one.clock_reasons and "gpu_idle" in other.clock_reasons
    return tuple(reason for reason in both if idle or reason != "gpu_idle")


def _mean(one: float | None, other: float | None) -> float:
    return ((one or 0.0) + (other or 0.0)) / 2


def uuid(index: int) -> str:
    """Of a GPU that is not there."""
    return f"GPU-sim{index}"


def at_rest(hardware: Gpu, first: int, count: int, engine: str) -> tuple[GpuSnapshot, ...]:
    """GPUs whose engine is not there."""
    return VirtualGpus(hardware, first, count, 0, engine, VirtualClock()).read()


def _reasons(wear: Wear, busy: float) -> tuple[str, ...]:
    if wear.clock:
        return (_TOO_HOT,)
    return () if busy else ("gpu_idle",)
