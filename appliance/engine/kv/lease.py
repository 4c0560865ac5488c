"""Leases on KV blocks: who may pull what, until when.

The engine that prefilled holds the blocks until every consumer has its copy, somebody cancels, or the deadline passes. Each lease has a
slot in the **lease table**, a small file that peers map: it holds the lease's generation while the lease lives and 0 after. An engine
ends a lease *in the table first* and frees the blocks then; a consumer looks at the table *after* it has copied. What may have
been overwritten is therefore always seen as a failed pull, and never decoded.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

SLOTS: Final = 4096
_TABLE_BYTES: Final = SLOTS * 8


class LeaseTable:
    """Generations by slot, in shared memory. The owner writes, consumers read; a generation is one aligned 8-byte store."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Map the table at ``path``; ``create`` makes it (owner). Raises ``OSError`` if it isn't there."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC if create else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, _TABLE_BYTES)
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if create else 0)
            self._map = mmap.mmap(descriptor, _TABLE_BYTES, mmap.MAP_SHARED, protection)
        finally:
            os.close(descriptor)
        self._generations = memoryview(self._map).cast("Q")

    def __setitem__(self, slot: int, generation: int) -> None:
        self._generations[slot] = generation

    def __getitem__(self, slot: int) -> int:
        """0 for a slot out of range: no lease lives there."""
        return self._generations[slot] if 0 <= slot < SLOTS else 0

    def close(self) -> None:
        self._generations.release()
        self._map.close()


class Table(Protocol):
    """What a book needs of a lease table."""

    def __setitem__(self, slot: int, generation: int) -> None: ...


class HeldLease(msgspec.Struct, kw_only=True):
    """A lease as its owner keeps it. ``blocks`` are ids, all groups together, null blocks left out."""

    id: str
    slot: int
    generation: int
    blocks: tuple[int, ...]
    tokens: int
    consumers: int
    deadline_ns: int


class LeaseBook:
    """All leases of one engine. Every lease that ``grant`` makes is handed back by ``end`` or ``expired`` exactly once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._free = list(range(SLOTS - 1, -1, -1))
        self._held: dict[str, HeldLease] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def blocks(self) -> int:
        """Blocks under lease; one that two leases hold counts twice."""
        return sum(len(lease.blocks) for lease in self._held.values())

    def grant(
        self, lease: str, blocks: tuple[int, ...], tokens: int, consumers: int, deadline_ns: int
    ) -> HeldLease | None:
        """A new lease; None where all slots are taken or the id already is."""
        if lease in self._held or not self._free:
            return None
        self._generation += 1
        held = HeldLease(
            id=lease,
            slot=self._free.pop(),
            generation=self._generation,
            blocks=blocks,
            tokens=tokens,
            consumers=consumers,
            deadline_ns=deadline_ns,
        )
        self._held[lease] = held
        self._table[held.slot] = held.generation
        return held

    def end(self, lease: str, *, all_consumers: bool) -> HeldLease | None:
        """One consumer is done, or all of them. The lease, if that ended it; its blocks are then the caller's to free."""
        held = self._held.get(lease)
        if held is None:
            return None
        held.consumers = 0 if all_consumers else held.consumers - 1
        return self._forget(held) if held.consumers <= 0 else None

    def expired(self, now_ns: int) -> Iterator[HeldLease]:
        """End and yield the leases whose deadline has passed."""
        for held in [held for held in self._held.values() if held.deadline_ns <= now_ns]:
            yield self._forget(held)

    def _forget(self, held: HeldLease) -> HeldLease:
        self._table[held.slot] = 0
        del self._held[held.id]
        self._free.append(held.slot)
        return held
