"""Results as Markdown. Pure.

Figures are medians of the repetitions (min–max). Ratios are taken repetition by repetition within one run: what slows the machine for
longer stays out of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.peers import budgets
from bench.peers.budgets import Figure
from bench.peers.contestants import BY_KEY, CONTESTANTS, PEERS, SPLIT, Contestant, Kind
from bench.peers.loads import QUICK, Load
from bench.peers.records import Measured, Report, Started
from bench.report import spread, table

_FIGURES: Final[tuple[tuple[str, Figure, float], ...]] = (
    ("TTFT p50 ms", lambda one: one.ttft_p50_s, 1e3),
    ("TTFT p99 ms", lambda one: one.ttft_p99_s, 1e3),
    ("TPOT p50 ms", lambda one: one.tpot_p50_s, 1e3),
    ("TPOT p99 ms", lambda one: one.tpot_p99_s, 1e3),
    ("ITL p99 ms", lambda one: one.itl_p99_s, 1e3),
    ("req/s", lambda one: one.requests_s, 1.0),
)
_ABSENT: Final = "not measured yet"
_QUICK: Final = "A quick run shows that all of it runs: so few requests judge nothing.\n\n"


def markdown(report: Report) -> str:
    """The whole document."""
    parts = [_head(report), _failed(report), _budgets(report), _loads(report), _frontends(report), _rest(report)]
    return "\n".join(part for part in parts if part)


def _head(report: Report) -> str:
    scale = report.setup.scale
    machine = "; ".join(f"{name} {value}" for name, value in report.setup.machine.items())
    versions = "\n".join(
        f"- {name}: {', '.join(f'{package} {version}' for package, version in found.items() if _named(name, package))}"
        for name, found in report.versions.items()
    )
    rates = ", ".join(f"{rate:.2f} req/s at prompt {tokens}" for tokens, rate in report.rates.items()) or _ABSENT
    return (
        f"# This appliance and its peers\n\n{machine}.\n\n{versions}\n\n"
        f"Random Llama of 32.5 million parameters, bfloat16, eager, {report.setup.kv_cache_bytes >> 20} MiB of KV cache per engine; "
        f"every prompt new, first come first served. {scale.repetitions} repetition(s), the contestants in turn, each started anew "
        f"and alone. Figures are medians (min–max); ratios are taken repetition by repetition. Errors are requests that failed, or whose "
        f"KV was to be handed over and was not. A p99 of fewer than a hundred requests is "
        f"the slowest. Hand-offs: of ours the copying; of NIXL's until its engine has seen, between two steps, that it is done. What NIXL "
        f"(tuned) holds: {rates}.\n"
    )


def _named(environment: str, package: str) -> bool:
    """Of an environment of a peer's, what bears its name; the rest is in the JSON."""
    return not environment.startswith("peers-") or environment.removeprefix("peers-") in package


def _failed(report: Report) -> str:
    rows = [[BY_KEY[key].title, "given up", " ".join(why.split())] for key, why in report.failed.items()]
    rows += [
        [BY_KEY[one.contestant].title, f"a try in repetition {one.repetition + 1}", " ".join(one.why.split())]
        for one in report.tries
    ]
    return "## What failed\n\n" + table(["who", "", "why"], rows) if rows else ""


def _budgets(report: Report) -> str:
    quick, rows = report.setup.scale == QUICK, []
    for one in budgets.verdicts(report):
        value = spread(one.found, one.scale, 2)
        outcome = "not judged" if quick and one.found else one.outcome
        rows.append([one.what, one.budget, f"{value} {one.unit}" if one.found else "—", outcome])
    return "## Beside the budgets\n\n" + (_QUICK if quick else "") + table(["what", "budget", "measured", ""], rows)


def _loads(report: Report) -> str:
    parts = [_load(report.measured, load) for load in budgets.loads(report.measured)]
    return "\n".join(["## Loads\n", *(parts or [f"{_ABSENT}\n"])])


def _load(measured: Sequence[Measured], load: Load) -> str:
    there = [one for one in CONTESTANTS if any(run.contestant == one.key and run.load == load for run in measured)]
    rows = [_row(measured, one, load) for one in there]
    figures = table(["", *(name for name, _, _ in _FIGURES), "hand-off GB/s", "errors"], rows)
    rivals = [one for one in PEERS if one in there and SPLIT in there]
    ratios = [[f"{SPLIT.key} over {one.title}", *_ratios(measured, one, load)] for one in rivals]
    again = "\n" + table(["ratio", *(name.removesuffix(" ms") for name, _, _ in _FIGURES)], ratios) if ratios else ""
    return f"### {load.title}{_offered(measured, load)}\n\n{figures}{again}"


def _offered(measured: Sequence[Measured], load: Load) -> str:
    rates = {run.rate for run in measured if run.load == load and run.rate is not None}
    return f" ({', '.join(f'{rate:.2f}' for rate in sorted(rates))} req/s)" if rates else ""


def _row(measured: Sequence[Measured], one: Contestant, load: Load) -> list[str]:
    runs = [run for run in measured if run.contestant == one.key and run.load == load]
    values = [
        spread((figure(run.summary) for run in runs), scale, 1 if scale > 1 else 2) for _, figure, scale in _FIGURES
    ]
    errors = f"{sum(run.failures for run in runs)} of {sum(run.summary.n for run in runs)}"
    return [one.title, *values, spread((run.handoff_bytes_s for run in runs), 1e-9, 2), errors]


def _ratios(measured: Sequence[Measured], theirs: Contestant, load: Load) -> list[str]:
    return [spread(budgets.ratios(measured, SPLIT, theirs, load, figure), digits=2) for _, figure, _ in _FIGURES]


def _frontends(report: Report) -> str:
    rows = []
    for one in (one for one in CONTESTANTS if one.kind is Kind.FRONTEND):
        runs = [run for run in report.streamed if run.contestant == one.key]
        if not runs:
            continue
        rows.append(
            [
                one.title,
                str(runs[0].streams),
                spread((run.pace_ms for run in runs), digits=1),
                spread((run.events_per_token for run in runs), digits=2),
                spread((run.cpu_us_per_event for run in runs), digits=1),
                spread((run.memory_bytes for run in runs), 2**-20, 0),
                *(spread((run.ttft_through_s[at] for run in runs if run.ttft_through_s), 1e3) for at in (0, 1)),
                *(spread((run.ttft_direct_s[at] for run in runs if run.ttft_direct_s), 1e3) for at in (0, 1)),
                str(sum(run.errors for run in runs)),
            ]
        )
    head = ["", "streams", "ms between events", "events per token", "CPU µs per event", "PSS MiB"]
    head += ["TTFT p50 ms, some 16 under way", "p99", "past it: p50", "p99", "errors"]
    title = "## What stands between, over simulated engines\n\n"
    return title + (table(head, rows) if rows else f"{_ABSENT}\n")


def _rest(report: Report) -> str:
    rows = []
    for one in CONTESTANTS:
        starts = [start for start in report.started if start.contestant == one.key]
        if starts:
            rows.append([one.title, *_standing(starts)])
    head = ["", "page s", "first token s", "PSS MiB", "CPU at rest, % of one core"]
    return "## Starts, and at rest\n\n" + (table(head, rows) if rows else f"{_ABSENT}\n")


def _standing(starts: Sequence[Started]) -> list[str]:
    return [
        spread((one.page_s for one in starts), digits=2),
        spread((one.first_token_s for one in starts), digits=1),
        spread((sum(use.pss_bytes for use in one.usages) for one in starts), 2**-20, 0),
        spread((sum(use.idle_cpu for use in one.usages) for one in starts), 100, 1),
    ]
