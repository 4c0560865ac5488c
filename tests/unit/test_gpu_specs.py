"""What engines on GPUs are started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Config, EngineConfig, RoleArgs
from appliance.errors import ConfigError
from appliance.records import Role
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import (
    EngineSpec,
    GpuSeat,
    Model,
    arguments,
    environment,
    gpu_specs,
    shown_environment,
)

MODEL = Model("org/model", "model", False)


def seat(name: str, role: Role, *gpus: str, **more: object) -> GpuSeat:
    values: dict[str, object] = {"memory_fraction": 0.9, "token_budget": 2048, "places": 64}
    return GpuSeat(name=name, role=role, gpus=gpus, **{**values, **more})  # type: ignore[arg-type]


def made(*seats: GpuSeat, engine: EngineConfig | None = None, **near: tuple[int, ...]) -> tuple[EngineSpec, ...]:
    config = Config(engine=engine or EngineConfig())
    return gpu_specs(config, seats, MODEL, arguments=("--dtype", "auto"), context=4096, near=near)


def test_each_engine_sees_its_own_gpus_by_uuid() -> None:
    first, second = made(seat("e0", Role.PREFILL, "A", "B"), seat("e1", Role.DECODE, "C", "D"))
    assert first.environment["CUDA_VISIBLE_DEVICES"] == "A,B"
    assert second.environment["CUDA_VISIBLE_DEVICES"] == "C,D"
    assert (first.gpus, first.tensor_parallel, first.role) == (("A", "B"), 2, Role.PREFILL)
    assert first.arguments[first.arguments.index("--tensor-parallel-size") + 1] == "2"
    assert "--tensor-parallel-size" not in made(seat("e0", Role.BOTH, "A"))[0].arguments


def test_engines_near_the_same_cores_share_them_out() -> None:
    near = {"A": (0, 1, 2, 3), "B": (0, 1, 2, 3), "C": (4, 5, 6, 7)}
    found = made(seat("e0", Role.PREFILL, "A"), seat("e1", Role.PREFILL, "B"), seat("e2", Role.DECODE, "C"), **near)
    assert [spec.cores for spec in found] == [(0, 1), (2, 3), (4, 5, 6, 7)]
    assert made(seat("e0", Role.BOTH, "A"))[0].cores == (), "not known: anywhere"


def test_an_engine_across_numa_nodes_has_cores_of_both_and_shares_none() -> None:
    """GPU 1 of eight is busy: the engine in the middle has a GPU on either node."""
    near = {**dict.fromkeys("ABC", tuple(range(32))), **dict.fromkeys("DEF", tuple(range(32, 64)))}
    seats = seat("e0", Role.BOTH, "A", "B"), seat("e1", Role.BOTH, "C", "D"), seat("e2", Role.BOTH, "E", "F")
    found = [spec.cores for spec in made(*seats, **near)]
    assert sorted(core for cores in found for core in cores) == list(range(64)), "each core once"
    assert [len(cores) for cores in found] == [21, 21, 22]
    assert found[1][0] < 32 <= found[1][-1]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)), min_size=1, max_size=6), st.integers(1, 3))
def test_cores_are_near_and_no_engine_s_while_another_s(edges: list[tuple[int, int]], ranks: int) -> None:
    near = {f"{at}": tuple(range(8 * first, 8 * first + 8 * wide)) for at, (first, wide) in enumerate(edges)}
    names = [f"{at}" for at in range(len(edges))]
    seats = [seat(f"e{at}", Role.BOTH, *names[at : at + ranks]) for at in range(0, len(names), ranks)]
    found = {spec.name: spec for spec in made(*seats, **near)}
    for one in found.values():
        assert one.cores, "there are eight cores for each, and no more than six GPUs"
        assert set(one.cores) <= {core for gpu in one.gpus for core in near[gpu]}
    taken = [core for one in found.values() for core in one.cores]
    assert len(taken) == len(set(taken))


def value(spec: EngineSpec, name: str) -> str | None:
    return spec.arguments[spec.arguments.index(name) + 1] if name in spec.arguments else None


def test_an_engine_that_shares_its_gpu_is_told_how_much_kv_it_has() -> None:
    alone, sharing = made(
        seat("e0", Role.BOTH, "A"), seat("e1", Role.BOTH, "B", memory_fraction=0.45, kv_bytes=1 << 30)
    )
    assert (value(alone, "--kv-cache-memory-bytes"), value(alone, "--gpu-memory-utilization")) == (None, "0.900")
    assert value(sharing, "--kv-cache-memory-bytes") == str(1 << 30)
    assert value(sharing, "--gpu-memory-utilization") == "0.450"


def test_gpus_from_which_kv_comes_by_way_of_the_host_are_seen_after_its_own() -> None:
    [spec] = made(seat("e0", Role.DECODE, "A", "B", sees=("C",)))
    assert spec.environment["CUDA_VISIBLE_DEVICES"] == "A,B,C"
    assert (spec.gpus, spec.tensor_parallel) == (("A", "B"), 2)


def test_it_begins_in_an_interpreter_of_its_own_and_hands_kv_over_by_cuda_ipc(short: Path) -> None:
    [spec] = made(seat("e0", Role.BOTH, "A"))
    assert not spec.forked
    assert value(spec, "--scheduler-cls") == "appliance.engine.recorder.recording_scheduler"
    runtime = Runtime(short)
    told = arguments(spec, runtime, Config(), 1, 1)
    connector = json.loads(told[told.index("--kv-transfer-config") + 1])["kv_connector_extra_config"]
    assert (connector["transport"], connector["inline_bytes"]) == ("cuda_ipc", 0)
    runtime.remove()


def test_what_the_supervisor_was_started_with_gives_no_engine_memory_that_can_not_be_shared(tmp_path: Path) -> None:
    [spec] = made(seat("e0", Role.BOTH, "A"))
    inherited = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_VISIBLE_DEVICES": "0,1"}
    found = environment(spec, tmp_path, inherited)
    assert found["PYTORCH_ALLOC_CONF"] == found["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:False"
    assert found["CUDA_VISIBLE_DEVICES"] == "A"


def test_secrets_are_not_shown() -> None:
    [spec] = made(seat("e0", Role.BOTH, "A"), engine=EngineConfig(env={"HF_TOKEN": "hf_abc", "HOME": "/root"}))
    assert (shown_environment(spec)["HF_TOKEN"], shown_environment(spec)["HOME"]) == ("…", "/root")


def test_what_the_owner_says_comes_last_and_so_wins() -> None:
    engine = EngineConfig(args=("--max-num-seqs", "8"), decode=RoleArgs(args=("--max-num-seqs", "9")))
    [spec] = made(seat("e0", Role.DECODE, "A"), engine=engine)
    assert spec.arguments[-6:] == ("--dtype", "auto", "--max-num-seqs", "8", "--max-num-seqs", "9")


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (EngineConfig(env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments: True"}), "expandable_segments"),
        (EngineConfig(env={"CUDA_VISIBLE_DEVICES": "0"}), "each engine gets GPUs of its own"),
        (EngineConfig(env={"PYTORCH_ALLOC_CONF": "expandable_segments:True"}), "expandable_segments"),
        (EngineConfig(args=("--enable-sleep-mode",)), "put to sleep can't be shared"),
        (EngineConfig(args=("--enable_cumem_allocator=true",)), "virtual memory management can't be shared"),
        (
            EngineConfig(env={"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64, backend: cudaMallocAsync"}),
            "asynchronous allocator, whose memory can't be shared with other engines: leave it out",
        ),
        (EngineConfig(args=("--kv-cache-memory-bytes", "1")), "KV gets what weights leave of each GPU's memory"),
    ],
)
def test_what_would_keep_memory_from_being_shared_is_refused(engine: EngineConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(seat("e0", Role.BOTH, "A"), engine=engine)


@pytest.mark.parametrize("name", ["--gpu-memory-utilization", "--device-memory-utilization", "--gpu_mem"])
def test_no_engine_takes_more_of_a_gpu_than_its_half_of_one_that_is_shared(name: str) -> None:
    engine = EngineConfig(decode=RoleArgs(args=(name, "0.95")))
    [alone] = made(seat("e0", Role.DECODE, "A"), engine=engine)
    assert alone.arguments[-2:] == (name, "0.95"), "its owner knows"
    halves = [seat(f"e{number}", Role.BOTH, "A", memory_fraction=0.45, kv_bytes=1 << 30) for number in range(2)]
    with pytest.raises(ConfigError, match=r"engine\.decode\.args: .*half of what may be had.*a GPU for each engine"):
        made(*halves, engine=engine)
