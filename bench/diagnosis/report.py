"""What the scored cases come to, as Markdown. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from bench.diagnosis.score import Scored, wilson

_BANDS: Final = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 1.01))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was played. ``alarms``: verdicts on healthy nodes, in words."""

    seeds: str
    scored: tuple[Scored, ...]
    healthy_hours: float
    alarms: tuple[str, ...]


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
