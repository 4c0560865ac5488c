"""CUDA IPC against a CUDA that is not there, which holds to CUDA's rules."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import pytest
from fake_cuda import NEWER_DRIVER, Machine, Process

from appliance.engine.kv.cuda_ipc import CudaIpc
from appliance.engine.kv.cudart import Attributes, Cudart
from appliance.engine.kv.routes import Copy
from appliance.engine.kv.transport import PeerMemory
from appliance.errors import HandoffError

KIB = 1 << 10


@dataclass(frozen=True)
class Device:
    type: str
    index: int

    def __str__(self) -> str:
        return f"{self.type}:{self.index}"


@dataclass(frozen=True)
class Storage:
    """Of torch's, as much as an export looks at."""

    pointer: int
    size: int
    device: Device = Device("cuda", 0)

    def data_ptr(self) -> int:
        return self.pointer

    def nbytes(self) -> int:
        return self.size


class End:
    """One engine's memory: an allocation with two storages in it, the second one not at its beginning."""

    def __init__(self, machine: Machine, *visible: str, device: int = 0, virtual: bool = False) -> None:
        self.process: Process = machine.process(*visible)
        self.base = self.process.allocate(256 * KIB, device, virtual=virtual)
        place = Device("cuda", device)
        self.storages = [Storage(self.base, 64 * KIB, place), Storage(self.base + 100 * KIB, 64 * KIB, place)]
        self.kernels = 1  # the stream on which its engine computes
        self.process.streams[self.kernels] = []
        self.transport = CudaIpc(Cudart(self.process, self.process), lambda _: self.kernels)

    def export(self) -> list[bytes]:
        handles, descriptors = self.transport.export(self.storages)  # type: ignore[arg-type]
        assert descriptors == []
        return handles

    def open(self, handles: list[bytes]) -> PeerMemory:
        return self.transport.open(handles, [], [64 * KIB, 64 * KIB])


@pytest.fixture
def machine() -> Machine:
    return Machine()


def pair(machine: Machine, **more: object) -> tuple[End, End]:
    """Each sees its own GPU only, as number 0."""
    producer, consumer = End(machine, "GPU-a"), End(machine, "GPU-b")
    consumer.export()
    return producer, consumer


def test_bytes_come_from_a_gpu_that_the_consumer_does_not_see(machine: Machine) -> None:
    producer, consumer = pair(machine)
    peer = consumer.open(producer.export())
    producer.process.fill(producer.base + 100 * KIB + 5, b"written after it was mapped")
    peer.copy([Copy(1, 5, 0, 1000, 27)])
    assert bytes(consumer.process.bytes_at(consumer.base + 1000, 27)) == b"written after it was mapped"
    peer.close()
    assert machine.broken == []
    assert consumer.process.opened == {}
    assert consumer.process.streams.keys() == {consumer.kernels}
    assert len(consumer.process.events) == 1, "its fence is for all peers"


def test_visible_gpus_in_another_order_change_nothing(machine: Machine) -> None:
    producer = End(machine, "GPU-a", "GPU-b", device=1)
    consumer = End(machine, "GPU-b", "GPU-a", device=1)
    consumer.export()
    producer.process.fill(producer.base, b"abc")
    peer = consumer.open(producer.export())
    peer.copy([Copy(0, 0, 1, 0, 3)])
    assert bytes(consumer.process.bytes_at(consumer.base + 100 * KIB, 3)) == b"abc"
    assert consumer.process.device == 1, "it is mapped on the device of the rank that copies"


def test_an_allocation_is_opened_once_whatever_lies_in_it(machine: Machine) -> None:
    producer, consumer = pair(machine)
    handles = producer.export()
    assert len(handles) == 2
    peer = consumer.open(handles)
    assert len(consumer.process.opened) == 1
    with pytest.raises(HandoffError, match=r"mapped here already.*cudaErrorMapBufferObjectFailed"):
        consumer.open(handles)
    assert len(consumer.process.opened) == 1, "and a refusal takes nothing from who has it"
    peer.close()
    consumer.open(handles).close()


def test_a_copy_out_of_bounds_moves_nothing(machine: Machine) -> None:
    producer, consumer = pair(machine)
    peer = consumer.open(producer.export())
    producer.process.fill(producer.base, bytes(range(255)))
    for copy, whose in ((Copy(0, 64 * KIB - 1, 0, 0, 2), "the peer's"), (Copy(0, 0, 0, 64 * KIB - 1, 2), "our own")):
        with pytest.raises(HandoffError, match=f"beyond {whose} memory"):
            peer.copy([Copy(0, 0, 0, 0, 100), copy])
    assert not any(consumer.process.bytes_at(consumer.base, 100))
    assert machine.broken == []


def test_memory_of_virtual_memory_management_is_refused_with_what_to_do(machine: Machine) -> None:
    with pytest.raises(HandoffError, match=r"expandable segments, sleep mode.*cudaErrorInvalidValue"):
        End(machine, "GPU-a", virtual=True).export()


def test_memory_elsewhere_is_no_matter_of_cuda(machine: Machine) -> None:
    end = End(machine, "GPU-a")
    end.storages = [Storage(end.base, 10, Device("cpu", 0))]
    with pytest.raises(HandoffError, match="KV lies on cpu:0"):
        end.export()


def test_gpus_without_peer_access_are_named_as_such(machine: Machine) -> None:
    machine.apart.add(frozenset(("GPU-a", "GPU-b")))
    producer, consumer = pair(machine)
    with pytest.raises(HandoffError, match=r"can't read each other's memory; nvidia-smi topo -p2p r"):
        consumer.open(producer.export())
    assert consumer.process.last_error == 0, "torch would take it for its own"


def test_who_sees_both_gpus_copies_by_way_of_the_host_and_says_so(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.apart.add(frozenset(("GPU-a", "GPU-b")))
    producer, consumer = End(machine, "GPU-a", "GPU-b"), End(machine, "GPU-b", "GPU-a")
    consumer.export()
    producer.process.fill(producer.base, b"abc")
    peer = consumer.open(producer.export())
    assert peer.staged
    assert "comes by way of the host's memory, which is slower: a peer's GPU memory can't be mapped" in caplog.text
    peer.copy([Copy(0, 0, 0, 7, 3)])
    assert bytes(consumer.process.bytes_at(consumer.base + 7, 3)) == b"abc"
    assert machine.calls == ["cudaMemcpyPeerAsync"]
    peer.close()
    assert (consumer.process.opened, machine.broken) == ({}, [])


def test_a_platform_that_opens_no_memory_of_gpus_that_are_not_seen_is_told_what_to_set() -> None:
    machine = Machine(narrow=True)
    producer, consumer = pair(machine)
    with pytest.raises(
        HandoffError, match=r"cudaErrorInvalidDevice; this engine does not see its GPU.*see_all_gpus = true lets it"
    ):
        consumer.open(producer.export())
    producer, consumer = End(machine, "GPU-a", "GPU-b"), End(machine, "GPU-b", "GPU-a")
    consumer.export()
    assert not consumer.open(producer.export()).staged


def test_with_peer_access_nothing_is_staged(machine: Machine) -> None:
    producer, consumer = End(machine, "GPU-a", "GPU-b"), End(machine, "GPU-b", "GPU-a")
    consumer.export()
    assert not consumer.open(producer.export()).staged


def test_a_handle_that_is_dead_is_told_as_such_also_where_both_gpus_are_seen(machine: Machine) -> None:
    producer, consumer = End(machine, "GPU-a", "GPU-b"), End(machine, "GPU-b", "GPU-a")
    consumer.export()
    handles = producer.export()
    producer.process.exit()
    with pytest.raises(HandoffError, match=r"its owner has freed it, or has ended.*nor on its own GPU"):
        consumer.open(handles)
    assert consumer.process.opened == {}


# ---- how copies are made


def scattered(count: int, size: int = 512) -> list[Copy]:
    """Every second piece of the first storage, to the second one, the other way round."""
    return [Copy(0, 2 * number * size, 1, (count - 1 - number) * size, size) for number in range(count)]


@pytest.mark.parametrize(
    ("version", "refused", "calls"),
    [
        (13_000, {}, {"cudaMemcpyBatchAsync"}),
        (12_080, {}, {"cudaMemcpyBatchAsync"}),
        (12_060, {}, {"cudaMemcpyAsync"}),
        (13_000, {"cudaMemcpyBatchAsync": NEWER_DRIVER}, {"cudaMemcpyAsync"}),
    ],
)
def test_the_same_bytes_come_in_batches_or_one_by_one(version: int, refused: dict[str, int], calls: set[str]) -> None:
    machine = Machine(version=version, refused=refused)
    producer, consumer = pair(machine)
    data = bytes(number % 251 for number in range(64 * KIB))
    producer.process.fill(producer.base, data)
    peer = consumer.open(producer.export())
    for _ in range(2):
        peer.copy(scattered(60))
        for copy in scattered(60):
            there = consumer.process.bytes_at(consumer.base + 100 * KIB + copy.target, copy.size)
            assert bytes(there) == data[copy.source : copy.source + copy.size]
    assert set(machine.calls) == calls
    assert machine.broken == []


def test_without_batches_what_lies_at_equal_distances_is_one_copy() -> None:
    machine = Machine(version=12_060)
    producer, consumer = pair(machine)
    producer.process.fill(producer.base, bytes(range(1, 201)))
    peer = consumer.open(producer.export())
    peer.copy([Copy(0, 20 * row, 1, 50 * row, 10) for row in range(10)])
    assert machine.calls == ["cudaMemcpy2DAsync"]
    for row in range(10):
        there = consumer.process.bytes_at(consumer.base + 100 * KIB + 50 * row, 11)
        assert bytes(there) == bytes(range(20 * row + 1, 20 * row + 11)) + b"\0"


def test_no_more_than_two_slices_are_under_way(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.engine.kv.cuda_ipc.SLICE_BYTES", 4 * KIB)
    producer, consumer = pair(machine)
    data = bytes(number % 253 for number in range(64 * KIB))
    producer.process.fill(producer.base, data)
    peer = consumer.open(producer.export())
    peer.copy([Copy(0, 0, 1, 0, 64 * KIB)])
    assert bytes(consumer.process.bytes_at(consumer.base + 100 * KIB, 64 * KIB)) == data
    assert consumer.process.most_pending == 8 * KIB
    assert len(machine.calls) == 16


def test_copies_come_after_what_the_engine_had_to_do_and_do_not_wait_for_what_comes_later(machine: Machine) -> None:
    """A step that is under way writes into a block that was another request's; the next one has nothing to do with it."""
    producer, consumer = pair(machine)
    producer.process.fill(producer.base, b"kv of the prompt")
    peer = consumer.open(producer.export())
    consumer.process.kernel(consumer.kernels, consumer.base, b"late")
    consumer.transport.fence()
    consumer.process.kernel(consumer.kernels, consumer.base + 100, b"later")
    peer.copy([Copy(0, 0, 0, 0, 16)])
    assert len(consumer.process.streams[consumer.kernels]) == 1, "the next step is still to come"
    consumer.process.cudaStreamSynchronize(ctypes.c_void_p(consumer.kernels))
    assert bytes(consumer.process.bytes_at(consumer.base, 16)) == b"kv of the prompt"


def test_without_the_fence_the_fake_overwrites_what_was_copied(machine: Machine) -> None:
    producer, consumer = pair(machine)
    producer.process.fill(producer.base, b"kv of the prompt")
    peer = consumer.open(producer.export())
    consumer.process.kernel(consumer.kernels, consumer.base, b"late")
    peer.copy([Copy(0, 0, 0, 0, 16)])
    consumer.process.cudaStreamSynchronize(ctypes.c_void_p(consumer.kernels))
    assert bytes(consumer.process.bytes_at(consumer.base, 16)) == b"latef the prompt"


def test_attributes_are_laid_out_as_cuda_has_them() -> None:
    """driver_types.h of CUDA 12.8 to 13.3: 24 bytes, the flags last."""
    assert ctypes.sizeof(Attributes) == 24
    assert (Attributes.source_kind.offset, Attributes.target_kind.offset, Attributes.flags.offset) == (4, 12, 20)


def test_an_owner_that_has_ended_can_not_be_mapped_and_what_was_mapped_fails(machine: Machine) -> None:
    producer, consumer = pair(machine)
    handles = producer.export()
    peer = consumer.open(handles)
    producer.process.exit()
    with pytest.raises(HandoffError, match="cudaErrorIllegalAddress"):
        peer.copy([Copy(0, 0, 0, 0, 8)])
    peer.close()
    with pytest.raises(HandoffError, match="its owner has freed it, or has ended"):
        consumer.open(handles)


def test_closed_before_the_owner_frees_it_nothing_is_broken(machine: Machine) -> None:
    producer, consumer = pair(machine)
    peer = consumer.open(producer.export())
    peer.close()
    peer.close()  # again is harmless
    producer.process.free(producer.base)
    assert machine.broken == []
    with pytest.raises(HandoffError, match="closed"):
        peer.copy([Copy(0, 0, 0, 0, 8)])


def test_the_fake_notices_what_must_not_be(machine: Machine) -> None:
    producer, consumer = pair(machine)
    consumer.open(producer.export())
    producer.process.free(producer.base)
    assert len(machine.broken) == 1


def test_less_memory_than_announced_is_refused_and_unmapped(machine: Machine) -> None:
    producer, consumer = pair(machine)
    with pytest.raises(HandoffError, match="the peer announced KV up to byte"):
        consumer.transport.open(producer.export(), [], [64 * KIB, 200 * KIB])
    assert consumer.process.opened == {}


def test_a_process_that_has_exported_nothing_has_nowhere_to_copy_to(machine: Machine) -> None:
    producer = End(machine, "GPU-a")
    with pytest.raises(HandoffError, match="nowhere to copy to"):
        End(machine, "GPU-b").open(producer.export())
