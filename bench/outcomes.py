"""What a chaos run has found: records, what follows from them for each fault, and the report. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bench.checker import DEFECTS, Kind, Verdict
from bench.integrity import Look, Usage
from bench.schedule import Planned


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are seconds of one clock."""

    case: str
    manner: str
    sent_s: float
    ended_s: float
    verdict: Verdict
    request_id: str | None = None
    retry_after: bool = False


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: what was planned, when it began, and what was done."""

    planned: Planned
    at_s: float
    over_s: float
    did: str


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What followed from one fault, until the next one.

    ``success_s``: until the first right answer to a request sent after it. ``capacity_s``: until all engines were ready and introduced
    again; 0 if they were all the time, None if not before the next fault.
    """

    kind: str
    victim: str
    at_s: float
    did: str
    requests: int
    failed: dict[str, int]
    success_s: float | None
    capacity_s: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run has found. Times are seconds since its traffic began."""

    seed: int
    layout: str
    concurrency: int
    duration_s: float
    pool: int
    unstable: tuple[str, ...]  # requests left out, because not even plain vLLM answers them twice in one way
    versions: dict[str, str]
    outcomes: tuple[Outcome, ...]
    effects: tuple[Effect, ...]
    usages: tuple[Usage, ...]
    notes: tuple[str, ...] = ()  # what an owner had to do meanwhile
    problems: tuple[str, ...]  # of the integrity checks

    @property
    def defects(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.verdict.kind in DEFECTS]

    @property
    def well(self) -> bool:
        """Neither an answer nor anything else was wrong."""
        return not self.defects and not self.problems


def effects(
    faults: Sequence[Happened], outcomes: Sequence[Outcome], looks: Sequence[Look], end_s: float
) -> list[Effect]:
    """One for each fault."""
    ends = [*(fault.at_s for fault in faults[1:]), end_s]
    return [_effect(fault, end, outcomes, looks) for fault, end in zip(faults, ends, strict=True)]


def _effect(fault: Happened, end_s: float, outcomes: Iterable[Outcome], looks: Iterable[Look]) -> Effect:
    within = [one for one in outcomes if fault.at_s <= one.ended_s < end_s]
    bad = [one.verdict for one in within if one.verdict.kind not in (Kind.RIGHT, Kind.LEFT)]
    right = [one.ended_s for one in outcomes if one.sent_s >= fault.at_s and one.verdict.kind is Kind.RIGHT]
    return Effect(
        kind=fault.planned.kind,
        victim=fault.planned.victim,
        at_s=fault.at_s,
        did=fault.did,
        requests=len(within),
        failed=dict(Counter(_told(verdict) for verdict in bad)),
        success_s=min(right) - fault.at_s if right else None,
        capacity_s=_capacity_s(fault.at_s, [look for look in looks if fault.at_s <= look.at_s < end_s]),
    )


def _capacity_s(began_s: float, looks: Sequence[Look]) -> float | None:
    broken = [number for number, look in enumerate(looks) if look.whole is False]
    if not broken:
        return 0.0
    after = next((look.at_s for look in looks[broken[-1] + 1 :] if look.whole), None)
    return None if after is None else after - began_s


def _told(verdict: Verdict) -> str:
    return " ".join(map(str, filter(None, (verdict.kind.value, verdict.status, verdict.reason[:60]))))


# ---- as Markdown


def markdown(report: Report) -> str:
    """Totals, a line per kind of fault, and what was wrong."""
    return "\n".join((_head(report), _totals(report), _by_kind(report), _integrity(report), _defects(report)))


def _head(report: Report) -> str:
    return (
        f"# Chaos: {report.layout}, seed {report.seed}\n\n{len(report.effects)} faults and {len(report.outcomes)} requests "
        f"({report.pool} different ones, {report.concurrency} at a time) in {report.duration_s / 60:.1f} minutes. "
        f"Every answer was compared with that of plain vLLM without faults; {len(report.unstable)} requests were left out "
        "because plain vLLM itself does not answer them alike in different batches.\n"
    )


def _totals(report: Report) -> str:
    counts = Counter(one.verdict.kind for one in report.outcomes)
    failures = Counter(_told(one.verdict) for one in report.outcomes if one.verdict.kind in (Kind.FAILED, Kind.REFUSED))
    rows = [[kind.value, str(counts[kind])] for kind in Kind]
    shed = [one.retry_after for one in report.outcomes if one.verdict.status in (429, 503)]
    rows += [["429 and 503, with Retry-After", f"{sum(shed)} of {len(shed)}"]] if shed else []
    listed = "".join(f"- {count} × {what}\n" for what, count in failures.most_common())
    return f"## Answers\n\n{_table(['end', 'requests'], rows)}\n{listed}"


def _by_kind(report: Report) -> str:
    kinds: dict[str, list[Effect]] = {}
    for effect in report.effects:
        kinds.setdefault(effect.kind, []).append(effect)
    head = [
        "fault",
        "count",
        "requests",
        "failed",
        "survived",
        "first success p50 / max s",
        "full capacity p50 / max s",
    ]
    return f"## Faults\n\n{_table(head, [_row(kind, some) for kind, some in sorted(kinds.items())])}"


def _row(kind: str, some: Sequence[Effect]) -> list[str]:
    requests, failed = sum(one.requests for one in some), sum(sum(one.failed.values()) for one in some)
    survived = f"{(requests - failed) / requests:.2%}" if requests else "—"
    times = (_spread([one.success_s for one in some]), _spread([one.capacity_s for one in some]))
    return [kind, str(len(some)), str(requests), str(failed), survived, *times]


def _spread(times: Sequence[float | None]) -> str:
    """Median and greatest; how many never came."""
    known = [one for one in times if one is not None]
    never = f", {len(times) - len(known)} not before the next fault" if len(known) < len(times) else ""
    return f"{statistics.median(known):.1f} / {max(known):.1f}{never}" if known else f"—{never}"


def _integrity(report: Report) -> str:
    first, last = (report.usages[0], report.usages[-1]) if report.usages else (None, None)
    lines = [f"- {problem}" for problem in report.problems] or ["- nothing is left, held or grown"]
    lines += [f"- {note}" for note in report.notes]
    if first and last:
        lines.append(
            f"- the supervisor: {first.pss_bytes / 2**20:.1f} MiB and {first.descriptors} descriptors at first, "
            f"{last.pss_bytes / 2**20:.1f} MiB and {last.descriptors} at last"
        )
    return "## Integrity\n\n" + "\n".join(lines) + "\n"


def _defects(report: Report) -> str:
    if not report.defects:
        return "No answer was wrong, silently short, or without an end.\n"
    lines = [f"- {one.ended_s:.1f} s, {one.case}, {_full(one)}" for one in report.defects]
    return "## Wrong answers\n\n" + "\n".join(lines) + "\n"


def _full(one: Outcome) -> str:
    return f"{one.manner}, request {one.request_id}: {one.verdict.kind.value}: {one.verdict.reason}"


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in [head, ["---"] * len(head), *rows])
