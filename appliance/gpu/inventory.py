"""What GPUs there are to put engines on, by NVML: asked once, before there are engines. Nothing here raises.

NVLink: GPUs that reach a common switch, or each other over links of their own, are one island. PCIe: those below the same switch belong
together where there is no NVLink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.errors import ConfigError
from appliance.gpu import tenants
from appliance.gpu.device import text
from appliance.gpu.library import GoneError, Library, LostError, Questions
from appliance.records import Card, GpuProcess, Inventory

_NO_GPU: Final = ("", "-1", "NoDevFiles")  # by which CUDA_VISIBLE_DEVICES ends
_READ: Final = 0  # of NVML's kinds of peer access; the binding has a tuple for it
_SYSFS: Final = Path("/sys/bus/pci/devices")
_LOST: Final = "dmesg says why (Xid); nvidia-smi --gpu-reset, or a restart of the machine, brings it back"
_NONE: Final = "nvidia-smi -L should list some; a container is given them by docker run --gpus all"


def inventory(module: Any, sysfs: Path = _SYSFS) -> Inventory:
    """Of this machine. ``module`` is pynvml, started (``nvmlInit``)."""
    library = Library(module)
    lost: list[str] = []
    try:
        found = list(_found(library, sysfs, lost))
    except GoneError as error:
        return Inventory(
            cards=(), trouble=f"NVIDIA's driver went away while it was asked ({error}); nvidia-smi says more"
        )
    islands, bridges = _gathered(found, _together), _gathered(found, _below_one_switch)
    cards = tuple(
        msgspec.structs.replace(one.card, island=island, bridge=bridge)
        for one, island, bridge in zip(found, islands, bridges, strict=True)
    )
    driver = text(library.ask("NVML", "the driver's version", "nvmlSystemGetDriverVersion"))
    return Inventory(
        cards=cards,
        apart=frozenset(_apart(found)),
        driver=driver,
        cuda=_cuda(library),
        trouble=None if cards else _no_card(driver, lost),
        lost=tuple(lost),
    )


def _no_card(driver: str | None, lost: Sequence[str]) -> str:
    who = f"the NVIDIA driver ({driver or 'of an unknown version'})"
    return f"{who} has no GPU that answers: {'; '.join(lost)}" if lost else f"{who} tells of no GPU: {_NONE}"


def visible(inventory: Inventory, named: str) -> Inventory:
    """Only those that ``CUDA_VISIBLE_DEVICES`` names, by nvidia-smi's numbers or by (the beginnings of) UUIDs, in the inventory's order.

    As CUDA reads it, a name that stands for no GPU ends the list.

    Raises:
        ConfigError: one of them looks like a GPU, and is not there.
    """
    names = [name.strip() for name in named.split(",")]
    end = next((at for at, name in enumerate(names) if name in _NO_GPU), len(names))
    wanted = {_meant(inventory, name) for name in names[:end]}
    return msgspec.structs.replace(inventory, cards=tuple(card for card in inventory.cards if card.uuid in wanted))


def _meant(inventory: Inventory, name: str) -> str:
    for card in inventory.cards:
        if name == str(card.index) or (name.startswith("GPU-") and card.uuid.startswith(name)):
            return card.uuid
    known = ", ".join(f"{card.index} ({card.uuid})" for card in inventory.cards) or "none"
    there = "; ".join((known, *inventory.lost))
    raise ConfigError(f"CUDA_VISIBLE_DEVICES names {name!r}, which is no GPU of this machine; there are {there}")


def _cuda(library: Library) -> tuple[int, int] | None:
    """NVML says 12040 for 12.4."""
    told = library.ask("NVML", "the driver's version of CUDA", "nvmlSystemGetCudaDriverVersion_v2")
    return divmod(told // 10, 100) if told else None


def described(count: int, name: str, memory_bytes: int) -> Inventory:
    """GPUs that are not here: all alike, each connected with each other, and nobody on them."""
    cards = tuple(
        Card(index=index, uuid=f"GPU-{index}", name=name, memory_bytes=memory_bytes, free_bytes=memory_bytes)
        for index in range(count)
    )
    return Inventory(cards=cards, given=True)


class Found(msgspec.Struct, frozen=True):
    """A GPU, and what it says of others."""

    card: Card
    questions: Questions
    switched: bool  # it has a link to an NVSwitch
    linked: frozenset[str]  # PCI addresses of GPUs at the other ends of its links
    address: str


def _found(library: Library, sysfs: Path, lost: list[str]) -> Iterable[Found]:
    """Raises ``GoneError``. A GPU that doesn't answer is left out, and told to ``lost``."""
    for index in range(library.ask("NVML", "the number of GPUs", "nvmlDeviceGetCount") or 0):
        try:
            handle = library.ask(f"GPU {index}", "it", "nvmlDeviceGetHandleByIndex", index)
            if handle is not None:
                yield _one(Questions(library, handle, f"GPU {index}"), index, sysfs)
        except LostError as error:
            lost.append(f"GPU {index}: it does not answer ({error}); {_LOST}")


def _one(questions: Questions, index: int, sysfs: Path) -> Found:
    ask = questions.ask
    memory = ask("memory", "nvmlDeviceGetMemoryInfo")
    detailed = ask("what the driver keeps of its memory", "nvmlDeviceGetMemoryInfo", questions.module.nvmlMemory_v2)
    address = _address(ask("PCI address", "nvmlDeviceGetPciInfo"))
    switched, linked = _links(questions)
    card = Card(
        index=index,
        uuid=text(ask("its UUID", "nvmlDeviceGetUUID")) or f"GPU {index}",
        name=text(ask("its name", "nvmlDeviceGetName")) or "unknown GPU",
        memory_bytes=memory.total - (detailed.reserved if detailed is not None else 0) if memory is not None else 0,
        free_bytes=memory.free if memory is not None else 0,
        numa=_number(sysfs / address / "numa_node"),
        cores=_cores(sysfs / address / "local_cpulist"),
        mig=(ask("MIG", "nvmlDeviceGetMigMode") or (0, 0))[0] == 1,
        compute=_compute(questions),
        others=_others(questions),
    )
    return Found(card, questions, switched, linked, address)


def _compute(questions: Questions) -> str:
    """Who may use it."""
    module, mode = questions.module, questions.ask("compute mode", "nvmlDeviceGetComputeMode")
    if mode == module.NVML_COMPUTEMODE_PROHIBITED:
        return "prohibited"
    return "exclusive" if mode == module.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS else "default"


def _others(questions: Questions) -> tuple[GpuProcess, ...]:
    """All that compute on it: there are no engines yet."""
    running = questions.ask("processes", "nvmlDeviceGetComputeRunningProcesses") or ()
    return tuple(
        GpuProcess(pid=one.pid, name=tenants.command(one.pid), memory_bytes=one.usedGpuMemory) for one in running
    )


def _links(questions: Questions) -> tuple[bool, frozenset[str]]:
    """Whether it has a link to a switch, and the GPUs at the other ends of its links."""
    module, switched, linked = questions.module, False, set()
    for link in range(module.NVML_NVLINK_MAX_LINKS):
        if questions.ask("NVLink", "nvmlDeviceGetNvLinkState", link) != module.NVML_FEATURE_ENABLED:
            continue
        kind = questions.ask("NVLink's other end", "nvmlDeviceGetNvLinkRemoteDeviceType", link)
        switched = switched or kind == module.NVML_NVLINK_DEVICE_TYPE_SWITCH
        if kind == module.NVML_NVLINK_DEVICE_TYPE_GPU:
            linked.add(_address(questions.ask("NVLink's other end", "nvmlDeviceGetNvLinkRemotePciInfo", link)))
    return switched, frozenset(linked)


def _address(pci: Any) -> str:
    """As sysfs spells it: 0000:1b:00.0."""
    if pci is None:
        return ""
    told = text(pci.busId) or ""
    domain, _, rest = told.partition(":")
    return f"{domain[-4:]}:{rest}".lower()


def _gathered(found: Sequence[Found], together: Callable[[Found, Found], bool]) -> list[int]:
    """The first GPU of each one's group, in which everybody is together with everybody: links of a ring make no group of all."""
    groups: list[int] = []
    for place, one in enumerate(found):
        members: dict[int, list[Found]] = {}
        for before, group in zip(found, groups, strict=False):
            members.setdefault(group, []).append(before)
        groups.append(
            next((group for group, those in members.items() if all(together(one, other) for other in those)), place)
        )
    return groups


def _together(one: Found, other: Found) -> bool:
    return (one.switched and other.switched) or (other.address in one.linked and one.address in other.linked)


def _below_one_switch(one: Found, other: Found) -> bool:
    """Of PCIe."""
    ask, handle = one.questions.ask, other.questions.handle
    ancestor = ask("PCIe topology", "nvmlDeviceGetTopologyCommonAncestor", handle)
    return ancestor is not None and ancestor <= one.questions.module.NVML_TOPOLOGY_MULTIPLE


def _apart(found: Sequence[Found]) -> Iterable[tuple[str, str]]:
    """Pairs that can't read each other's memory. What is not told is taken to be well: moving data is what proves it."""
    for one in found:
        for other in found:
            module = one.questions.module
            status = (
                one.questions.ask(
                    "peer access",
                    "nvmlDeviceGetP2PStatus",
                    other.questions.handle,
                    _READ,
                )
                if one is not other
                else None
            )
            if status is not None and status != module.NVML_P2P_STATUS_OK:
                yield min(one.card.uuid, other.card.uuid), max(one.card.uuid, other.card.uuid)


def _number(file: Path) -> int | None:
    """-1, which machines with a single node say, is None."""
    try:
        return number if (number := int(file.read_text())) >= 0 else None
    except (OSError, ValueError):
        return None


def _cores(file: Path) -> tuple[int, ...]:
    """``0-3,8`` as 0, 1, 2, 3, 8."""
    try:
        parts = [part.partition("-") for part in file.read_text().strip().split(",") if part]
        return tuple(core for low, _, high in parts for core in range(int(low), int(high or low) + 1))
    except (OSError, ValueError):
        return ()
