"""Addresses of KV blocks, and the copies that move them, against a byte-by-byte model."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.kv.layout import Group, Layout, Plane, copies, difference, plane_of


def layered(blocks: int, layers: int, size: int, *, interleaved: bool) -> Layout:
    """One group of ``layers``; block-major (interleaved) or layer-major."""
    if interleaved:
        planes = tuple(Plane(0, layers * size, ((layer * size, size),)) for layer in range(layers))
    else:
        planes = tuple(Plane(0, size, ((layer * blocks * size, size),)) for layer in range(layers))
    return Layout((Group(16, planes),), (blocks * layers * size,))


def run(ours: Layout, theirs: Layout, pairs: list[list[tuple[int, int]]], memory: np.ndarray) -> np.ndarray:
    target = np.zeros(ours.storage_bytes[0], dtype=np.uint8)
    for copy in copies(ours, theirs, pairs):
        target[copy.target : copy.target + copy.size] = memory[copy.source : copy.source + copy.size]
    return target


def block(layout: Layout, memory: np.ndarray, group: int, number: int) -> list[bytes]:
    return [
        b"".join(memory[number * p.stride + o : number * p.stride + o + s].tobytes() for o, s in p.segments)
        for p in layout.groups[group].planes
    ]


@given(
    ours=st.booleans(),
    theirs=st.booleans(),
    blocks=st.integers(2, 12),
    layers=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_every_byte_of_every_block_arrives_and_no_other_is_touched(
    ours: bool, theirs: bool, blocks: int, layers: int, seed: int
) -> None:
    size = 8
    rng = random.Random(seed)
    source_layout = layered(blocks, layers, size, interleaved=theirs)
    target_layout = layered(blocks + 3, layers, size, interleaved=ours)
    count = rng.randint(0, blocks - 1)
    sources = rng.sample(range(1, blocks), count)
    targets = rng.sample(range(1, blocks + 3), count)
    memory = np.frombuffer(rng.randbytes(source_layout.storage_bytes[0]), dtype=np.uint8)
    moved = run(target_layout, source_layout, [list(zip(sources, targets, strict=True))], memory)
    for source, target in zip(sources, targets, strict=True):
        assert block(target_layout, moved, 0, target) == block(source_layout, memory, 0, source)
    untouched = set(range(blocks + 3)) - set(targets)
    assert all(not any(map(any, block(target_layout, moved, 0, number))) for number in untouched)


def test_consecutive_blocks_of_interleaved_layers_are_one_copy() -> None:
    layout = layered(64, 6, 1024, interleaved=True)
    found = copies(layout, layout, [[(i, i + 10) for i in range(3, 20)]])
    assert len(found) == 1
    assert found[0].size == 17 * 6 * 1024


def test_scattered_blocks_of_interleaved_layers_are_a_copy_each() -> None:
    layout = layered(64, 6, 1024, interleaved=True)
    assert len(copies(layout, layout, [[(3, 9), (5, 4), (9, 30)]])) == 3


def test_consecutive_blocks_of_layer_major_memory_are_a_copy_a_layer() -> None:
    layout = layered(64, 6, 1024, interleaved=False)
    assert len(copies(layout, layout, [[(i, i) for i in range(1, 9)]])) == 6


@pytest.mark.parametrize("layers_first", [True, False])
@pytest.mark.parametrize("split", [1, 2])
def test_a_plane_addresses_what_the_view_addresses(layers_first: bool, split: int) -> None:
    """Strided views as vLLM makes them: [blocks, heads, tokens, channels] of one of three layers in one buffer."""
    blocks, heads, tokens, channels, layers, item = 6, 2, 4, 3, 3, 2
    page = heads * tokens * channels * item
    memory = np.arange(blocks * layers * page, dtype=np.uint8)
    block_stride, layer_stride = (page, blocks * page) if layers_first else (layers * page, page)
    for layer in range(layers):
        view = np.lib.stride_tricks.as_strided(
            memory[layer * layer_stride :].view(np.uint16),
            (blocks, heads, tokens, channels),
            (block_stride, tokens * channels * item, channels * item, item),
        )
        elements = [stride // item for stride in view.strides]
        plane = plane_of(0, layer * layer_stride, view.shape, elements, item, split)
        for number in range(blocks // split):
            expected = view[number * split : (number + 1) * split].tobytes()
            got = b"".join(
                memory[number * plane.stride + o : number * plane.stride + o + s].tobytes() for o, s in plane.segments
            )
            assert got == expected


def test_a_view_with_gaps_inside_a_block_is_several_segments() -> None:
    plane = plane_of(0, 0, (4, 2, 8), (64, 32, 1), 1, 1)
    assert plane.segments == ((0, 8), (32, 8))
    assert plane.size == 16


def test_layouts_that_differ_are_told_apart() -> None:
    base = layered(8, 2, 64, interleaved=True)
    assert difference(base, layered(20, 2, 64, interleaved=False)) is None  # sizes and order of memory may differ
    assert "bytes" in (difference(base, layered(8, 2, 32, interleaved=True)) or "")
    assert "KV cache groups" in (difference(base, Layout((), (0,))) or "")
    coarser = Layout((Group(32, base.groups[0].planes),), base.storage_bytes)
    assert "tokens" in (difference(base, coarser) or "")
