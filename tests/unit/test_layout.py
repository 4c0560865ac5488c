"""Where cells of KV lie, and which rank has which heads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.kv.layout import Axis, Heads, Plane, heads_of, held_of, plane_of
from appliance.errors import HandoffError


def cell(memory: np.ndarray, plane: Plane, block: int, part: int, slot: int, state: int) -> bytes:
    start = plane.offset + block * plane.stride
    start += part * plane.parts.stride + slot * plane.slots.stride + state * plane.states.stride
    return bytes(memory[start : start + plane.cell])


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)], ids=["BHN", "BNH", "HBN"])
@pytest.mark.parametrize("split", [1, 2])
def test_a_plane_addresses_what_the_view_addresses(order: tuple[int, ...], split: int) -> None:
    """Strided views as vLLM makes them: [kernel blocks, heads, tokens, content], the second of two layers in one buffer."""
    shape, item = (6, 2, 4, 3), 2
    size = int(np.prod(shape)) * item
    memory = np.random.default_rng(1).integers(0, 256, 2 * size, dtype=np.uint8)
    view = (
        memory[size:].view(np.uint16).reshape([shape[axis] for axis in order] + [3]).transpose([*np.argsort(order), 3])
    )
    assert view.shape == shape
    plane = plane_of(
        layer="second",
        storage=0,
        offset=size,
        shape=view.shape,
        strides=[stride // item for stride in view.strides],
        item=item,
        split=split,
        heads=Heads(0, 2, 2),
    )
    assert plane.size == split * 2 * 4 * 3 * item
    for block, part, slot, state in np.ndindex(6 // split, split, 2, 4):
        assert cell(memory, plane, block, part, slot, state) == view[block * split + part, slot, state].tobytes()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((4, 2, 8), (64, 32, 1)), ((4, 2, 8, 3), (48, 24, 1, 8)), ((4, 2, 2, 8, 3), (96, 48, 24, 3, 1))],
)
def test_a_view_of_another_form_is_refused(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    with pytest.raises(HandoffError, match="layer odd is not one of blocks, heads, tokens and content"):
        plane_of(layer="odd", storage=0, offset=0, shape=shape, strides=strides, item=1, split=1, heads=Heads(0, 2, 2))


@pytest.mark.parametrize(
    ("ranks", "total", "heads"),
    [
        (1, 8, [range(8)]),
        (2, 8, [range(4), range(4, 8)]),
        (4, 2, [range(1), range(1), range(1, 2), range(1, 2)]),
        (2, 1, [range(1), range(1)]),
        (3, 6, [range(2), range(2, 4), range(4, 6)]),
    ],
)
def test_heads_are_shared_out_as_vllm_does(ranks: int, total: int, heads: list[range]) -> None:
    assert [heads_of(rank, ranks, total).numbers for rank in range(ranks)] == heads


@given(ranks=st.integers(1, 16), total=st.integers(1, 64))
def test_every_head_is_on_a_rank_and_as_many_on_each(ranks: int, total: int) -> None:
    if total % ranks and ranks % total:
        with pytest.raises(HandoffError, match=f"{total} KV heads can't be shared out to {ranks} ranks"):
            heads_of(0, ranks, total)
        return
    found = [heads_of(rank, ranks, total) for rank in range(ranks)]
    assert {head for heads in found for head in heads.numbers} == set(range(total))
    assert len({heads.count for heads in found}) == 1
    assert sum(heads.count for heads in found) == max(total, ranks)


@pytest.mark.parametrize(
    ("ranks", "held", "shards", "of_model", "total"),
    [
        (1, 8, None, 8, 8),
        (4, 2, None, 8, 8),
        (4, 2, None, 1, 8),  # another model's, such as one that drafts: what a rank has is believed
        (4, 1, None, 4, 4),
        (4, 1, None, 2, 2),  # each twice
        (4, 1, None, 8, 4),
        (4, 1, 1, 128, 1),  # a latent
        (1, 1, 1, 128, 1),
    ],
)
def test_how_many_heads_a_layer_has(ranks: int, held: int, shards: int | None, of_model: int, total: int) -> None:
    for rank in range(ranks):
        heads = held_of(rank, ranks, held, shards, of_model)
        assert (heads.total, heads.count) == (total, held)


def test_slots_that_are_no_heads_are_known_as_such() -> None:
    """K of all heads in one slot, V in the other."""
    plane = Plane(
        layer="packed",
        storage=0,
        offset=0,
        stride=64,
        parts=Axis(1, 64),
        slots=Axis(2, 32),
        states=Axis(4, 8),
        cell=8,
        heads=Heads(0, 4, 4),
    )
    assert not plane.by_head
