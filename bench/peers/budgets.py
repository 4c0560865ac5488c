"""The budgets, each beside what was measured. Pure.

Met or missed is what was so in every repetition, else it is unclear. (Of three, one case in four comes to be called met or missed although
it is the bound itself; of a bound on every load, more.) Where requests failed on either side nothing is said: whoever sheds what is slow
looks quick.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from bench.figures import Summary, percentile
from bench.peers.contestants import (
    DYNAMO,
    OURS,
    PREFILL,
    RELAY,
    REPLICAS,
    SPLIT,
    SUPERVISOR,
    TUNED,
    VLLM,
    Contestant,
)
from bench.peers.loads import OUTPUT_TOKENS, PACE_MS, Load, closed, opened
from bench.peers.records import Measured, Report

Figure = Callable[[Summary], float | None]
Run = tuple[Contestant, Load]
_MIB: Final = 1 << 20
_RIVALS: Final = (VLLM, REPLICAS, TUNED, *OURS)
_PACE_OFF_MS: Final = 1.0  # from where on engines were too busy to tell what a frontend takes


class Outcome(StrEnum):
    """Of one budget."""

    MET = "met"
    MISSED = "**missed**"
    UNCLEAR = "unclear"  # not the same in every repetition
    INVALID = "requests failed, or were not split"
    PARTLY = "not in every load or repetition"
    UNKNOWN = "not measured"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One budget. ``found`` has a value for each repetition, or one of all together."""

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
        *_per_token(report),
        *_added(report),
        *_standing(report),
    ]


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. ``least``: at least so much, else at most. Values are shown times ``scale``."""

    value: float
    least: bool = False
    scale: float = 1.0
    unit: str = "×"

    def holds(self, value: float) -> bool:
        return value >= self.value if self.least else value <= self.value


def judged(
    what: str, bound: Bound, found: Iterable[float], *, wanted: int, errors: int = 0, also: Iterable[float] = ()
) -> Verdict:
    """``wanted``: values without which nothing is said. ``errors``: requests that failed in what they are of. ``also``: what must be as
    the values are, and is not shown.
    """
    values = tuple(found)
    return Verdict(
        what=what,
        budget=f"{'≥' if bound.least else '≤'} {bound.value * bound.scale:g}{_spaced(bound.unit)}",
        found=values,
        outcome=_outcome(bound, values, wanted, errors, tuple(also)),
        scale=bound.scale,
        unit=bound.unit,
    )


def _outcome(bound: Bound, values: Sequence[float], wanted: int, errors: int, also: Sequence[float]) -> Outcome:
    if errors:
        return Outcome.INVALID
    if len(values) < wanted:
        return Outcome.PARTLY if values else Outcome.UNKNOWN
    held = [bound.holds(value) for value in (*values, *also)]
    if any(held) and not all(held):
        return Outcome.UNCLEAR
    return Outcome.MET if held[0] else Outcome.MISSED


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


def errors(measured: Iterable[Measured], *of: Run) -> int:
    """Requests that failed in these, or were not split."""
    wanted = {(one.key, load) for one, load in of}
    return sum(run.failures for run in measured if (run.contestant, run.load) in wanted)


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
    scale, measured = report.setup.scale, report.measured
    found = []
    for load in opened(SPLIT, scale, dict.fromkeys(scale.prompts, 1.0)):
        what = f"{SPLIT.key} against NIXL tuned, {load.title.lower()}"
        failed = errors(measured, (SPLIT, load), (TUNED, load))
        for name, figure, bound in (
            ("TTFT p50", _ttft_s, Bound(value=0.8)),
            ("TPOT p50", _tpot_s, Bound(value=1.05)),
        ):
            values = ratios(measured, SPLIT, TUNED, load, figure)
            found.append(judged(f"{what}: {name}", bound, values, wanted=scale.repetitions, errors=failed))
        together, each = _slowest(report, load), ratios(measured, SPLIT, TUNED, load, lambda one: one.ttft_p99_s)
        what = f"{what}: TTFT p99 of all repetitions"
        found.append(judged(what, Bound(value=0.8), together, wanted=1, errors=failed, also=each))
    return found


def _ttft_s(summary: Summary) -> float | None:
    return summary.ttft_p50_s


def _tpot_s(summary: Summary) -> float | None:
    return summary.tpot_p50_s


def _slowest(report: Report, load: Load) -> tuple[float, ...]:
    """The p99 of one repetition is its slowest request or two: this is of all together, once all are there."""
    sides = []
    for one in (SPLIT, TUNED):
        runs = [run for run in report.measured if (run.contestant, run.load) == (one.key, load)]
        p99_s = percentile((ttft_s for run in runs for ttft_s in run.ttfts_s), 0.99)
        if len(runs) < report.setup.scale.repetitions or p99_s is None:
            return ()
        sides.append(p99_s)
    return (sides[0] / sides[1],)


def _held(report: Report) -> list[Verdict]:
    """The most requests per second, with the most clients that there are."""
    found, measured, wanted = [], report.measured, report.setup.scale.repetitions
    for alone in closed(PREFILL, report.setup.scale):
        load = msgspec.structs.replace(alone, output_tokens=OUTPUT_TOKENS)
        ours = by_repetition(measured, SPLIT, load, _requests_s)
        what = f"{SPLIT.key}, req/s held, prompt {load.prompt_tokens}, {load.concurrency} at once"
        for against, one, asked, bound in (
            ("NIXL tuned", TUNED, load, 1.25),
            ("an engine that only prefills", PREFILL, alone, 0.95),
        ):
            values = quotients(ours, by_repetition(measured, one, asked, _requests_s))
            failed = errors(measured, (SPLIT, load), (one, asked))
            least = Bound(value=bound, least=True)
            found.append(judged(f"{what}: against {against}", least, values, wanted=wanted, errors=failed))
    return found


def _requests_s(summary: Summary) -> float | None:
    return summary.requests_s or None


def _best(report: Report) -> list[Verdict]:
    """Any closed loop: one layout of ours against the best of all others, peers and ours, in the load where it is worst."""
    found, every, bound = [], closed(SPLIT, report.setup.scale), Bound(value=0.95, least=True)
    for ours in OURS:
        known = {load: values for load in every if (values := _against_best(report, ours, load))}
        what = f"appliance {ours.key}, req/s against the best of all others, in its worst load ({len(known)} of {len(every)} measured)"
        missed = [values for values in known.values() if not any(map(bound.holds, values))]
        worst = min(missed or known.values(), key=statistics.median, default=())
        others = () if missed else tuple(value for values in known.values() for value in values)
        wanted = report.setup.scale.repetitions if len(known) == len(every) else len(worst) + 1
        failed = errors(report.measured, *((one, load) for one in _RIVALS for load in known))
        found.append(judged(what, bound, worst, wanted=wanted, errors=failed, also=others))
    return found


def _against_best(report: Report, ours: Contestant, load: Load) -> tuple[float, ...]:
    """The best is who is so at the median. Nothing unless those that could be have been measured in every repetition."""
    measured, wanted = report.measured, report.setup.scale.repetitions
    held = {one.key: by_repetition(measured, one, load, _requests_s) for one in _RIVALS}
    if any(len(held[one.key]) < wanted for one in (ours, VLLM, REPLICAS, TUNED)):
        return ()
    rivals = [values for key, values in held.items() if key != ours.key and values]
    best = max(rivals, key=lambda values: statistics.median(values.values()))
    return quotients(held[ours.key], best)


def _handoffs(report: Report) -> list[Verdict]:
    """Of long prompts one at a time: else NIXL's clock, which its engine looks at between two steps, goes on beside other work."""
    [load] = [
        one for one in closed(SPLIT, report.setup.scale)[-len(report.setup.scale.clients) :] if one.concurrency == 1
    ]

    def rates(one: Contestant) -> dict[int, float]:
        runs = [run for run in report.measured if run.contestant == one.key and run.load == load]
        return {run.repetition: run.handoff_bytes_s for run in runs if run.handoff_bytes_s is not None}

    return [
        judged(
            f"hand-off, bytes/s against NIXL tuned, {load.title.lower()}",
            Bound(value=2.5, least=True),
            quotients(rates(SPLIT), rates(TUNED)),
            wanted=report.setup.scale.repetitions,
            errors=errors(report.measured, (SPLIT, load), (TUNED, load)),
        )
    ]


def _per_token(report: Report) -> list[Verdict]:
    """Of runs in which engines kept their pace; where requests failed in any, nothing is said."""
    kept = [run for run in report.streamed if run.events and abs(run.pace_ms - PACE_MS) <= _PACE_OFF_MS]

    def costs(one: Contestant) -> dict[int, float]:
        of = (run for run in kept if run.contestant == one.key)
        return {run.repetition: run.cpu_us_per_event * (run.events_per_token or 1.0) for run in of}

    return [
        judged(
            f"supervisor, CPU per streamed token against {name}",
            Bound(value=bound),
            quotients(costs(SUPERVISOR), costs(one)),
            wanted=report.setup.scale.repetitions,
            errors=sum(run.errors for run in report.streamed if run.contestant in (SUPERVISOR.key, one.key)),
        )
        for name, one, bound in (
            ("the raw relay", RELAY, 1.3),
            ("Dynamo's frontend, which also makes tokens into text", DYNAMO, 1.0),
        )
    ]


def _added(report: Report) -> list[Verdict]:
    ours = [one for one in report.streamed if one.contestant == SUPERVISOR.key]
    runs = [run for run in ours if run.ttft_direct_s and run.ttft_through_s]
    found = []
    for place, (name, bound_s) in enumerate((("p50", 0.001), ("p99", 0.005))):
        values = [run.ttft_through_s[place] - run.ttft_direct_s[place] for run in runs]
        what = f"time to first token that the supervisor adds to an unsplit request, some 16 under way: {name}"
        bound = Bound(value=bound_s, scale=1e3, unit="ms")
        one = judged(what, bound, values, wanted=report.setup.scale.repetitions)
        impossible = (
            one.outcome is Outcome.MET and min(values) < -bound_s
        )  # the noise is larger than what is looked for
        found.append(msgspec.structs.replace(one, outcome=Outcome.UNCLEAR) if impossible else one)
    return found


def _standing(report: Report) -> list[Verdict]:
    split = [one for one in report.started if one.contestant == SPLIT.key]
    supervisors = [use.pss_bytes for one in split for use in one.usages if use.part == "supervisor"]
    engines = [sum(use.pss_bytes for use in one.usages if use.part != "supervisor") for one in split if one.usages]
    idle = [sum(use.idle_cpu for use in one.usages) for one in split if one.usages]
    pages = [one.page_s for one in split if one.page_s is not None]
    first = [one.first_token_s for one in split]
    return [
        judged(f"{SPLIT.key}: {what}", bound, found, wanted=report.setup.scale.repetitions)
        for what, bound, found in (
            ("CPU of everything at rest, of one core", Bound(value=0.03, scale=100, unit="%"), idle),
            ("page answers after the start", Bound(value=1.5, unit="s"), pages),
            ("first token after the start", Bound(value=12.0, unit="s"), first),
            ("memory of the supervisor", Bound(value=100 * _MIB, scale=1 / _MIB, unit="MiB"), supervisors),
            (
                "memory of two engines and what they share, with the 512 MiB of KV cache each that all have here",
                Bound(value=2.1 * 1024 * _MIB, scale=1 / _MIB / 1024, unit="GiB"),
                engines,
            ),
        )
    ]
