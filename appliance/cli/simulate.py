"""``pd-appliance simulate``: a scenario, faster than life, and what it comes to. Everything that it prints is simulated, and says so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from appliance.simulator.report import Result, run
from appliance.simulator.scenario import Loaded, Scenario, load

_BARS: Final = " ▁▂▃▄▅▆▇█"
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
    said = Console(stderr=True)
    results = []
    for number, one in enumerate(layouts, 1):
        with said.status(f"simulating {one} ({number} of {len(layouts)})"):
            results.append(run(loaded, one))
    if as_json:
        body = {"simulated": True, "results": results}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(body)).decode() + "\n")
        return
    console = Console()
    console.print(table(loaded.scenario, results))
    for result in results:
        console.print(plot(result), highlight=False)


def table(scenario: Scenario, results: Sequence[Result]) -> Table:
    """A row for each layout."""
    slo = scenario.slo
    caption = f"good: TTFT ≤ {slo.ttft_s:g} s and TPOT ≤ {slo.itl_s * 1e3:g} ms. Predicted by a cost model, with noise: docs/costs.md"
    found = Table(title=f"SIMULATED: {scenario.title or scenario.layout}", caption=caption)
    for head in (
        "layout",
        "TTFT p50",
        "p99",
        "TPOT p50",
        "p99",
        "ITL p99",
        "tokens/s",
        "per GPU",
        "good",
        "good req/s",
        "left",
    ):
        found.add_column(head, justify="left" if head == "layout" else "right")
    best = max((result.goodput_s for result in results), default=0.0)
    for result in results:
        style = "bold" if len(results) > 1 and result.goodput_s == best else None
        found.add_row(*_cells(result), style=style)
    return found


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.layout,
        _time(result.ttft_p50_s),
        _time(result.ttft_p99_s),
        _time(result.tpot_p50_s),
        _time(result.tpot_p99_s),
        _time(result.itl_p99_s),
        f"{result.output_tokens_s:,.0f}",
        f"{result.output_tokens_s_gpu:,.1f}",
        _DASH if result.good is None else f"{result.good:.1%}",
        f"{result.goodput_s:.2f}",
        f"{result.unfinished}",
    )


def plot(result: Result) -> str:
    """TTFT over the run, as a line of bars from nothing to its highest."""
    known = [value for value in result.ttft_by_time if value is not None]
    if not known:
        return f"{result.layout:>12}  no request was answered"
    highest = max(known)
    bars = "".join(" " if value is None else _BARS[max(1, round(8 * value / highest))] for value in result.ttft_by_time)
    return f"{result.layout:>12}  TTFT p50 over time  │{bars}│  at most {_time(highest)}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _changed(loaded: Loaded, seed: int | None, duration_s: float | None) -> Loaded:
    fields: dict[str, float] = {}
    if seed is not None:
        fields["seed"] = seed
    if duration_s is not None:
        fields["duration_s"] = duration_s
        fields["warmup_s"] = min(loaded.scenario.warmup_s, duration_s / 4)
    return Loaded(msgspec.structs.replace(loaded.scenario, **fields), loaded.directory)
