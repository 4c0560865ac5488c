"""What a chaos run has found: records, what follows from them for each fault, and the report. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from bench.checker import DEFECTS, Kind, Verdict
from bench.integrity import Look, Usage
from bench.schedule import Planned

RIGHT_SHARE: Final = 0.90  # of the answers to clients that did not go first: fewer prove nothing
UNSTABLE_SHARE: Final = 0.10  # of the pool, at most, may be left out
KEPT_BYTES: Final = 64 << 10  # of each body of a wrong answer
_AFTER_S: Final = 1.0
_NO_DESCRIPTORS: Final = "fds"  # whoever may open no more has to drop connections


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are seconds of one clock."""

    case: str
    manner: str
    sent_s: float
    ended_s: float
    verdict: Verdict
    request_id: str | None = None
    retry_after: bool = False
    excused: bool = False  # dropped while the supervisor had no descriptors


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: what was planned, when it began, and what was done."""

    planned: Planned
    at_s: float
    over_s: float
    did: str
    made: bool = True


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """A defect in full: what is expected, as it is compared, and the body that came. Each at most ``KEPT_BYTES``."""

    case: str
    manner: str
    request_id: str | None
    reason: str
    expected: str
    heard: str


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What followed from one fault, until the next one.

    ``made``: whether it has happened as planned. ``success_s``: until the first right answer to a request sent after it. ``capacity_s``:
    until all engines were seen ready and introduced again; 0 if they were at every look, None if not before the next fault.
    """

    kind: str
    victim: str
    at_s: float
    did: str
    made: bool
    requests: int
    right: int
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
    wrongs: tuple[Wrong, ...] = ()

    @property
    def defects(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.verdict.kind in DEFECTS and not one.excused]

    @property
    def well(self) -> bool:
        """Neither an answer nor anything else was wrong, and enough was right for that to mean something."""
        return not self.defects and not self.problems and not self.shortfalls

    @property
    def right_share(self) -> float | None:
        """Of all requests but those whose clients went first."""
        return _share(one.verdict for one in self.outcomes)

    @property
    def unstable_share(self) -> float:
        return len(self.unstable) / max(1, self.pool + len(self.unstable))

    @property
    def shortfalls(self) -> list[str]:
        """Why the run proves too little."""
        found = []
        if (self.right_share or 0.0) < RIGHT_SHARE:
            found.append(f"{_percent(self.right_share)} of the answers were right; at least {RIGHT_SHARE:.0%} must be")
        if self.unstable_share > UNSTABLE_SHARE:
            found.append(
                f"{self.unstable_share:.1%} of the requests were left out; at most {UNSTABLE_SHARE:.0%} may be"
            )
        if self.effects and not any(one.made for one in self.effects):
            found.append("no fault could be made")
        return found


def _share(verdicts: Iterable[Verdict]) -> float | None:
    stayed = [one.kind is Kind.RIGHT for one in verdicts if one.kind is not Kind.LEFT]
    return sum(stayed) / len(stayed) if stayed else None


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{share:.2%}"


def bounded(body: bytes) -> str:
    return body[:KEPT_BYTES].decode(errors="replace")


def excuse(outcomes: Iterable[Outcome], faults: Iterable[Happened]) -> list[Outcome]:
    """The same, but for what was dropped while the supervisor had no descriptors: that is no defect."""
    without = [one for one in faults if one.made and one.planned.group == _NO_DESCRIPTORS]
    return [msgspec.structs.replace(one, excused=_met(one, without)) for one in outcomes]


def _met(outcome: Outcome, faults: Iterable[Happened]) -> bool:
    dropped = outcome.verdict.kind is Kind.DROPPED
    return dropped and any(one.at_s <= outcome.ended_s and outcome.sent_s <= one.over_s + _AFTER_S for one in faults)


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
        made=fault.made,
        requests=len(within),
        right=sum(one.verdict.kind is Kind.RIGHT for one in within),
        failed=dict(Counter(_told(verdict) for verdict in bad)),
        success_s=min(right) - fault.at_s if right else None,
        capacity_s=_capacity_s(fault.at_s, [look for look in looks if fault.at_s <= look.at_s < end_s]),
    )


def _capacity_s(began_s: float, looks: Sequence[Look]) -> float | None:
    """A page that does not answer shows no capacity, and neither does a page that nobody has looked at."""
    broken = [number for number, look in enumerate(looks) if not look.whole]
    if looks and not broken:
        return 0.0
    if not looks:
        return None
    after = next((look.at_s for look in looks[broken[-1] + 1 :] if look.whole), None)
    return None if after is None else after - began_s


_FAILURES: Final = (Kind.FAILED, Kind.REFUSED, Kind.DROPPED)


def _told(verdict: Verdict) -> str:
    return " ".join(map(str, filter(None, (verdict.kind.value, verdict.status, verdict.reason[:60]))))


# ---- as Markdown


def markdown(report: Report) -> str:
    """Totals, a line per kind of fault, and what was wrong."""
    parts = (_head, _enough, _totals, _by_kind, _not_made, _integrity, _defects)
    return "\n".join(part(report) for part in parts)


def _head(report: Report) -> str:
    made = sum(one.made for one in report.effects)
    return (
        f"# Chaos: {report.layout}, seed {report.seed}\n\n{made} faults and {len(report.outcomes)} requests "
        f"({report.pool} different ones, {report.concurrency} at a time) in {report.duration_s / 60:.1f} minutes. "
        f"Every answer was compared with that of plain vLLM without faults; {len(report.unstable)} requests were left out "
        "because plain vLLM itself does not answer them alike in different batches.\n"
    )


def _enough(report: Report) -> str:
    said = (
        f"Of the answers to clients that did not go first, {_percent(report.right_share)} were right (at least {RIGHT_SHARE:.0%} must be); "
        f"{report.unstable_share:.1%} of the requests were left out (at most {UNSTABLE_SHARE:.0%} may be)."
    )
    return said + "\n" + "".join(f"\n**This run proves too little:** {one}.\n" for one in report.shortfalls)


def _totals(report: Report) -> str:
    counts = Counter(one.verdict.kind for one in report.outcomes)
    failures = Counter(_told(one.verdict) for one in report.outcomes if one.verdict.kind in _FAILURES)
    rows = [[kind.value, str(counts[kind])] for kind in Kind]
    shed = [one.retry_after for one in report.outcomes if one.verdict.status in (429, 503)]
    rows += [["429 and 503, with Retry-After", f"{sum(shed)} of {len(shed)}"]] if shed else []
    if excused := sum(one.excused for one in report.outcomes):
        rows += [["dropped while the supervisor had no descriptors (no defect)", str(excused)]]
    listed = "".join(f"- {count} × {what}\n" for what, count in failures.most_common())
    return f"## Answers\n\n{_table(['end', 'requests'], rows)}\n{listed}"


def _by_kind(report: Report) -> str:
    kinds: dict[str, list[Effect]] = {}
    for effect in (one for one in report.effects if one.made):
        kinds.setdefault(effect.kind, []).append(effect)
    head = [
        "fault",
        "count",
        "requests",
        "right",
        "not right",
        "survived",
        "first success p50 / max s",
        "full capacity p50 / max s",
    ]
    table = _table(head, [_row(kind, some) for kind, some in sorted(kinds.items())])
    return f"## Faults\n\n{table}\nSurvived: right answers, of all but those whose clients went first.\n"


def _not_made(report: Report) -> str:
    """Not counted: nothing follows from them."""
    lines = [f"- {one.at_s:.0f} s, {one.kind} of {one.victim}: {one.did}" for one in report.effects if not one.made]
    return "## Faults that were not made\n\n" + ("\n".join(lines) or "None.") + "\n"


def _row(kind: str, some: Sequence[Effect]) -> list[str]:
    requests, right = sum(one.requests for one in some), sum(one.right for one in some)
    failed = sum(sum(one.failed.values()) for one in some)
    survived = _percent(right / (right + failed) if right + failed else None)
    times = (_spread([one.success_s for one in some]), _spread([one.capacity_s for one in some]))
    return [kind, str(len(some)), str(requests), str(right), str(failed), survived, *times]


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
