"""The thread that reads GPUs: what it has read last, and what becomes of it when reading fails or hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pynvml as nv
import pytest
from fake_nvml import GIB, FakeDriver, h100, installed

from appliance.gpu.device import Reading
from appliance.gpu.nvml import Nvml
from appliance.gpu.watch import Watch
from appliance.records import EngineState, EngineView, GpuSnapshot, Role
from appliance.telemetry.host import Machine


class Source:
    """Reads as it is told. ``hold`` makes an answer wait."""

    def __init__(self) -> None:
        self.absent = self.closed = False
        self.reads = 0
        self.fails = False
        self.go_on = threading.Event()
        self.go_on.set()
        self.threads: set[str] = set()

    def read(self, now_ns: int) -> tuple[Reading, ...]:
        self.reads += 1
        self.threads.add(threading.current_thread().name)
        self.go_on.wait(10)
        if self.fails:
            raise RuntimeError("a fault of ours")
        return (Reading(gpu=GpuSnapshot(index=0, uuid=f"GPU-{self.reads}", name="H100"), processes=()),)

    def close(self) -> None:
        self.closed = True


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_latest_reading_is_there_and_was_read_elsewhere() -> None:
    source = Source()
    with Watch(source, 0.005) as watch:
        until(lambda: source.reads > 3 and bool(watch.latest()))
        first = watch.latest()[0].gpu.uuid
        until(lambda: watch.latest()[0].gpu.uuid != first)
    assert source.threads == {"gpus"}
    assert source.closed


def test_one_that_hangs_holds_nobody_up_and_is_old_soon(caplog: pytest.LogCaptureFixture) -> None:
    source, now_ns = Source(), 0
    with Watch(source, 0.005, lambda: now_ns) as watch:
        until(lambda: bool(watch.latest()))
        source.go_on.clear()
        hangs_since = source.reads
        until(lambda: source.reads >= hangs_since)
        now_ns = 4 * 10**9
        assert watch.latest() != ()
        now_ns = 6 * 10**9
        assert watch.latest() == ()
        assert watch.latest() == ()
        assert caplog.text.count("has not answered") == 1
        source.go_on.set()
        until(lambda: bool(watch.latest()))


def test_a_fault_is_logged_once_and_readings_come_back(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    source.fails = True
    with Watch(source, 0.001) as watch:
        until(lambda: source.reads > 3)
        assert watch.latest() == ()
        source.fails = False
        until(lambda: bool(watch.latest()))
    assert caplog.text.count("could not be read") == 1


def test_from_the_driver_to_the_snapshot_a_reading_finds_its_engine_and_who_else_is_there() -> None:
    """The whole way: of two processes, one leads an engine's session."""
    waiting = [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(600)"]
    ours, stranger = (subprocess.Popen(waiting, stdout=subprocess.PIPE, start_new_session=True) for _ in range(2))
    for process in (ours, stranger):
        assert process.stdout is not None
        assert process.stdout.readline(), "it has its own name only once it runs what it was started for"
    view = EngineView(
        name="e0", role=Role.BOTH, state=EngineState.READY, epoch=1, socket="", pid=ours.pid, gpus=("GPU-0",)
    )
    driver = FakeDriver(h100(processes=[(ours.pid, GIB), (stranger.pid, 2 * GIB)]))
    try:
        with installed(driver), Watch(Nvml(lambda: nv), 0.005) as watch:
            machine = Machine(lambda: [view], watch.latest)
            until(lambda: bool(machine.gpus()))
            [gpu] = machine.gpus()
    finally:
        for process in (ours, stranger):
            process.kill()
            process.communicate()
    assert (gpu.uuid, gpu.engine, gpu.power_w) == ("GPU-0", "e0", 640.5)
    [other] = gpu.others or ()
    assert (other.pid, other.memory_bytes) == (stranger.pid, 2 * GIB)
    assert "python" in (other.name or "")
    assert (driver.inits, driver.samples, driver.events) == (0, {}, {}), "all is given back at the end"


def test_without_a_driver_the_thread_ends() -> None:
    source = Source()
    source.absent = True
    with Watch(source, 0.001):
        until(lambda: source.closed)
    assert source.reads == 0
