"""One end of a proof that KV gets from engine to engine: ``python -m appliance.engine.kv.prove NAME DIRECTORY TRANSPORT BYTES``.

It has memory as a KV cache has, full of bytes that its name decides, exports it and answers handshakes. On its standard input,
``pull PEER [PIECES]`` brings so many of a peer's blocks over at once, in places at random, again and again until some tenths of a second
are over, looks at every byte, and answers with a line of JSON: a ``Moved``. ``disturb PEER PIECES`` does the same beside kernels that read
memory as decoding does. Everything else ends it.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
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
_LEAST: Final = 5  # transfers, however long they take
_STEPS: Final = 50  # that kernels are timed for, alone and beside transfers
_LAYERS: Final = 16
_TRAITS: Final = {"proof": "bytes"}


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a pull. ``error`` None: every byte was right."""

    peer: str
    bytes_s: float | None = None  # median of transfers
    limit_bytes_s: float | None = (
        None  # of plain copies: of as many pieces within this process; on a GPU, of as many bytes in one run
    )
    seconds: float | None = None  # of one transfer, median
    device_bytes_s: float | None = None  # of a copy of as many bytes within this process's own GPU
    disturbed: float | None = None  # time that a kernel takes beside transfers, of what it takes alone
    transfers: int = 0
    staged: bool = False  # by way of the host's memory
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

    def pull(self, peer: str, pieces: int = _PULL) -> Moved:
        """Bring some of it over, and look at every byte."""
        return self._with(peer, lambda memory: self._measured(peer, memory, pieces))

    def disturb(self, peer: str, pieces: int) -> Moved:
        """Bring some of it over beside kernels, and say how much longer these take."""
        return self._with(peer, lambda memory: self._disturbed(peer, memory, pieces))

    def _with(self, peer: str, do: Callable[[PeerMemory], Moved]) -> Moved:
        try:
            manifest, descriptors = ask(str(self._directory / peer), peer)
            memory = self._transport.open(manifest.handles, descriptors, manifest.layout.storage_bytes)
        except HandoffError as error:
            return Moved(peer=peer, error=str(error))
        try:
            return do(memory)
        except HandoffError as error:
            return Moved(peer=peer, error=str(error))
        finally:
            memory.close()

    def _measured(self, peer: str, memory: PeerMemory, pieces: int) -> Moved:
        chance, theirs = random.Random(peer), pattern(peer, self._pieces).view(self._pieces, -1)
        times: list[float] = []
        plain: list[float] = []
        device: list[float] = []
        until = time.perf_counter() + _FOR_S
        while len(times) < _LEAST or time.perf_counter() < until:
            pairs = self._pairs(chance, pieces)
            times.append(_took_s(memory, _copies(pairs)))
            if wrong := self._wrong(theirs, pairs):
                return Moved(
                    peer=peer, error=f"{wrong} of {len(pairs)} pieces arrived with other bytes than they were sent with"
                )
            plain.append(self._plain_s(memory, self._pairs(chance, pieces)))
            device += self._device_s(pieces)
        moved = pieces * PIECE_BYTES
        return Moved(
            peer=peer,
            bytes_s=moved / median(times),
            limit_bytes_s=moved / median(plain),
            seconds=median(times),
            device_bytes_s=moved / median(device) if device else None,
            transfers=len(times),
            staged=memory.staged,
        )

    def _disturbed(self, peer: str, memory: PeerMemory, pieces: int) -> Moved:
        chance, kernels = random.Random(peer), Kernels(self._memory.device)
        kernels.step_s()  # the first is slow
        alone = [kernels.step_s() for _ in range(_STEPS)]
        over, transfers = threading.Event(), 0

        def transfer() -> None:
            nonlocal transfers
            while not over.is_set():
                memory.copy(_copies(self._pairs(chance, pieces)))
                transfers += 1

        beside = threading.Thread(target=transfer)
        beside.start()
        try:
            together = [kernels.step_s() for _ in range(_STEPS)]
        finally:
            over.set()
            beside.join()
        return Moved(peer=peer, disturbed=median(together) / median(alone), transfers=transfers, staged=memory.staged)

    def _pairs(self, chance: random.Random, pieces: int) -> list[tuple[int, int]]:
        everywhere = range(self._pieces)
        return list(zip(chance.sample(everywhere, pieces), chance.sample(everywhere, pieces), strict=True))

    def _wrong(self, theirs: torch.Tensor, pairs: list[tuple[int, int]]) -> int:
        sources, targets = (torch.tensor(ends) for ends in zip(*pairs, strict=True))
        ours = self._memory.view(self._pieces, -1).index_select(0, targets.to(self._memory.device)).cpu()
        return int((ours != theirs.index_select(0, sources)).any(dim=1).sum())

    def _plain_s(self, memory: PeerMemory, pairs: list[tuple[int, int]]) -> float:
        """As many bytes, copied as plainly as can be: from a GPU in one run, over the same way."""
        if self._memory.is_cuda:
            return _took_s(memory, [Copy(0, 0, 1, 0, len(pairs) * PIECE_BYTES)])
        source, target, began = self._ours.data_ptr(), self._memory.data_ptr(), time.perf_counter()
        for here, there in pairs:
            ctypes.memmove(target + there * PIECE_BYTES, source + here * PIECE_BYTES, PIECE_BYTES)
        return time.perf_counter() - began

    def _device_s(self, pieces: int) -> list[float]:
        """As many bytes from place to place on this GPU; nothing where there is none."""
        if not self._memory.is_cuda:
            return []
        stream, size = torch.cuda.current_stream(), pieces * PIECE_BYTES
        stream.synchronize()
        began = time.perf_counter()
        self._memory[:size].copy_(self._ours[:size])
        stream.synchronize()
        return [time.perf_counter() - began]


class Kernels:
    """Products of a matrix and a vector, as decoding makes them: as fast as memory is read."""

    def __init__(self, device: torch.device) -> None:
        side = 12_288 if device.type == "cuda" else 512
        self._matrix = torch.ones(
            (side, side), dtype=torch.float16 if device.type == "cuda" else torch.float32, device=device
        )
        self._vector = torch.ones(side, dtype=self._matrix.dtype, device=device)

    def step_s(self) -> float:
        """Of a good dozen layers."""
        self._wait()
        began = time.perf_counter()
        for _ in range(_LAYERS):
            torch.mv(self._matrix, self._vector)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        """For these, and not for copies that are under way beside them."""
        if self._matrix.is_cuda:
            torch.cuda.current_stream().synchronize()


def _copies(pairs: list[tuple[int, int]]) -> list[Copy]:
    return [Copy(0, here * PIECE_BYTES, 1, there * PIECE_BYTES, PIECE_BYTES) for here, there in pairs]


def _took_s(memory: PeerMemory, wanted: list[Copy]) -> float:
    began = time.perf_counter()
    memory.copy(wanted)
    return time.perf_counter() - began


def pattern(name: str, pieces: int) -> torch.Tensor:
    """Bytes that the name decides."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(0, 256, (pieces * PIECE_BYTES,), dtype=torch.uint8, generator=generator)


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
        verb, *rest = line.split()
        if verb not in ("pull", "disturb"):
            return
        peer, pieces = rest[0], int(rest[1]) if len(rest) > 1 else _PULL
        _say(mover.pull(peer, pieces) if verb == "pull" else mover.disturb(peer, pieces))


def _say(moved: Moved) -> None:
    sys.stdout.write(msgspec.json.encode(moved).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
