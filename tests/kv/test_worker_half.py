"""The worker half against a transport that lets the test act in mid-copy: nothing that may be stale is ever reported as good."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from exporter import LAYERS, PAGE, layout_of, manifest_of

from appliance.channel import ClosePeer, Message, OpenPeer, PeerClosed, PeerOpened
from appliance.engine.kv.handshake import KvServer
from appliance.engine.kv.layout import heads_of
from appliance.engine.kv.lease import LeaseBook, LeaseTable
from appliance.engine.kv.params import Ticket
from appliance.engine.kv.pulls import Pull, Transfer, Transfers
from appliance.engine.kv.routes import Copy
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


# ---- peers of several ranks


def taken() -> int:
    """Descriptors of what stands for memory that are open in this process."""
    return sum(os.path.realpath(f"/proc/self/fd/{one}") == os.devnull for one in os.listdir("/proc/self/fd"))


class Meeting:
    """A rank of e1, and e0 with ranks of its own, which is said to have ``sockets``."""

    def __init__(self, directory: Path, *, ranks: int, rank: int, of_peer: int, heads: int = 4) -> None:
        self.directory = directory
        self.stages: list[Stage] = []
        self.descriptor = os.open(os.devnull, os.O_RDONLY)
        LeaseTable(directory / "e0.leases", create=True)
        self.producers = [
            KvServer(
                directory / f"e0-{number}.kv",
                manifest_of(
                    "shared_memory",
                    8,
                    [b"%d" % number],
                    rank=number,
                    ranks=of_peer,
                    layout=layout_of(8, heads_of(number, of_peer, heads)),
                ),
                [self.descriptor],
            )
            for number in range(of_peer)
        ]
        self.link = FakeLink()
        manifest = manifest_of(
            "shared_memory",
            12,
            [b""],
            engine="e1",
            rank=rank,
            ranks=ranks,
            layout=layout_of(12, heads_of(rank, ranks, heads)),
        )
        self.half = WorkerHalf(self.link, self, manifest, directory / "e1.kv", [])  # type: ignore[arg-type]

    def fence(self) -> None:
        """As a transport; there is nothing to wait for."""

    def open(self, handles: Sequence[bytes], descriptors: Sequence[int], sizes: Sequence[int]) -> Stage:
        """As a transport: one of a peer's ranks, told by its handle."""
        stage = Stage()
        for descriptor in descriptors:
            os.close(descriptor)
        self.opened = [*getattr(self, "opened", []), int(handles[0])]
        self.stages.append(stage)
        return stage

    def meet(self, *ranks: int) -> PeerOpened:
        sockets = tuple(str(self.directory / f"e0-{rank}.kv") for rank in ranks)
        self.half.receive(OpenPeer(peer="e0", epoch=1, sockets=sockets, lease_table=str(self.directory / "e0.leases")))
        answer = self.link.sent[-1]
        assert isinstance(answer, PeerOpened)
        return answer

    def end(self) -> None:
        self.half.close()
        for producer in self.producers:
            producer.close()
        os.close(self.descriptor)


def test_a_rank_opens_those_that_have_its_heads_and_leaves_no_descriptor(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, ranks=2, rank=1, of_peer=4)
    before = taken()
    answer = meeting.meet(0, 1, 2, 3)
    assert (answer.error, answer.rank) == (None, 1)
    assert meeting.opened == [2, 3]
    assert taken() == before
    meeting.half.receive(ClosePeer(peer="e0", epoch=1))
    assert [stage.closed for stage in meeting.stages] == [True, True]
    meeting.end()


def test_what_several_ranks_bring_is_one_transfer(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, ranks=1, rank=0, of_peer=2)
    assert meeting.meet(0, 1).error is None
    table = LeaseTable(tmp_path / "e0.leases", create=True)
    held = LeaseBook(table).grant("k", (1, 2), 32, 1, 10**18)
    assert held is not None
    ticket = Ticket(
        request="k",
        do_remote_prefill=True,
        engine="e0",
        epoch=1,
        slot=held.slot,
        generation=held.generation,
        tokens=32,
        prompt="",
        blocks=((1, 2),),
    )
    meeting.half.at_load([Pull(request_id="r", ticket=ticket, pairs=(((1, 5), (2, 6)),), inline=True)])
    assert meeting.half.take_results().finished_recving == {"r"}
    details = meeting.half.take_details()
    assert isinstance(details, Transfers)
    assert (details.ended["r"].error, details.ended["r"].bytes) == (None, 2 * LAYERS * 4 * PAGE)
    assert [sum(copy.size for copy in stage.copied) for stage in meeting.stages] == [2 * LAYERS * 2 * PAGE] * 2
    meeting.end()


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ((1, 0), "rank 1 of 2 answered for rank 0 of 2 of e0"),
        ((0,), "rank 0 of 2 answered for rank 0 of 1 of e0"),
    ],
)
def test_ranks_that_are_not_those_that_were_meant_are_refused(
    tmp_path: Path, ranks: tuple[int, ...], says: str
) -> None:
    meeting = Meeting(tmp_path, ranks=1, rank=0, of_peer=2)
    before = taken()
    answer = meeting.meet(*ranks)
    assert says in (answer.error or "")
    assert answer.refused
    assert meeting.stages == []
    assert taken() == before
    meeting.end()


def test_a_rank_that_can_not_be_opened_leaves_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Meeting(tmp_path, ranks=1, rank=0, of_peer=2)
    opened = meeting.open

    def failing(handles: Sequence[bytes], descriptors: Sequence[int], sizes: Sequence[int]) -> Stage:
        stage = opened(handles, descriptors, sizes)
        if handles[0] == b"1":
            raise HandoffError("no room")
        return stage

    monkeypatch.setattr(meeting, "open", failing)
    before = taken()
    answer = meeting.meet(0, 1)
    assert answer.error == "no room"
    assert not answer.refused, "it may work in a while"
    assert meeting.stages[0].closed
    assert taken() == before
    meeting.end()


def test_layouts_that_do_not_fit_are_refused_with_both_names(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, ranks=1, rank=0, of_peer=1)
    other = manifest_of("shared_memory", 8, [b"0"], layout=layout_of(8, heads_of(0, 1, 2)))
    producer = KvServer(tmp_path / "e0-0.kv", other, [])
    answer = meeting.meet(0)
    assert (
        answer.error
        == "e1 can't use the KV of e0: KV group 0 (rank 0 there): layer layer 0 has 4 KV heads here, 2 there"
    )
    assert answer.refused
    producer.close()
    meeting.end()
