"""KV over CUDA IPC between processes, on every pair of GPUs and on each: rates, the fixed cost, and what it does to kernels beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from appliance.checks.movers import Moved, Mover
from appliance.records import Card, Role
from appliance.supervisor.specs import CUDA_IPC, EngineSpec
from bench.gpu_report import Finding, at_least, at_most

ROOT: Final = Path(__file__).parents[1]
PIECE_BYTES: Final = 64 << 10
PIECES: Final = (1, 16, 256, 1024, 4096)  # of one transfer: 64 KiB to 256 MiB
_MEMORY_BYTES: Final = 512 << 20
_LARGE: Final = 256  # pieces, from which on the rate counts
_RATE: Final = 0.8  # of a plain copy of as many bytes, over the same way
_FIXED_S: Final = 100e-6
_DISTURBED: Final = 1.05
_BESIDE: Final = 1024  # pieces of the transfers beside which kernels are timed


def findings(cards: Sequence[Card], directory: Path, transport: str = CUDA_IPC) -> Iterator[Finding]:
    """Each way, each pair; two processes on one GPU count as one."""
    movers = {(card.index, twin): _mover(card, twin, directory, transport) for card in cards for twin in (0, 1)}
    try:
        for mover in movers.values():
            if (why := mover.ready()) is not None:
                yield Finding(f"memory of {mover.name} shared", why, False)
                return
        for one in cards:
            for other in cards:
                yield from pair(movers[one.index, 0], movers[other.index, 1], same=one is other)
    finally:
        for mover in movers.values():
            mover.end()


def _mover(card: Card, twin: int, directory: Path, transport: str) -> Mover:
    """Sees that GPU only."""
    spec = EngineSpec(
        name=f"gpu{card.index}" + "b" * twin,
        role=Role.BOTH,
        cores=(),
        tensor_parallel=1,
        arguments=(),
        environment={"CUDA_VISIBLE_DEVICES": card.uuid},
        gpus=(card.uuid,),
        transport=transport,
    )
    return Mover(spec, directory, transport, {**os.environ, "PYTHONPATH": str(ROOT)}, _MEMORY_BYTES)


def pair(producer: Mover, consumer: Mover, *, same: bool) -> Iterator[Finding]:
    """From one process to the other. ``same``: on one GPU."""
    way = f"{producer.name} → {consumer.name}"
    for pieces in PIECES:
        yield from judged(f"{way}, {_size(pieces)}", consumer.pull(producer.name, pieces), pieces, same=same)
    moved = consumer.disturb(producer.name, _BESIDE)
    if moved.error is not None:
        yield Finding(f"{way}, kernels beside it", moved.error, False)
    else:
        yield at_most(f"{way}, time of kernels beside transfers of {_size(_BESIDE)}", moved.disturbed, _DISTURBED, "×")


def judged(what: str, moved: Moved, pieces: int, *, same: bool) -> Iterator[Finding]:
    """One size. Small transfers are held to a time, large ones to a rate."""
    if moved.error is not None or moved.bytes_s is None or moved.seconds is None:
        yield Finding(what, moved.error or "it said nothing", False)
        return
    staged = " by way of the host's memory" if moved.staged else ""
    yield Finding(
        what, f"{moved.bytes_s / 1e9:.1f} GB/s, {moved.seconds * 1e6:.0f} µs each, every byte right{staged}", True
    )
    if pieces == PIECES[0]:
        yield at_most(f"{what}: all of it", moved.seconds * 1e6, _FIXED_S * 1e6, " µs")
    if pieces >= _LARGE:
        yield at_least(f"{what}: of a plain copy over the same way", _share(moved.bytes_s, moved.limit_bytes_s), _RATE)
        if same:
            yield at_least(f"{what}: of a copy within one process", _share(moved.bytes_s, moved.device_bytes_s), _RATE)


def _share(value: float, of: float | None) -> float | None:
    return value / of if of else None


def _size(pieces: int) -> str:
    size = pieces * PIECE_BYTES
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
