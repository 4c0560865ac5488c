"""What the supervisor of a simulated node knows of its faults and its virtual GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from test_simulated_node import CONFIGS

from appliance.channel import CoreReady, Down, Fault, Hardware
from appliance.costs import huggingface
from appliance.errors import ActionError
from appliance.records import EngineState, EngineView, GpuSnapshot, HostReading, Role
from appliance.simulator.control import Control
from appliance.simulator.leg import Settings
from appliance.simulator.plan import EnginePlan

SHAPE = huggingface.read(CONFIGS / "llama-3.1-8b")
READY = CoreReady(
    kv_blocks=1, block_tokens=16, max_model_len=1, max_batched_tokens=1, max_running=1, sockets=(), lease_table=""
)


class House:
    """Three engines, the first and the second of which prefill; all that they are told."""

    def __init__(self) -> None:
        roles = (Role.PREFILL, Role.PREFILL, Role.DECODE)
        self.plans = plans = [
            EnginePlan(
                name=f"e{number}",
                role=role,
                settings=Settings(),
                shape=SHAPE,
                gpu="h100",
                tensor_parallel=2,
                first_gpu=2 * number,
                link_bytes_s=1e9,
            )
            for number, role in enumerate(roles)
        ]
        self.views = [
            EngineView(name=plan.name, role=plan.role, state=EngineState.READY, epoch=1, socket="") for plan in plans
        ]
        self.told: list[tuple[str, Down]] = []
        self.weights: dict[str, float] = {}
        self.control = Control("a scenario", plans, lambda: self.views, self._send, self.weigh)

    def plan(self, name: str) -> EnginePlan:
        return next(plan for plan in self.plans if plan.name == name)

    def weigh(self, engine: str, weight: float) -> None:
        self.weights[engine] = weight
        self.views = [replace(view, weight=weight) if view.name == engine else view for view in self.views]

    def _send(self, engine: str, message: Down) -> bool:
        self.told.append((engine, message))
        return True


@pytest.fixture
def house() -> House:
    return House()


def test_a_fault_is_told_to_its_engine_and_again_to_its_next_life(house: House) -> None:
    house.control.fault("e1", "clocks", 0.5)
    told = ("e1", Fault(kind="clocks", severity=0.5))
    assert house.told == [told]
    house.control.fold("e0", READY)
    assert house.told == [told]
    house.control.fold("e1", READY)
    assert house.told == [told, told]
    assert house.control.faults() == {"e1": [told[1]]}
    house.control.mend("e1")
    assert house.told[-1] == ("e1", Fault(kind="clocks", severity=0.0))
    assert house.control.faults() == {}


def test_both_ends_are_told_of_a_slow_link(house: House) -> None:
    house.control.fault("e0", "link", 0.9, "e2")
    ends = [("e0", Fault(kind="link", severity=0.9, peer="e2")), ("e2", Fault(kind="link", severity=0.9, peer="e0"))]
    assert house.told == ends
    house.control.fold("e2", READY)
    assert house.told[-1] == ends[1]
    house.told.clear()
    house.control.fault("e0", "link", 0.5)
    halved = [("e0", Fault(kind="link", severity=0.5, peer="e1")), ("e1", Fault(kind="link", severity=0.5, peer="e0"))]
    assert house.told == halved, "the link to e2 is worse already"
    house.told.clear()
    house.control.fold("e2", READY)
    assert house.told == [ends[1]]
    house.control.mend("e0")
    whole = {
        (engine, message.peer)
        for engine, message in house.told
        if message == Fault(kind="link", severity=0.0, peer=message.peer)
    }  # type: ignore[union-attr]
    assert whole == {("e0", "e1"), ("e1", "e0"), ("e0", "e2"), ("e2", "e0")}


def test_a_fault_at_either_end_of_a_link_counts_and_ends_alone(house: House) -> None:
    house.control.fault("e2", "link", 0.9, "e0")
    house.control.fault("e0", "link", 0.5)
    house.told.clear()
    house.control.mend("e0")
    assert {engine for engine, _ in house.told} == {"e0", "e1"}, "that of e2 still is"
    house.control.fault("e2", "link", 0.0, "e0")
    assert house.control.faults() == {}
    assert house.told[-1] == ("e2", Fault(kind="link", severity=0.0, peer="e0"))


def test_a_preferred_engine_has_more_weight_than_its_like_and_no_engine_is_told(house: House) -> None:
    house.control.fault("e0", "skew", 0.75)
    assert house.weights == {"e0": 4.0}
    house.control.fold("e0", READY)
    assert house.told == []
    house.control.mend("e0", "skew")
    assert house.weights == {"e0": 1.0}


def test_an_owner_who_answers_a_preference_has_answered_it_also_when_engines_begin_anew(house: House) -> None:
    house.control.fault("e0", "skew", 0.75)
    house.weigh("e0", 1.0)
    house.control.fold("e1", READY)
    assert house.weights == {"e0": 1.0}


def test_weights_that_an_owner_has_set_are_theirs_again_when_a_preference_ends(house: House) -> None:
    house.weigh("e0", 2.0)
    house.weigh("e1", 3.0)
    house.control.fault("e0", "skew", 0.75)
    assert house.weights == {"e0": 8.0, "e1": 3.0}
    house.control.fault("e0", "skew", 0.5)
    assert house.weights["e0"] == 4.0, "of what was, and not of what was made of it"
    house.control.mend("e0")
    assert house.weights == {"e0": 2.0, "e1": 3.0}
    house.control.fault("e0", "skew", 1.0)
    assert house.weights["e0"] == 100.0, "no engine may be heavier"
    house.weigh("e0", 0.8)
    house.control.mend("e0")
    assert house.weights == {"e0": 0.8, "e1": 3.0}, "set meanwhile: it stays"


def test_what_passes_is_not_told_again(house: House) -> None:
    house.control.fault("e0", "crash", 1.0)
    house.control.fold("e0", READY)
    assert len(house.told) == 1
    assert house.control.faults() == {}


@pytest.mark.parametrize(
    ("arguments", "words", "unknown"),
    [
        (("e9", "clocks", 0.5), "there is no engine 'e9'", True),
        (("e0", "rust", 0.5), "fault kind 'rust' is not one", False),
        (("e0", "ecc", -0.1), "severity -0.1 is not from 0 to 1", False),
        (("e0", "hang", 1.0), "e0 does not serve now", False),
    ],
)
def test_what_can_not_be_is_refused(house: House, arguments: Any, words: str, unknown: bool) -> None:
    house.views[0] = EngineView(name="e0", role=Role.PREFILL, state=EngineState.STARTING, epoch=1, socket="")
    with pytest.raises(ActionError, match=words) as caught:
        house.control.fault(*arguments)
    assert caught.value.unknown is unknown
    assert house.told == []


def test_mending_what_is_not_there_is_refused_and_mending_what_is_well_is_not(house: House) -> None:
    for arguments in (("e9",), ("e0", "rust")):
        with pytest.raises(ActionError):
            house.control.mend(*arguments)
    house.control.mend("e0")
    assert house.told == []


def test_gpus_of_an_engine_that_is_gone_are_at_rest(house: House) -> None:
    reading = GpuSnapshot(index=0, uuid="GPU-sim0", name="H100", power_w=600.0)
    house.control.fold("e0", Hardware(gpus=(reading,), host=HostReading(core_delay=0.25)))
    assert [gpu.index for gpu in house.control.gpus()] == [0, 2, 3, 4, 5]
    assert house.control.gpus()[0] == reading
    assert house.control.host(house.views[0]) == HostReading(core_delay=0.25)
    house.control.lost("e0", 1)
    assert house.control.host(house.views[0]) is None
    found = house.control.gpus()
    assert [gpu.index for gpu in found] == list(range(6))
    assert [(gpu.engine, gpu.clock_reasons) for gpu in found[:2]] == [("e0", ("gpu_idle",))] * 2
    assert found[0].power_w is not None
    assert found[0].power_w < 100


def test_what_a_gpu_has_counted_outlives_the_engine_on_it(house: House) -> None:
    def read(corrected: int, *xids: int) -> tuple[int | None, int | None, tuple[int, ...]]:
        reading = GpuSnapshot(
            index=0, uuid="GPU-sim0", name="H100", ecc_corrected=corrected, ecc_uncorrected=len(xids), xids=xids
        )
        house.control.fold("e0", Hardware(gpus=(reading,), host=HostReading()))
        return counted()

    def counted() -> tuple[int | None, int | None, tuple[int, ...]]:
        gpu = house.control.gpus()[0]
        return gpu.ecc_corrected, gpu.ecc_uncorrected, gpu.xids

    assert read(300, 94) == (300, 1, (94,))
    house.control.lost("e0", 1)
    house.control.lost("e0", 2)
    assert counted() == (300, 1, (94,)), "also while nobody is there, and once for each"
    assert read(0) == (300, 1, (94,))
    assert read(5, 94) == (305, 2, (94, 94))


def test_a_gpu_that_two_engines_share_has_one_line_and_counts_for_both(house: House) -> None:
    def read(engine: str, corrected: int) -> None:
        reading = GpuSnapshot(index=0, uuid="GPU-sim0", name="H100", engine=engine, ecc_corrected=corrected)
        house.control.fold(engine, Hardware(gpus=(reading,), host=HostReading()))

    house.control.begins(replace(house.plan("e1"), first_gpu=0))
    read("e0", 300)
    read("e1", 20)
    assert [(gpu.index, gpu.engine, gpu.ecc_corrected) for gpu in house.control.gpus()[:1]] == [(0, "e0", 320)]
    house.control.lost("e0", 1)
    house.control.lost("e1", 1)
    assert [gpu.ecc_corrected for gpu in house.control.gpus() if gpu.index == 0] == [320]
    read("e1", 1)
    assert [gpu.ecc_corrected for gpu in house.control.gpus() if gpu.index == 0] == [321]
