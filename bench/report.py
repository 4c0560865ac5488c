"""A run's figures as Markdown. Pure.

Each figure is the median of the repetitions with their range. Ratios are taken pair by pair, one repetition of the appliance over the
same one of vLLM, so that what slows the whole machine for a while stays out of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from bench.figures import Summary
from bench.memcpy import Copied
from bench.records import AGGREGATED, APPLIANCE, Cell, Handoffs, Report, Run

Figure = Callable[[Summary], float | None]
_FIGURES: Final[tuple[tuple[str, Figure, float], ...]] = (
    ("TTFT p50 ms", lambda one: one.ttft_p50_s, 1e3),
    ("TTFT p99 ms", lambda one: one.ttft_p99_s, 1e3),
    ("TPOT p50 ms", lambda one: one.tpot_p50_s, 1e3),
    ("TPOT p99 ms", lambda one: one.tpot_p99_s, 1e3),
    ("ITL p50 ms", lambda one: one.itl_p50_s, 1e3),
    ("ITL p99 ms", lambda one: one.itl_p99_s, 1e3),
    ("req/s", lambda one: one.requests_s, 1.0),
)


def markdown(report: Report) -> str:
    """The whole document."""
    parts = [_head(report), _loads(report), _handoffs(report), _start_ups(report), _usages(report)]
    return "\n".join(parts)


def spread(values: Iterable[float | None], scale: float = 1.0, digits: int = 1) -> str:
    """``median (min–max)``, or a dash; the range is left out where there is one value."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "—"
    middle = f"{statistics.median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.{digits}f}–{max(known):.{digits}f})"


def ratios(runs: Sequence[Run], cell: Cell, figure: Figure) -> list[float]:
    """Appliance over vLLM, one for each repetition that has both."""
    by_server: dict[str, dict[int, float | None]] = {APPLIANCE: {}, AGGREGATED: {}}
    for run in runs:
        if run.cell == cell:
            by_server[run.server][run.repetition] = figure(run.summary)
    pairs = [(value, by_server[AGGREGATED].get(number)) for number, value in sorted(by_server[APPLIANCE].items())]
    return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def _head(report: Report) -> str:
    when = datetime.fromtimestamp(report.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = "; ".join(f"{name} {value}" for name, value in (*report.machine.items(), *report.versions.items()))
    return (
        f"# Benchmark of {when}\n\n{facts}.\n\n"
        f"Random Llama of 32.5 million parameters, bfloat16, eager, {report.kv_cache_bytes >> 20} MiB of KV cache per engine. "
        f"{report.repetitions} repetition(s), the servers in turn; closed loop, {report.output_tokens} output tokens, every "
        f"prompt new. Figures are medians of the repetitions (min–max); ratios are {APPLIANCE} over {AGGREGATED}, pair by "
        f"pair. It took {report.duration_s / 60:.0f} minutes.\n"
    )


def _loads(report: Report) -> str:
    cells = dict.fromkeys(run.cell for run in report.runs)
    return "\n".join(["## Loads\n", *(_load(report, cell) for cell in cells)])


def _load(report: Report, cell: Cell) -> str:
    runs = [run for run in report.runs if run.cell == cell]
    by_server = {name: [run.summary for run in runs if run.server == name] for name in (APPLIANCE, AGGREGATED)}
    rows = []
    for name, figure, scale in _FIGURES:
        digits = 1 if scale > 1 else 2
        values = [spread(map(figure, by_server[server]), scale, digits) for server in (APPLIANCE, AGGREGATED)]
        rows.append([name, *values, spread(ratios(runs, cell, figure), digits=2)])
    counts = [f"{sum(s.errors for s in found)} of {sum(s.n for s in found)}" for found in by_server.values()]
    rows.append(["errors", *counts, "—"])
    title = f"### Prompt {cell.prompt_tokens} tokens, concurrency {cell.concurrency}\n\n"
    return title + table(["", APPLIANCE, AGGREGATED, "ratio"], rows)


def _handoffs(report: Report) -> str:
    if not report.handoffs:
        return "## Hand-offs\n\nNone measured.\n"
    rows = [_handoff(report, cell) for cell in dict.fromkeys(one.cell for one in report.handoffs)]
    head = ["prompt", "c", "split", "recomputed", "MiB", "KiB per copy", "transfer ms", "GB/s"]
    head += ["memmove 64 KiB, GB/s", "ratio", "memmove alike, GB/s", "ratio"]
    note = (
        "\nTransfers are the `transfer` stages of the requests' timelines. `memmove` copies as many bytes, scattered over as much memory, "
        "in the same run, with the engines idle: in pieces of 64 KiB, and in as many pieces as the hand-offs did.\n"
    )
    return "## Hand-offs\n\n" + table(head, rows) + note


def _handoff(report: Report, cell: Cell) -> list[str]:
    found = [one for one in report.handoffs if one.cell == cell]
    transfers = [transfer for one in found for transfer in one.transfers]
    requests = sum(one.requests for one in found)
    return [
        str(cell.prompt_tokens),
        str(cell.concurrency),
        f"{sum(one.split for one in found)} of {requests}",
        str(sum(one.recomputed for one in found)),
        spread((one.bytes for one in transfers), 2**-20),
        spread((one.bytes / one.copies for one in transfers), 2**-10, 0),
        spread((one.duration_s for one in transfers), 1e3, 2),
        spread(map(rate, found), 1e-9, 2),
        *_against([(rate(one), one.memmove) for one in found]),
        *_against([(rate(one), one.memmove_alike) for one in found]),
    ]


def _against(pairs: Sequence[tuple[float | None, Copied | None]]) -> tuple[str, str]:
    """``memmove``'s rate, and the hand-offs' over it."""
    known = [(ours, bound.bytes_s) for ours, bound in pairs if ours is not None and bound is not None]
    return spread((bound for _, bound in known), 1e-9, 2), spread((ours / bound for ours, bound in known), digits=2)


def rate(handoffs: Handoffs) -> float | None:
    """Bytes per second of the median transfer of one repetition."""
    return statistics.median(one.bytes_s for one in handoffs.transfers) if handoffs.transfers else None


def _start_ups(report: Report) -> str:
    rows = []
    for server in dict.fromkeys(one.server for one in report.start_ups):
        found = [one for one in report.start_ups if one.server == server]
        engines = dict.fromkeys(name for one in found for name in one.engines_ready_s)
        ready = [f"{name} {spread(one.engines_ready_s.get(name) for one in found)}" for name in engines]
        page, token = spread((one.page_s for one in found), digits=2), spread(one.first_token_s for one in found)
        rows.append([server, page, ", ".join(ready), token])
    return "## Start-up\n\n" + table(["seconds from start to", "page", "engines ready", "first token"], rows)


def _usages(report: Report) -> str:
    rows = [
        [one.server, one.part, str(one.processes), f"{one.pss_bytes / 2**20:.0f}", f"{one.idle_cpu:.2%}"]
        for one in report.usages
    ]
    for server in dict.fromkeys(one.server for one in report.usages):
        found = [one for one in report.usages if one.server == server]
        memory, cpu = sum(one.pss_bytes for one in found), sum(one.idle_cpu for one in found)
        rows.append([server, "all", str(sum(one.processes for one in found)), f"{memory / 2**20:.0f}", f"{cpu:.2%}"])
    return "## At rest\n\n" + table(["server", "part", "processes", "PSS MiB", "CPU, of one core"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *rows))
