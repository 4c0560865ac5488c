"""Whose a GPU is, and who else is on it."""

from __future__ import annotations

from appliance.gpu import tenants
from appliance.gpu.device import Reading
from appliance.records import EngineState, EngineView, GpuProcess, GpuSnapshot, Role

SESSIONS = {101: 100, 102: 100, 201: 200, 900: 900}


def view(name: str, pid: int | None, *gpus: str) -> EngineView:
    return EngineView(name=name, role=Role.BOTH, state=EngineState.READY, epoch=1, socket="", pid=pid, gpus=gpus)


def reading(uuid: str, *pids: int, parts: tuple[str, ...] = ()) -> Reading:
    processes = tuple(GpuProcess(pid=pid, memory_bytes=1 << 30) for pid in pids)
    return Reading(gpu=GpuSnapshot(index=0, uuid=uuid, name="H100"), processes=processes, parts=parts)


def assign(one: Reading, *views: EngineView) -> GpuSnapshot:
    [found] = tenants.assign([one], views, session=SESSIONS.get, command=lambda pid: f"command {pid}")
    return found


def test_engines_are_found_by_uuid_not_by_place() -> None:
    views = view("e0", 100, "GPU-b"), view("e1", 200, "GPU-a")
    assert assign(reading("GPU-a", 201), *views).engine == "e1"
    assert assign(reading("GPU-c"), *views).engine is None


def test_a_part_of_a_gpu_is_on_that_gpu() -> None:
    assert assign(reading("GPU-a", 101, parts=("MIG-a", "MIG-b")), view("e0", 100, "MIG-b")).engine == "e0"


def test_processes_of_any_engines_session_are_no_strangers() -> None:
    views = view("e0", 100, "GPU-a"), view("e1", 200, "GPU-a")
    assert assign(reading("GPU-a", 101, 102, 201), *views).others == ()
    [other] = assign(reading("GPU-a", 101, 900), *views).others or ()
    assert other == GpuProcess(pid=900, name="command 900", memory_bytes=1 << 30)


def test_pids_among_which_our_own_engine_is_not_say_nothing() -> None:
    """In a container NVML tells pids of the machine, or none."""
    assert assign(reading("GPU-a", 7001, 7002), view("e0", 100, "GPU-a")).others is None
    assert assign(reading("GPU-a"), view("e0", 100, "GPU-a")).others is None
    assert assign(reading("GPU-b", 900), view("e0", 100, "GPU-a")).others is not None


def test_where_processes_are_not_told_nobody_is_said_to_be_alone() -> None:
    untold = Reading(gpu=GpuSnapshot(index=0, uuid="GPU-a", name="H100"), processes=None)
    assert assign(untold, view("e0", 100, "GPU-a")).others is None
