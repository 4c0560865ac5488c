"""Where a KV block's bytes lie, and the fewest copies that move a list of blocks. Pure: integers in, integers out.

vLLM addresses KV by (group, block): a group is a set of layers that share block ids; groups may overlay each other in one
storage, so that layers are never an address. Block 0 is vLLM's null block and is never copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec


class Plane(msgspec.Struct, frozen=True):
    """Bytes of one layer: those of block ``b`` lie at ``b * stride + offset`` for each (offset, size) segment, in bytes."""

    storage: int
    stride: int
    segments: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes of one block."""
        return sum(size for _, size in self.segments)


class Group(msgspec.Struct, frozen=True):
    """One KV cache group: its planes in the order of its layers."""

    block_tokens: int
    planes: tuple[Plane, ...]

    @property
    def block_bytes(self) -> int:
        return sum(plane.size for plane in self.planes)


class Layout(msgspec.Struct, frozen=True):
    """The KV memory of one worker rank."""

    groups: tuple[Group, ...]
    storage_bytes: tuple[int, ...]


class Copy(msgspec.Struct, frozen=True):
    """``size`` bytes from ``source`` in the peer's storage to ``target`` in the local one."""

    source_storage: int
    source: int
    target_storage: int
    target: int
    size: int


Pairs = Sequence[tuple[int, int]]  # (peer's block id, local block id)


def plane_of(storage: int, offset: int, shape: Sequence[int], strides: Sequence[int], item: int, split: int) -> Plane:
    """The plane of one layer's view ``[blocks, …]``.

    Args:
        storage: index of the storage that the view lies in.
        offset: of the view in it, bytes.
        shape, strides: of the view, in elements; dimension 0 counts kernel blocks.
        item: bytes of an element.
        split: kernel blocks per block of the scheduler's.
    """
    inner = [0]
    run = item
    for size, stride in sorted(zip(shape[1:], strides[1:], strict=True), key=lambda pair: pair[1]):
        if stride * item == run:
            run *= size
        elif size > 1:
            inner = [base + i * stride * item for i in range(size) for base in inner]
    starts = [offset + part * strides[0] * item + base for part in range(split) for base in inner]
    return Plane(storage, strides[0] * item * split, tuple(_merged((start, run) for start in sorted(starts))))


def _merged(segments: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for next_start, next_size in segments:
        if size and next_start == start + size:
            size += next_size
            continue
        if size:
            yield start, size
        start, size = next_start, next_size
    if size:
        yield start, size


def difference(ours: Layout, theirs: Layout) -> str | None:
    """Why blocks can't be copied between two layouts, or None if they can.

    Storages may differ in size, and so may strides and offsets; what must agree is the bytes of each block, piece by piece.
    """
    if len(ours.groups) != len(theirs.groups):
        return f"{len(ours.groups)} KV cache groups here, {len(theirs.groups)} there"
    for index, (our, their) in enumerate(zip(ours.groups, theirs.groups, strict=True)):
        if our.block_tokens != their.block_tokens:
            return f"KV group {index}: blocks of {our.block_tokens} tokens here, {their.block_tokens} there"
        if _shape(our) != _shape(their):
            return f"KV group {index}: blocks of {our.block_bytes} bytes here, {their.block_bytes} there, or laid out otherwise"
    return None


def _shape(group: Group) -> list[list[int]]:
    return [[size for _, size in plane.segments] for plane in group.planes]


def copies(ours: Layout, theirs: Layout, pairs: Sequence[Pairs]) -> list[Copy]:
    """The copies that bring, for each group, the peer's blocks into the local ones; adjacent bytes in one run.

    Args:
        pairs: per group, (peer's block id, local block id). Pairs with a null block on either side are the caller's error.
    """
    found: list[Copy] = []
    for our, their, blocks in zip(ours.groups, theirs.groups, pairs, strict=True):
        runs = list(_runs(blocks))
        for target, source in zip(our.planes, their.planes, strict=True):
            found.extend(_plane_copies(target, source, runs))
    return list(_joined(sorted(found, key=lambda copy: (copy.source_storage, copy.target_storage, copy.source))))


def _runs(pairs: Pairs) -> Iterator[tuple[int, int, int]]:
    """Pairs that are consecutive on both sides, as (source, target, count)."""
    count = 0
    first: tuple[int, int] = (0, 0)
    for source, target in sorted(pairs):
        if count and (source, target) == (first[0] + count, first[1] + count):
            count += 1
            continue
        if count:
            yield (*first, count)
        first, count = (source, target), 1
    if count:
        yield (*first, count)


def _plane_copies(target: Plane, source: Plane, runs: Iterable[tuple[int, int, int]]) -> Iterator[Copy]:
    whole = len(target.segments) == 1 and target.stride == source.stride == target.size
    for from_block, to_block, count in runs:
        for step in (0,) if whole else range(count):
            for (from_offset, size), (to_offset, _) in zip(source.segments, target.segments, strict=True):
                yield Copy(
                    source.storage,
                    (from_block + step) * source.stride + from_offset,
                    target.storage,
                    (to_block + step) * target.stride + to_offset,
                    size * count if whole else size,
                )


def _joined(ordered: Iterable[Copy]) -> Iterator[Copy]:
    """Copies that touch on both sides, as one."""
    last: Copy | None = None
    for copy in ordered:
        if last is not None and _touch(last, copy):
            last = Copy(last.source_storage, last.source, last.target_storage, last.target, last.size + copy.size)
            continue
        if last is not None:
            yield last
        last = copy
    if last is not None:
        yield last


def _touch(first: Copy, second: Copy) -> bool:
    return (
        (first.source_storage, first.target_storage) == (second.source_storage, second.target_storage)
        and second.source == first.source + first.size
        and second.target == first.target + first.size
    )
