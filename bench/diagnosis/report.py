"""What the scored cases come to, as Markdown. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from bench.diagnosis.cases import USUAL, World
from bench.diagnosis.score import Alarm, Scored, wilson

_BANDS: Final = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 1.01))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was played. ``alarms``: verdicts on nodes that nothing was done to."""

    seeds: str
    world: World = USUAL
    scored: tuple[Scored, ...]
    doubles: tuple[Scored, ...] = ()
    healthy_hours: float
    alarms: tuple[Alarm, ...]


def markdown(report: Report) -> str:
    """The report, for docs/diagnosis.md."""
    hurt = [row for row in report.scored if row.impactful]
    lines = [
        f"Seeds {report.seeds}, noise {report.world.noise:g} times, constants {report.world.constants:.0%} off: "
        f"{len(report.scored)} injections, of which {len(hurt)} cost at least a tenth of the goodput; the others are not scored, "
        f"{sum(not row.served for row in report.scored)} of them because the node could not serve its own traffic.",
        "",
        *tables(report.scored),
        *_followed(report.scored),
        *_two(report.doubles),
        *other_verdicts(report.scored),
        *calm(report.healthy_hours, report.alarms, "simulated hours"),
        *mistakes(report.scored, report.alarms),
    ]
    return "\n".join(lines) + "\n"


def tables(scored: Sequence[Scored]) -> list[str]:
    """What was right, by how much it cost and by kind, when, and what was said of what."""
    hurt = [row for row in scored if row.impactful]
    return [
        "| | right | of | share | 95 % interval |",
        "|---|---|---|---|---|",
        _line("engine", sum(row.engine_right for row in hurt), len(hurt)),
        _line("engine and cause", sum(row.cause_right for row in hurt), len(hurt)),
        *(
            _line(f"both, goodput down {low:.0%} to {min(high, 1):.0%}", *_band(hurt, low, high))
            for low, high in _BANDS
        ),
        "",
        *_engines(hurt),
        f"From the first one hurt to the right verdict: {_spread(hurt, lambda row: row.from_impact_s)}; from the onset: "
        f"{_spread(hurt, lambda row: row.diagnosed_s)}.",
        "",
        f"Clear after the end: {_spread(hurt, lambda row: row.cleared_s)}; after clients' requests were in time again: "
        f"{_spread(hurt, lambda row: row.held_on_s)}. The others were not clear when the play ended; of them "
        f"{sum(row.cleared_s is None and row.recovered_s is None for row in hurt)} had clients who still waited too long.",
        "",
        "| injection | played | scored | engine right | by chance | cause, too | from impact p50 / p95 s | clear after its end / "
        "after clients were well, p50 s | changes of mind |",
        "|---|---|---|---|---|---|---|---|---|",
        *_by_kind(scored),
        "",
        *_confusion(hurt),
    ]


def mistakes(scored: Sequence[Scored], alarms: Sequence[Alarm]) -> list[str]:
    """Each one."""
    wrong = [row for row in scored if row.impactful and not row.cause_right]
    lines = ["", "What was wrong:", ""] if wrong else []
    lines += [
        f"- {row.node}, {row.name}, seed {row.seed}, {row.lost:.0%} lost{_for_s(row)}: said {row.said}" for row in wrong
    ]
    lines += [
        f"- {'false alarm' if alarm.is_false else f'{alarm.missed:.0%} missed the targets'}: {alarm.sentence}"
        for alarm in alarms
    ]
    return lines


def _for_s(row: Scored) -> str:
    """An injection may hurt nobody before its last seconds."""
    return "" if row.hurt_s is None else f" in its last {row.hurt_s:.0f} s"


def calm(hours: float, alarms: Sequence[Alarm], unit: str) -> list[str]:
    """Verdicts on nodes that nothing was done to, and what their number says of the rate."""
    if not hours:
        return []
    wrong = sum(alarm.is_false for alarm in alarms)
    bound = _poisson_bound(wrong) / hours
    return [
        f"Nothing was done for {hours:.1f} {unit}. {len(alarms)} verdicts, "
        f"{len(alarms) - wrong} of them while more requests missed the targets than [slo] allows; "
        f"{wrong} false alarms, so with 95 % confidence at most {bound:.2f} per hour.",
    ]


def _engines(rows: Sequence[Scored]) -> list[str]:
    """How often the engine was right, beside rules and chance. Where several engines are right, a guess often is."""
    single = [row for row in rows if row.single]
    lines = [
        f"| engine named by | right, of {len(rows)} | where one engine alone is right, of {len(single)} |",
        "|---|---|---|",
        _beside("the diagnoser", rows, single, lambda row: row.engine_right),
        *(_beside(rule, rows, single, _by_rule(rule)) for rule in _rules(rows)),
        _beside("chance", rows, single, lambda row: row.chance),
    ]
    return [*lines, ""]


def _by_rule(rule: str) -> Callable[[Scored], float]:
    return lambda row: row.rules.get(rule, False)


def _beside(name: str, rows: Sequence[Scored], single: Sequence[Scored], right: Callable[[Scored], float]) -> str:
    return f"| {name} | {_mean(map(right, rows)):.1%} | {_mean(map(right, single)):.1%} |"


def _rules(rows: Sequence[Scored]) -> list[str]:
    return list(rows[0].rules) if rows else []


def _line(name: str, right: int, of: int) -> str:
    low, high = wilson(right, of)
    return f"| {name} | {right} | {of} | {right / of if of else 0:.1%} | {low:.1%}–{high:.1%} |"


def _band(rows: Sequence[Scored], low: float, high: float) -> tuple[int, int]:
    within = [row for row in rows if low <= row.lost < high]
    return sum(row.cause_right for row in within), len(within)


def _by_kind(rows: Iterable[Scored]) -> list[str]:
    kinds: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        kinds[row.name].append(row)
    return [_kind_line(kind, found) for kind, found in sorted(kinds.items())]


def _kind_line(kind: str, played: Sequence[Scored]) -> str:
    rows = [row for row in played if row.impactful]
    if not rows:
        return f"| {kind} | {len(played)} | 0 | — | — | — | — | — | — |"
    took = sorted(row.from_impact_s for row in rows if row.from_impact_s is not None)
    cleared = sorted(row.cleared_s for row in rows if row.cleared_s is not None)
    held = sorted(row.held_on_s for row in rows if row.held_on_s is not None)
    return (
        f"| {kind} | {len(played)} | {len(rows)} | {sum(row.engine_right for row in rows)} | {_mean(row.chance for row in rows):.0%} "
        f"| {sum(row.cause_right for row in rows)} | {_quantile(took, 0.5)} / {_quantile(took, 0.95)} "
        f"| {_quantile(cleared, 0.5)} / {_quantile(held, 0.5)} | {sum(row.flaps for row in rows) / len(rows):.1f} |"
    )


def _confusion(rows: Sequence[Scored]) -> list[str]:
    """What was said of what; where there is a single answer, nothing is confused."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        said[row.name][row.cause or "nothing"] += 1
    lines = ["| injection | causes said |", "|---|---|"]
    lines += [
        f"| {name} | {', '.join(f'{cause} {count}' for cause, count in found.most_common())} |"
        for name, found in sorted(said.items())
    ]
    return [*lines, ""]


def _followed(rows: Sequence[Scored]) -> list[str]:
    """Goodput where advice was followed."""
    acted = [row for row in rows if row.good_followed is not None and row.orders and row.good_before is not None]
    if not acted:
        return []
    healthy = _mean(row.good_before for row in acted)
    hurt, helped = _mean(row.good for row in acted), _mean(row.good_followed for row in acted)
    worse = sum((row.good_followed or 0.0) < (row.good or 0.0) - 0.05 for row in acted)
    kinds: dict[str, list[Scored]] = defaultdict(list)
    for row in acted:
        kinds[row.name].append(row)
    return [
        f"Advice that is an order was followed in {len(acted)} cases: {healthy:.1%} of requests within the targets without the fault, "
        f"{hurt:.1%} with it, {helped:.1%} with it once the advice was followed; worse by more than 5 points in {worse}.",
        "",
        "| injection | followed | without the fault | with it | advice followed |",
        "|---|---|---|---|---|",
        *(
            f"| {kind} | {len(found)} | {_mean(row.good_before for row in found):.0%} | {_mean(row.good for row in found):.0%} "
            f"| {_mean(row.good_followed for row in found):.0%} |"
            for kind, found in sorted(kinds.items())
        ),
        "",
    ]


def _two(rows: Sequence[Scored]) -> list[str]:
    hurt = [row for row in rows if row.impactful]
    if not hurt:
        return []
    stayed = [row for row in hurt if row.second_right is not None]
    return [
        f"Two at once, {len(hurt)} that hurt: one of them was named with its cause in {sum(row.cause_right for row in hurt)}; "
        "once the first was over, the one that stayed was what was said in "
        f"{sum(bool(row.second_right) for row in stayed)} of {len(stayed)}.",
        "",
    ]


def other_verdicts(scored: Sequence[Scored]) -> list[str]:
    """On what cost less than a tenth: silence is right, and so is the true cause."""
    rows = [row for row in scored if row.served and not row.impactful]
    wrong = [row for row in rows if row.cause not in ("ok", None) and not row.cause_right]
    return [
        f"Of {len(rows)} injections that cost less, {len(wrong)} were given another cause for most of the time in which anything was said.",
        "",
    ]


def _spread(rows: Sequence[Scored], figure: Callable[[Scored], float | None]) -> str:
    found = sorted(value for row in rows if (value := figure(row)) is not None)
    return f"p50 {_quantile(found, 0.5)} s, p95 {_quantile(found, 0.95)} s ({len(found)} of {len(rows)})"


def _mean(values: Iterable[float | None]) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else 0.0


def _quantile(ordered: Sequence[float], share: float) -> str:
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f}" if ordered else "—"


def _poisson_bound(count: int) -> float:
    """The rate that would give so few events with 5 % probability (exact for none; else Wilson and Hilferty's approximation)."""
    if not count:
        return -math.log(0.05)
    degrees = count + 1
    return degrees * (1 - 1 / (9 * degrees) + 1.645 / (3 * math.sqrt(degrees))) ** 3
