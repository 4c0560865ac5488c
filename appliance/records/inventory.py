"""What GPUs a machine has, and how they are connected."""

from __future__ import annotations

import msgspec

from appliance.records.gpu import GpuProcess


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as a place for engines. None is what nobody tells."""

    index: int
    uuid: str
    name: str
    memory_bytes: int  # in all, as CUDA has it: without what the driver keeps for itself
    free_bytes: int  # of it, now
    island: int = 0  # GPUs of one island reach each other over NVLink, each of them each other
    bridge: int = 0  # GPUs of one bridge are below the same PCIe switch
    numa: int | None = None
    cores: tuple[int, ...] = ()  # near it
    mig: bool = False  # it is cut into parts
    compute: str = "default"  # default | exclusive | prohibited: who may use it
    others: tuple[GpuProcess, ...] = ()  # that are on it


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. ``apart``: pairs of UUIDs, sorted, of GPUs that can't read each other's memory."""

    cards: tuple[Card, ...]
    apart: frozenset[tuple[str, str]] = frozenset()
    given: bool = False  # described by somebody, and not read
    kind: str | None = (
        None  # name of those that engines are to be on, of several kinds; None: that with the most memory in all
    )
    lost: tuple[str, ...] = ()  # GPUs that the driver counts and that do not answer, and what to do
    driver: str | None = None  # its version
    cuda: tuple[int, int] | None = None  # the newest version of CUDA that this driver runs
    trouble: str | None = (
        None  # why NVIDIA's driver tells of no GPU, and what to do; None where there is no driver, either
    )
