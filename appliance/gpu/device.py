"""One GPU, and all that it is asked at a tick."""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

from appliance.gpu.fields import Counters, Rate
from appliance.gpu.gpm import NOTHING, Gpm
from appliance.gpu.library import GoneError, Library, LostError, Questions
from appliance.records import GpuProcess, GpuSnapshot

_log = logging.getLogger("pd-appliance")
_XIDS: Final = 256  # that are kept
_AT_ONCE: Final = 32  # events of one tick

REASONS: Final = {  # by NVML's name; what says most comes first
    "HwThermalSlowdown": "hw_thermal_slowdown",
    "HwPowerBrakeSlowdown": "hw_power_brake",
    "SwThermalSlowdown": "sw_thermal_slowdown",
    "HwSlowdown": "hw_slowdown",  # the sum of the first two, and what else halves the clocks
    "SwPowerCap": "sw_power_cap",
    "SyncBoost": "sync_boost",
    "ApplicationsClocksSetting": "application_clocks",
    "DisplayClockSetting": "display_clock_setting",
    "GpuIdle": "gpu_idle",
}


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a GPU reads, before it is said whose it is."""

    gpu: GpuSnapshot
    processes: tuple[GpuProcess, ...] | None  # all that compute on it
    parts: tuple[str, ...] = ()  # UUIDs of its MIG instances


class Device:
    """Owns what NVML has allocated for this GPU; ``close`` gives it back."""

    def __init__(self, library: Library, handle: Any, index: int) -> None:
        """Raises ``LostError`` and ``GoneError``."""
        title = f"GPU {index}"
        self._questions = Questions(library, handle, title)
        self._module = library.module
        self._gpm: Gpm | None = None
        self._events: Any = None
        self._nvlink, self._pcie = Rate(), Rate()
        self._asked_us = 0  # until when processes' shares are known
        self._xids: list[int] = []
        self._lost = False
        self._is, self._parts = self._identity(index, title), self._mig()
        self._counters = Counters(self._questions)
        try:
            self._gpm = Gpm(self._questions)
            self._listen()
        except (LostError, GoneError):
            self.close()
            raise

    def _identity(self, index: int, title: str) -> GpuSnapshot:
        """What does not change."""
        ask = self._questions.ask
        return GpuSnapshot(
            index=index,
            uuid=text(ask("its UUID", "nvmlDeviceGetUUID")) or title,
            name=text(ask("its name", "nvmlDeviceGetName")) or "unknown GPU",
            clock_max_mhz=ask("highest clock", "nvmlDeviceGetMaxClockInfo", self._module.NVML_CLOCK_SM),
            pcie_generation_max=ask("PCIe generation", "nvmlDeviceGetMaxPcieLinkGeneration"),
            pcie_lanes_max=ask("PCIe lanes", "nvmlDeviceGetMaxPcieLinkWidth"),
        )

    def read(self, now_ns: int) -> Reading:
        """A GPU that is lost reads nothing but its name. Raises ``GoneError``."""
        self._hear()
        try:
            found = self._read(now_ns)
        except LostError as error:
            if not self._lost:
                _log.warning("%s (%s): %s; look at dmesg, reset it or restart the machine", *self._names(), error)
            self._lost = True
            return Reading(gpu=msgspec.structs.replace(self._is, xids=tuple(self._xids)), processes=None)
        self._lost = False
        return found

    def close(self) -> None:
        """As far as NVML still takes it back."""
        for give_back in (self._gpm.close if self._gpm else None, self._stop_listening):
            try:
                if give_back is not None:
                    give_back()
            except (LostError, GoneError):
                continue

    def _names(self) -> tuple[str, str]:
        return self._questions.title, self._is.uuid

    # ---- what it reads

    def _read(self, now_ns: int) -> Reading:
        ask, module, counters = self._questions.ask, self._module, self._counters
        clock = ask("clock", "nvmlDeviceGetClockInfo", module.NVML_CLOCK_SM)  # first: a lost GPU is known by it
        counters.read()
        activity = self._gpm.read(now_ns) if self._gpm else NOTHING
        memory = self._memory()
        utilization = ask("utilisation", "nvmlDeviceGetUtilizationRates")
        nvlink = self._nvlink.of(counters.nvlink_bytes, now_ns)
        pcie = self._pcie.of(counters.pcie_bytes, now_ns)
        gpu = msgspec.structs.replace(
            self._is,
            clock_mhz=clock,
            clock_reasons=self._reasons(),
            power_w=_thousandth(ask("power", "nvmlDeviceGetPowerUsage")),
            power_limit_w=_thousandth(ask("power limit", "nvmlDeviceGetEnforcedPowerLimit")),
            temperature_c=self._temperature(),
            memory_used_bytes=memory.used if memory is not None else None,
            memory_total_bytes=memory.total if memory is not None else None,
            busy=utilization.gpu / 100 if utilization is not None else None,
            tensor=activity.tensor,
            dram=activity.dram,  # never ``utilization.memory``: that is time in which memory was touched, not bandwidth
            sm=activity.sm,
            nvlink_bytes_s=activity.nvlink_bytes_s if activity.nvlink_bytes_s is not None else nvlink,
            pcie_bytes_s=activity.pcie_bytes_s if activity.pcie_bytes_s is not None else pcie,
            ecc_corrected=self._errors(module.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._errors(module.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            xids=tuple(self._xids),
            throttled=counters.throttled,
            pcie_generation=ask("PCIe generation", "nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_lanes=ask("PCIe lanes", "nvmlDeviceGetCurrPcieLinkWidth"),
            pcie_replays=ask("PCIe replays", "nvmlDeviceGetPcieReplayCounter"),
            nvlink_errors=counters.nvlink_errors,
            rows_remapped=self._remapped(),
        )
        return Reading(gpu=gpu, processes=self._processes(), parts=self._parts)

    def _reasons(self) -> tuple[str, ...]:
        bits = self._questions.ask("clock reasons", "nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # until driver 530
            bits = self._questions.ask("clock reasons", "nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return tuple(
            reason for name, reason in REASONS.items() if bits & getattr(self._module, f"nvmlClocksEventReason{name}")
        )

    def _temperature(self) -> float | None:
        sensor = self._module.NVML_TEMPERATURE_GPU
        found = self._questions.ask("temperature", "nvmlDeviceGetTemperatureV", sensor)
        if found is None:
            found = self._questions.ask("temperature", "nvmlDeviceGetTemperature", sensor)
        return None if found is None else float(found)

    def _memory(self) -> Any:
        """The second version does not count what the driver keeps for itself as used."""
        found = self._questions.ask("memory", "nvmlDeviceGetMemoryInfo", self._module.nvmlMemory_v2)
        return found if found is not None else self._questions.ask("all memory", "nvmlDeviceGetMemoryInfo")

    def _errors(self, kind: int) -> int | None:
        """Since the driver was loaded."""
        what = f"ECC errors of kind {kind}"
        found = self._questions.ask(what, "nvmlDeviceGetTotalEccErrors", kind, self._module.NVML_VOLATILE_ECC)
        return None if found is None else int(found)

    def _remapped(self) -> int | None:
        found = self._questions.ask("remapped rows", "nvmlDeviceGetRemappedRows")
        return None if found is None else int(found[0] + found[1])

    # ---- who is on it

    def _processes(self) -> tuple[GpuProcess, ...] | None:
        """None on a GPU in parts: who is in another part is no neighbour, and that can't be told apart here."""
        if self._parts:
            return None
        found = self._questions.ask("processes", "nvmlDeviceGetComputeRunningProcesses")
        if found is None:
            return None
        busy = self._busy_processes()
        return tuple(GpuProcess(pid=one.pid, memory_bytes=one.usedGpuMemory, busy=busy.get(one.pid)) for one in found)

    def _busy_processes(self) -> dict[int, float]:
        """Shares of the multiprocessors' time, by pid, in the samples since the last call; of the newest of each."""
        what = "processes' shares"
        samples = self._questions.ask(what, "nvmlDeviceGetProcessUtilization", self._asked_us) or ()
        newest = sorted(samples, key=lambda sample: int(sample.timeStamp))
        if newest:
            self._asked_us = int(newest[-1].timeStamp)
        return {sample.pid: sample.smUtil / 100 for sample in newest}

    def _mig(self) -> tuple[str, ...]:
        mode = self._questions.ask("MIG mode", "nvmlDeviceGetMigMode")
        if not mode or mode[0] != self._module.NVML_DEVICE_MIG_ENABLE:
            return ()
        count = self._questions.ask("MIG instances", "nvmlDeviceGetMaxMigDeviceCount") or 0
        handles = [self._questions.ask("MIG instances", "nvmlDeviceGetMigDeviceHandleByIndex", n) for n in range(count)]
        uuids = [self._questions.call("MIG instances", "nvmlDeviceGetUUID", one) for one in handles if one is not None]
        return tuple(uuid for one in uuids if (uuid := text(one)))

    # ---- Xid events

    def _listen(self) -> None:
        """A set of its own for each GPU: one that is lost does not make the others' events wait."""
        kind = self._module.nvmlEventTypeXidCriticalError
        if not (self._questions.ask("event types", "nvmlDeviceGetSupportedEventTypes") or 0) & kind:
            return
        self._events = self._questions.call("Xid events", "nvmlEventSetCreate")
        if self._events is not None:
            self._questions.ask("Xid events", "nvmlDeviceRegisterEvents", kind, self._events)

    def _hear(self) -> None:
        """What has come since; waits for nothing. Raises ``GoneError``."""
        for _ in range(_AT_ONCE if self._events is not None else 0):
            try:
                event = self._questions.call("Xid events", "nvmlEventSetWait", self._events, 0)
            except LostError:
                return
            if event is None:
                return
            if event.eventType == self._module.nvmlEventTypeXidCriticalError:
                _log.warning(
                    "%s (%s): Xid %d; NVIDIA's table of Xid errors says what it means", *self._names(), event.eventData
                )
                self._xids = [*self._xids, int(event.eventData)][-_XIDS:]

    def _stop_listening(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            self._questions.call("Xid events", "nvmlEventSetFree", events)


def text(found: Any) -> str | None:
    """Older bindings answer bytes."""
    if found is None:
        return None
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def _thousandth(found: int | None) -> float | None:
    return None if found is None else found / 1000
