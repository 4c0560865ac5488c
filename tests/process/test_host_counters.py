"""What the kernel says of real processes: one that shares its core with a busy neighbour, and one whose quota is used up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.records import EngineState, EngineView, HostReading, Role
from appliance.telemetry.host import Machine

BUSY = "while True: pass"
IDLE = "import time; time.sleep(600)"
LOOK_S = 1.5


@pytest.fixture
def run() -> Iterator[object]:
    """Start a Python that does this; all of them are ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, core: int | None = None) -> int:
        process = subprocess.Popen([sys.executable, "-S", "-c", code])
        started.append(process)
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def watch(*pids: int) -> list[HostReading]:
    """Of processes, as if each were an engine's core."""
    machine = Machine()
    views = [
        EngineView(name=f"e{pid}", role=Role.BOTH, state=EngineState.READY, epoch=1, socket="", pid=pid, core_pid=pid)
        for pid in pids
    ]
    for view in views:
        assert machine.host(view) is None, "shares need two looks"
    time.sleep(LOOK_S)
    found = [machine.host(view) for view in views]
    assert all(found)
    return [one for one in found if one]


def test_a_process_beside_a_busy_loop_on_its_core_waits_for_it(run: object) -> None:
    assert callable(run)
    core = min(os.sched_getaffinity(0))
    starved, idle = run(BUSY, core), run(IDLE)
    run(BUSY, core)
    first, second = watch(starved, idle)
    assert first.core_delay is not None
    assert second.core_delay is not None
    assert first.core_busy is not None
    assert 0.3 < first.core_delay <= 1.01
    assert second.core_delay < 0.02
    assert first.core_busy + first.core_delay == pytest.approx(1.0, abs=0.1), "it runs, or it waits"
    assert (first.cores, second.cores) == (1, len(os.sched_getaffinity(0)))
    assert first.core_switches_s is not None
    assert first.core_switches_s > 5, "it never leaves its core of its own will"
    assert second.core_switches_s is not None
    assert second.core_switches_s < 5


def test_an_api_process_that_has_no_core_is_told_from_one_that_is_busy(run: object) -> None:
    assert callable(run)
    core = min(os.sched_getaffinity(0))
    api, engine_core = run(BUSY, core), run(IDLE)
    run(BUSY, core)
    machine = Machine()
    view = EngineView(
        name="e0", role=Role.BOTH, state=EngineState.READY, epoch=1, socket="", pid=api, core_pid=engine_core
    )
    machine.host(view)
    time.sleep(LOOK_S)
    found = machine.host(view)
    assert found is not None and found.api_busy is not None and found.api_starved is not None
    assert found.api_busy > 0.9, "it always has something to do"
    assert 0.3 < found.api_starved < 1.01


def test_a_rank_that_has_no_core_holds_up_its_engine(run: object) -> None:
    assert callable(run)
    core = min(os.sched_getaffinity(0))
    engine_core, well, starved = run(IDLE), run(IDLE), run(BUSY, core)
    run(BUSY, core)
    view = EngineView(
        name="e0", role=Role.BOTH, state=EngineState.READY, epoch=1, socket="", core_pid=engine_core,
        worker_pids=(well, starved),
    )  # fmt: skip
    machine = Machine()
    machine.host(view)
    time.sleep(LOOK_S)
    found = machine.host(view)
    assert found is not None and found.core_delay is not None and found.core_busy is not None
    assert 0.3 < found.core_delay < 1.01
    assert found.core_busy < 0.02, "EngineCore's own"


def groups() -> Path | None:
    """Where a control group with a quota can be made; None where that is not for us."""
    for place in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        if os.access(place, os.W_OK) and (place / "cgroup.procs").exists():
            return place
    return None


@contextlib.contextmanager
def quota(share: float) -> Iterator[Path]:
    """A control group that may have so much of one CPU. Skips where there can't be one."""
    place = groups()
    if place is None:
        pytest.skip("no control group can be made here: that takes root and a writable /sys/fs/cgroup")
    group = place / f"pd-test-{os.getpid()}"
    group.mkdir()
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{int(share * 100_000)} 100000")
        elif (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_quota_us").write_text(str(int(share * 100_000)))
        else:
            pytest.skip("control groups have no CPU quota here")
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (place / "cgroup.procs").write_text(pid)
        group.rmdir()


def test_a_process_whose_quota_is_used_up_is_throttled(run: object) -> None:
    assert callable(run)
    with quota(0.05) as group:  # which it gets on a busy machine, too
        held, free = run(BUSY), run(IDLE)
        (group / "cgroup.procs").write_text(str(held))
        first, second = watch(held, free)
    assert first.throttled is not None
    assert 0.5 < first.throttled <= 1.0
    assert not second.throttled
    assert first.core_busy is not None
    assert first.core_busy < 0.4


def test_pressure_is_told_where_the_kernel_tells_it(run: object) -> None:
    assert callable(run)
    if not Path("/proc/pressure/cpu").exists():
        pytest.skip("this kernel tells no pressure")
    core = min(os.sched_getaffinity(0))
    first = run(BUSY, core)
    run(BUSY, core)
    [reading] = watch(first)
    assert reading.pressure is not None
    assert reading.pressure > 0.5
