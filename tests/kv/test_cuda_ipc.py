"""CUDA IPC against a CUDA that is not there, which holds to CUDA's rules."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from fake_cuda import Machine, Process

from appliance.engine.kv.cuda_ipc import CudaIpc
from appliance.engine.kv.cudart import Cudart
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
        self.transport = CudaIpc(Cudart(self.process, self.process))

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
    assert consumer.process.streams == {}


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
