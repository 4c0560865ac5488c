"""Where engines could be: no GPU twice, nothing over memory, and a reason for everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import presets
from appliance.costs import huggingface
from appliance.errors import ConfigError
from appliance.gpu.inventory import described
from appliance.planner.cards import usable
from appliance.planner.node import Estimate, Targets
from appliance.planner.placement import Placed, Times, Wanted, place
from appliance.records import Card, Demand, GpuProcess, Inventory, Role

GIB = 1 << 30
SHAPES = {name: huggingface.read(presets.described(name)) for name in presets.names()}
DEMAND = Demand(rate_s=2.0, prompt_tokens=(500.0, 2000.0), output_tokens=(100.0, 300.0))
TIMES = Times(
    lambda chunks, sequences, context: Estimate(0.01 + 2e-5 * sum(c[0] for c in chunks) + 1e-4 * sequences),
    lambda tokens: Estimate(0.001),
)


def wanted(model: str = "llama-3.1-8b", context: int = 8192) -> Wanted:
    return Wanted(
        model=SHAPES[model],
        context=context,
        demand=DEMAND,
        targets=Targets(ttft_s=2.0, itl_s=0.05),
        times=lambda size: TIMES,
        reserve_bytes=3 * GIB,
    )


def card(index: int, **more: object) -> Card:
    defaults: dict[str, object] = {"memory_bytes": 80 * GIB, "free_bytes": 80 * GIB}
    return Card(index=index, uuid=f"GPU-{index}", name="H100", **{**defaults, **more})  # type: ignore[arg-type]


def inventory(*cards: Card, apart: frozenset[tuple[str, str]] = frozenset()) -> Inventory:
    return Inventory(cards=cards, apart=apart)


def feasible(placed: Placed) -> set[str]:
    return {one.layout for one in placed.placements if one.feasible}


cards = st.lists(
    st.builds(
        lambda memory, free, island, numa, mig, compute: (memory, free, island, numa, mig, compute),
        st.sampled_from([24, 80, 141]),
        st.floats(0.3, 1.0),
        st.integers(0, 2),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from(["default", "default", "exclusive", "prohibited"]),
    ),
    min_size=1,
    max_size=9,
).map(
    lambda made: inventory(
        *(
            card(
                index,
                memory_bytes=memory * GIB,
                free_bytes=int(free * memory * GIB),
                island=island,
                numa=numa,
                mig=mig,
                compute=compute,
            )
            for index, (memory, free, island, numa, mig, compute) in enumerate(made)
        )
    )
)


@given(cards, st.sampled_from(presets.names()), st.sampled_from([512, 8192, 32768]))
def test_whatever_the_machine_no_gpu_is_used_twice_nothing_is_over_memory_and_all_have_reasons(
    machine: Inventory, model: str, context: int
) -> None:
    able, unused = usable(machine)
    assert len(able) + len(unused) == len(machine.cards)
    if not able:
        with pytest.raises(ConfigError, match="no GPU can be used"):
            place(machine, wanted(model, context))
        return
    by_uuid = {one.uuid: one for one in able}
    placed = place(machine, wanted(model, context))
    assert placed.why
    assert (placed.best in feasible(placed)) if feasible(placed) else placed.best is None
    for one in placed.placements:
        assert one.reason
        if not one.feasible:
            assert not one.seats
            continue
        used = [uuid for seat in one.seats for uuid in seat.gpus]
        assert set(used) <= set(by_uuid)
        assert len(used) == len(set(used)) or (len(by_uuid) == 1 and one.layout == "1p1d")
        for uuid in set(used):
            has = by_uuid[uuid]
            takes = sum(seat.memory_fraction * has.memory_bytes for seat in one.seats if uuid in seat.gpus)
            assert takes <= has.free_bytes
        for seat in one.seats:
            assert len({by_uuid[uuid].island for uuid in seat.gpus}) == 1
            least = min(seat.memory_fraction * by_uuid[uuid].memory_bytes for uuid in seat.gpus)
            shape = SHAPES[model]
            needs = shape.weight_bytes(one.tensor_parallel) + shape.kv_bytes(context, one.tensor_parallel) + 3 * GIB
            assert needs <= least * 1.0001


@pytest.mark.parametrize(
    ("model", "kind", "layout"), [("gpt-oss-120b", 80, "1p1d@tp4"), ("llama-3.3-70b-fp8", 80, "4p4d")]
)
def test_the_published_recipes_are_among_the_feasible_ones(model: str, kind: int, layout: str) -> None:
    placed = place(described(8, "H100", kind * GIB), wanted(model))
    assert layout in feasible(placed)


def test_roles_and_names_are_those_of_the_topology() -> None:
    [found] = [one for one in place(described(4, "H100", 80 * GIB), wanted()).placements if one.layout == "1p3d"]
    assert [(seat.name, seat.role) for seat in found.seats] == [
        ("e0", Role.PREFILL),
        ("e1", Role.DECODE),
        ("e2", Role.DECODE),
        ("e3", Role.DECODE),
    ]


def test_what_does_not_fit_says_by_how_much() -> None:
    placed = place(described(2, "H100", 80 * GIB), wanted("deepseek-v3"))
    assert feasible(placed) == set()
    assert placed.best is None
    assert {"weights take 626.8 GiB" in one.reason or "313.9 GiB" in one.reason for one in placed.placements} == {True}
    [long] = {
        one.reason
        for one in place(described(1, "x", 24 * GIB), wanted(context=131072)).placements
        if one.layout == "1b"
    }
    assert "the KV of one request of 131,072 tokens takes 16.0 GiB" in long


def test_engines_stay_on_one_numa_node_and_one_island_where_that_goes() -> None:
    mixed = inventory(*(card(index, numa=index % 2) for index in range(4)))
    [found] = [one for one in place(mixed, wanted()).placements if one.layout == "1p1d@tp2"]
    assert [seat.gpus for seat in found.seats] == [("GPU-0", "GPU-2"), ("GPU-1", "GPU-3")]
    pairs = inventory(*(card(index, island=index // 2) for index in range(4)))
    placed = place(pairs, wanted())
    assert "2b@tp2" in feasible(placed)
    [why] = {one.reason for one in placed.placements if one.layout == "1b@tp4"}
    assert why == "tensor-parallel engines need 4 GPUs that are connected by NVLink, and at most 2 are"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"mig": True}, "MIG"),
        ({"compute": "exclusive"}, "one process"),
        ({"compute": "prohibited"}, "allows nobody"),
        (
            {"free_bytes": 40 * GIB, "others": (GpuProcess(pid=7, name="train"),)},
            "50% of its memory is taken by train 7",
        ),
    ],
)
def test_a_gpu_that_can_not_be_used_is_left_out_and_said(more: dict[str, object], why: str) -> None:
    placed = place(inventory(card(0), card(1, **more), card(2)), wanted())
    assert feasible(placed) == {"1p1d", "2b", "1b@tp2"}
    assert {uuid for one in placed.placements for seat in one.seats for uuid in seat.gpus} == {"GPU-0", "GPU-2"}
    [said] = placed.unused
    assert said.startswith("GPU 1: ")
    assert why in said


def test_gpus_that_can_not_read_each_other_split_nothing() -> None:
    placed = place(inventory(card(0), card(1), apart=frozenset({("GPU-0", "GPU-1")})), wanted())
    assert feasible(placed) == {"2b", "1b@tp2"}
    [why] = [one.reason for one in placed.placements if one.layout == "1p1d"]
    assert "GPU 1 can't read the memory of GPU 0" in why


def test_two_engines_may_share_the_only_gpu() -> None:
    placed = place(described(1, "H100", 80 * GIB), wanted())
    assert feasible(placed) == {"1p1d", "1b"}
    [found] = [one for one in placed.placements if one.layout == "1p1d"]
    assert [seat.memory_fraction for seat in found.seats] == [0.45, 0.45]
    assert found.plan is None, "nobody has measured how two engines on a GPU disturb each other"
    assert placed.best == "1b"


def test_gpus_without_an_engine_are_told_of() -> None:
    [found] = [one for one in place(described(3, "H100", 80 * GIB), wanted()).placements if one.layout == "1b@tp2"]
    assert found.remarks == ("1 GPU without an engine",)
