"""Where engines could be: no GPU twice, nothing over memory, and a reason for everything."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import presets
from appliance.costs import huggingface
from appliance.costs.gpus import H100, H200, Gpu
from appliance.costs.memory import Memory
from appliance.errors import ConfigError
from appliance.gpu.inventory import described
from appliance.planner.cards import other_kinds, usable
from appliance.planner.node import Estimate, Settings, Targets
from appliance.planner.placement import place, seated
from appliance.planner.wanted import SETTINGS, Placed, Placement, Times, Wanted
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
        model=Memory(SHAPES[model]),
        context=context,
        demand=DEMAND,
        targets=Targets(ttft_s=2.0, itl_s=0.05),
        times=lambda size: TIMES,
    )


def card(index: int, **more: object) -> Card:
    defaults: dict[str, object] = {"name": "H100", "memory_bytes": 80 * GIB, "free_bytes": 80 * GIB}
    return Card(index=index, uuid=f"GPU-{index}", **{**defaults, **more})  # type: ignore[arg-type]


def inventory(*cards: Card, apart: frozenset[tuple[str, str]] = frozenset()) -> Inventory:
    return Inventory(cards=cards, apart=apart)


def h100s(count: int, **more: object) -> Inventory:
    return inventory(
        *(card(index, memory_bytes=H100.usable_bytes, free_bytes=H100.usable_bytes, **more) for index in range(count))
    )


def by_layout(placed: Placed) -> dict[str, Placement]:
    return {one.layout: one for one in placed.placements}


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
            if one.plan is not None:
                assert len({by_uuid[uuid].island for uuid in seat.gpus}) == 1
            least = min(seat.memory_fraction * by_uuid[uuid].memory_bytes for uuid in seat.gpus)
            assert taken(model, context, seat.settings, len(seat.gpus)) <= least * 1.0001
    for size in (2, 4):
        islands = Counter(one.island for one in able)
        if max(islands.values()) >= size and fits(model, context, size, able):
            assert any(one.feasible and one.tensor_parallel == size for one in placed.placements)


def taken(model: str, context: int, settings: Settings, size: int) -> float:
    """By vLLM's own rules: weights; the KV of one request; and what a step takes, as start-up logs have it (``memory_logs.toml``)."""
    shape = SHAPES[model]
    activations = settings.token_budget * shape.hidden * 2 * 4
    logits = settings.places * shape.vocabulary * 14
    others = (0.25 if size == 1 else 2.0) * GIB
    return shape.weight_bytes(size) + shape.kv_bytes(context, size) + max(activations, logits) + others


def fits(model: str, context: int, size: int, able: tuple[Card, ...]) -> bool:
    """However it is put: beside 12 GiB of whatever, and a request that is kept whole by all layers, on the smallest of the GPUs."""
    shape = SHAPES[model]
    if shape.unshared(size):
        return False
    wanted = 1.2 * shape.weight_bytes(size) + 1.2 * context * shape.kv_bytes_per_token(size) + 12 * GIB
    return wanted <= min(min(0.9 * one.memory_bytes, one.free_bytes - 0.05 * one.memory_bytes) for one in able)


@pytest.mark.parametrize(("model", "layout"), [("gpt-oss-120b", "1p1d@tp4"), ("llama-3.3-70b-fp8", "4p4d")])
@pytest.mark.parametrize("kind", [H100, H200])
def test_the_published_recipes_are_among_the_feasible_ones(model: str, layout: str, kind: Gpu) -> None:
    """On cards as drivers report them, and not as they are called."""
    preset = presets.load(model)
    placed = place(described(8, kind.name, kind.usable_bytes), wanted(model, preset.context))
    assert layout in feasible(placed)


def test_seventy_billion_parameters_leave_little_on_an_h100_and_it_is_said_what_would_fit() -> None:
    short = by_layout(place(h100s(8), wanted("llama-3.3-70b-fp8", 8192)))["4p4d"]
    assert [seat.settings.token_budget for seat in short.seats] == [4096] * 4 + [2048] * 4
    assert short.kv_tokens is not None
    assert 8192 <= short.kv_tokens < 20_000
    assert "prefill steps of 4,096 tokens: more would leave too little room for KV" in short.remarks
    long = by_layout(place(h100s(8), wanted("llama-3.3-70b-fp8", 32_768)))["4p4d"]
    assert not long.feasible
    [fits] = re.findall(r"requests of up to ([\d,]+) tokens would fit \(--context", long.reason)
    context = int(fits.replace(",", ""))
    assert by_layout(place(h100s(8), wanted("llama-3.3-70b-fp8", context)))["4p4d"].feasible
    assert not by_layout(place(h100s(8), wanted("llama-3.3-70b-fp8", context + 16)))["4p4d"].feasible


def test_what_experts_are_padded_with_counts() -> None:
    """vllm-project/vllm issues 23278 and 27508: 66 GiB of weights on one H100, and too little left for a request of 131,072 tokens."""
    found = by_layout(place(h100s(8), wanted("gpt-oss-120b", 131_072)))
    assert not found["8b"].feasible
    assert "weights take 65.8 GiB" in found["8b"].reason
    assert by_layout(place(h100s(8), wanted("gpt-oss-120b", 32_768)))["8b"].feasible


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
    long = by_layout(place(described(1, "x", 24 * GIB), wanted(context=131072)))["1b"].reason
    assert "the KV of one request of 131,072 tokens takes 16.0 GiB" in long


def test_engines_stay_on_one_numa_node_and_one_island_where_that_goes() -> None:
    mixed = inventory(*(card(index, numa=index % 2) for index in range(4)))
    found = by_layout(place(mixed, wanted()))["1p1d@tp2"]
    assert [seat.gpus for seat in found.seats] == [("GPU-0", "GPU-2"), ("GPU-1", "GPU-3")]
    pairs = inventory(*(card(index, island=index // 2) for index in range(4)))
    placed = by_layout(place(pairs, wanted()))
    assert placed["2b@tp2"].feasible
    assert placed["1b@tp4"].reason == (
        "tensor-parallel engines need 4 GPUs that are connected by NVLink, and at most 2 are; "
        "--topology 1b@tp4 puts them on others, over PCIe"
    )


def test_with_a_gpu_gone_whole_numa_nodes_are_filled_first() -> None:
    """GPU 1 of eight on two nodes."""
    left = inventory(*(card(index, numa=index // 4) for index in range(8) if index != 1))
    found = by_layout(place(left, wanted()))
    assert [seat.gpus for seat in found["1p2d@tp2"].seats] == [
        ("GPU-0", "GPU-2"),
        ("GPU-4", "GPU-5"),
        ("GPU-6", "GPU-7"),
    ]
    assert [seat.gpus for seat in found["1b@tp4"].seats] == [("GPU-4", "GPU-5", "GPU-6", "GPU-7")]
    assert found["1b@tp4"].remarks == ("3 GPUs without an engine",)
    assert [seat.gpus for seat in found["3p1d@tp1:tp4"].seats] == [
        ("GPU-0",),
        ("GPU-2",),
        ("GPU-3",),
        ("GPU-4", "GPU-5", "GPU-6", "GPU-7"),
    ]


@pytest.mark.parametrize(
    ("islands", "size", "layout"),
    [
        ((3, 5), 2, "3b@tp2"),
        ((3, 5), 4, "1b@tp4"),
        ((1, 1, 2, 2), 2, "2b@tp2"),  # bridged pairs, of two of which one is busy
        ((2, 2, 2, 2), 2, "4b@tp2"),
        ((7,), 2, "3b@tp2"),
    ],
)
def test_islands_of_any_size_are_used_as_far_as_they_go(islands: tuple[int, ...], size: int, layout: str) -> None:
    of = [number for number, count in enumerate(islands) for _ in range(count)]
    machine = inventory(*(card(index, island=island) for index, island in enumerate(of)))
    found = by_layout(place(machine, wanted()))[layout]
    assert found.feasible
    for seat in found.seats:
        assert len({of[int(gpu.removeprefix("GPU-"))] for gpu in seat.gpus}) == 1
    used = len(found.seats) * size
    assert [remark for remark in found.remarks if "without an engine" in remark] == [
        f"{len(of) - used} GPU{'s' if len(of) - used > 1 else ''} without an engine"
    ] * (len(of) > used)


def test_without_nvlink_ranks_meet_over_pcie_only_where_nothing_else_fits() -> None:
    def alone(memory: int) -> Inventory:
        return inventory(
            *(
                card(
                    index, island=index, numa=index // 2, bridge=index // 2 * 2, memory_bytes=memory, free_bytes=memory
                )
                for index in range(4)
            )
        )

    fits = place(alone(80 * GIB), wanted())
    assert all("@tp" not in layout for layout in feasible(fits))
    placed = place(alone(16 * GIB), wanted())
    assert feasible(placed) >= {"2b@tp2", "1p1d@tp2", "1b@tp4"}
    assert placed.best == "2b@tp2"
    assert "nothing can be predicted here" in placed.why
    best = by_layout(placed)["2b@tp2"]
    assert [seat.gpus for seat in best.seats] == [("GPU-0", "GPU-1"), ("GPU-2", "GPU-3")]
    assert (best.plan, best.reason) == (None, "engines whose ranks meet over PCIe are not predicted")
    assert best.remarks[0].startswith("NVLink does not connect all of e0's GPUs (0, 1): its ranks meet over PCIe")


# ---- engines of two sizes


def test_engines_of_two_sizes_are_among_the_layouts() -> None:
    found = by_layout(place(h100s(8), wanted("llama-3.3-70b-fp8")))
    unlike = {layout for layout in found if ":" in layout}
    assert {"2p1d@tp2:tp4", "4p1d@tp1:tp4", "1p2d@tp4:tp2", "2p3d@tp1:tp2"} <= unlike
    for layout in unlike:
        sizes = [len(seat.gpus) for seat in found[layout].seats]
        assert sum(sizes) == 8, "none is left over where it need not be"
        assert len(set(sizes)) == 2
    assert all(found[layout].plan for layout in unlike if found[layout].feasible)


def test_a_larger_decode_engine_is_faster_and_has_more_room() -> None:
    def times(size: int) -> Times:
        return Times(
            lambda chunks, sequences, context: Estimate((0.01 + 2e-5 * sum(c[0] for c in chunks)) / size),
            lambda tokens: Estimate(0.1 / size),
        )

    asked = msgspec.structs.replace(wanted("llama-3.3-70b-fp8"), times=times)
    found = by_layout(place(h100s(8), asked))
    small, large = found["4p4d"], found["4p1d@tp1:tp4"]
    assert small.kv_tokens is not None
    assert large.kv_tokens is not None
    assert large.kv_tokens > 4 * small.kv_tokens
    assert small.plan is not None and small.plan.predicted is not None
    assert large.plan is not None and large.plan.predicted is not None
    assert large.plan.predicted.itl_s == pytest.approx(small.plan.predicted.itl_s / 4, rel=0.05)
    assert large.plan.predicted.prefill_load == pytest.approx(small.plan.predicted.prefill_load, rel=0.01)


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 8, 16])
def test_no_layout_is_named_twice(count: int) -> None:
    layouts = [one.layout for one in place(h100s(count), wanted()).placements]
    assert len(layouts) == len(set(layouts))


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
    assert [seat.memory_fraction for seat in found.seats] == pytest.approx([0.46, 0.46])
    assert found.plan is None, "nobody has measured how two engines on a GPU disturb each other"
    of = Memory(SHAPES["llama-3.1-8b"])
    for seat in found.seats:
        working = of.working_bytes(1, SETTINGS[seat.role].token_budget, 256)
        assert seat.kv_bytes == pytest.approx(0.46 * 80 * GIB - working - of.weight_bytes(1))
    assert placed.best == "1p1d"
    assert "unpredicted; 1b would have one engine" in placed.why


def test_two_engines_share_the_only_gpu_only_if_they_have_room_for_what_is_asked() -> None:
    def at(rate_s: float) -> Placed:
        asked = wanted("llama-3.1-8b", 4096)
        demand = msgspec.structs.replace(DEMAND, rate_s=rate_s, prompt_tokens=(3000.0,), output_tokens=(500.0,))
        return place(h100s(1), msgspec.structs.replace(asked, demand=demand))

    assert at(2.0).best == "1p1d"
    busy = at(12.0)
    shared = by_layout(busy)["1p1d"]
    assert shared.feasible and shared.requests is not None
    assert busy.best == "1b"
    assert f"each have room for {shared.requests:.0f} requests, and about" in busy.why


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
    assert [seat.memory_fraction for seat in found.seats] == pytest.approx([0.46] * 4)
    assert all(seat.kv_bytes for seat in found.seats)


@pytest.mark.parametrize(
    ("places", "model", "said"),
    [
        ([(BOTH, 1)] * 5, "llama-3.1-8b", "takes 5 GPUs, and 2 can be used"),
        ([(BOTH, 1)], "deepseek-v3", "does not fit: GPU 0 has"),
    ],
)
def test_what_can_not_be_seated_says_why(places: list[tuple[Role, int]], model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        seated(inventory(card(0, island=0), card(1, island=1)), places, "it", wanted(model))


def test_what_somebody_asks_for_is_put_over_pcie_if_it_must_be() -> None:
    found = seated(inventory(card(0, island=0), card(1, island=1)), [(BOTH, 2)], "1b@tp2", wanted())
    assert found.seats[0].gpus == ("GPU-0", "GPU-1")
    assert "its ranks meet over PCIe, which is slower and not predicted" in found.remarks[0]


def test_of_a_model_that_nothing_is_known_of_it_is_tried_but_no_gpu_is_shared() -> None:
    found = seated(described(2, "H100", 80 * GIB), [(PREFILL, 1), (DECODE, 1)], "1p1d", None)
    assert (found.kv_tokens, [seat.kv_bytes for seat in found.seats]) == (None, [None, None])
    with pytest.raises(ConfigError, match=r"only where the model.s config\.json says"):
        seated(described(1, "H100", 80 * GIB), [(PREFILL, 1), (DECODE, 1)], "1p1d", None)


def test_gpus_without_an_engine_are_told_of() -> None:
    [found] = [one for one in place(described(3, "H100", 80 * GIB), wanted()).placements if one.layout == "1b@tp2"]
    assert found.remarks == ("1 GPU without an engine",)


def test_a_kind_that_is_named_comes_before_that_with_the_most_memory() -> None:
    kinds = ("A", "B", "A", "C", "B", "A")
    there = inventory(*(card(index, name=name) for index, name in enumerate(kinds)))
    assert other_kinds(there) == ("B", "C")
    for kind in ("A", "B", "C", "D"):
        found, _ = usable(msgspec.structs.replace(there, kind=kind))
        assert {one.name for one in found} == {kind if kind != "D" else "A"}
    busy = inventory(card(0, name="A"), card(1, name="B", compute="prohibited"))
    assert other_kinds(busy) == ()


def test_what_would_fit_stands_with_what_does_not() -> None:
    placed = place(h100s(2), wanted(context=10**7))
    assert placed.best is None
    for one in placed.placements:
        assert 0 < one.fits < 10**7
        assert f"requests of up to {one.fits:,} tokens would fit" in one.reason


def test_a_share_that_engines_are_told_bounds_them_and_a_firm_budget_is_kept() -> None:
    usual = by_layout(place(h100s(2), wanted()))["2b"]
    half = by_layout(place(h100s(2), msgspec.structs.replace(wanted(), share=0.5)))["2b"]
    more = by_layout(place(h100s(2), msgspec.structs.replace(wanted(), share=0.95)))["2b"]
    assert (half.kv_tokens or 0) < (usual.kv_tokens or 0) < (more.kv_tokens or 0)
    large = {role: Settings(token_budget=1 << 18, places=256) for role in Role}
    asked = msgspec.structs.replace(wanted("llama-3.3-70b-fp8"), settings=large)
    assert by_layout(place(h100s(2), asked))["2b"].feasible, "with smaller steps"
    firm = by_layout(place(h100s(2), msgspec.structs.replace(asked, firm=frozenset(Role))))["2b"]
    assert not firm.feasible
    assert "steps of 262,144 tokens" in firm.reason
