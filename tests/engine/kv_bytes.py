"""The KV memory of real engines, read by a test: it asks for it as a peer would."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
from pair import Engine

from appliance.engine.kv.handshake import Manifest, ask
from appliance.engine.kv.layout import Plane


class Memory:
    """Of all ranks of one engine, mapped."""

    def __init__(self, engine: Engine) -> None:
        assert engine.ready is not None
        self.blocks = engine.ready.kv_blocks + 1
        self.ranks: list[Manifest] = []
        self._storages: list[list[np.ndarray]] = []
        for socket in engine.ready.sockets:
            manifest, descriptors = ask(socket, engine.name)
            self.ranks.append(manifest)
            self._storages.append(
                [
                    np.frombuffer(mmap.mmap(one, size, mmap.MAP_SHARED, mmap.PROT_READ), dtype=np.uint8)
                    for one, size in zip(descriptors, manifest.layout.storage_bytes, strict=True)
                ]
            )
            for descriptor in descriptors:
                os.close(descriptor)

    def planes(self, rank: int, group: int) -> tuple[Plane, ...]:
        return self.ranks[rank].layout.groups[group].planes

    def head(self, rank: int, plane: Plane, block: int, head: int) -> bytes:
        """What a rank has of a head in a block of a layer."""
        start = plane.offset + block * plane.stride + (head - plane.heads.first) * plane.slots.stride
        cells = np.lib.stride_tricks.as_strided(
            self._storages[rank][plane.storage][start:],
            (plane.parts.count, plane.states.count, plane.cell),
            (plane.parts.stride, plane.states.stride, 1),
        )
        return cells.tobytes()

    def owner(self, group: int, layer: int, head: int) -> int:
        """A rank that has the head."""
        return next(r for r in range(len(self.ranks)) if head in self.planes(r, group)[layer].heads.numbers)

    def everywhere(self, rank: int, plane: Plane, head: int) -> set[bytes]:
        """The same of all blocks."""
        return {self.head(rank, plane, block, head) for block in range(self.blocks)}


def missing(theirs: Memory, ours: Memory, group: int, block: int) -> Iterator[str]:
    """What of a block of theirs is nowhere in ours: heads that a rank of ours has, layer by layer."""
    for rank in range(len(ours.ranks)):
        for layer, plane in enumerate(ours.planes(rank, group)):
            for head in plane.heads.numbers:
                owner = theirs.owner(group, layer, head)
                wanted = theirs.head(owner, theirs.planes(owner, group)[layer], block, head)
                assert any(wanted), "nothing was computed"
                if wanted not in ours.everywhere(rank, plane, head):
                    yield f"head {head} of {plane.layer}, block {block}, on rank {rank}"
