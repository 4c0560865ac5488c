"""The budgets of issues, each beside what was measured: met, missed, or not measured. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from bench.figures import Summary
from bench.peers.contestants import (
    DYNAMO,
    OURS,
    PEERS,
    PREFILL,
    RELAY,
    SPLIT,
    SUPERVISOR,
    TUNED,
    Contestant,
)
from bench.peers.loads import OUTPUT_TOKENS, Load, closed, opened
from bench.peers.records import Measured, Report, Started, Streamed

Figure = Callable[[Summary], float | None]
_MIB: Final = 1 << 20


class Outcome(StrEnum):
    """Of one budget."""

    MET = "met"
    MISSED = "**missed**"
    UNKNOWN = "not measured"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One budget. ``found`` has a value for each repetition; it is the median that counts."""

    what: str
    budget: str
    found: tuple[float, ...]
    outcome: Outcome
    scale: float = 1.0
    unit: str = ""


def verdicts(report: Report) -> list[Verdict]:
    """In the order of the table."""
    return [
        *_open_loops(report),
        *_held(report),
        *_best(report),
        *_handoffs(report),
        *_per_token(report.streamed),
        *_added(report.streamed),
        *_standing(report.started),
    ]


def at_most(what: str, bound: float, found: Iterable[float], *, scale: float = 1.0, unit: str = "×") -> Verdict:
    """``bound`` in the same unit as ``found``; both are shown times ``scale``."""
    return _verdict(what, "≤", bound, tuple(found), scale, unit)


def at_least(what: str, bound: float, found: Iterable[float], *, scale: float = 1.0, unit: str = "×") -> Verdict:
    return _verdict(what, "≥", bound, tuple(found), scale, unit)


def _verdict(what: str, sign: str, bound: float, found: tuple[float, ...], scale: float, unit: str) -> Verdict:
    outcome = Outcome.UNKNOWN
    if found:
        middle = statistics.median(found)
        outcome = Outcome.MET if (middle <= bound if sign == "≤" else middle >= bound) else Outcome.MISSED
    return Verdict(
        what=what,
        budget=f"{sign} {bound * scale:g}{_spaced(unit)}",
        found=found,
        outcome=outcome,
        scale=scale,
        unit=unit,
    )


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""


def ratios(
    measured: Sequence[Measured], ours: Contestant, theirs: Contestant, load: Load, figure: Figure
) -> tuple[float, ...]:
    """Ours over theirs, one for each repetition that has both."""
    return quotients(by_repetition(measured, ours, load, figure), by_repetition(measured, theirs, load, figure))


def quotients(over: dict[int, float], under: dict[int, float]) -> tuple[float, ...]:
    return tuple(over[number] / under[number] for number in sorted(over.keys() & under.keys()) if under[number])


def by_repetition(measured: Sequence[Measured], one: Contestant, load: Load, figure: Figure) -> dict[int, float]:
    """Only of what answered something."""
    found = {run.repetition: figure(run.summary) for run in measured if run.contestant == one.key and run.load == load}
    return {number: value for number, value in found.items() if value is not None}


def loads(measured: Iterable[Measured]) -> list[Load]:
    """In the order in which they are shown."""
    found = {run.load for run in measured}
    return sorted(
        found,
        key=lambda one: (
            one.share is not None,
            one.prompt_tokens,
            one.output_tokens,
            one.concurrency or 0,
            one.share or 0,
        ),
    )


def _open_loops(report: Report) -> list[Verdict]:
    figures: tuple[tuple[str, Figure, float], ...] = (
        ("TTFT p50", lambda one: one.ttft_p50_s, 0.8),
        ("TTFT p99", lambda one: one.ttft_p99_s, 0.8),
        ("TPOT p50", lambda one: one.tpot_p50_s, 1.05),
    )
    scale = report.setup.scale
    return [
        at_most(
            f"{SPLIT.key} against NIXL tuned, {load.title.lower()}: {name}",
            bound,
            ratios(report.measured, SPLIT, TUNED, load, figure),
        )
        for load in opened(SPLIT, scale, dict.fromkeys(scale.prompts, 1.0))
        for name, figure, bound in figures
    ]


def _held(report: Report) -> list[Verdict]:
    """The most requests per second, with the most clients that there are."""
    found, measured = [], report.measured
    for alone in closed(PREFILL, report.setup.scale):
        load = msgspec.structs.replace(alone, output_tokens=OUTPUT_TOKENS)
        ours, theirs, best = (
            by_repetition(measured, one, asked, _requests_s)
            for one, asked in ((SPLIT, load), (TUNED, load), (PREFILL, alone))
        )
        what = f"{SPLIT.key}, req/s held, prompt {load.prompt_tokens}, {load.concurrency} at once"
        found.append(at_least(f"{what}: against NIXL tuned", 1.25, quotients(ours, theirs)))
        found.append(at_least(f"{what}: against an engine that only prefills", 0.95, quotients(ours, best)))
    return found


def _requests_s(summary: Summary) -> float | None:
    return summary.requests_s or None


def _best(report: Report) -> list[Verdict]:
    """Any load: one layout of ours against the best of all others and ours, in the load where it is worst."""
    found, every = [], closed(SPLIT, report.setup.scale)
    for ours in OURS:
        known = [values for load in every if (values := _against_best(report.measured, ours, load))]
        what = f"appliance {ours.key}, req/s against the best of all, in its worst load ({len(known)} of {len(every)} measured)"
        found.append(at_least(what, 0.95, min(known, key=statistics.median, default=())))
    return found


def _against_best(measured: Sequence[Measured], ours: Contestant, load: Load) -> tuple[float, ...]:
    """Nothing unless a peer has been measured, too."""
    mine = by_repetition(measured, ours, load, _requests_s)
    peers = [by_repetition(measured, one, load, _requests_s) for one in PEERS]
    if not any(peers):
        return ()
    others = [*peers, *(by_repetition(measured, one, load, _requests_s) for one in OURS)]
    best = {number: max(one.get(number, 0.0) for one in others) for number in mine}
    return quotients(mine, best)


def _handoffs(report: Report) -> list[Verdict]:
    def rates(one: Contestant, load: Load) -> dict[int, float]:
        runs = [run for run in report.measured if run.contestant == one.key and run.load == load]
        return {run.repetition: run.handoff_bytes_s for run in runs if run.handoff_bytes_s is not None}

    return [
        at_least(
            f"hand-off, bytes/s against NIXL tuned, {load.title.lower()}",
            2.5,
            quotients(rates(SPLIT, load), rates(TUNED, load)),
        )
        for load in closed(SPLIT, report.setup.scale)
    ]


def _per_token(streamed: Sequence[Streamed]) -> list[Verdict]:
    def costs(one: Contestant) -> dict[int, float]:
        return {run.repetition: run.cpu_us_per_event for run in streamed if run.contestant == one.key and run.events}

    ours = costs(SUPERVISOR)
    return [
        at_most("supervisor, CPU per streamed token against the raw relay", 1.3, quotients(ours, costs(RELAY))),
        at_most("supervisor, CPU per streamed token against Dynamo's frontend", 1.0, quotients(ours, costs(DYNAMO))),
    ]


def _added(streamed: Sequence[Streamed]) -> list[Verdict]:
    runs = [run for run in streamed if run.contestant == SUPERVISOR.key and run.ttft_direct_s and run.ttft_through_s]
    return [
        at_most(
            f"time to first token that the supervisor adds, 16 at once: {name}",
            bound_s,
            [run.ttft_through_s[place] - run.ttft_direct_s[place] for run in runs],
            scale=1e3,
            unit="ms",
        )
        for place, (name, bound_s) in enumerate((("p50", 0.001), ("p99", 0.005)))
    ]


def _standing(started: Sequence[Started]) -> list[Verdict]:
    split = [one for one in started if one.contestant == SPLIT.key]
    supervisors = [use.pss_bytes for one in split for use in one.usages if use.part == "supervisor"]
    engines = [sum(use.pss_bytes for use in one.usages if use.part != "supervisor") for one in split if one.usages]
    idle = [sum(use.idle_cpu for use in one.usages) for one in split if one.usages]
    pages = [one.page_s for one in split if one.page_s is not None]
    return [
        at_most(f"{SPLIT.key}: CPU of everything at rest, of one core", 0.03, idle, scale=100, unit="%"),
        at_most(f"{SPLIT.key}: page answers after the start", 1.5, pages, unit="s"),
        at_most(f"{SPLIT.key}: first token after the start", 12.0, [one.first_token_s for one in split], unit="s"),
        at_most(f"{SPLIT.key}: memory of the supervisor", 100 * _MIB, supervisors, scale=1 / _MIB, unit="MiB"),
        at_most(
            f"{SPLIT.key}: memory of two engines and what they share",
            2.1 * 1024 * _MIB,
            engines,
            scale=1 / _MIB / 1024,
            unit="GiB",
        ),
    ]
