"""``make gpu-check``: what only a machine with an NVIDIA GPU can prove, in one command; a report of what was run, on what.

First the transport: the conformance suite of KV transports over CUDA IPC between processes (two of them on one GPU count), reading by
NVML, and rates on each pair of GPUs, both ways. Then, where vLLM's CUDA build is installed, its engines with models of real shapes.
Without a GPU it says so, and that nothing was run.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from appliance.checks import software
from appliance.gpu.nvml import machine
from appliance.planner.cards import usable
from appliance.records import Card, Inventory
from bench import gpu_engines, gpu_transport
from bench.gpu_report import Finding, failed, not_run, written

ROOT: Final = Path(__file__).parents[1]
_SUITES: Final = (("tests/kv", "-m", "gpu"), ("tests/gpu",))
_NO_TESTS: Final = 5  # pytest's exit code
Section = tuple[str, Sequence[Finding]]


def main(look: Callable[[], Inventory] = machine) -> int:
    """Exit code 1: something is not as it must be."""
    parser = argparse.ArgumentParser(prog="bench.gpu_check", description="What only a GPU can prove.")
    parser.add_argument("--report", type=Path, default=Path("gpu-check.md"))
    parser.add_argument(
        "--no-engines", action="store_true", help="The transport alone: some minutes instead of half an hour."
    )
    options = parser.parse_args()
    inventory = look()
    if not inventory.cards:
        sys.stdout.write(f"no GPU: not run. {inventory.trouble or 'NVML tells of none on this machine'}.\n")
        return 0
    sections = checked(inventory, engines=not options.no_engines)
    options.report.write_text(written(f"GPU check, {_today()}", about(inventory), sections))
    sys.stdout.write(options.report.read_text())
    return int(any(failed(findings) for _, findings in sections))


def checked(inventory: Inventory, *, engines: bool) -> list[Section]:
    """All of it, on the GPUs that can be used."""
    cards, unused = usable(inventory)
    with tempfile.TemporaryDirectory(prefix="pd-gpu-") as name:
        directory = Path(name)
        return [
            ("Tests", [_pytest(suite) for suite in _SUITES]),
            ("Transport", [*(not_run("a GPU", one) for one in unused), *gpu_transport.findings(cards, directory)]),
            ("Engines", _engines(cards, directory, wanted=engines)),
        ]


def _pytest(suite: Sequence[str]) -> Finding:
    code = subprocess.run([sys.executable, "-m", "pytest", "-q", *suite], cwd=ROOT, check=False).returncode
    said = "no test was selected" if code == _NO_TESTS else "passed" if code == 0 else f"exit code {code}"
    return Finding(f"pytest {' '.join(suite)}", said, code == 0)


def _engines(cards: Sequence[Card], directory: Path, *, wanted: bool) -> list[Finding]:
    if not wanted:
        return [not_run("engines", "--no-engines")]
    if software.builds() != "cuda":
        return [
            not_run("engines", "vLLM's CUDA build is not installed (make setup, or pip install 'pd-appliance[gpu]')")
        ]
    return asyncio.run(_all_shapes(cards, directory))


async def _all_shapes(cards: Sequence[Card], directory: Path) -> list[Finding]:
    """One that can't be served keeps none of the others from being tried."""
    found: list[Finding] = []
    for name in gpu_engines.SHAPES:
        place = directory / name
        place.mkdir()
        model = gpu_engines.shaped(name, place)
        try:
            found += [one async for one in gpu_engines.findings(name, model, place, len(cards), _free_bytes)]
        except Exception as error:  # a report with this in it is worth more than none
            found.append(Finding(name, f"{type(error).__name__}: {error}", False))
    return found


def _free_bytes() -> int:
    return sum(card.free_bytes for card in machine().cards)


def about(inventory: Inventory) -> str:
    """What it was run on."""
    names = ", ".join(f"{card.index}: {card.name}" for card in inventory.cards)
    versions = ", ".join(f"{name} {software.version(name) or 'not installed'}" for name in ("torch", "vllm"))
    return f"GPUs {names}; driver {inventory.driver or 'unknown'}; {versions}"


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
