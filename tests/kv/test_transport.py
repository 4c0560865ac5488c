"""One conformance suite over every memory transport: two processes, real mappings, every byte compared."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from exporter import LAYERS, PAGE, layout_of, pattern

from appliance.engine.kv.handshake import ask
from appliance.engine.kv.routes import Copy, copies, routes
from appliance.engine.kv.transport import MemoryTransport, PeerMemory, open_transport
from appliance.errors import HandoffError

BLOCKS, LOCAL_BLOCKS = 24, 40
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
KINDS = [
    "shared_memory",
    pytest.param("cuda_ipc", marks=[pytest.mark.gpu, no_gpu]),
]


class Exporter:
    """The other process."""

    def __init__(self, kind: str, socket: Path) -> None:
        self.socket = socket
        command = [sys.executable, str(Path(__file__).parent / "exporter.py"), kind, str(socket), str(BLOCKS), "1"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._expect("ready\n")

    def fill(self, seed: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"fill {seed}\n")
        self.process.stdin.flush()
        self._expect("filled\n")

    def _expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def exporter(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    running = Exporter(kind, tmp_path_factory.mktemp("kv") / "socket")
    yield running
    running.end()


class Local:
    """Our own memory, exported, with a peer's mapped beside it."""

    def __init__(self, kind: str) -> None:
        self.memory = torch.zeros(
            LOCAL_BLOCKS * LAYERS * PAGE, dtype=torch.uint8, device="cuda" if kind == "cuda_ipc" else "cpu"
        )
        self.transport: MemoryTransport = open_transport(kind)
        self.transport.export([self.memory.untyped_storage()])

    def open(self, exporter: Exporter) -> PeerMemory:
        manifest, descriptors = ask(str(exporter.socket), "e0")
        return self.transport.open(manifest.handles, descriptors, manifest.layout.storage_bytes)

    def block(self, number: int) -> torch.Tensor:
        size = LAYERS * PAGE
        return self.memory[number * size : (number + 1) * size].cpu()


def planned(pairs: list[tuple[int, int]]) -> list[Copy]:
    [route] = routes(layout_of(LOCAL_BLOCKS), [layout_of(BLOCKS)], 0, 1)
    return copies(route, [pairs])


@pytest.fixture
def local(kind: str) -> Local:
    return Local(kind)


def test_every_byte_arrives_and_the_rest_is_untouched(local: Local, exporter: Exporter) -> None:
    exporter.fill(5)
    peer, theirs = local.open(exporter), pattern(BLOCKS, 5).view(BLOCKS, -1)
    rng = random.Random(3)
    pairs = list(zip(rng.sample(range(1, BLOCKS), 15), rng.sample(range(1, LOCAL_BLOCKS), 15), strict=True))
    peer.copy(planned(pairs))
    for source, target in pairs:
        assert torch.equal(local.block(target), theirs[source])
    written = {target for _, target in pairs}
    assert all(not local.block(number).any() for number in range(LOCAL_BLOCKS) if number not in written)
    peer.close()


def test_what_the_owner_writes_after_the_mapping_is_seen(local: Local, exporter: Exporter) -> None:
    peer = local.open(exporter)
    for seed in (11, 12):
        exporter.fill(seed)
        peer.copy(planned([(7, 9)]))
        assert torch.equal(local.block(9), pattern(BLOCKS, seed).view(BLOCKS, -1)[7])
    peer.close()


def test_a_closed_mapping_refuses_copies(local: Local, exporter: Exporter) -> None:
    peer = local.open(exporter)
    peer.close()
    with pytest.raises(HandoffError, match="closed"):
        peer.copy([Copy(0, 0, 0, 0, PAGE)])
    peer.close()  # again is harmless


@pytest.mark.parametrize(
    ("copy", "whose"),
    [
        (Copy(0, (BLOCKS * LAYERS - 1) * PAGE + 1, 0, 0, PAGE), "the peer's memory"),
        (Copy(0, 0, 0, (LOCAL_BLOCKS * LAYERS - 1) * PAGE + 1, PAGE), "our own memory"),
    ],
)
def test_a_copy_out_of_bounds_moves_nothing(local: Local, exporter: Exporter, copy: Copy, whose: str) -> None:
    peer = local.open(exporter)
    with pytest.raises(HandoffError, match=whose):
        peer.copy([Copy(0, 0, 0, 0, PAGE), copy])
    assert not local.memory.any()
    peer.close()


def test_memory_shorter_than_announced_is_refused(local: Local, exporter: Exporter) -> None:
    manifest, descriptors = ask(str(exporter.socket), "e0")
    with pytest.raises(HandoffError, match="announced"):
        local.transport.open(manifest.handles, descriptors, [manifest.layout.storage_bytes[0] + (1 << 20)])


def test_descriptors_and_mappings_do_not_leak(local: Local, exporter: Exporter) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    local.open(exporter).close()
    before = open_files(), mappings()
    for _ in range(20):
        local.open(exporter).close()
    assert open_files() == before[0]
    assert mappings() <= before[1] + 2


def test_an_owner_that_dies_leaves_the_mapping_readable(kind: str, local: Local, tmp_path: Path) -> None:
    """A pull that began before the death ends well: the bytes are still those that were leased."""
    if kind == "cuda_ipc":
        pytest.skip(
            "CUDA promises nothing of memory whose owner has ended: its engine is told of the death, and unmaps"
        )
    dying = Exporter(kind, tmp_path / "socket")
    peer = local.open(dying)
    dying.end()
    peer.copy(planned([(3, 4)]))
    assert torch.equal(local.block(4), pattern(BLOCKS, 1).view(BLOCKS, -1)[3])
    peer.close()
    with pytest.raises(HandoffError, match="no KV handshake with e0"):
        ask(str(dying.socket), "e0")


def test_a_small_copy_does_not_wait_for_a_large_one_and_closing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, exporter = Local("shared_memory"), Exporter("shared_memory", tmp_path / "socket")
    peer = local.open(exporter)
    began, go_on = threading.Event(), threading.Event()
    memmove = ctypes.memmove

    def slow(target: int, source: int, size: int) -> None:
        if size > PAGE:
            began.set()
            assert go_on.wait(10)
        memmove(target, source, size)

    monkeypatch.setattr("appliance.engine.kv.shared_memory.ctypes.memmove", slow)
    large = threading.Thread(target=peer.copy, args=([Copy(0, 0, 0, 0, 2 * PAGE)],))
    large.start()
    assert began.wait(10)
    peer.copy([Copy(0, 0, 0, 5 * PAGE, PAGE)])  # would wait for ever behind it
    closing = threading.Thread(target=peer.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive(), "unmapped under a copy, it would be a segmentation fault"
    go_on.set()
    large.join(10)
    closing.join(10)
    assert not closing.is_alive()
    assert local.memory[: 2 * PAGE].any()
    exporter.end()
