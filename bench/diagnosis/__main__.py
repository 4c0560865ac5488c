"""``make bench-diagnosis``: faults of simulated nodes, and whether the diagnoser names them. Seeded.

    python -m bench.diagnosis --seeds 100:110 --healthy 20

Thresholds were chosen on seeds below 100; what counts is scored on others. ``--healthy``: runs of ten minutes in which nothing is done.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.diagnosis.cases import Case, cases, healthy
from bench.diagnosis.play import Played, play
from bench.diagnosis.score import Scored, score, wilson

HEALTHY_S: Final = 600.0
_BANDS: Final = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 1.01))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was played. ``alarms``: verdicts on healthy nodes, in words."""

    seeds: str
    scored: tuple[Scored, ...]
    healthy_hours: float
    alarms: tuple[str, ...]


def one(case: Case) -> Scored:
    """A case with its injection, and without."""
    return score(play(case), play(case, injected=False))


def quiet(case: Case) -> Played:
    """Ten minutes of a node that nothing is done to."""
    return play(case, duration_s=HEALTHY_S)


def markdown(report: Report) -> str:
    """The report, for docs/diagnosis.md."""
    hurt = [row for row in report.scored if row.impactful]
    lines = [
        f"Seeds {report.seeds}: {len(report.scored)} injections, of which {len(hurt)} cost at least a tenth of the goodput; "
        "the others are not scored.",
        "",
        "| | right | of | share | 95 % interval |",
        "|---|---|---|---|---|",
        _line("engine", sum(row.engine_right for row in hurt), len(hurt)),
        _line("engine and cause", sum(row.engine_right and row.cause_right for row in hurt), len(hurt)),
        *(
            _line(f"both, goodput down {low:.0%} to {min(high, 1):.0%}", *_band(hurt, low, high))
            for low, high in _BANDS
        ),
        "",
        "| injection | scored | engine right | cause, too | diagnosed after p50 / p95 s | clear after its end p50 s | changes of mind |",
        "|---|---|---|---|---|---|---|",
        *_by_kind(hurt),
        "",
        f"Nothing was done for {report.healthy_hours:.1f} simulated hours: {len(report.alarms)} verdicts, so with 95 % confidence at most "
        f"{_poisson_bound(len(report.alarms)) / max(report.healthy_hours, 1e-9):.2f} per hour.",
    ]
    wrong = [row for row in hurt if not (row.engine_right and row.cause_right)]
    if wrong:
        lines += ["", "What was wrong:", ""]
        lines += [f"- {row.node}, {row.name}, seed {row.seed}, {row.lost:.0%} lost: said {row.said}" for row in wrong]
    return "\n".join([*lines, *(f"- false alarm: {alarm}" for alarm in report.alarms)]) + "\n"


def _line(name: str, right: int, of: int) -> str:
    low, high = wilson(right, of)
    return f"| {name} | {right} | {of} | {right / of if of else 0:.1%} | {low:.1%}–{high:.1%} |"


def _band(rows: Sequence[Scored], low: float, high: float) -> tuple[int, int]:
    within = [row for row in rows if low <= row.lost < high]
    return sum(row.engine_right and row.cause_right for row in within), len(within)


def _by_kind(rows: Iterable[Scored]) -> list[str]:
    kinds: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        kinds[row.name].append(row)
    return [_kind_line(kind, found) for kind, found in sorted(kinds.items())]


def _kind_line(kind: str, rows: Sequence[Scored]) -> str:
    took = sorted(row.diagnosed_s for row in rows if row.diagnosed_s is not None)
    cleared = sorted(row.cleared_s for row in rows if row.cleared_s is not None)
    right = Counter(row.engine_right + (row.engine_right and row.cause_right) for row in rows)
    return (
        f"| {kind} | {len(rows)} | {right[1] + right[2]} | {right[2]} | {_quantile(took, 0.5)} / {_quantile(took, 0.95)} "
        f"| {_quantile(cleared, 0.5)} | {sum(row.flaps for row in rows) / len(rows):.1f} |"
    )


def _quantile(ordered: Sequence[float], share: float) -> str:
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f}" if ordered else "—"


def _poisson_bound(count: int) -> float:
    """The rate that would give so few events with 5 % probability (exact for none; else Wilson and Hilferty's approximation)."""
    if not count:
        return -math.log(0.05)
    degrees = count + 1
    return degrees * (1 - 1 / (9 * degrees) + 1.645 / (3 * math.sqrt(degrees))) ** 3


def run(seeds: range, quiet_runs: int) -> Report:
    """All cases of the seeds, on as many cores as there are."""
    todo, well = cases(seeds), healthy(range(seeds.start, seeds.start + quiet_runs))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    workers = len(os.sched_getaffinity(0))
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        rows = list(bar.track(pool.map(one, todo), total=len(todo), description="injections"))
        calm = list(bar.track(pool.map(quiet, well), total=len(well), description="healthy"))
    alarms = [
        f"{played.case.node}, seed {played.case.seed}, at {said.at_s:.0f} s: {said.summary}"
        for played in calm
        for said in played.said
        if said.state != "ok"
    ]
    return Report(
        seeds=f"{seeds.start} to {seeds.stop - 1}",
        scored=tuple(rows),
        healthy_hours=len(calm) * HEALTHY_S / 3600,
        alarms=tuple(alarms),
    )


def _seeds(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last or first) + (0 if last else 1))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.diagnosis", description="Whether the diagnoser names what is wrong.")
    parser.add_argument("--seeds", type=_seeds, default=range(100, 102), help="first:last, the last one left out")
    parser.add_argument("--healthy", type=int, default=2, metavar="N", help="N runs of ten minutes of each node")
    parser.add_argument("--out", type=Path, help="a directory for the report as Markdown and JSON")
    options = parser.parse_args()
    report = run(options.seeds, options.healthy)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "diagnosis.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (options.out / "diagnosis.md").write_text(markdown(report))
    sys.stdout.write(markdown(report))


if __name__ == "__main__":
    main()
