"""``make gpu-check``: what only a machine with an NVIDIA GPU can prove, in one command; a report of what was run, on what.

The conformance suite of KV transports over CUDA IPC, between processes (two of them on one GPU count); reading by NVML; the rate between
two processes on each pair of GPUs, both ways, against a plain copy. Without a GPU it says so, and that nothing was run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance.checks.line import Line
from appliance.checks.movers import prove
from appliance.checks.software import version
from appliance.gpu.nvml import machine
from appliance.records import Card, Role
from appliance.supervisor.specs import EngineSpec

ROOT: Final = Path(__file__).parents[1]
_SUITES: Final = (("tests/kv", "-m", "gpu"), ("tests/gpu",))
_NO_TESTS: Final = 5  # pytest's exit code


def main() -> int:
    """Exit code 1: something failed."""
    parser = argparse.ArgumentParser(prog="bench.gpu_check", description="What only a GPU can prove.")
    parser.add_argument("--report", type=Path, default=Path("gpu-check.md"))
    options = parser.parse_args()
    cards = machine().cards
    if not cards:
        sys.stdout.write("no GPU: not run. NVML tells of none on this machine.\n")
        return 0
    outcomes = [(" ".join(suite), _pytest(suite)) for suite in _SUITES]
    lines = [line for one in cards for other in cards for line in _between(one, other)]
    options.report.write_text(_report(cards, outcomes, lines))
    sys.stdout.write(options.report.read_text())
    failed = any(code not in (0, _NO_TESTS) for _, code in outcomes) or any("bad" in line.standing for line in lines)
    return 1 if failed else 0


def _pytest(suite: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *suite], cwd=ROOT, check=False).returncode


def _between(one: Card, other: Card) -> list[Line]:
    """One way; on the same GPU, too."""
    with tempfile.TemporaryDirectory(prefix="pd-gpu-") as directory:
        specs = (_spec("e0", Role.PREFILL, one), _spec("e1", Role.DECODE, other))
        return list(prove(specs, Path(directory), "cuda_ipc", {**os.environ, "PYTHONPATH": str(ROOT)}))


def _spec(name: str, role: Role, card: Card) -> EngineSpec:
    """Sees that GPU only."""
    return EngineSpec(
        name=name,
        role=role,
        cores=(),
        tensor_parallel=1,
        arguments=(),
        environment={"CUDA_VISIBLE_DEVICES": card.uuid},
        gpus=(card.uuid,),
    )


def _report(cards: Sequence[Card], outcomes: Sequence[tuple[str, int]], lines: Sequence[Line]) -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    names = ", ".join(f"{card.index}: {card.name}" for card in cards)
    said = [
        f"# GPU check, {today}",
        "",
        f"GPUs {names}; torch {version('torch')}, vLLM {version('vllm') or 'not installed'}",
        "",
    ]
    said += [f"- `pytest {suite}`: {'passed' if code == 0 else f'exit code {code}'}" for suite, code in outcomes]
    said += [f"- {line.what}: {line.said}" for line in lines]
    return "\n".join(said) + "\n"


if __name__ == "__main__":
    sys.exit(main())
