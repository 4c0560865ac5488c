"""What is done to a real node, and what a diagnosis should say of it. Seeded, pure, and nothing of the diagnoser.

One case for each seed: seeds go through all kinds in turn, and chance says which engine, how hard and when.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

import msgspec

from bench.diagnosis.cases import Truth

FAULT_S: Final = 18.0
BEFORE_S: Final = (10.0, 13.0)  # of a case's time, until it is injured
AFTER_S: Final = 22.0  # at most, until it is well again


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """A node, started once for all of its cases. ``prefill``, ``decode``: arguments of vLLM for engines of that role."""

    layout: str
    prefill: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()

    @property
    def engines(self) -> tuple[str, ...]:
        return ("e0", "e1")


SETUPS: Final = {
    "1p1d": Setup(layout="1p1d"),
    "2b": Setup(layout="2b"),
    "1p1d, little KV": Setup(layout="1p1d", decode=("--num-gpu-blocks-override", "33")),
    "1p1d, few places": Setup(layout="1p1d", decode=("--max-num-seqs", "3")),
    "1p1d, small steps": Setup(layout="1p1d", prefill=("--max-num-batched-tokens", "32", "--max-num-seqs", "16")),
}


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that come by chance. ``load``: of what the busier of a node's roles can do, that they take (``capacity.Capacity``)."""

    load: float
    prompt_tokens: int
    output_tokens: int
    sigma: float = 0.25  # of both lengths' logarithms
    burstiness: float = 1.0  # gaps' variance over their mean squared; 1: Poisson
    swing: float = 0.0  # by which the rate goes up and down
    period_s: float = 100.0


USUAL: Final = Stream(load=0.5, prompt_tokens=120, output_tokens=16)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One injection. ``severity``: of the time, the quota or the weight, as the kind has it. ``surge``: traffic beside the usual."""

    node: str
    seed: int
    name: str
    engine: str
    onset_s: float
    severity: float | None = None
    period_s: float | None = None  # of a duty cycle
    surge: Stream | None = None
    truths: tuple[Truth, ...] = ()
    traffic: Stream = USUAL

    @property
    def setup(self) -> Setup:
        return SETUPS[self.node]


KINDS: Final = (
    ("1p1d", "core held"),
    ("2b", "core held"),
    ("1p1d", "API held"),
    ("2b", "API held"),
    ("1p1d", "core stopped"),
    ("2b", "core stopped"),
    ("1p1d", "API stopped"),
    ("1p1d", "core killed"),
    ("2b", "core killed"),
    ("1p1d", "API killed"),
    ("1p1d", "neighbours"),
    ("2b", "neighbours"),
    ("1p1d", "quota"),
    ("2b", "quota"),
    ("1p1d", "one core"),
    ("2b", "weights"),
    ("1p1d", "prompts"),
    ("1p1d", "answers"),
    ("1p1d", "long prompts"),
    ("1p1d, little KV", "more answers"),
    ("1p1d, few places", "more answers"),
    ("1p1d, small steps", "more prompts"),
)
"""Where, and what."""

MEANING: Final = {
    "core held": "SIGSTOP and SIGCONT in turn to EngineCore, 40 to 90 % of the time stopped",
    "API held": "the same to the API process, 80 to 95 % of the time stopped",
    "core stopped": "SIGSTOP to EngineCore, for good",
    "API stopped": "SIGSTOP to the API process, for good",
    "core killed": "SIGKILL to EngineCore",
    "API killed": "SIGKILL to the API process",
    "neighbours": "one to four processes that spin on the engine's core",
    "quota": "a control group of its own for EngineCore, with 15 to 45 % of a core",
    "one core": "all of one engine's threads pinned to the other's core",
    "weights": "one engine's weight in routing 6 to 20 times the other's, while more is asked",
    "prompts": "more prompts than the prefill engine can compute",
    "answers": "long answers, more than the decode engine can make in time",
    "long prompts": "a few prompts of 3,500 tokens, 29 times the median",
    "more answers": "longer answers to an engine that was started with too little for them",
    "more prompts": "more prompts to an engine that was started with a small token budget",
}


def cases(seeds: Iterable[int], only: Iterable[str] = ()) -> list[Case]:
    """One for each seed. ``only``: kinds; empty: all."""
    wanted = set(only)
    return [
        _case(seed, node, kind, random.Random(f"{seed} {node} {kind}"))
        for seed in seeds
        for node, kind in [KINDS[seed % len(KINDS)]]
        if not wanted or kind in wanted
    ]


def _case(seed: int, node: str, kind: str, chance: random.Random) -> Case:
    onset_s = round(chance.uniform(*BEFORE_S), 2)
    engine = chance.choice(SETUPS[node].engines)
    case = Case(node=node, seed=seed, name=kind, engine=engine, onset_s=onset_s)
    return _LIKE[kind](case, chance)


def _held(case: Case, chance: random.Random) -> Case:
    shares, periods = ((0.4, 0.9), (0.1, 0.4)) if case.name == "core held" else ((0.8, 0.95), (0.8, 1.6))
    share, period_s = round(chance.uniform(*shares), 3), round(chance.uniform(*periods), 3)
    causes = _slow(case) if case.name == "core held" else ("frontend_bound",)
    return _of(case, causes, severity=share, period_s=period_s)


def _starved(case: Case, chance: random.Random) -> Case:
    severity = float(chance.randint(1, 4)) if case.name == "neighbours" else round(chance.uniform(0.15, 0.45), 3)
    return _of(case, _slow(case), severity=severity)


def _gone(case: Case, chance: random.Random) -> Case:
    """While more is asked than one engine can do for both."""
    changed = _of(case, ("engine_hung",) if "stopped" in case.name else ("engine_crashed",))
    return msgspec.structs.replace(changed, traffic=_usual(0.6))


def _one_core(case: Case, chance: random.Random) -> Case:
    """Both suffer, and either may be what requests wait for."""
    truths = tuple(Truth(causes=_slow(case, engine), engines=(engine,)) for engine in case.setup.engines)
    return msgspec.structs.replace(case, truths=truths, traffic=_usual(0.6))


def _weights(case: Case, chance: random.Random) -> Case:
    changed = _of(case, ("routing_skew",), severity=round(chance.uniform(6, 20), 1))
    return msgspec.structs.replace(changed, traffic=_usual(0.65))


def _prompts(case: Case, chance: random.Random) -> Case:
    surge = Stream(load=round(chance.uniform(0.8, 1.3), 2), prompt_tokens=600, output_tokens=4)
    causes = ("prefill_saturated", "pool_imbalance", "disaggregation_not_worth_it")
    return _of(case, causes, engine="e0", surge=surge)


def _answers(case: Case, chance: random.Random) -> Case:
    """While the prefill engine has time to spare: each token costs its core something, too, where there are two in all."""
    surge = Stream(load=round(chance.uniform(1.2, 2.0), 2), prompt_tokens=100, output_tokens=400)
    causes = ("decode_saturated", "pool_imbalance", "decode_kv_full", "disaggregation_not_worth_it")
    changed = _of(case, causes, engine="e1", surge=surge)
    return msgspec.structs.replace(changed, traffic=_usual(0.25))


def _long(case: Case, chance: random.Random) -> Case:
    surge = Stream(load=round(chance.uniform(0.25, 0.4), 2), prompt_tokens=3500, output_tokens=4, sigma=0.05)
    return _of(case, ("long_prompt_blocking",), engine="e0", surge=surge)


def _more_answers(case: Case, chance: random.Random) -> Case:
    if "KV" in case.node:
        surge = Stream(load=round(chance.uniform(2.0, 3.0), 2), prompt_tokens=100, output_tokens=300)
        return _of(case, ("decode_kv_full",), engine="e1", surge=surge)
    surge = Stream(load=round(chance.uniform(0.8, 1.5), 2), prompt_tokens=100, output_tokens=150)
    return _of(case, ("handoff_decode_admission",), engine="e1", surge=surge)


def _more_prompts(case: Case, chance: random.Random) -> Case:
    surge = Stream(load=round(chance.uniform(0.4, 0.8), 2), prompt_tokens=300, output_tokens=4)
    changed = _of(case, ("prefill_budget_small",), engine="e0", surge=surge)
    return msgspec.structs.replace(changed, traffic=_usual(0.25))


_LIKE: Final = {
    "core held": _held,
    "API held": _held,
    "core stopped": _gone,
    "API stopped": _gone,
    "core killed": _gone,
    "API killed": _gone,
    "neighbours": _starved,
    "quota": _starved,
    "one core": _one_core,
    "weights": _weights,
    "prompts": _prompts,
    "answers": _answers,
    "long prompts": _long,
    "more answers": _more_answers,
    "more prompts": _more_prompts,
}


def _of(
    case: Case,
    causes: tuple[str, ...],
    *,
    engine: str | None = None,
    severity: float | None = None,
    period_s: float | None = None,
    surge: Stream | None = None,
) -> Case:
    name = engine or case.engine
    truth = Truth(causes=causes, engines=(name,))
    return msgspec.structs.replace(
        case, engine=name, severity=severity, period_s=period_s, surge=surge, truths=(truth,)
    )


def _slow(case: Case, engine: str | None = None) -> tuple[str, ...]:
    """What a slow engine is called. One in both roles may be called by either."""
    if case.setup.layout == "2b":
        return "prefill_straggler_cpu", "decode_straggler_cpu"
    return ("prefill_straggler_cpu",) if (engine or case.engine) == "e0" else ("decode_straggler_cpu",)


def _usual(load: float) -> Stream:
    return msgspec.structs.replace(USUAL, load=load)


def calm(minutes: float, chunk_minutes: float = 5.0) -> list[Case]:
    """Nothing is done; and what may look as if. In pieces, of both layouts and all kinds of traffic in turn."""
    several = [(node, name, stream) for name, stream in _CALM.items() for node in ("1p1d", "2b")]
    return [
        Case(node=node, seed=number, name=name, engine="e0", onset_s=60 * chunk_minutes, traffic=stream)
        for number in range(round(minutes / chunk_minutes))
        for node, name, stream in [several[number % len(several)]]
    ]


_CALM: Final = {
    "steady": USUAL,
    "bursts": msgspec.structs.replace(USUAL, load=0.3, burstiness=2.5),
    "ramps": msgspec.structs.replace(USUAL, load=0.35, swing=0.4),
    "little": msgspec.structs.replace(USUAL, load=0.03),
}


def chances(scored: Iterable[Case]) -> tuple[float, float]:
    """How often an engine drawn at random would be right, and a cause of an engine."""
    every = [case for case in scored if case.truths]
    engines = [
        len({name for truth in case.truths for name in truth.engines}) / len(case.setup.engines) for case in every
    ]
    pairs = [
        sum(len(truth.causes) * len(truth.engines) for truth in case.truths) / (_CAUSES * len(case.setup.engines))
        for case in every
    ]
    return sum(engines) / max(1, len(every)), sum(pairs) / max(1, len(every))


_CAUSES: Final = 19  # that the product tells apart
