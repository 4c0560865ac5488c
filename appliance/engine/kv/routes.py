"""Which bytes one rank copies from which ranks of a peer, and the fewest copies that bring a list of blocks. Pure.

Tensor-parallel ranks have a layer's heads by halves, quarters and so on, or, where there are fewer heads than ranks, the same ones several
times. A rank needs the heads that it has, wherever they lie at the peer: so it asks of whom each can be had, and the sizes of both sides
never meet in a formula. What does not change from pull to pull is worked out once, when two engines meet.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from appliance.engine.kv.layout import BY_TOKEN, Axis, Group, Layout, Plane

Pairs = Sequence[tuple[int, int]]  # (peer's block id, local block id)


class Copy(msgspec.Struct, frozen=True):
    """``size`` bytes from ``source`` in the peer's storage to ``target`` in the local one."""

    source_storage: int
    source: int
    target_storage: int
    target: int
    size: int


class Lane(msgspec.Struct, frozen=True):
    """Of each block of a group, the bytes that go from one storage to another: (source, target, size) from where the block begins.

    A peer's block ``b`` begins at ``b * source_stride``, ours at ``b * target_stride``.
    """

    source_storage: int
    source_stride: int
    target_storage: int
    target_stride: int
    segments: tuple[tuple[int, int, int], ...]


class Route(msgspec.Struct, frozen=True):
    """What is copied from one rank of a peer: the lanes of each KV group."""

    rank: int
    lanes: tuple[tuple[Lane, ...], ...]


def difference(ours: Layout, theirs: Sequence[Layout]) -> str | None:
    """Why blocks can't be copied from a peer's ranks, or None if they can.

    Storages may differ in size, and so may strides and offsets, and who has which heads. A head's part of a block may not.
    """
    for rank, layout in enumerate(theirs):
        if len(ours.groups) != len(layout.groups):
            return f"{len(ours.groups)} KV cache groups here, {len(layout.groups)} there"
        for index, (our, their) in enumerate(zip(ours.groups, layout.groups, strict=True)):
            if reason := _group_difference(our, their):
                return f"KV group {index} (rank {rank} there): {reason}"
    found = (_want(our, owners) for our, *owners in zip(_planes(ours), *map(_planes, theirs), strict=True))
    return next((reason for reason in found if reason), None)


def _planes(layout: Layout) -> list[Plane]:
    return [plane for group in layout.groups for plane in group.planes]


def _group_difference(our: Group, their: Group) -> str | None:
    if our.kind != their.kind:
        return f"{our.kind} here, {their.kind} there"
    if our.kind not in BY_TOKEN:
        return f"what its layers keep ({our.kind}) can't be handed over: serve this model with engines that do both (topology Nb)"
    if our.block_tokens != their.block_tokens:
        return f"blocks of {our.block_tokens} tokens here, {their.block_tokens} there: start both with the same --block-size"
    if [plane.layer for plane in our.planes] != [plane.layer for plane in their.planes]:
        return f"{len(our.planes)} layers here, {len(their.planes)} there, or others"
    found = (_plane_difference(*planes) for planes in zip(our.planes, their.planes, strict=True))
    return next((reason for reason in found if reason), None)


def _plane_difference(our: Plane, their: Plane) -> str | None:
    divided = our.by_head and their.by_head
    if (divided or our.heads == their.heads) and (said := _cell(our)) != (other := _cell(their)):
        return f"layer {our.layer} has {said} here, {other} there"
    if our.heads.total != their.heads.total:
        return f"layer {our.layer} has {our.heads.total} KV heads here, {their.heads.total} there"
    return None


def _want(our: Plane, owners: Sequence[Plane]) -> str | None:
    """What a layer lacks at the ranks of a peer."""
    missing = set(our.heads.numbers).difference(*(plane.heads.numbers for plane in owners))
    if missing:
        return f"no rank there has KV head {min(missing)} of layer {our.layer}"
    equal = [plane for plane in owners if plane.heads == our.heads]
    if any(plane.slots.count != our.slots.count for plane in equal):
        return f"layer {our.layer} is laid out otherwise there"
    if not equal and not all(plane.by_head for plane in (our, *owners)):
        return (
            f"this attention backend puts the KV heads of layer {our.layer} together, so that they can't be divided: "
            "give both engines one tensor-parallel size"
        )
    return None


def _cell(plane: Plane) -> str:
    if plane.parts.count == 1:
        return f"{plane.states.count} × {plane.cell} bytes per head"
    return f"{plane.parts.count} × {plane.states.count} × {plane.cell} bytes per head"


def routes(ours: Layout, theirs: Sequence[Layout], rank: int, ranks: int) -> tuple[Route, ...]:
    """The routes to rank ``rank`` of ours, of ``ranks``, from each rank of theirs that it needs. There must be no ``difference``.

    Of several ranks that have the same head, the one that lies as this rank does is taken: so none is asked by all.
    """
    near = rank * len(theirs) // ranks
    found: defaultdict[int, list[list[tuple[Plane, Plane, list[int]]]]] = defaultdict(lambda: [[] for _ in ours.groups])
    for index, group in enumerate(ours.groups):
        for number, plane in enumerate(group.planes):
            owners = [layout.groups[index].planes[number] for layout in theirs]
            for owner, heads in _shared_out(plane, owners, near).items():
                found[owner][index].append((plane, owners[owner], heads))
    return tuple(
        Route(owner, tuple(tuple(_lanes(parts)) for parts in groups)) for owner, groups in sorted(found.items())
    )


def _shared_out(plane: Plane, owners: Sequence[Plane], near: int) -> dict[int, list[int]]:
    """By rank of theirs, the heads that are to come from it."""
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for head in plane.heads.numbers:
        having = [rank for rank, owner in enumerate(owners) if head in owner.heads.numbers]
        wanted[min(having, key=lambda rank: abs(rank - near))].append(head)
    return wanted


def _lanes(parts: Iterable[tuple[Plane, Plane, list[int]]]) -> Iterator[Lane]:
    """Of one group. Layers that lie in the same storages in the same steps are one lane."""
    segments: defaultdict[tuple[int, int, int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for target, source, heads in parts:
        key = (source.storage, source.stride, target.storage, target.stride)
        segments[key].extend(_segments(target, source, heads))
    for (source_storage, source_stride, target_storage, target_stride), found in segments.items():
        merged = tuple(_merged(sorted(found)))
        yield Lane(source_storage, source_stride, target_storage, target_stride, merged)


def _segments(target: Plane, source: Plane, heads: list[int]) -> Iterator[tuple[int, int, int]]:
    """Where the heads' bytes lie in a block, there and here. ``heads`` are neighbours on both sides, or all that there are."""
    if source.heads == target.heads and len(heads) == target.heads.count:
        slots, from_slot, to_slot = target.slots.count, 0, 0
    else:
        slots, from_slot, to_slot = len(heads), heads[0] - source.heads.first, heads[0] - target.heads.first
    axes = [
        (source.parts, target.parts),
        (Axis(slots, source.slots.stride), Axis(slots, target.slots.stride)),
        (source.states, target.states),
    ]
    grid, run = _collapsed(axes, target.cell)
    start = source.offset + from_slot * source.slots.stride
    end = target.offset + to_slot * target.slots.stride
    for step in itertools.product(*(range(there.count) for there, _ in grid)):
        yield (
            start + sum(index * there.stride for index, (there, _) in zip(step, grid, strict=True)),
            end + sum(index * here.stride for index, (_, here) in zip(step, grid, strict=True)),
            run,
        )


def _collapsed(axes: Iterable[tuple[Axis, Axis]], run: int) -> tuple[list[tuple[Axis, Axis]], int]:
    """The axes that are left when the innermost ones that are dense on both sides have become part of the run, and the run's bytes."""
    grid = sorted((pair for pair in axes if pair[0].count > 1), key=lambda pair: -pair[0].stride)
    while grid and grid[-1][0].stride == grid[-1][1].stride == run:
        run *= grid.pop()[0].count
    return grid, run


def _merged(segments: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Segments that touch on both sides, as one."""
    last: tuple[int, int, int] | None = None
    for segment in segments:
        if last is not None and segment[:2] == (last[0] + last[2], last[1] + last[2]):
            last = (*last[:2], last[2] + segment[2])
            continue
        if last is not None:
            yield last
        last = segment
    if last is not None:
        yield last


def copies(route: Route, pairs: Sequence[Pairs]) -> list[Copy]:
    """The copies that bring, for each group, the peer's blocks into the local ones; adjacent bytes in one run.

    Args:
        pairs: per group, (peer's block id, local block id). Pairs with a null block on either side are the caller's error.
    """
    found: list[Copy] = []
    for lanes, blocks in zip(route.lanes, pairs, strict=True):
        runs = list(_runs(blocks))
        for lane in lanes:
            found.extend(_lane_copies(lane, runs))
    return found


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


def _lane_copies(lane: Lane, runs: Sequence[tuple[int, int, int]]) -> Iterator[Copy]:
    for source, target, size in lane.segments:
        dense = size == lane.source_stride == lane.target_stride  # it goes on where the next block's begins
        for from_block, to_block, count in runs:
            for step in range(1 if dense else count):
                start, end = (from_block + step) * lane.source_stride, (to_block + step) * lane.target_stride
                moved = size * count if dense else size
                yield Copy(lane.source_storage, start + source, lane.target_storage, end + target, moved)
