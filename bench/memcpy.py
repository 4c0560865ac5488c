"""What this machine copies at best: ``ctypes.memmove`` of scattered pieces between two shared mappings, in one thread.

A bound for hand-offs, which do the same between two processes: ``python -m bench.memcpy``.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import statistics
import sys
import time
from typing import Final

import msgspec

POOL_BYTES: Final = 512 << 20  # per side: as much as the KV caches that it is compared with
PIECE_BYTES: Final = 64 << 10


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """One size of transfer, copied over and over."""

    total_bytes: int
    piece_bytes: int
    copies: int  # pieces of one transfer
    median_s: float
    fastest_s: float
    slowest_s: float

    @property
    def bytes_s(self) -> float:
        """At the median; bytes that arrive, counted once."""
        return self.total_bytes / self.median_s


class Memory:
    """A source and a target of ``POOL_BYTES`` each, every page touched. Use as a context manager."""

    def __init__(self) -> None:
        self._maps = [mmap.mmap(-1, POOL_BYTES, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) for _ in range(2)]
        self._views = [(ctypes.c_char * POOL_BYTES).from_buffer(one) for one in self._maps]
        self._source, self._target = (ctypes.addressof(view) for view in self._views)
        ctypes.memset(self._source, 1, POOL_BYTES)
        ctypes.memset(self._target, 2, POOL_BYTES)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self._views.clear()  # a mapping with a view on it can't be closed
        for one in self._maps:
            one.close()

    def measure(self, total_bytes: int, piece_bytes: int = PIECE_BYTES, rounds: int = 30, seed: int = 0) -> Copied:
        """Copy pieces from places in random order to places in another, new ones each round.

        Raises ``ValueError`` if the pieces don't fit the memory.
        """
        copies = max(1, total_bytes // piece_bytes)
        if not 0 < piece_bytes <= POOL_BYTES or copies > POOL_BYTES // piece_bytes:
            raise ValueError(f"{copies} pieces of {piece_bytes} bytes don't fit into {POOL_BYTES} bytes")
        rng = random.Random(seed)
        times = sorted(self._round(rng, copies, piece_bytes) for _ in range(rounds))
        return Copied(
            total_bytes=copies * piece_bytes,
            piece_bytes=piece_bytes,
            copies=copies,
            median_s=statistics.median(times),
            fastest_s=times[0],
            slowest_s=times[-1],
        )

    def _round(self, rng: random.Random, copies: int, size: int) -> float:
        places = range(POOL_BYTES // size)
        sources = [self._source + place * size for place in rng.sample(places, copies)]
        targets = [self._target + place * size for place in rng.sample(places, copies)]
        began = time.perf_counter()
        for source, target in zip(sources, targets, strict=True):
            ctypes.memmove(target, source, size)
        return time.perf_counter() - began


def main() -> None:
    """A Markdown table."""
    sys.stdout.write("| transfer MiB | piece KiB | GB/s | min–max |\n|---|---|---|---|\n")
    with Memory() as memory:
        for total_bytes in (2 << 20, 7 << 20, 16 << 20):
            for piece_bytes in (8 << 10, PIECE_BYTES, 1 << 20):
                one = memory.measure(total_bytes, piece_bytes)
                slow, fast = one.total_bytes / one.slowest_s / 1e9, one.total_bytes / one.fastest_s / 1e9
                row = (f"{one.total_bytes / 2**20:.0f}", f"{piece_bytes / 1024:.0f}", f"{one.bytes_s / 1e9:.2f}")
                sys.stdout.write(f"| {' | '.join(row)} | {slow:.2f}–{fast:.2f} |\n")


if __name__ == "__main__":
    main()
