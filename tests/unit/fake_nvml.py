"""A driver that is not there, below the real binding: what ``libnvidia-ml.so.1`` would be, with its rules.

The real pynvml calls it with its own ctypes arguments, so a name, a type or an order that is wrong fails here as it would there. Rules:
nothing answers before ``nvmlInit`` or after ``nvmlShutdown``; handles, samples and event sets are pointers, and a stranger's is an invalid
argument; what is allocated is to be freed, once; two samples less than 100 ms apart tell nothing; fields are refused one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pynvml as nv

MIB = 1 << 20
GIB = 1 << 30


@dataclass
class FakeGpu:
    """What one GPU has. A question that is named in ``refused`` is answered with that error."""

    uuid: str = "GPU-0"
    name: str = "NVIDIA H100 80GB HBM3"
    clock_mhz: int = 1755
    reasons: int = nv.nvmlClocksEventReasonSwPowerCap
    power_mw: int = 640_500
    temperature_c: int = 66
    ecc: dict[int, int] = field(default_factory=lambda: {0: 12, 1: 0})
    processes: list[tuple[int, int]] = field(default_factory=list)  # pid, bytes
    busy: list[tuple[int, int, int]] = field(default_factory=list)  # pid, microseconds, percent of the multiprocessors
    fields: dict[int, tuple[int, int]] = field(default_factory=dict)  # type and value
    gpm: dict[int, float] | None = None  # by metric; None: no Hopper
    mig: list[str] | None = None  # UUIDs of its instances; None: no such thing
    xids: list[int] = field(default_factory=list)  # that are still to be told
    refused: dict[str, int] = field(default_factory=dict)
    total_bytes: int = 81_559 * MIB
    kept_bytes: int = 551 * MIB  # by the driver for itself
    used_bytes: int = 61 * GIB  # with that
    switch: int = 0  # of PCIe: GPUs with the same number are below the same one
    compute_mode: int = 0
    links: list[int | None] = field(default_factory=list)  # at the other end: a GPU's place, or None for a switch
    unreadable: set[int] = field(default_factory=set)  # places of GPUs whose memory it can't read


def h100(**changes: Any) -> FakeGpu:
    """With everything, as a driver from 580.82 on tells it."""
    counters = {74: (3, 5 * 10**9), 75: (3, 0), 269: (3, 10**9), 270: (3, 2 * 10**9), 271: (3, 0)}
    traffic = {138: (3, 1000), 139: (3, 1000), 197: (3, 0), 198: (3, 0), 38: (3, 1), 52: (3, 2), 59: (3, 0)}
    gpm = {2: 91.0, 5: 55.5, 10: 40.0, 20: 10.0, 21: 20.0, 60: 1000.0, 61: 2000.0}
    return FakeGpu(**{"fields": {**counters, **traffic}, "gpm": gpm, **changes})


def a100(**changes: Any) -> FakeGpu:
    """No GPM; traffic by counters; a driver that has no newer throttle times."""
    counters = {74: (3, 10**9), 75: (3, 0), 138: (3, 1 << 20), 139: (3, 1 << 20)}
    memory = {"total_bytes": 80 * GIB, "kept_bytes": 870 * MIB}
    return FakeGpu(**{"name": "NVIDIA A100-SXM4-80GB", "clock_mhz": 1410, "fields": counters, **memory, **changes})


def geforce(**changes: Any) -> FakeGpu:
    """No ECC, no remapped rows, no NVLink, no throttle times."""
    nothing = nv.NVML_ERROR_NOT_SUPPORTED
    refused = {
        "nvmlDeviceGetTotalEccErrors": nothing,
        "nvmlDeviceGetRemappedRows": nothing,
        "nvmlDeviceGetMigMode": nothing,
    }
    memory = {"total_bytes": 24_564 * MIB, "kept_bytes": 350 * MIB, "used_bytes": GIB}
    return FakeGpu(**{"name": "NVIDIA GeForce RTX 4090", "refused": refused, **memory, **changes})


class FakeDriver:
    """The library. ``now_ns`` is its clock; ``gone`` makes every call fail as after an ``rmmod``."""

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = list(gpus)
        self.now_ns = 0
        self.version = "580.82.07"
        self.cuda = 13000
        self.inits = 0
        self.cannot_start: int | None = None
        self.gone: int | None = None
        self.lacks: set[str] = set()  # functions that this driver is too old for
        self.calls: list[str] = []
        self.samples: dict[int, tuple[int, int] | None] = {}  # by address: whose, and when
        self.events: dict[int, list[FakeGpu]] = {}
        self._next = 0x1000

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("_") or name in self.lacks or not hasattr(Answers, name):
            raise AttributeError(name)

        def called(*args: Any) -> int:
            self.calls.append(name)
            if self.gone is not None:
                return self.gone
            if not self.inits and name != "nvmlInitWithFlags":
                return nv.NVML_ERROR_UNINITIALIZED
            try:
                return getattr(Answers, name)(self, *args) or nv.NVML_SUCCESS
            except Refusal as refusal:
                return refusal.code

        return called

    def address(self) -> int:
        self._next += 0x10
        return self._next

    def gpu(self, handle: Any, question: str) -> FakeGpu:
        """Raises ``Refusal``."""
        place = ctypes.cast(handle, ctypes.c_void_p).value
        if place is None or not 1 <= place <= len(self.gpus):
            raise Refusal(nv.NVML_ERROR_INVALID_ARGUMENT)
        gpu = self.gpus[place - 1]
        for refused in ("*", question):
            if refused in gpu.refused:
                raise Refusal(gpu.refused[refused])
        return gpu


class Refusal(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


def put(where: Any, value: Any) -> None:
    """Into what ``byref`` was made of."""
    target = where._obj
    if isinstance(value, bytes):
        target.value = value
    elif isinstance(value, ctypes.c_void_p):
        ctypes.memmove(where, ctypes.byref(value), ctypes.sizeof(value))
    else:
        target.value = value


def figure(question: str, read: Callable[[FakeGpu], Any]) -> Callable[..., None]:
    """A question whose last argument is where to put the answer."""

    def answer(driver: FakeDriver, handle: Any, *args: Any) -> None:
        put(args[-1], read(driver.gpu(handle, question)))

    return answer


def string(question: str, read: Callable[[FakeGpu], str]) -> Callable[..., None]:
    def answer(driver: FakeDriver, handle: Any, buffer: Any, size: Any) -> None:
        buffer.value = read(driver.gpu(handle, question)).encode()

    return answer


class Answers:
    """Functions of the library; each is given the driver first. What they return is an error code, or None for success."""

    @staticmethod
    def nvmlInitWithFlags(driver: FakeDriver, flags: int) -> int | None:
        if driver.cannot_start is None:
            driver.inits += 1
        return driver.cannot_start

    @staticmethod
    def nvmlShutdown(driver: FakeDriver) -> None:
        driver.inits -= 1

    @staticmethod
    def nvmlSystemGetDriverVersion(driver: FakeDriver, buffer: Any, size: Any) -> None:
        buffer.value = driver.version.encode()

    @staticmethod
    def nvmlSystemGetCudaDriverVersion_v2(driver: FakeDriver, version: Any) -> None:
        put(version, driver.cuda)

    @staticmethod
    def nvmlDeviceGetCount_v2(driver: FakeDriver, count: Any) -> None:
        put(count, len(driver.gpus))

    @staticmethod
    def nvmlDeviceGetHandleByIndex_v2(driver: FakeDriver, index: Any, handle: Any) -> None:
        place = ctypes.c_void_p(index.value + 1)
        driver.gpu(ctypes.cast(place, nv.c_nvmlDevice_t), "nvmlDeviceGetHandleByIndex_v2")
        put(handle, place)

    @staticmethod
    def nvmlDeviceGetUUID(driver: FakeDriver, handle: Any, buffer: Any, size: Any) -> None:
        place = ctypes.cast(handle, ctypes.c_void_p).value or 0
        if place >= 0x100:  # an instance's
            buffer.value = (driver.gpus[(place >> 8) - 1].mig or [])[place & 0xFF].encode()
        else:
            buffer.value = driver.gpu(handle, "nvmlDeviceGetUUID").uuid.encode()

    nvmlDeviceGetName = staticmethod(string("nvmlDeviceGetName", lambda gpu: gpu.name))
    nvmlDeviceGetClockInfo = staticmethod(figure("nvmlDeviceGetClockInfo", lambda gpu: gpu.clock_mhz))
    nvmlDeviceGetMaxClockInfo = staticmethod(figure("nvmlDeviceGetMaxClockInfo", lambda gpu: 1980))
    nvmlDeviceGetCurrentClocksEventReasons = staticmethod(
        figure("nvmlDeviceGetCurrentClocksEventReasons", lambda gpu: gpu.reasons)
    )
    nvmlDeviceGetCurrentClocksThrottleReasons = staticmethod(
        figure("nvmlDeviceGetCurrentClocksThrottleReasons", lambda gpu: gpu.reasons)
    )
    nvmlDeviceGetPowerUsage = staticmethod(figure("nvmlDeviceGetPowerUsage", lambda gpu: gpu.power_mw))
    nvmlDeviceGetEnforcedPowerLimit = staticmethod(figure("nvmlDeviceGetEnforcedPowerLimit", lambda gpu: 700_000))
    nvmlDeviceGetTemperature = staticmethod(figure("nvmlDeviceGetTemperature", lambda gpu: gpu.temperature_c))
    nvmlDeviceGetCurrPcieLinkGeneration = staticmethod(figure("nvmlDeviceGetCurrPcieLinkGeneration", lambda gpu: 4))
    nvmlDeviceGetMaxPcieLinkGeneration = staticmethod(figure("nvmlDeviceGetMaxPcieLinkGeneration", lambda gpu: 5))
    nvmlDeviceGetCurrPcieLinkWidth = staticmethod(figure("nvmlDeviceGetCurrPcieLinkWidth", lambda gpu: 8))
    nvmlDeviceGetMaxPcieLinkWidth = staticmethod(figure("nvmlDeviceGetMaxPcieLinkWidth", lambda gpu: 16))
    nvmlDeviceGetPcieReplayCounter = staticmethod(figure("nvmlDeviceGetPcieReplayCounter", lambda gpu: 3))
    nvmlDeviceGetSupportedEventTypes = staticmethod(
        figure("nvmlDeviceGetSupportedEventTypes", lambda gpu: nv.nvmlEventTypeXidCriticalError | 1)
    )

    @staticmethod
    def nvmlDeviceGetTemperatureV(driver: FakeDriver, handle: Any, asked: Any) -> int | None:
        gpu = driver.gpu(handle, "nvmlDeviceGetTemperatureV")
        if asked._obj.version != nv.nvmlTemperature_v1:
            return int(nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        asked._obj.temperature = gpu.temperature_c
        return None

    @staticmethod
    def nvmlDeviceGetMemoryInfo(driver: FakeDriver, handle: Any, memory: Any) -> None:
        gpu = driver.gpu(handle, "nvmlDeviceGetMemoryInfo")
        memory._obj.total, memory._obj.used = gpu.total_bytes, gpu.used_bytes
        memory._obj.free = gpu.total_bytes - gpu.used_bytes

    @staticmethod
    def nvmlDeviceGetMemoryInfo_v2(driver: FakeDriver, handle: Any, memory: Any) -> None:
        gpu = driver.gpu(handle, "nvmlDeviceGetMemoryInfo_v2")
        memory._obj.total, memory._obj.reserved = gpu.total_bytes, gpu.kept_bytes
        memory._obj.used = gpu.used_bytes - gpu.kept_bytes

    @staticmethod
    def nvmlDeviceGetUtilizationRates(driver: FakeDriver, handle: Any, rates: Any) -> int | None:
        if driver.gpu(handle, "nvmlDeviceGetUtilizationRates").mig:
            return int(nv.NVML_ERROR_NOT_SUPPORTED)
        rates._obj.gpu, rates._obj.memory = 97, 88
        return None

    @staticmethod
    def nvmlDeviceGetTotalEccErrors(driver: FakeDriver, handle: Any, kind: Any, counter: Any, count: Any) -> None:
        assert counter.value == nv.NVML_VOLATILE_ECC
        put(count, driver.gpu(handle, "nvmlDeviceGetTotalEccErrors").ecc[kind.value])

    @staticmethod
    def nvmlDeviceGetRemappedRows(driver: FakeDriver, handle: Any, *counts: Any) -> None:
        driver.gpu(handle, "nvmlDeviceGetRemappedRows")
        for where, value in zip(counts, (2, 1, 0, 0), strict=True):
            put(where, value)

    @staticmethod
    def nvmlDeviceGetMigMode(driver: FakeDriver, handle: Any, current: Any, pending: Any) -> None:
        gpu = driver.gpu(handle, "nvmlDeviceGetMigMode")
        put(current, int(gpu.mig is not None))
        put(pending, int(gpu.mig is not None))

    @staticmethod
    def nvmlDeviceGetMaxMigDeviceCount(driver: FakeDriver, handle: Any, count: Any) -> None:
        driver.gpu(handle, "nvmlDeviceGetMaxMigDeviceCount")
        put(count, 7)

    @staticmethod
    def nvmlDeviceGetMigDeviceHandleByIndex(driver: FakeDriver, handle: Any, index: Any, instance: Any) -> int | None:
        gpu = driver.gpu(handle, "nvmlDeviceGetMigDeviceHandleByIndex")
        if index.value >= len(gpu.mig or []):
            return int(nv.NVML_ERROR_NOT_FOUND)
        put(instance, ctypes.c_void_p(((driver.gpus.index(gpu) + 1) << 8) + index.value))
        return None

    @staticmethod
    def nvmlDeviceGetComputeRunningProcesses_v3(driver: FakeDriver, handle: Any, count: Any, found: Any) -> int | None:
        gpu = driver.gpu(handle, "nvmlDeviceGetComputeRunningProcesses")
        room = count._obj.value
        put(count, len(gpu.processes))
        if room < len(gpu.processes):
            return int(nv.NVML_ERROR_INSUFFICIENT_SIZE)
        for place, (pid, size) in enumerate(gpu.processes):
            found[place].pid, found[place].usedGpuMemory = pid, size
        return None

    @staticmethod
    def nvmlDeviceGetProcessUtilization(
        driver: FakeDriver, handle: Any, found: Any, count: Any, since: Any
    ) -> int | None:
        gpu = driver.gpu(handle, "nvmlDeviceGetProcessUtilization")
        new = [one for one in gpu.busy if one[1] > since.value]
        room = count._obj.value
        put(count, len(new))
        if not new:
            return int(nv.NVML_ERROR_NOT_FOUND)
        if room < len(new):
            return int(nv.NVML_ERROR_INSUFFICIENT_SIZE)
        for place, (pid, stamp, percent) in enumerate(new):
            found[place].pid, found[place].timeStamp, found[place].smUtil = pid, stamp, percent
        return None

    # ---- how GPUs are connected

    nvmlDeviceGetComputeMode = staticmethod(figure("nvmlDeviceGetComputeMode", lambda gpu: gpu.compute_mode))

    @staticmethod
    def nvmlDeviceGetPciInfo_v3(driver: FakeDriver, handle: Any, pci: Any) -> None:
        gpu = driver.gpu(handle, "nvmlDeviceGetPciInfo")
        pci._obj.busId = f"00000000:{driver.gpus.index(gpu) + 0x1A:02X}:00.0".encode()

    @staticmethod
    def nvmlDeviceGetNvLinkState(driver: FakeDriver, handle: Any, link: Any, state: Any) -> int | None:
        gpu, number = driver.gpu(handle, "nvmlDeviceGetNvLinkState"), getattr(link, "value", link)
        if number >= len(gpu.links):
            return int(nv.NVML_ERROR_INVALID_ARGUMENT if gpu.links else nv.NVML_ERROR_NOT_SUPPORTED)
        put(state, nv.NVML_FEATURE_ENABLED)
        return None

    @staticmethod
    def nvmlDeviceGetNvLinkRemoteDeviceType(driver: FakeDriver, handle: Any, link: Any, kind: Any) -> None:
        other = driver.gpu(handle, "nvmlDeviceGetNvLinkRemoteDeviceType").links[getattr(link, "value", link)]
        put(kind, nv.NVML_NVLINK_DEVICE_TYPE_SWITCH if other is None else nv.NVML_NVLINK_DEVICE_TYPE_GPU)

    @staticmethod
    def nvmlDeviceGetNvLinkRemotePciInfo_v2(driver: FakeDriver, handle: Any, link: Any, pci: Any) -> None:
        other = driver.gpu(handle, "nvmlDeviceGetNvLinkRemotePciInfo").links[getattr(link, "value", link)]
        pci._obj.busId = f"00000000:{(other or 0) + 0x1A:02X}:00.0".encode()

    @staticmethod
    def nvmlDeviceGetP2PStatus(driver: FakeDriver, handle: Any, other: Any, index: Any, status: Any) -> None:
        gpu, place = driver.gpu(handle, "nvmlDeviceGetP2PStatus"), ctypes.cast(other, ctypes.c_void_p).value
        assert getattr(index, "value", index) == 0, "NVML_P2P_CAPS_INDEX_READ"
        apart = (place or 0) - 1 in gpu.unreadable
        put(status, nv.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED if apart else nv.NVML_P2P_STATUS_OK)

    @staticmethod
    def nvmlDeviceGetTopologyCommonAncestor(driver: FakeDriver, handle: Any, other: Any, level: Any) -> None:
        gpu = driver.gpu(handle, "nvmlDeviceGetTopologyCommonAncestor")
        same = gpu.switch == driver.gpu(other, "nvmlDeviceGetTopologyCommonAncestor").switch
        put(level, nv.NVML_TOPOLOGY_MULTIPLE if same else nv.NVML_TOPOLOGY_SYSTEM)

    @staticmethod
    def nvmlDeviceGetFieldValues(driver: FakeDriver, handle: Any, count: Any, values: Any) -> None:
        gpu = driver.gpu(handle, "nvmlDeviceGetFieldValues")
        for place in range(count.value):
            value = values._obj[place]
            kind, found = gpu.fields.get(value.fieldId, (0, None))
            if value.fieldId in (138, 139) and value.scopeId != 0xFFFF_FFFF:
                found = None
            value.nvmlReturn = nv.NVML_ERROR_NOT_SUPPORTED if found is None else nv.NVML_SUCCESS
            value.valueType = kind
            if found is not None:
                setattr(value.value, {1: "uiVal", 3: "ullVal"}[kind], found)

    # ---- GPM

    @staticmethod
    def nvmlGpmQueryDeviceSupport(driver: FakeDriver, handle: Any, support: Any) -> None:
        support._obj.isSupportedDevice = int(driver.gpu(handle, "nvmlGpmQueryDeviceSupport").gpm is not None)

    @staticmethod
    def nvmlGpmSampleAlloc(driver: FakeDriver, sample: Any) -> None:
        address = driver.address()
        driver.samples[address] = None
        put(sample, ctypes.c_void_p(address))

    @staticmethod
    def nvmlGpmSampleFree(driver: FakeDriver, sample: Any) -> int | None:
        address = ctypes.cast(sample, ctypes.c_void_p).value
        if address not in driver.samples:
            return int(nv.NVML_ERROR_INVALID_ARGUMENT)  # twice, or never allocated
        del driver.samples[address]
        return None

    @staticmethod
    def nvmlGpmSampleGet(driver: FakeDriver, handle: Any, sample: Any) -> int | None:
        gpu = driver.gpu(handle, "nvmlGpmSampleGet")
        address = ctypes.cast(sample, ctypes.c_void_p).value
        if gpu.gpm is None or address not in driver.samples:
            return int(nv.NVML_ERROR_INVALID_ARGUMENT)
        driver.samples[address] = (driver.gpus.index(gpu), driver.now_ns)
        return None

    @staticmethod
    def nvmlGpmMetricsGet(driver: FakeDriver, request: Any) -> int | None:
        asked = request._obj
        before, after = (
            driver.samples.get(ctypes.cast(one, ctypes.c_void_p).value or 0) for one in (asked.sample1, asked.sample2)
        )
        if asked.version != nv.NVML_GPM_METRICS_GET_VERSION:
            return int(nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        if before is None or after is None or before[0] != after[0] or after[1] - before[1] < 100_000_000:
            return int(nv.NVML_ERROR_INVALID_ARGUMENT)
        known = driver.gpus[before[0]].gpm or {}
        for place in range(asked.numMetrics):
            metric = asked.metrics[place]
            metric.nvmlReturn = nv.NVML_SUCCESS if metric.metricId in known else nv.NVML_ERROR_NOT_SUPPORTED
            metric.value = known.get(metric.metricId, 0.0)
        return None

    # ---- events

    @staticmethod
    def nvmlEventSetCreate(driver: FakeDriver, events: Any) -> None:
        address = driver.address()
        driver.events[address] = []
        put(events, ctypes.c_void_p(address))

    @staticmethod
    def nvmlDeviceRegisterEvents(driver: FakeDriver, handle: Any, kinds: Any, events: Any) -> int | None:
        gpu = driver.gpu(handle, "nvmlDeviceRegisterEvents")
        address = ctypes.cast(events, ctypes.c_void_p).value
        if address not in driver.events or kinds.value != nv.nvmlEventTypeXidCriticalError:
            return int(nv.NVML_ERROR_INVALID_ARGUMENT)
        driver.events[address].append(gpu)
        return None

    @staticmethod
    def nvmlEventSetWait_v2(driver: FakeDriver, events: Any, data: Any, timeout_ms: Any) -> int | None:
        assert timeout_ms.value == 0, "nobody may wait for an event"
        gpus = driver.events.get(ctypes.cast(events, ctypes.c_void_p).value or 0)
        if gpus is None:
            return int(nv.NVML_ERROR_INVALID_ARGUMENT)
        for gpu in gpus:
            if gpu.xids:
                data._obj.eventType, data._obj.eventData = nv.nvmlEventTypeXidCriticalError, gpu.xids.pop(0)
                return None
        lost = any(gpu.refused.get("*") == nv.NVML_ERROR_GPU_IS_LOST for gpu in gpus)
        return int(nv.NVML_ERROR_GPU_IS_LOST if lost else nv.NVML_ERROR_TIMEOUT)

    @staticmethod
    def nvmlEventSetFree(driver: FakeDriver, events: Any) -> int | None:
        if driver.events.pop(ctypes.cast(events, ctypes.c_void_p).value or 0, None) is None:
            return int(nv.NVML_ERROR_INVALID_ARGUMENT)
        return None


@contextmanager
def installed(driver: FakeDriver) -> Iterator[FakeDriver]:
    """The real binding has this driver for its library."""
    library, functions = nv.nvmlLib, dict(nv._nvmlGetFunctionPointer_cache)
    nv.nvmlLib = driver
    nv._nvmlGetFunctionPointer_cache.clear()
    try:
        yield driver
    finally:
        nv.nvmlLib = library
        nv._nvmlGetFunctionPointer_cache.clear()
        nv._nvmlGetFunctionPointer_cache.update(functions)
