"""Where a KV block's bytes lie in the memory of one rank. Pure: integers in, integers out; ``routes.py`` says what is copied where.

vLLM addresses KV by (group, block): a group is a set of layers that share block ids; groups may overlay each other in one
storage, so that layers are never an address. Within a block, a layer has a grid of cells: one for each KV head and token. Block 0 is
vLLM's null block and is never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.errors import HandoffError

BY_TOKEN: Final = frozenset(
    {"full_attention", "mla_attention", "sliding_window", "sliding_window_mla", "chunked_local_attention"}
)
"""Kinds of groups in which each token has a place of its own. Others have one state for all tokens (Mamba), which can't be taken back by
the one token that a decode engine computes again, or memory that we don't know."""


class Axis(msgspec.Struct, frozen=True):
    """``count`` things that lie ``stride`` bytes apart."""

    count: int
    stride: int


class Heads(msgspec.Struct, frozen=True):
    """The KV heads of a layer that one rank has: ``count`` from ``first`` on, of ``total``.

    A latent (MLA) is one head that every rank has.
    """

    first: int
    count: int
    total: int

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)


class Plane(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's KV: in each block, a cell of ``cell`` bytes for each part, slot and state.

    ``parts`` are the blocks of the attention kernel that one of the scheduler's consists of, ``slots`` those of heads, ``states`` those
    of tokens. The cell of block ``b`` at ``(part, slot, state)`` begins at
    ``offset + b * stride + part * parts.stride + slot * slots.stride + state * states.stride`` of the storage.
    """

    layer: str
    storage: int
    offset: int
    stride: int
    parts: Axis
    slots: Axis
    states: Axis
    cell: int
    heads: Heads

    @property
    def size(self) -> int:
        """Bytes of one block."""
        return self.parts.count * self.slots.count * self.states.count * self.cell

    @property
    def by_head(self) -> bool:
        """Whether each slot is a head. Some attention backends put K and V of all heads into a slot each."""
        return self.slots.count == self.heads.count


class Group(msgspec.Struct, frozen=True):
    """One KV cache group: its planes in the order of its layers, and none if its ``kind``, in vLLM's words, is not ``BY_TOKEN``."""

    kind: str
    block_tokens: int
    planes: tuple[Plane, ...]


class Layout(msgspec.Struct, frozen=True):
    """The KV memory of one worker rank."""

    groups: tuple[Group, ...]
    storage_bytes: tuple[int, ...]


def plane_of(
    *,
    layer: str,
    storage: int,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    item: int,
    split: int,
    heads: Heads,
) -> Plane:
    """The plane of one layer's view ``[blocks, slots, states, content]``, as all of vLLM's views are.

    Args:
        layer: its name.
        storage: index of the storage that the view lies in.
        offset: of the view in it, bytes.
        shape, strides: of the view, in elements; dimension 0 counts the kernel's blocks.
        item: bytes of an element.
        split: kernel blocks per block of the scheduler's.
        heads: that this rank has.

    Raises:
        HandoffError: the view is of another form.
    """
    if len(shape) != 4 or (strides[3] != 1 and shape[3] > 1):
        raise HandoffError(
            f"the KV cache of layer {layer} is not one of blocks, heads, tokens and content "
            f"(shape {list(shape)}, strides {list(strides)}): it can't be handed over"
        )
    block, slot, state = (stride * item for stride in strides[:3])
    return Plane(
        layer=layer,
        storage=storage,
        offset=offset,
        stride=block * split,
        parts=Axis(split, block),
        slots=Axis(shape[1], slot),
        states=Axis(shape[2], state),
        cell=shape[3] * item,
        heads=heads,
    )


def heads_of(rank: int, ranks: int, total: int) -> Heads:
    """The heads of ``total`` that a rank has: an equal part of them, or one, where there are fewer heads than ranks.

    As vLLM shares them out (``QKVParallelLinear``): neighbouring ranks then have the same head.

    Raises:
        HandoffError: they can't be shared out so.
    """
    if total % ranks and ranks % total:
        raise HandoffError(f"{total} KV heads can't be shared out to {ranks} ranks")
    count = max(1, total // ranks)
    return Heads(rank * total // ranks, count, total)


def held_of(rank: int, ranks: int, held: int, shards: int | None, of_model: int) -> Heads:
    """The heads that a rank has of a layer of which it has ``held``.

    With more heads than one on each rank, none is on two. Where each has one, only the model says of how many.

    Args:
        held: heads on each rank.
        shards: into how many different parts the layer's KV is divided at the most, where vLLM tells: 1 for a latent.
        of_model: KV heads of the model.
    """
    if shards is not None:
        total = held * min(ranks, shards)
    elif held > 1 or ranks == 1:
        total = held * ranks
    else:
        total = min(ranks, of_model)
    return heads_of(rank, ranks, total)
