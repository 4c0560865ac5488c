"""What each rank copies from which rank of a peer, against memory in which every byte knows whose it is."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.engine.kv.layout import Axis, Group, Heads, Layout, Plane, heads_of, plane_of
from appliance.engine.kv.routes import Pairs, copies, difference, routes

NOTHING = -1
ORDERS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")  # vLLM's, from the slowest to the fastest


class Kind:
    """Layers of one group: ``total`` heads, 0 for a latent that each rank has."""

    def __init__(self, layers: int, total: int, *, parts: int = 1, states: int = 4, content: int = 6) -> None:
        self.layers, self.total, self.parts, self.states, self.content = layers, total, parts, states, content

    def heads(self, rank: int, ranks: int) -> Heads:
        return heads_of(rank, ranks, self.total) if self.total else Heads(0, 1, 1)


class Rank:
    """One rank's memory. ``whose`` says of each byte which byte of which block of the peer it is, or is to become."""

    def __init__(self, kinds: Sequence[Kind], rank: int, ranks: int, blocks: int, order: str, *, shared: bool) -> None:
        """``shared``: all groups overlay each other in one storage, as vLLM's do; else each layer has one of its own."""
        self.kinds, self.order, self.shared = kinds, order, shared
        self.heads = [kind.heads(rank, ranks) for kind in kinds]
        self.shapes = [
            (kind.layers, blocks * kind.parts, heads.count, kind.states, kind.content)
            for kind, heads in zip(kinds, self.heads, strict=True)
        ]
        self.sizes = self._sizes()
        self.whose = [np.full(size, NOTHING, dtype=np.int64) for size in self.sizes]

    def _sizes(self) -> list[int]:
        if self.shared:
            return [max(int(np.prod(shape)) for shape in self.shapes)]
        return [int(np.prod(shape[1:])) for shape in self.shapes for _ in range(shape[0])]

    def _storage(self, group: int, layer: int) -> int:
        return 0 if self.shared else sum(shape[0] for shape in self.shapes[:group]) + layer

    def views(self, group: int) -> list[np.ndarray]:
        """``[kernel blocks, heads, states, content]`` of each layer, of ``whose``."""
        layers, *shape = self.shapes[group]
        if not self.shared:
            order = self.order.replace("L", "")
            return [
                self._ordered(self.whose[self._storage(group, layer)], "BHNC", shape, order) for layer in range(layers)
            ]
        whole = self.whose[0][: int(np.prod(self.shapes[group]))]
        return list(self._ordered(whole, "LBHNC", self.shapes[group], self.order))

    @staticmethod
    def _ordered(flat: np.ndarray, names: str, shape: Sequence[int], order: str) -> np.ndarray:
        return flat.reshape([shape[names.index(axis)] for axis in order]).transpose(
            [order.index(axis) for axis in names]
        )

    def layout(self) -> Layout:
        groups = []
        for number, (kind, heads) in enumerate(zip(self.kinds, self.heads, strict=True)):
            planes = [
                plane_of(
                    layer=f"{number}.{layer}",
                    storage=self._storage(number, layer),
                    offset=(view.ctypes.data - self.whose[self._storage(number, layer)].ctypes.data) // 8,
                    shape=view.shape,
                    strides=[stride // 8 for stride in view.strides],
                    item=1,
                    split=kind.parts,
                    heads=heads,
                )
                for layer, view in enumerate(self.views(number))
            ]
            groups.append(Group("full_attention", kind.states * kind.parts, tuple(planes)))
        return Layout(tuple(groups), tuple(self.sizes))

    def mark(self, group: int, block: int, as_block: int) -> None:
        """The bytes of a block are those of the peer's block ``as_block``."""
        kind, heads = self.kinds[group], self.heads[group]
        for layer, view in enumerate(self.views(group)):
            part, head, state, byte = np.ogrid[: kind.parts, : heads.count, : kind.states, : kind.content]
            found = group
            for count, index in (
                (99, layer),
                (999, as_block),
                (9, part),
                (99, heads.first + head),
                (99, state),
                (99, byte),
            ):
                found = found * count + index
            view[block * kind.parts : (block + 1) * kind.parts] = found


def moved(ours: Rank, theirs: Sequence[Rank], rank: int, ranks: int, pairs: Sequence[Pairs]) -> list[np.ndarray]:
    """What is in our storages afterwards. No byte is written twice."""
    found = [np.full(size, NOTHING, dtype=np.int64) for size in ours.sizes]
    for route in routes(ours.layout(), [one.layout() for one in theirs], rank, ranks):
        for copy in copies(route, pairs):
            source = theirs[route.rank].whose[copy.source_storage][copy.source : copy.source + copy.size]
            target = found[copy.target_storage][copy.target : copy.target + copy.size]
            assert len(source) == len(target) == copy.size > 0
            assert (target == NOTHING).all()
            target[:] = source
    return found


def some_pairs(rng: random.Random, groups: int, blocks: int, ours: int) -> list[list[tuple[int, int]]]:
    """Of each group; a block is one group's only."""
    sources, targets = list(range(1, blocks)), list(range(1, ours))
    if rng.random() < 0.7:
        rng.shuffle(sources)
        rng.shuffle(targets)
    count = rng.randint(1, len(sources) // groups)
    return [
        list(
            zip(sources[group * count : (group + 1) * count], targets[group * count : (group + 1) * count], strict=True)
        )
        for group in range(groups)
    ]


def check(kinds: Sequence[Kind], ranks: int, of_peer: int, orders: tuple[str, str], *, shared: bool, seed: int) -> None:
    rng, blocks, more = random.Random(seed), 10, 13
    theirs = [Rank(kinds, rank, of_peer, blocks, orders[0], shared=shared) for rank in range(of_peer)]
    pairs = some_pairs(rng, len(kinds), blocks, more)
    for one in theirs:
        for group, some in enumerate(pairs):
            for source, _ in some:
                one.mark(group, source, source)
    for rank in range(ranks):
        ours = Rank(kinds, rank, ranks, more, orders[1], shared=shared)
        assert difference(ours.layout(), [one.layout() for one in theirs]) is None
        found = moved(ours, theirs, rank, ranks, pairs)
        for group, some in enumerate(pairs):
            for source, target in some:
                ours.mark(group, target, source)
        for got, wanted in zip(found, ours.whose, strict=True):
            assert np.array_equal(got, wanted), "every byte that is wanted is there and right, and no other was touched"


RANKS = (1, 2, 3, 4, 8)
HEADS = (0, 1, 2, 3, 4, 8)


@given(
    total=st.sampled_from(HEADS),
    ranks=st.sampled_from(RANKS),
    of_peer=st.sampled_from(RANKS),
    orders=st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)),
    layers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    parts=st.sampled_from((1, 2)),
    content=st.sampled_from((1, 4, 6)),
    seed=st.integers(0, 1000),
)
def test_every_byte_of_layers_in_one_storage(
    total: int,
    ranks: int,
    of_peer: int,
    orders: tuple[str, str],
    layers: list[int],
    parts: int,
    content: int,
    seed: int,
) -> None:
    """Groups overlay each other, so all of them are of one form."""
    assume(all(not total % one or not one % total for one in (ranks, of_peer)) if total else True)
    assume(len(set(layers)) == 1 or all(order.startswith("L") for order in orders))  # a group packs blocks of one size
    kinds = [Kind(count, total, parts=parts, content=content) for count in layers]
    check(kinds, ranks, of_peer, orders, shared=True, seed=seed)


@given(
    kinds=st.lists(
        st.builds(
            Kind,
            st.integers(1, 2),
            st.sampled_from(HEADS),
            parts=st.sampled_from((1, 2)),
            states=st.sampled_from((1, 2, 5)),
            content=st.sampled_from((1, 4, 6)),
        ),
        min_size=1,
        max_size=3,
    ),
    ranks=st.sampled_from(RANKS),
    of_peer=st.sampled_from(RANKS),
    orders=st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)),
    seed=st.integers(0, 1000),
)
def test_every_byte_of_groups_of_different_form(
    kinds: list[Kind], ranks: int, of_peer: int, orders: tuple[str, str], seed: int
) -> None:
    assume(all(not k.total or not k.total % one or not one % k.total for k in kinds for one in (ranks, of_peer)))
    check(kinds, ranks, of_peer, orders, shared=False, seed=seed)


@pytest.mark.parametrize("total", [1, 2, 4, 8], ids=lambda total: f"{total} heads")
@pytest.mark.parametrize(("of_peer", "ranks"), [(1, 2), (2, 1), (2, 2), (4, 2), (2, 4), (8, 4), (4, 8), (1, 8)])
@pytest.mark.parametrize("order", ["LBHNC", "LBNHC", "BLNHC"])
def test_the_sizes_that_people_run(of_peer: int, ranks: int, total: int, order: str) -> None:
    """A full and a sliding group, and heads that are fewer than ranks."""
    check([Kind(2, total), Kind(2, total)], ranks, of_peer, (order, order), shared=True, seed=total)


def from_whom(total: int, of_peer: int, ranks: int) -> list[list[int]]:
    theirs = [Rank([Kind(1, total)], rank, of_peer, 4, "LBHNC", shared=True).layout() for rank in range(of_peer)]
    return [
        [
            route.rank
            for route in routes(
                Rank([Kind(1, total)], rank, ranks, 4, "LBHNC", shared=True).layout(), theirs, rank, ranks
            )
        ]
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(
    ("total", "of_peer", "ranks", "sources"),
    [
        (8, 1, 2, [[0], [0]]),
        (8, 4, 2, [[0, 1], [2, 3]]),
        (8, 2, 4, [[0], [0], [1], [1]]),
        (8, 8, 8, [[rank] for rank in range(8)]),
        (2, 4, 4, [[0], [1], [2], [3]]),  # each head on two ranks: everybody has one of its own to ask
        (2, 8, 4, [[0], [2], [4], [6]]),
        (2, 4, 1, [[0, 2]]),
        (0, 4, 2, [[0], [2]]),  # a latent
        (0, 2, 4, [[0], [0], [1], [1]]),
        (0, 4, 1, [[0]]),
    ],
)
def test_who_is_asked_for_what_several_ranks_have(
    total: int, of_peer: int, ranks: int, sources: list[list[int]]
) -> None:
    assert from_whom(total, of_peer, ranks) == sources


# ---- how many copies it takes


def count(order: str, of_peer: int, ranks: int, pairs: list[tuple[int, int]], *, layers: int = 6) -> int:
    """Of rank 0."""
    kind = Kind(layers, 8, states=16)
    ours = Rank([kind], 0, ranks, 64, order, shared=True).layout()
    theirs = [Rank([kind], rank, of_peer, 64, order, shared=True).layout() for rank in range(of_peer)]
    return sum(len(copies(route, [pairs])) for route in routes(ours, theirs, 0, ranks))


NEIGHBOURS = [(block, block + 10) for block in range(3, 20)]


@pytest.mark.parametrize(
    ("order", "of_peer", "ranks", "pairs", "copied"),
    [
        ("BLHNC", 1, 1, NEIGHBOURS, 1),
        ("BLHNC", 1, 1, [(3, 9), (5, 4), (9, 30)], 3),
        ("LBHNC", 1, 1, NEIGHBOURS, 6),
        ("LBNHC", 2, 2, NEIGHBOURS, 6),
        ("LBHNC", 1, 2, NEIGHBOURS, 6 * 17),  # the half of each block
        ("LBHNC", 2, 1, NEIGHBOURS, 2 * 6 * 17),
        ("LBNHC", 1, 2, NEIGHBOURS, 6 * 17 * 16),  # of each token
    ],
)
def test_bytes_that_touch_are_one_copy(
    order: str, of_peer: int, ranks: int, pairs: list[tuple[int, int]], copied: int
) -> None:
    assert count(order, of_peer, ranks, pairs) == copied


# ---- what does not fit


def layout(heads: Heads, /, slots: int | None = None, **changes: object) -> Layout:
    values: dict[str, object] = {
        "layer": "model.layers.0",
        "storage": 0,
        "offset": 0,
        "stride": 4096,
        "parts": Axis(1, 4096),
        "slots": Axis(slots or heads.count, 512),
        "states": Axis(16, 32),
        "cell": 32,
        "heads": heads,
    }
    group = {"kind": "full_attention", "block_tokens": 16}
    group.update({name: changes.pop(name) for name in list(changes) if name in group})  # type: ignore[misc]
    return Layout((Group(**group, planes=(Plane(**{**values, **changes}),)),), (1 << 20,))  # type: ignore[arg-type]


BASE = layout(Heads(0, 4, 4))


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ([Layout((), ())], "1 KV cache groups here, 0 there"),
        ([layout(Heads(0, 4, 4), kind="sliding_window")], "full_attention here, sliding_window there"),
        (
            [layout(Heads(0, 4, 4), block_tokens=32)],
            "blocks of 16 tokens here, 32 there: start both with the same --block-size",
        ),
        ([layout(Heads(0, 4, 4), layer="model.layers.7")], "1 layers here, 1 there, or others"),
        (
            [layout(Heads(0, 4, 4), cell=16)],
            "model.layers.0 has 16 × 32 bytes per head here, 16 × 16 bytes per head there",
        ),
        ([layout(Heads(0, 4, 4), parts=Axis(2, 2048), states=Axis(8, 32))], "here, 2 × 8 × 32 bytes per head there"),
        ([layout(Heads(0, 2, 2))], "model.layers.0 has 4 KV heads here, 2 there"),
        ([layout(Heads(0, 2, 4)), layout(Heads(0, 2, 4))], "no rank there has KV head 2 of layer model.layers.0"),
        (
            [layout(Heads(0, 2, 4), slots=1, cell=64), layout(Heads(2, 2, 4), slots=1, cell=64)],
            "this attention backend puts the KV heads of layer model.layers.0 together",
        ),
        ([layout(Heads(0, 4, 4), slots=2)], "is laid out otherwise there"),
    ],
)
def test_what_keeps_blocks_from_being_copied_is_said(theirs: list[Layout], says: str) -> None:
    assert says in (difference(BASE, theirs) or "")


def test_slots_that_are_no_heads_are_copied_whole_between_equal_ranks() -> None:
    packed = layout(Heads(2, 2, 4), slots=1, cell=64)
    other = layout(Heads(0, 2, 4), slots=1, cell=64)
    assert difference(packed, [other, packed]) is None
    [route] = routes(packed, [other, packed], 1, 2)
    assert route.rank == 1
    assert sum(copy.size for copy in copies(route, [[(1, 2)]])) == 16 * 64


def test_layouts_may_differ_in_where_things_lie() -> None:
    [plane] = BASE.groups[0].planes
    moved_plane = replace(plane, offset=512, stride=8192, slots=Axis(4, 1024), states=Axis(16, 64))
    other = Layout((Group("full_attention", 16, (moved_plane,)),), (1 << 22,))
    assert difference(BASE, [other]) is None


def test_a_state_of_all_tokens_is_not_handed_over() -> None:
    hybrid = Layout((*BASE.groups, Group("mamba", 16, ())), BASE.storage_bytes)
    said = difference(hybrid, [hybrid])
    assert "KV group 1" in (said or "") and "what its layers keep (mamba) can't be handed over" in (said or "")
    assert "topology Nb" in (said or "")
