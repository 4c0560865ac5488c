"""Where engines could be: no GPU twice, nothing over memory, and a reason for everything."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import presets
from appliance.costs import huggingface
from appliance.errors import ConfigError
from appliance.gpu.inventory import described
from appliance.planner.cards import usable
from appliance.planner.node import Estimate, Targets
from appliance.planner.placement import Placed, Times, Wanted, place, seated
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
    defaults: dict[str, object] = {"name": "H100", "memory_bytes": 80 * GIB, "free_bytes": 80 * GIB}
    return Card(index=index, uuid=f"GPU-{index}", **{**defaults, **more})  # type: ignore[arg-type]


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
        assert len({by_uuid[uuid].name for uuid in used}) == 1
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


def test_gpus_that_can_not_read_each_other_split_by_way_of_the_host_and_only_where_it_is_asked_for() -> None:
    placed = place(inventory(card(0), card(1), apart=frozenset({("GPU-0", "GPU-1")})), wanted())
    assert feasible(placed) == {"1p1d", "2b", "1b@tp2"}
    [found] = [one for one in placed.placements if one.layout == "1p1d"]
    assert found.staged
    assert [seat.sees for seat in found.seats] == [("GPU-1",), ("GPU-0",)]
    assert found.remarks[0].startswith("GPUs 0, 1 can't all read each other's memory")
    assert placed.best is not None
    assert not next(one for one in placed.placements if one.layout == placed.best).staged


def test_two_engines_share_the_only_gpu_and_are_told_how_much_of_it_is_theirs() -> None:
    placed = place(described(1, "H100", 80 * GIB), wanted())
    assert feasible(placed) == {"1p1d", "1b"}
    [found] = [one for one in placed.placements if one.layout == "1p1d"]
    assert [seat.memory_fraction for seat in found.seats] == [0.45, 0.45]
    assert found.plan is None, "nobody has measured how two engines on a GPU disturb each other"
    shape = SHAPES["llama-3.1-8b"]
    for seat in found.seats:
        assert seat.kv_bytes == int(36 * GIB - 3 * GIB - shape.weight_bytes(1))
    assert placed.best == "1p1d"
    assert "unpredicted; 1b would have one engine" in placed.why


def test_an_only_gpu_that_the_model_does_not_fit_twice_has_one_engine() -> None:
    assert place(described(1, "H100", 80 * GIB), wanted("gpt-oss-120b")).best == "1b"


def test_an_only_gpu_that_is_half_full_is_used_for_what_is_left() -> None:
    train = GpuProcess(pid=7, name="train")
    placed = place(inventory(card(0, free_bytes=40 * GIB, others=(train,))), wanted(context=1024))
    [found] = [one for one in placed.placements if one.layout == placed.best]
    assert sum(seat.memory_fraction for seat in found.seats) * 80 * GIB <= 40 * GIB
    assert "50% of GPU 0 is taken by others" in found.remarks
    with pytest.raises(ConfigError, match="no GPU can be used: GPU 0: 99% of its memory is taken by train 7; end that"):
        place(inventory(card(0, free_bytes=1 * GIB, others=(train,))), wanted())


def test_of_several_kinds_that_with_the_most_memory_is_taken() -> None:
    mixed = inventory(
        card(0), card(1), *(card(at, name="A100", memory_bytes=40 * GIB, free_bytes=40 * GIB) for at in (2, 3))
    )
    placed = place(mixed, wanted())
    assert {uuid for one in placed.placements for seat in one.seats for uuid in seat.gpus} == {"GPU-0", "GPU-1"}
    assert [one.partition(": ")[0] for one in placed.unused] == ["GPU 2", "GPU 3"]
    assert "CUDA_VISIBLE_DEVICES=2,3 puts them there instead" in placed.unused[0]


def test_memory_that_is_not_told_is_no_memory() -> None:
    with pytest.raises(ConfigError, match="how much memory it has can't be read"):
        place(inventory(card(0, memory_bytes=0, free_bytes=0)), wanted())


def test_where_nothing_can_be_predicted_engines_are_small_and_do_both() -> None:
    nothing = Times(lambda *_: None, lambda _: None)
    unknown = msgspec.structs.replace(wanted(), times=lambda _: nothing)
    assert place(described(4, "?", 80 * GIB), unknown).best == "4b"
    large = msgspec.structs.replace(wanted("llama-3.3-70b-fp8"), times=lambda _: nothing)
    assert place(described(4, "?", 48 * GIB), large).best == "2b@tp2"


def test_kv_takes_longer_where_nvlink_does_not_go() -> None:
    asked: list[str] = []
    far = Times(TIMES.step, lambda _: asked.append("near"), lambda _: asked.append("far"))
    place(inventory(card(0, island=0), card(1, island=1)), msgspec.structs.replace(wanted(), times=lambda _: far))
    assert set(asked) == {"far"}


# ---- layouts that somebody asks for


PREFILL, DECODE, BOTH = Role.PREFILL, Role.DECODE, Role.BOTH


def test_a_layout_may_have_engines_of_two_sizes_and_leave_gpus_over() -> None:
    found = seated(described(8, "H100", 80 * GIB), [(PREFILL, 1), (DECODE, 4)], "1p1d@tp1:tp4", wanted())
    assert [len(seat.gpus) for seat in found.seats] == [1, 4]
    assert not set(found.seats[0].gpus) & set(found.seats[1].gpus)
    assert "3 GPUs without an engine" in found.remarks


def test_large_engines_find_their_island_first() -> None:
    islands = inventory(card(0, island=0), card(1, island=0), card(2, island=2), card(3, island=3))
    found = seated(islands, [(PREFILL, 1), (PREFILL, 1), (DECODE, 2)], "2p1d@tp1:tp2", wanted())
    assert found.seats[2].gpus == ("GPU-0", "GPU-1")


def test_two_engines_share_each_gpu_where_there_are_too_few() -> None:
    found = seated(
        described(2, "H100", 80 * GIB), [(PREFILL, 1), (PREFILL, 1), (DECODE, 1), (DECODE, 1)], "2p2d", wanted()
    )
    assert [seat.gpus for seat in found.seats] == [("GPU-0",), ("GPU-1",), ("GPU-0",), ("GPU-1",)]
    assert {seat.memory_fraction for seat in found.seats} == {0.45}
    assert all(seat.kv_bytes for seat in found.seats)


@pytest.mark.parametrize(
    ("places", "model", "said"),
    [
        ([(BOTH, 1)] * 5, "llama-3.1-8b", "takes 5 GPUs, and 2 can be used"),
        ([(BOTH, 2)], "llama-3.1-8b", "needs 2 GPUs that NVLink connects with each other, and no more than 1 are"),
        ([(BOTH, 1)], "deepseek-v3", "does not fit: GPU 0 has"),
    ],
)
def test_what_can_not_be_seated_says_why(places: list[tuple[Role, int]], model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        seated(inventory(card(0, island=0), card(1, island=1)), places, "it", wanted(model))


def test_of_a_model_that_nothing_is_known_of_it_is_tried_but_no_gpu_is_shared() -> None:
    found = seated(described(2, "H100", 80 * GIB), [(PREFILL, 1), (DECODE, 1)], "1p1d", None)
    assert (found.kv_tokens, [seat.kv_bytes for seat in found.seats]) == (None, [None, None])
    with pytest.raises(ConfigError, match=r"only where the model.s config\.json says"):
        seated(described(1, "H100", 80 * GIB), [(PREFILL, 1), (DECODE, 1)], "1p1d", None)


def test_gpus_without_an_engine_are_told_of() -> None:
    [found] = [one for one in place(described(3, "H100", 80 * GIB), wanted()).placements if one.layout == "1b@tp2"]
    assert found.remarks == ("1 GPU without an engine",)
