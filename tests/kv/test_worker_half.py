"""The worker half against a transport that lets the test act in mid-copy: nothing that may be stale is ever reported as good."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from exporter import LAYERS, PAGE, manifest_of

from appliance.channel import ClosePeer, Message, OpenPeer, PeerClosed, PeerOpened
from appliance.engine.kv.handshake import KvServer
from appliance.engine.kv.layout import Copy
from appliance.engine.kv.lease import LeaseBook, LeaseTable
from appliance.engine.kv.params import Ticket
from appliance.engine.kv.pulls import Pull, Transfer, Transfers
from appliance.engine.kv.transport import MemoryTransport, PeerMemory
from appliance.engine.kv.worker import WorkerHalf
from appliance.errors import HandoffError


class Stage(PeerMemory, MemoryTransport):
    """Both ends of a transport without memory; ``act`` runs in the middle of each copy."""

    kind = "shared_memory"

    def __init__(self) -> None:
        self.act: Callable[[], None] = lambda: None
        self.copied: list[Copy] = []
        self.closed = False

    def export(self, storages: Sequence[object]) -> tuple[list[bytes], list[int]]:
        raise NotImplementedError

    def open(self, handles: Sequence[bytes], descriptors: Sequence[int], sizes: Sequence[int]) -> PeerMemory:
        return self

    def copy(self, copies: Sequence[Copy]) -> None:
        if self.closed:
            raise HandoffError("the peer's memory was closed")
        self.copied += copies
        self.act()

    def close(self) -> None:
        self.closed = True


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[Message] = []

    def on_message(self, handler: object) -> None:
        pass

    def send(self, message: Message) -> None:
        self.sent.append(message)


class Scene:
    """e1's worker half, with e0 mapped and one lease granted there."""

    def __init__(self, directory: Path) -> None:
        self.stage = Stage()
        self.link = FakeLink()
        self.table = LeaseTable(directory / "e0.leases", create=True)
        self.book = LeaseBook(self.table)
        held = self.book.grant("k", (1, 2), 32, 1, 10**18)
        assert held is not None
        self.held = held
        self.producer = KvServer(directory / "e0.kv", manifest_of("shared_memory", 8, [b""]), [])
        manifest = manifest_of("shared_memory", 8, [b""], engine="e1")
        self.half = WorkerHalf(self.link, self.stage, manifest, directory / "e1.kv", [])  # type: ignore[arg-type]
        self.half.receive(
            OpenPeer(peer="e0", epoch=1, sockets=(str(directory / "e0.kv"),), lease_table=str(directory / "e0.leases"))
        )
        assert self.link.sent == [PeerOpened(peer="e0", epoch=1, rank=0)]

    def pull(self, *, inline: bool = True) -> Pull:
        ticket = Ticket(
            request="k",
            do_remote_prefill=True,
            engine="e0",
            epoch=1,
            slot=self.held.slot,
            generation=self.held.generation,
            tokens=32,
            prompt="",
            blocks=((1, 2),),
        )
        return Pull(request_id="r", ticket=ticket, pairs=(((1, 5), (2, 6)),), inline=inline)

    def outcome(self) -> Transfer:
        results = self.half.take_results()
        details = self.half.take_details()
        assert results.finished_recving == {"r"}, "every load is reported, once"
        assert isinstance(details, Transfers)
        transfer = details.ended["r"]
        assert results.failed_recving == ({"r"} if transfer.error else set())
        assert self.half.take_results().finished_recving == set()
        return transfer


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.half.close()
    made.producer.close()


def test_a_pull_under_a_live_lease_is_good(scene: Scene) -> None:
    scene.half.at_load([scene.pull()])
    transfer = scene.outcome()
    assert transfer.error is None
    assert transfer.bytes == 2 * LAYERS * PAGE
    assert transfer.copies == len(scene.stage.copied) == 1
    assert transfer.end_ns >= transfer.start_ns


@pytest.mark.parametrize("how", ["released", "expired", "regranted"])
def test_a_lease_that_ends_during_the_copy_fails_the_pull(scene: Scene, how: str) -> None:
    def end() -> None:
        if how == "expired":
            assert list(scene.book.expired(10**18))
        else:
            scene.book.end("k", all_consumers=True)
        if how == "regranted":
            again = scene.book.grant("other", (1, 2), 32, 1, 10**18)
            assert again is not None and again.slot == scene.held.slot

    scene.stage.act = end
    scene.half.at_load([scene.pull()])
    assert "ended during the pull" in (scene.outcome().error or "")


def test_a_large_pull_on_the_thread_has_the_same_rules(scene: Scene) -> None:
    scene.stage.act = lambda: scene.book.end("k", all_consumers=True) and None
    scene.half.before_forward([scene.pull(inline=False)])
    scene.half.at_load([scene.pull(inline=False)])  # not its business
    scene.half._thread.shutdown(wait=True)
    assert "ended during the pull" in (scene.outcome().error or "")


def test_a_peer_closed_under_a_pull_fails_it(scene: Scene) -> None:
    scene.stage.act = lambda: scene.half.receive(ClosePeer(peer="e0", epoch=1))
    scene.half.at_load([scene.pull()])
    assert "e0 was closed during the pull" in (scene.outcome().error or "")


def test_a_peer_that_goes_between_handshake_and_table_leaves_no_descriptor(scene: Scene, tmp_path: Path) -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    producer = KvServer(tmp_path / "e0-2.kv", manifest_of("shared_memory", 8, [b""], epoch=2), [descriptor])
    before = len(os.listdir("/proc/self/fd"))
    scene.half.receive(
        OpenPeer(peer="e0", epoch=2, sockets=(str(tmp_path / "e0-2.kv"),), lease_table=str(tmp_path / "gone"))
    )
    answer = scene.link.sent[-1]
    assert isinstance(answer, PeerOpened)
    assert answer.error is not None
    assert not answer.refused, "it may be there in a while"
    assert len(os.listdir("/proc/self/fd")) == before
    producer.close()
    os.close(descriptor)


def test_a_peer_of_another_life_is_refused_for_good(scene: Scene, tmp_path: Path) -> None:
    wanted = OpenPeer(peer="e0", epoch=9, sockets=(str(tmp_path / "e0.kv"),), lease_table=str(tmp_path / "e0.leases"))
    scene.half.receive(wanted)
    answer = scene.link.sent[-1]
    assert isinstance(answer, PeerOpened)
    assert "answered for e0 (life 9)" in (answer.error or "")
    assert answer.refused


def test_a_pull_from_a_peer_that_was_closed_before_fails(scene: Scene) -> None:
    scene.half.receive(ClosePeer(peer="e0", epoch=1))
    assert isinstance(scene.link.sent[-1], PeerClosed)
    scene.half.at_load([scene.pull()])
    assert "not mapped" in (scene.outcome().error or "")
    scene.half.receive(ClosePeer(peer="e0", epoch=1))  # again: acknowledged, nothing to do
    assert isinstance(scene.link.sent[-1], PeerClosed)
