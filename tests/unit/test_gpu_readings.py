"""What is read of GPUs, of a driver below the real binding that has NVML's rules (``fake_nvml``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pynvml as nv
import pytest
from fake_nvml import GIB, MIB, FakeDriver, FakeGpu, a100, geforce, h100, installed

from appliance.gpu.device import Reading, text
from appliance.gpu.nvml import Nvml
from appliance.records import GpuSnapshot, Throttled

TICK_NS = 500_000_000


class Ticks:
    """A reader, the driver that it reads, and the clock of both."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.nvml = Nvml(lambda: nv)

    def read(self, ticks: int = 1, tick_ns: int = TICK_NS) -> tuple[Reading, ...]:
        found: tuple[Reading, ...] = ()
        for _ in range(ticks):
            self.driver.now_ns += tick_ns
            found = self.nvml.read(self.driver.now_ns)
        return found

    def gpus(self, ticks: int = 1) -> list[GpuSnapshot]:
        return [reading.gpu for reading in self.read(ticks)]


@pytest.fixture
def opened() -> Iterator[Any]:
    """A node with these GPUs. In its end, or when the next one is opened, nothing that NVML has allocated may be left."""
    open_now: list[tuple[Ticks, Any]] = []

    def finish() -> None:
        ticks, context = open_now.pop()
        ticks.nvml.close()
        context.__exit__(None, None, None)
        if ticks.driver.gone is None:
            assert (ticks.driver.inits, ticks.driver.samples, ticks.driver.events) == (0, {}, {})

    def make(*gpus: FakeGpu, **traits: Any) -> Ticks:
        if open_now:
            finish()
        driver = FakeDriver(*gpus)
        for name, value in traits.items():
            setattr(driver, name, value)
        context = installed(driver)
        context.__enter__()
        open_now.append((Ticks(driver), context))
        return open_now[-1][0]

    yield make
    if open_now:
        finish()


def told(gpu: GpuSnapshot) -> set[str]:
    """Fields that are not as in a snapshot of which nothing is known."""
    bare = GpuSnapshot(index=gpu.index, uuid=gpu.uuid, name=gpu.name)
    return {name for name in GpuSnapshot.__struct_fields__ if getattr(gpu, name) != getattr(bare, name)}


def test_an_h100_tells_everything_in_our_units(opened: Any) -> None:
    [gpu] = opened(h100()).gpus(2)
    assert gpu == GpuSnapshot(
        index=0,
        uuid="GPU-0",
        name="NVIDIA H100 80GB HBM3",
        clock_mhz=1755,
        clock_max_mhz=1980,
        clock_reasons=("sw_power_cap",),
        power_w=640.5,
        power_limit_w=700.0,
        temperature_c=66.0,
        memory_used_bytes=61 * GIB - 551 * MIB,
        memory_total_bytes=81_559 * MIB,
        busy=0.97,
        tensor=0.555,
        dram=0.4,
        nvlink_bytes_s=3000 * 2**20,
        ecc_corrected=12,
        ecc_uncorrected=0,
        sm=0.91,
        throttled=(
            Throttled(reason="sw_power_cap", total_s=5.0),
            Throttled(reason="thermal", total_s=0.0),
            Throttled(reason="sw_thermal_slowdown", total_s=1.0),
            Throttled(reason="hw_thermal_slowdown", total_s=2.0),
            Throttled(reason="hw_power_brake", total_s=0.0),
        ),
        pcie_bytes_s=30 * 2**20,
        pcie_generation=4,
        pcie_generation_max=5,
        pcie_lanes=8,
        pcie_lanes_max=16,
        pcie_replays=3,
        nvlink_errors=3,
        rows_remapped=3,
    )


def test_activity_is_of_the_time_between_two_looks(opened: Any) -> None:
    """The first look has nothing to compare with; one that comes too soon shows what the last one did."""
    ticks = opened(h100())
    assert ticks.read()[0].gpu.tensor is None
    assert ticks.read()[0].gpu.tensor == 0.555
    before = ticks.driver.calls.count("nvmlGpmSampleGet")
    assert ticks.read(tick_ns=50_000_000)[0].gpu.tensor == 0.555
    assert ticks.driver.calls.count("nvmlGpmSampleGet") == before
    assert len(ticks.driver.samples) == 2


def test_an_a100_has_no_gpm_and_moves_by_counters(opened: Any) -> None:
    gpu = a100()
    ticks = opened(gpu)
    ticks.read()
    gpu.fields[138] = (3, (1 << 20) + 1000)  # KiB
    [found] = ticks.gpus()
    assert (found.tensor, found.dram, found.sm) == (None, None, None)
    assert found.busy == 0.97
    assert found.nvlink_bytes_s == pytest.approx(1000 * 1024 / 0.5)
    assert [one.reason for one in found.throttled] == ["sw_power_cap", "thermal"]
    assert "nvmlGpmSampleAlloc" not in ticks.driver.calls


def test_a_counter_that_begins_anew_tells_no_rate(opened: Any) -> None:
    gpu = a100()
    ticks = opened(gpu)
    ticks.read()
    gpu.fields[138] = (3, 0)
    assert ticks.gpus()[0].nvlink_bytes_s is None
    assert ticks.gpus()[0].nvlink_bytes_s == 0.0


def test_time_in_which_memory_is_touched_is_not_taken_for_bandwidth(opened: Any) -> None:
    [gpu] = opened(a100()).gpus(2)
    assert gpu.dram is None, "utilization.memory is 88 %, and says nothing of bandwidth"


def test_a_consumer_gpu_without_ecc_shows_none_and_says_nothing(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    ticks = opened(geforce())
    [gpu] = ticks.gpus(3)
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected, gpu.rows_remapped, gpu.nvlink_errors) == (None,) * 4
    assert (gpu.throttled, gpu.nvlink_bytes_s) == ((), None)
    assert gpu.temperature_c == 66.0
    assert caplog.text == ""
    assert ticks.driver.calls.count("nvmlDeviceGetTotalEccErrors") == 2, "what is not supported is asked for once"


@pytest.mark.parametrize("question", ["nvmlGpmQueryDeviceSupport", "nvmlGpmSampleGet"])
def test_gpm_without_permission_is_said_once_with_the_remedy(
    question: str, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = opened(h100(refused={question: nv.NVML_ERROR_NO_PERMISSION}))
    [gpu] = ticks.gpus(5)
    assert (gpu.tensor, gpu.dram, gpu.sm) == (None, None, None)
    assert gpu.power_w == 640.5
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "GPU 0: GPM can't be read: Insufficient Permissions" in record.message
    assert "NVreg_RestrictProfilingToAdminUsers=0" in record.message


def test_one_metric_that_is_refused_leaves_the_others(opened: Any) -> None:
    gpu = h100()
    assert gpu.gpm is not None
    del gpu.gpm[60]
    ticks = opened(gpu)
    ticks.read()
    gpu.fields[138] = (3, 2000)
    [found] = ticks.gpus()
    assert (found.tensor, found.pcie_bytes_s) == (0.555, 30 * 2**20)
    assert found.nvlink_bytes_s == pytest.approx(1000 * 1024 / 0.5), "counters stand in"


def test_processes_without_permission_are_not_told_as_none(opened: Any) -> None:
    refused = {"nvmlDeviceGetComputeRunningProcesses": nv.NVML_ERROR_NO_PERMISSION}
    assert opened(h100(refused=refused, processes=[(7, GIB)])).read()[0].processes is None
    assert opened(h100()).read()[0].processes == ()


def test_processes_come_with_their_memory_and_their_newest_share(opened: Any) -> None:
    gpu = h100(processes=[(7, GIB), (8, 2**64 - 1)], busy=[(7, 100, 30), (7, 200, 60)])
    ticks = opened(gpu)
    found = ticks.read()[0].processes
    assert found is not None
    assert [(one.pid, one.memory_bytes, one.busy) for one in found] == [(7, GIB, 0.6), (8, None, None)]
    again = ticks.read()[0].processes
    assert again is not None
    assert [one.busy for one in again] == [None, None], "what was seen is not told again as new"


def test_a_gpu_that_is_lost_in_mid_flight_keeps_its_row_and_no_reading(
    opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lost, well = h100(uuid="GPU-a"), h100(uuid="GPU-b")
    ticks = opened(lost, well)
    ticks.read(2)
    lost.refused["*"] = nv.NVML_ERROR_GPU_IS_LOST
    lost.xids.append(79)
    first, second = ticks.gpus(4)
    assert told(first) == {"clock_max_mhz", "pcie_generation_max", "pcie_lanes_max", "xids"}
    assert first.xids == (79,)
    assert second.tensor == 0.555
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "GPU 0 (GPU-a): Xid 79",
        "GPU 0 (GPU-a): GPU is lost",
    ]
    del lost.refused["*"]
    assert ticks.gpus()[0].power_w == 640.5, "one that was reset is back"


def test_a_gpu_that_is_lost_from_the_start_does_not_hide_the_others(
    opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = opened(h100(refused={"*": nv.NVML_ERROR_GPU_IS_LOST}), h100(uuid="GPU-b"))
    assert [gpu.uuid for gpu in ticks.gpus()] == ["GPU-b"]
    assert "GPU 0 does not answer" in caplog.text


def test_one_that_is_lost_while_it_is_looked_at_first_leaks_nothing(opened: Any) -> None:
    ticks = opened(h100(refused={"nvmlDeviceRegisterEvents": nv.NVML_ERROR_GPU_IS_LOST}))
    assert ticks.read() == ()
    assert ticks.driver.samples == {}


def test_a_gpu_in_parts_names_them_and_tells_no_neighbours(opened: Any) -> None:
    [reading] = opened(h100(mig=["MIG-a", "MIG-b"], processes=[(7, GIB)])).read(2)
    assert reading.parts == ("MIG-a", "MIG-b")
    assert reading.processes is None
    assert reading.gpu.busy is None, "not supported on such a GPU"
    assert reading.gpu.power_w == 640.5


def test_a_driver_that_goes_away_is_tried_again_and_found_again(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    ticks = opened(h100())
    assert ticks.read(2) != ()
    ticks.driver.gone = nv.NVML_ERROR_UNINITIALIZED
    assert ticks.read(20) == ()
    assert ticks.driver.calls.count("nvmlInitWithFlags") == 1, "not at each tick"
    assert ticks.read(60) == ()
    assert ticks.driver.calls.count("nvmlInitWithFlags") == 2
    assert caplog.text.count("does not answer any more") == 1
    ticks.driver.gone, ticks.driver.inits = None, 0
    ticks.driver.samples.clear()
    ticks.driver.events.clear()
    assert ticks.gpus(62)[0].tensor == 0.555


@pytest.mark.parametrize("code", [nv.NVML_ERROR_DRIVER_NOT_LOADED, nv.NVML_ERROR_LIBRARY_NOT_FOUND])
def test_without_a_driver_there_are_no_readings_and_no_noise(
    code: int, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = opened(cannot_start=code)
    assert ticks.read(200) == ()
    assert caplog.text == ""
    assert ticks.nvml.absent == (code == nv.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert ticks.driver.calls.count("nvmlInitWithFlags") == (1 if ticks.nvml.absent else 4)


def test_no_binding_is_no_driver() -> None:
    def missing() -> Any:
        raise ImportError

    reader = Nvml(missing)
    assert reader.read(1) == ()
    assert reader.absent


def test_a_driver_that_can_not_be_used_is_said_once(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    ticks = opened(cannot_start=nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    assert ticks.read(200) == ()
    assert caplog.text.count("mismatch") == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({base + n: (3, n * 10**9) for base in (251,) for n in range(3)}, True),
        ({base + n: (3, n * 10**9) for base in (269,) for n in range(3)}, True),
        ({**{251 + n: (1, n) for n in range(3)}, **{269 + n: (3, n * 10**9) for n in range(3)}}, True),
        ({base + n: (3, n * 10**9) for base in (251, 269) for n in range(3)}, False),
        ({269: (3, 0), 270: (3, 10**9)}, False),
        ({251 + n: (1, n) for n in range(3)}, False),
    ],
    ids=["early 580", "since then", "beside power smoothing", "ambiguous", "two of three", "power smoothing alone"],
)
def test_newer_throttle_times_are_found_or_left_alone(
    fields: dict[int, tuple[int, int]], told: bool, opened: Any
) -> None:
    [gpu] = opened(h100(fields={74: (3, 0), **fields})).gpus()
    assert [(one.reason, one.total_s) for one in gpu.throttled] == [
        ("sw_power_cap", 0.0),
        *([("sw_thermal_slowdown", 0.0), ("hw_thermal_slowdown", 1.0), ("hw_power_brake", 2.0)] if told else []),
    ]


def test_reasons_have_the_names_that_are_known_here_and_what_says_most_is_first(opened: Any) -> None:
    gpu = h100(reasons=0x8 | 0x40 | 0x4 | 0x4000)
    assert opened(gpu).gpus()[0].clock_reasons == ("hw_thermal_slowdown", "hw_slowdown", "sw_power_cap")


def test_an_older_driver_is_asked_in_the_older_way(opened: Any) -> None:
    lacks = {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetMemoryInfo_v2",
             "nvmlGpmQueryDeviceSupport", "nvmlDeviceGetComputeRunningProcesses_v3"}  # fmt: skip
    [reading] = opened(h100(), lacks=lacks).read(2)
    assert (reading.gpu.clock_reasons, reading.gpu.temperature_c) == (("sw_power_cap",), 66.0)
    assert (reading.gpu.memory_used_bytes, reading.gpu.tensor) == (61 * GIB, None)
    assert reading.processes is None


def test_whatever_is_refused_the_rest_is_told(opened: Any) -> None:
    """Each question, refused by each kind of error: never an exception, and never 0."""
    full = opened(h100()).read(2)[0].gpu
    questions = {call for call in calls_of(opened) if call.startswith("nvmlDeviceGet") and "Handle" not in call}
    assert len(questions) > 15
    stand_in = (None, (), "GPU 0", "unknown GPU", 61 * GIB)  # the last by the older question
    for question in sorted(questions - {"nvmlDeviceGetCount_v2"}):
        for code in (nv.NVML_ERROR_NOT_SUPPORTED, nv.NVML_ERROR_NO_PERMISSION, nv.NVML_ERROR_UNKNOWN, 4242):
            [gpu] = opened(h100(refused={question: code})).gpus(2)
            for name in GpuSnapshot.__struct_fields__:
                assert getattr(gpu, name) in (getattr(full, name), *stand_in), (question, name)


def calls_of(opened: Any) -> set[str]:
    ticks = opened(h100())
    ticks.read(2)
    return set(ticks.driver.calls)


def test_names_may_be_bytes() -> None:
    assert (text(b"NVIDIA A10"), text("NVIDIA A10"), text(None)) == ("NVIDIA A10", "NVIDIA A10", None)


def test_readings_can_be_sent_on(opened: Any) -> None:
    """Whatever ctypes made of it, it is a plain record now."""
    [gpu] = opened(h100(xids=[31])).gpus(2)
    assert msgspec.json.decode(msgspec.json.encode(gpu), type=GpuSnapshot) == gpu
