"""What engines on GPUs are started with."""

from __future__ import annotations

import pytest

from appliance.config import Config, EngineConfig, RoleArgs
from appliance.errors import ConfigError
from appliance.records import Role
from appliance.supervisor.specs import EngineSpec, GpuSeat, Model, gpu_specs

MODEL = Model("org/model", "model", False)


def seat(name: str, role: Role, *gpus: str) -> GpuSeat:
    return GpuSeat(name=name, role=role, gpus=gpus, memory_fraction=0.9, token_budget=2048, places=64)


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


def test_what_the_owner_says_comes_last_and_so_wins() -> None:
    engine = EngineConfig(args=("--max-num-seqs", "8"), decode=RoleArgs(args=("--max-num-seqs", "9")))
    [spec] = made(seat("e0", Role.DECODE, "A"), engine=engine)
    assert spec.arguments[-6:] == ("--dtype", "auto", "--max-num-seqs", "8", "--max-num-seqs", "9")


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (EngineConfig(env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments: True"}), "expandable_segments"),
        (EngineConfig(env={"CUDA_VISIBLE_DEVICES": "0"}), "each engine gets GPUs of its own"),
        (EngineConfig(args=("--enable-sleep-mode",)), "put to sleep can't be shared"),
    ],
)
def test_what_would_keep_memory_from_being_shared_is_refused(engine: EngineConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(seat("e0", Role.BOTH, "A"), engine=engine)
