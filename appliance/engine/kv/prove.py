"""One end of a proof that KV gets from engine to engine: ``python -m appliance.engine.kv.prove NAME DIRECTORY TRANSPORT BYTES``.

It has memory as a KV cache has, full of bytes that its name decides, exports it and answers handshakes. On its standard input,
``pull PEER`` brings a peer's blocks over, in places at random, until some tenths of a second are over, looks at every byte, and answers
with a line of JSON: a ``Moved``. Everything else ends it.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
import zlib
from pathlib import Path
from typing import Final

import msgspec
import torch

from appliance.engine.kv.handshake import PROTOCOL, KvServer, Manifest, ask, fingerprint
from appliance.engine.kv.layout import Layout
from appliance.engine.kv.routes import Copy
from appliance.engine.kv.transport import MemoryTransport, PeerMemory, open_transport
from appliance.errors import HandoffError

PIECE_BYTES: Final = 64 << 10
_PULL: Final = 128  # pieces of one transfer: 8 MiB
_FOR_S: Final = 0.3
_TRAITS: Final = {"proof": "bytes"}


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a pull. ``error`` None: every byte was right."""

    peer: str
    bytes_s: float | None = None  # median of transfers
    limit_bytes_s: float | None = None  # of plain copies of as many pieces within this process
    transfers: int = 0
    error: str | None = None


class Mover:
    """Its memory, and what it has of others."""

    def __init__(self, name: str, directory: Path, kind: str, size: int) -> None:
        self._directory = directory
        self._pieces = size // PIECE_BYTES
        device = "cuda" if kind == "cuda_ipc" else "cpu"
        self._ours = pattern(name, self._pieces).to(device)  # that others read
        self._memory = torch.zeros_like(self._ours)  # that theirs comes to
        self._transport: MemoryTransport = open_transport(kind)
        handles, descriptors = self._transport.export([one.untyped_storage() for one in (self._ours, self._memory)])
        manifest = Manifest(
            protocol=PROTOCOL,
            engine=name,
            epoch=1,
            rank=0,
            ranks=1,
            transport=kind,
            traits=_TRAITS,
            fingerprint=fingerprint(_TRAITS),
            layout=Layout((), (size, size)),
            handles=tuple(handles),
        )
        KvServer(directory / name, manifest, descriptors)

    def pull(self, peer: str) -> Moved:
        """Bring some of it over, and look at every byte."""
        try:
            manifest, descriptors = ask(str(self._directory / peer), peer)
            memory = self._transport.open(manifest.handles, descriptors, manifest.layout.storage_bytes)
        except HandoffError as error:
            return Moved(peer=peer, error=str(error))
        try:
            return self._measured(peer, memory)
        except HandoffError as error:
            return Moved(peer=peer, error=str(error))
        finally:
            memory.close()

    def _measured(self, peer: str, memory: PeerMemory) -> Moved:
        chance, theirs = random.Random(peer), pattern(peer, self._pieces).view(self._pieces, -1)
        times: list[float] = []
        plain: list[float] = []
        until = time.perf_counter() + _FOR_S
        while not times or time.perf_counter() < until:
            pairs = self._pairs(chance)
            wanted = [Copy(0, here * PIECE_BYTES, 1, there * PIECE_BYTES, PIECE_BYTES) for here, there in pairs]
            began = time.perf_counter()
            memory.copy(wanted)
            times.append(time.perf_counter() - began)
            if wrong := self._wrong(theirs, pairs):
                return Moved(
                    peer=peer, error=f"{wrong} of {len(pairs)} pieces arrived with other bytes than they were sent with"
                )
            plain.append(self._plain_s(self._pairs(chance)))
        moved = _PULL * PIECE_BYTES
        return Moved(
            peer=peer, bytes_s=moved / _median(times), limit_bytes_s=moved / _median(plain), transfers=len(times)
        )

    def _pairs(self, chance: random.Random) -> list[tuple[int, int]]:
        return list(
            zip(chance.sample(range(self._pieces), _PULL), chance.sample(range(self._pieces), _PULL), strict=True)
        )

    def _wrong(self, theirs: torch.Tensor, pairs: list[tuple[int, int]]) -> int:
        ours = self._memory.view(self._pieces, -1)
        return sum(not torch.equal(ours[there].cpu(), theirs[here]) for here, there in pairs)

    def _plain_s(self, pairs: list[tuple[int, int]]) -> float:
        """As many pieces, copied as plainly as this machine can."""
        if self._memory.is_cuda:
            ours, memory = self._ours.view(self._pieces, -1), self._memory.view(self._pieces, -1)
            sources, targets = (torch.tensor(ends, device=ours.device) for ends in zip(*pairs, strict=True))
            torch.cuda.synchronize()
            began = time.perf_counter()
            memory.index_copy_(0, targets, ours.index_select(0, sources))
            torch.cuda.synchronize()
            return time.perf_counter() - began
        source, target, began = self._ours.data_ptr(), self._memory.data_ptr(), time.perf_counter()
        for here, there in pairs:
            ctypes.memmove(target + there * PIECE_BYTES, source + here * PIECE_BYTES, PIECE_BYTES)
        return time.perf_counter() - began


def pattern(name: str, pieces: int) -> torch.Tensor:
    """Bytes that the name decides."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(0, 256, (pieces * PIECE_BYTES,), dtype=torch.uint8, generator=generator)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def main() -> None:
    """See the module."""
    name, directory, kind, size = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    try:
        mover = Mover(name, directory, kind, size)
    except HandoffError as error:
        _say(Moved(peer=name, error=str(error)))
        return
    _say(Moved(peer=name))
    for line in sys.stdin:
        verb, _, peer = line.strip().partition(" ")
        if verb != "pull":
            return
        _say(mover.pull(peer))


def _say(moved: Moved) -> None:
    sys.stdout.write(msgspec.json.encode(moved).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
