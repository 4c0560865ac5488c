"""``make bench``: the appliance against plain vLLM on the same machine, in turn, and hand-offs against ``memmove``.

Both servers are started alone, one after the other, as often as there are repetitions; the last two stay. From then on one of them is
loaded while the other idles, each repetition of a cell on both before the next cell.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.progress import Progress

from bench import measure, servers
from bench.load import Plan, drive, progress_bar
from bench.memcpy import Memory
from bench.records import APPLIANCE, Cell, Handoffs, Report, Run, StartUp, Usage
from bench.report import markdown

OUTPUT_TOKENS: Final = 32
CELLS: Final = tuple(Cell(prompt, clients) for prompt in (256, 2048) for clients in (1, 4, 16))
QUICK_CELLS: Final = tuple(cell for cell in CELLS if cell.concurrency <= 4)
REQUESTS_MIN: Final = 20  # or five per client, if that is more
SETTLE_S, MODEL_S = 1.0, 120.0
_STARTERS: Final = (servers.appliance, servers.aggregated)


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done."""

    cells: tuple[Cell, ...]
    repetitions: int
    requests_min: int

    def requests(self, cell: Cell) -> int:
        return max(self.requests_min, 5 * cell.concurrency)

    def total(self) -> int:
        """Steps of the progress bar: requests without the warm-up ones, and starts."""
        return self.repetitions * 2 * (1 + sum(self.requests(cell) for cell in self.cells))


class Bench:
    """One run; its figures gather in the lists."""

    def __init__(self, steps: Steps, progress: Progress) -> None:
        self.steps = steps
        self.start_ups: list[StartUp] = []
        self.usages: list[Usage] = []
        self.runs: list[Run] = []
        self.handoffs: list[Handoffs] = []
        self._progress = progress
        self._task = progress.add_task("starting", total=steps.total())

    async def run(self, directory: Path) -> None:
        """Raises ``ServerError`` if a server doesn't start, or ends."""
        self._say("making the model")
        model = await make_model(directory / "model")
        for repetition in range(self.steps.repetitions - 1):
            async with AsyncExitStack() as stack:
                await self._start(stack, directory, model, repetition, keep=False)
        async with AsyncExitStack() as stack:
            pair = await self._start(stack, directory, model, self.steps.repetitions - 1, keep=True)
            await self._rest(pair)
            with Memory() as memory:
                for repetition, cell in rounds(self.steps):
                    await self._cell(pair, memory, repetition, cell)

    async def _start(
        self, stack: AsyncExitStack, directory: Path, model: Path, repetition: int, keep: bool
    ) -> list[servers.Server]:
        """Both servers; one at a time unless they are kept."""
        found = []
        for starter in _STARTERS:
            self._say(f"start {repetition + 1}: {starter.__name__}")
            server, start_up = await stack.enter_async_context(starter(directory, model, repetition))
            self.start_ups.append(start_up)
            self._progress.advance(self._task)
            found.append(server)
            if not keep:
                await stack.aclose()
        return found

    async def _rest(self, pair: Sequence[servers.Server]) -> None:
        """After some requests, so that nothing is measured before its memory has been touched."""
        for server in pair:
            self._say(f"{server.name}: at rest")
            await drive(server.target, self._plan(Cell(256, 4), 8, seed=-1))
        await asyncio.sleep(SETTLE_S)
        for server in pair:
            self.usages += await measure.usages(server)

    async def _cell(self, pair: Sequence[servers.Server], memory: Memory, repetition: int, cell: Cell) -> None:
        """Which server goes first alternates."""
        for server in pair if repetition % 2 == 0 else reversed(pair):
            self._say(f"{repetition + 1}: {server.name}, prompt {cell.prompt_tokens}, c{cell.concurrency}")
            seed = 2 * (repetition * len(self.steps.cells) + self.steps.cells.index(cell))
            await drive(server.target, self._plan(cell, 2 * cell.concurrency, seed))
            plan = self._plan(cell, self.steps.requests(cell), seed + 1)
            summary, _ = await drive(server.target, plan, lambda _: self._progress.advance(self._task))
            self.runs.append(Run(server=server.name, repetition=repetition, cell=cell, summary=summary))
            await asyncio.sleep(SETTLE_S)
            if server.name == APPLIANCE:
                self.handoffs.append(await measure.handoffs(server, memory, repetition, cell, plan.requests))

    def _plan(self, cell: Cell, requests: int, seed: int) -> Plan:
        return Plan(
            model=servers.MODEL_NAME,
            requests=requests,
            prompt_tokens=cell.prompt_tokens,
            output_tokens=OUTPUT_TOKENS,
            concurrency=cell.concurrency,
            seed=seed,
        )

    def _say(self, text: str) -> None:
        """On a bar, or as lines where stderr is no terminal."""
        self._progress.update(self._task, description=text)
        if not self._progress.console.is_terminal:
            done = self._progress.tasks[0].percentage
            sys.stderr.write(f"{done:3.0f} %  {text}\n")
            sys.stderr.flush()


def rounds(steps: Steps) -> Iterator[tuple[int, Cell]]:
    """Every cell once before any cell again."""
    return ((repetition, cell) for repetition in range(steps.repetitions) for cell in steps.cells)


async def make_model(directory: Path) -> Path:
    """Write the model that is served. Raises ``ServerError`` if that fails."""
    directory.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.model", str(directory), cwd=servers.ROOT
    )
    try:
        async with asyncio.timeout(MODEL_S):
            if await process.wait() != 0:
                raise servers.ServerError(f"making the model ended with {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return directory


async def bench(steps: Steps) -> Report:
    """Run all of it."""
    started, began, machine = time.time(), time.perf_counter(), measure.machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, progress_bar() as progress:
        one = Bench(steps, progress)
        cancel_at_sigterm()
        await one.run(Path(directory))
    return Report(
        started=started,
        duration_s=time.perf_counter() - began,
        repetitions=steps.repetitions,
        output_tokens=OUTPUT_TOKENS,
        kv_cache_bytes=servers.KV_CACHE_BYTES,
        machine=machine,
        versions=measure.versions(),
        start_ups=tuple(one.start_ups),
        usages=tuple(one.usages),
        runs=tuple(one.runs),
        handoffs=tuple(one.handoffs),
    )


def cancel_at_sigterm() -> None:
    """So that the servers are ended too, as they are at an interrupt: they are in sessions of their own."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def save(report: Report, out: Path) -> str:
    """Write ``<timestamp>.json`` and ``latest.md``; the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    name = datetime.fromtimestamp(report.started, UTC).strftime("%Y%m%dT%H%M%SZ")
    (out / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    text = markdown(report)
    (out / "latest.md").write_text(text, encoding="utf-8")
    return text


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="up to 4 clients, one repetition, few requests")
    parser.add_argument("--repetitions", type=int, help="3, or 1 with --quick")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a server failed, or any request."""
    options = _options(arguments)
    repetitions = options.repetitions or (1 if options.quick else 3)
    cells, requests_min = (QUICK_CELLS, 5) if options.quick else (CELLS, REQUESTS_MIN)
    steps = Steps(cells=cells, repetitions=repetitions, requests_min=requests_min)
    try:
        report = asyncio.run(bench(steps))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench.run: interrupted; the servers have been ended\n")
        return 130
    except servers.ServerError as error:
        sys.stderr.write(f"bench.run: {error}\n")
        return 1
    sys.stdout.write(save(report, options.out))
    return 1 if any(run.summary.errors for run in report.runs) else 0


if __name__ == "__main__":
    sys.exit(main())
