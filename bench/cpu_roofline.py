"""The CPU engine's own steps, and the rates of the core that it runs on: what ``docs/costs.md`` checks the roofline against here.

``python -m bench.cpu_roofline`` serves the benchmark's model as ``1p1d``, an engine per core, and prints TOML for
``tests/unit/published.toml`` (whose ``step_s`` is then what the step with one sequence takes beyond its bytes). Of each figure it takes
the best sample, for others may use the machine: least steps, highest rates. It takes three minutes.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import measure, servers
from bench.load import Plan, drive

DECODES: Final = ((1, 256), (4, 256), (16, 256), (4, 2048), (8, 2048))  # sequences at once, prompt
PREFILLS: Final = (256, 512, 1024, 2048)
PREFILL_TOKENS: Final = 50_000  # in all: some ten seconds of them, for windows are of five
OUTPUT_TOKENS: Final = 600
SAMPLE_S, CHILD_S = 0.25, 120.0
HIDDEN, INNER = 512, 2048  # of bench.model, as are the products' shapes
COPY_BYTES: Final = 64 << 20  # as much as that model's weights


class Rates(msgspec.Struct, frozen=True):
    """Of one core, at best."""

    matrix_flops_s: float  # BF16
    memory_bytes_s: float  # read and written, each counted


def rates() -> Rates:
    """On the core that this process is pinned to."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        x, up = torch.randn(2048, HIDDEN, dtype=torch.bfloat16), torch.randn(HIDDEN, 2 * INNER, dtype=torch.bfloat16)
        source, target = (
            torch.ones(COPY_BYTES // 2, dtype=torch.bfloat16),
            torch.zeros(COPY_BYTES // 2, dtype=torch.bfloat16),
        )
        product_s, copy_s = _least(lambda: x @ up), _least(lambda: target.copy_(source))
    return Rates(2 * x.shape[0] * up.numel() / product_s, 2 * COPY_BYTES / copy_s)


def _least(work: Callable[[], object], rounds: int = 60) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


async def _child(*command: str) -> bytes:
    """What ``python -m`` of ours prints, in a process of its own, so that this one never imports torch."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, cwd=servers.ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CHILD_S):
            answer, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise servers.ServerError(f"python -m {command[0]} ended with {process.returncode}")
    return answer


async def _steps(
    server: servers.Server, engine: int, plan: Plan, whole: Callable[[dict[str, Any]], bool]
) -> list[float]:
    """Means of windows, in milliseconds, in which the engine's steps were all of the kind that is asked for."""
    found: list[float] = []
    load = asyncio.create_task(drive(server.target, plan))
    while not load.done():
        await asyncio.sleep(SAMPLE_S)
        state = (await server.json("/api/node"))["engines"][engine]
        if state["steps_s"] and whole(state):
            found.append(state["step_ms"])
    await load
    return found


async def _decode(server: servers.Server, sequences: int, prompt: int) -> str:
    plan = _plan(sequences, prompt, OUTPUT_TOKENS, sequences)
    found = await _steps(server, 1, plan, lambda one: one["output_tokens_s"] / one["steps_s"] >= 0.95 * sequences)
    shape = f"sequences = {sequences}, context = {prompt + OUTPUT_TOKENS // 2}"
    return _row("decode", found, shape)


async def _prefill(server: servers.Server, prompt: int) -> str:
    plan = _plan(PREFILL_TOKENS // prompt, prompt, 2, 1)
    found = await _steps(server, 0, plan, lambda one: one["prompt_tokens_s"] / one["steps_s"] >= 0.95 * prompt)
    return _row("prefill", found, f"sequences = 1, prompt = {prompt}")


def _plan(requests: int, prompt: int, output: int, clients: int) -> Plan:
    return Plan(
        model=servers.MODEL_NAME, requests=requests, prompt_tokens=prompt, output_tokens=output, concurrency=clients
    )


def _row(kind: str, found: list[float], shape: str) -> str:
    if not found:
        return f"# {kind}, {shape}: no window without other steps"
    spread = f"{len(found)} windows, median {statistics.median(found):.1f} ms"
    figure = f'source = "cpu", gpu = "core", model = "bench", tp = 1, kind = "{kind}", figure = {min(found):.1f}'
    return f"  {{ {figure}, {shape}, error_percent = 0 }},  # {spread}"


async def _main() -> str:
    lines = [f"# {name}: {value}" for name, value in {**measure.machine(), **measure.versions()}.items()]
    with tempfile.TemporaryDirectory(prefix="cpu-roofline-") as name:
        directory = Path(name)
        model = directory / "model"
        model.mkdir()
        await _child("bench.model", str(model))
        async with servers.appliance(directory, model, 0) as (server, _):
            await drive(server.target, _plan(8, 256, 16, 4))
            rows = [await _prefill(server, prompt) for prompt in PREFILLS]
            rows += [await _decode(server, *decode) for decode in DECODES]
    best = msgspec.json.decode(await _child("bench.cpu_roofline", "--rates"), type=Rates)
    core = f"[core]\nmatrix_flops_s = {best.matrix_flops_s:.3g}\nmemory_bytes_s = {best.memory_bytes_s:.3g}"
    return "\n".join([*lines, core, *rows])


def main() -> None:
    """A document on stdout; or, with ``--rates``, JSON for ourselves."""
    if sys.argv[1:] == ["--rates"]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        sys.stdout.write(msgspec.json.encode(rates()).decode())
    else:
        sys.stdout.write(asyncio.run(_main()) + "\n")


if __name__ == "__main__":
    main()
