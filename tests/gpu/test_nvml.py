"""Reads the GPUs of this machine, and checks that what they say can be true.

    python -m pytest tests/gpu/test_nvml.py -s
    PD_RECORD=readings.json python -m pytest tests/gpu/test_nvml.py    # keeps what was read, for tests without a GPU

Some of it wants a GPU with something to do: with torch's CUDA build one is kept busy for a moment, and without it those tests say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.gpu import tenants
from appliance.gpu.device import REASONS, Reading
from appliance.gpu.nvml import Nvml
from appliance.records import EngineState, EngineView, GpuSnapshot, Role

pytestmark = pytest.mark.gpu

TICK_S = 0.5
WORK = """
import torch
square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
print("works", flush=True)
while True:
    square @ square
    torch.cuda.synchronize()
"""


def look(reader: Nvml, ticks: int = 3) -> list[tuple[Reading, ...]]:
    """At each tick, and how long that took."""
    found = []
    for _ in range(ticks):
        began = time.monotonic()
        found.append(reader.read(time.monotonic_ns()))
        print(f"{len(found[-1])} GPUs read in {(time.monotonic() - began) * 1e3:.1f} ms")  # noqa: T201
        time.sleep(TICK_S)
    return found


@pytest.fixture(scope="module")
def reader() -> Iterator[Nvml]:
    nvml = Nvml()
    if not nvml.read(time.monotonic_ns()):
        nvml.close()
        pytest.skip("no NVIDIA GPU, or none that this user may ask: not run")
    yield nvml
    nvml.close()


@pytest.fixture(scope="module")
def session(reader: Nvml) -> list[tuple[Reading, ...]]:
    """Some ticks of whatever the machine does now. Kept where ``PD_RECORD`` says."""
    found = look(reader, 6)
    record = os.environ.get("PD_RECORD")
    if record:
        Path(record).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return found


@pytest.fixture(scope="module")
def at_work(reader: Nvml) -> Iterator[tuple[int, GpuSnapshot, Reading]]:
    """A process that multiplies matrices, and what its GPU reads meanwhile."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert worker.stdout is not None
        if b"works" not in worker.stdout.readline():
            pytest.skip("torch without CUDA, or none: nothing can be given to do: not run")
        readings = look(reader, 6)[-1]
        busiest = max(readings, key=lambda reading: reading.gpu.power_w or 0.0)
        yield worker.pid, busiest.gpu, busiest
    finally:
        worker.kill()
        worker.wait()


def test_each_gpu_is_who_nvidia_smi_says_it_is(session: list[tuple[Reading, ...]]) -> None:
    command = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
    listed = [line.split(", ") for line in subprocess.check_output(command, text=True).splitlines()]
    gpus = [reading.gpu for reading in session[-1]]
    assert [(gpu.uuid, gpu.name) for gpu in gpus] == [(uuid, name) for uuid, name, _ in listed]
    for gpu, (_, _, mebibytes) in zip(gpus, listed, strict=True):
        if gpu.memory_total_bytes is not None and mebibytes.isdigit():
            assert gpu.memory_total_bytes == pytest.approx(int(mebibytes) << 20, rel=0.02)


def test_readings_are_in_the_range_of_what_can_be(session: list[tuple[Reading, ...]]) -> None:
    for gpu in (reading.gpu for tick in session for reading in tick):
        for share in (gpu.busy, gpu.sm, gpu.tensor, gpu.dram):
            assert share is None or 0 <= share <= 1
        assert gpu.clock_mhz is None or 100 <= gpu.clock_mhz <= 4000
        assert gpu.clock_max_mhz is None or 500 <= gpu.clock_max_mhz <= 4000
        assert gpu.power_w is None or 1 <= gpu.power_w <= 2500, "watts, not milliwatts"
        assert gpu.power_limit_w is None or 10 <= gpu.power_limit_w <= 2500
        assert gpu.temperature_c is None or 5 <= gpu.temperature_c <= 120
        assert gpu.pcie_lanes is None or gpu.pcie_lanes in (1, 2, 4, 8, 16, 32)
        assert gpu.pcie_bytes_s is None or 0 <= gpu.pcie_bytes_s <= 5e11
        assert gpu.nvlink_bytes_s is None or 0 <= gpu.nvlink_bytes_s <= 5e12
        assert set(gpu.clock_reasons) <= set(REASONS.values())


def test_times_for_which_clocks_were_held_down_grow_no_faster_than_time(session: list[tuple[Reading, ...]]) -> None:
    """If one of the fields had another meaning or unit here, it would show."""
    since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    for first, last in zip(session[0], session[-1], strict=True):
        before = {one.reason: one.total_s for one in first.gpu.throttled}
        for one in last.gpu.throttled:
            assert 0 <= one.total_s <= since_boot_s
            assert 0 <= one.total_s - before[one.reason] <= 2 * len(session) * TICK_S


def test_hopper_and_later_tell_what_they_do(reader: Nvml, at_work: tuple[int, GpuSnapshot, Reading]) -> None:
    _, gpu, _ = at_work
    if not any(name in gpu.name for name in ("H100", "H200", "H20", "GH200", "B100", "B200", "B300", "GB200", "GB300")):
        pytest.skip(f"{gpu.name} has no GPM: not run")
    assert gpu.tensor is not None, "refused? the log says how to allow it"
    assert gpu.tensor > 0.2
    assert gpu.sm is not None
    assert gpu.sm > 0.5
    assert gpu.dram is not None
    assert 0 < gpu.dram < 1


def test_a_gpu_at_work_reads_so(at_work: tuple[int, GpuSnapshot, Reading]) -> None:
    _, gpu, _ = at_work
    assert gpu.busy is None or gpu.busy > 0.5
    assert gpu.memory_used_bytes is not None
    assert gpu.memory_used_bytes > 100 << 20
    assert "gpu_idle" not in gpu.clock_reasons


def test_who_is_on_a_gpu_is_ours_or_not(at_work: tuple[int, GpuSnapshot, Reading]) -> None:
    pid, gpu, reading = at_work
    if reading.processes is None or pid not in [one.pid for one in reading.processes]:
        pytest.skip("NVML tells no processes here, or those of another namespace (a container): not run")
    view = EngineView(name="e0", role=Role.BOTH, state=EngineState.READY, epoch=1, socket="", pid=pid, gpus=(gpu.uuid,))
    [ours] = tenants.assign([reading], [view])
    assert pid not in [one.pid for one in ours.others or ()]
    [foreign] = tenants.assign([reading], [])
    assert pid in [one.pid for one in foreign.others or ()]


def test_reading_all_gpus_fits_into_a_tick(reader: Nvml, session: list[tuple[Reading, ...]]) -> None:
    """It is done off the event loop; what is slower than a tick would make the readings old."""
    began = time.monotonic()
    reader.read(time.monotonic_ns())
    assert time.monotonic() - began < TICK_S
