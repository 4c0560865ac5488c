"""``pd-appliance simulate``: a scenario, faster than life, and what it comes to. Everything that it prints is simulated, and says so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from appliance.engine.life import die_with
from appliance.errors import NotNowError
from appliance.simulator.report import Result, run
from appliance.simulator.scenario import Loaded, Scenario, load

_BARS: Final = " ▁▂▃▄▅▆▇█"
_ALL_BARS, _FEW_BARS = 60, 20
_WIDE, _NARROW = 122, 78  # characters that the whole table takes, and the narrow one
_DASH: Final = "—"


def simulate(
    scenario: Annotated[Path, typer.Option(help="A scenario in TOML; examples/scenarios has some.")],
    layout: Annotated[
        list[str] | None, typer.Option(help="Instead of the scenario's layouts; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's.")] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds of the node's time, instead of the scenario's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate a node that is not there, and print what clients would get of it."""
    loaded = _changed(load(scenario), seed, duration)
    layouts = layout or [loaded.scenario.layout, *loaded.scenario.compare]
    results = _run_all(loaded, layouts)
    if as_json:
        body = {"simulated": True, "results": results}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(body)).decode() + "\n")
        return
    console = _console()
    narrow = console.width < _WIDE
    console.print(table(loaded.scenario, results, narrow=narrow))
    for result in results:
        console.print(plot(result, parts=_FEW_BARS if narrow else _ALL_BARS), highlight=False)


def _console() -> Console:
    """Files have room for all columns; a terminal that has none for any wraps lines, and nothing is left out of them."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(width=_WIDE)
    return console if console.width >= _NARROW else Console(width=_NARROW)


def _run_all(loaded: Loaded, layouts: Sequence[str]) -> list[Result]:
    """In order; side by side on as many cores as there are. Raises ``ConfigError``, and ``NotNowError`` if a core's process ends."""
    if len(layouts) == 1:
        with Console(stderr=True).status("simulating"):
            return [run(loaded, layouts[0])]
    columns = TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    workers = min(len(os.sched_getaffinity(0)), len(layouts))
    with bar, ProcessPoolExecutor(workers, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        task = bar.add_task("", total=len(layouts))
        try:
            waiting = _submit(pool, loaded, layouts)
            for one in waiting:
                one.add_done_callback(lambda _: bar.advance(task))
            return [one.result() for one in waiting]
        except BrokenProcessPool as error:
            raise NotNowError("a process that simulated was ended, perhaps for want of memory") from error
        except BaseException:
            end(pool)
            raise


def _submit(pool: ProcessPoolExecutor, loaded: Loaded, layouts: Sequence[str]) -> list[Future[Result]]:
    """Processes that never hear Ctrl-C, as they inherit that from us: we are who ends them. What comes meanwhile is heard afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(run, loaded, one) for one in layouts]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(pool: ProcessPoolExecutor) -> None:
    """Nobody waits for what it has begun, but for the pool's own thread: Python wakes it as it exits, and fails if it ends just then."""
    for process in active_children():
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)


def table(scenario: Scenario, results: Sequence[Result], *, narrow: bool = False) -> Table:
    """A row for each layout; with ``narrow`` only the columns that 80 characters have room for."""
    slo = scenario.slo
    caption = f"good: TTFT ≤ {slo.ttft_s:g} s and TPOT ≤ {slo.itl_s * 1e3:g} ms. Predicted by a cost model, with noise: docs/costs.md"
    found = Table(title=escape(f"SIMULATED: {scenario.title or scenario.layout}"), caption=caption)
    columns = [column for column in _COLUMNS if column.always or not narrow]
    for column in columns:
        found.add_column(column.head, justify="left" if column is _COLUMNS[0] else "right", no_wrap=True)
    best = max((result.goodput_s for result in results), default=0.0)
    for result in results:
        style = "bold" if len(results) > 1 and result.goodput_s == best else None
        found.add_row(*(column.cell(result) for column in columns), style=style)
    return found


def plot(result: Result, parts: int = _ALL_BARS) -> str:
    """TTFT over the run, as a line of bars from nothing to its highest."""
    each = max(1, len(result.ttft_by_time) // parts)
    values = [_highest(result.ttft_by_time[at : at + each]) for at in range(0, len(result.ttft_by_time), each)]
    known = [value for value in values if value is not None]
    if not known:
        return f"{result.layout:>10}  no request was answered"
    highest = max(known)
    bars = "".join(" " if value is None else _BARS[max(1, round(8 * value / highest))] for value in values)
    return f"{result.layout:>10}  TTFT p50 over time │{bars}│ at most {_time(highest)}"


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


class _Column(NamedTuple):
    """``always``: also where there is little room."""

    head: str
    cell: Callable[[Result], str]
    always: bool = False


_COLUMNS: Final = (
    _Column("layout", lambda r: r.layout, True),
    _Column("TTFT p50", lambda r: _time(r.ttft_p50_s), True),
    _Column("p99", lambda r: _time(r.ttft_p99_s), True),
    _Column("TPOT p50", lambda r: _time(r.tpot_p50_s), True),
    _Column("p99", lambda r: _time(r.tpot_p99_s), True),
    _Column("ITL p99", lambda r: _time(r.itl_p99_s)),
    _Column("tokens/s", lambda r: f"{r.output_tokens_s:,.0f}"),
    _Column("per GPU", lambda r: f"{r.output_tokens_s_gpu:,.1f}", True),
    _Column("good", lambda r: _DASH if r.good is None else f"{r.good:.1%}", True),
    _Column("good req/s", lambda r: f"{r.goodput_s:.2f}"),
    _Column("failed", lambda r: f"{r.failed}"),
    _Column("left", lambda r: f"{r.unfinished}"),
)


def _changed(loaded: Loaded, seed: int | None, duration_s: float | None) -> Loaded:
    fields: dict[str, float] = {}
    if seed is not None:
        fields["seed"] = seed
    if duration_s is not None:
        fields["duration_s"] = duration_s
        fields["warmup_s"] = min(loaded.scenario.warmup_s, duration_s / 4)
    return Loaded(msgspec.structs.replace(loaded.scenario, **fields), loaded.directory)
