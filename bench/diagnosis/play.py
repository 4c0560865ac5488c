"""One case, played on a simulated node under its virtual clock, with the diagnoser looking on."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from appliance.channel import Fault
from appliance.diagnosis.verdicts import Diagnoser
from appliance.records import Verdict
from appliance.simulator.clock import VirtualClock
from appliance.simulator.node import SimulatedNode
from appliance.simulator.request import Answered
from appliance.simulator.scenario import BLOCK_TOKENS, Loaded, Scenario, config, plans
from appliance.simulator.traces import Arrival
from appliance.simulator.traffic import arrivals
from bench.diagnosis.cases import AFTER_S, FAULT_S, NODES, ONSET_S, Case

TICK_S: Final = 0.5
_MODELS: Final = Path(__file__).parents[2] / "examples" / "models"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict that was new, in seconds of the case."""

    at_s: float
    state: str
    engine: str | None
    cause: str | None
    summary: str
    link: tuple[str, str] | None = None


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a case. ``good``: by second, requests that arrived then and were answered within the targets; ``asked``: all of them."""

    case: Case
    said: tuple[Said, ...]
    good: tuple[int, ...]
    asked: tuple[int, ...]


def play(case: Case, *, injected: bool = True, duration_s: float = ONSET_S + FAULT_S + AFTER_S) -> Played:
    """``injected`` False: the same traffic, and nothing is done to it."""
    scenario = NODES[case.node]
    clock = VirtualClock()
    origin_ns = clock.now_ns
    seconds = int(duration_s)
    good, asked = [0] * (seconds + 1), [0] * (seconds + 1)

    def answered(one: Answered) -> None:
        place = int((one.arrived_ns - origin_ns) * 1e-9)
        slo = scenario.slo
        fine = one.error is None and (one.ttft_ns or 0) <= slo.ttft_s * 1e9 and (one.tpot_ns or 0) <= slo.itl_s * 1e9
        good[min(place, seconds)] += fine

    loaded = Loaded(_with(scenario, case), _MODELS)
    node = SimulatedNode(config(scenario), plans(loaded, scenario.layout), clock, answered)
    _feed(node, clock, _traffic(loaded, case, duration_s, injected), asked)
    if case.fault is not None and injected:
        fault, engine = case.fault, case.engine or ""
        clock.at(origin_ns + int(ONSET_S * 1e9), lambda: node.fault(engine, fault))
        over = Fault(kind=fault.kind, severity=0.0, peer=fault.peer)
        if fault.kind not in ("hang", "crash"):
            clock.at(origin_ns + int((ONSET_S + FAULT_S) * 1e9), lambda: node.fault(engine, over))
    said: list[Said] = []
    diagnoser = Diagnoser(scenario.slo.share)

    def tick() -> None:
        verdict = diagnoser(node.snapshot())
        at_s = (clock.now_ns - origin_ns) * 1e-9
        if not said or _changed(said[-1], verdict):
            said.append(
                Said(
                    at_s=at_s,
                    state=verdict.state,
                    engine=verdict.engine,
                    cause=verdict.cause,
                    summary=verdict.summary,
                    link=verdict.link,
                )
            )
        clock.at(clock.now_ns + int(TICK_S * 1e9), tick)

    tick()
    clock.run(origin_ns + int(duration_s * 1e9))
    return Played(case=case, said=tuple(said), good=tuple(good), asked=tuple(asked))


def _changed(last: Said, verdict: Verdict) -> bool:
    return (last.state, last.engine, last.cause) != (verdict.state, verdict.engine, verdict.cause)


def _with(scenario: Scenario, case: Case) -> Scenario:
    return msgspec.structs.replace(scenario, seed=case.seed)


def _traffic(loaded: Loaded, case: Case, duration_s: float, injected: bool) -> Iterator[Arrival]:
    own = arrivals(loaded.scenario.traffic, case.seed, duration_s, BLOCK_TOKENS, loaded.directory)
    if case.surge is None or not injected:
        return own
    more = arrivals(case.surge, case.seed + 7_000_000, FAULT_S, BLOCK_TOKENS, loaded.directory)
    later = ((at_s + ONSET_S, asked) for at_s, asked in more)
    return heapq.merge(own, later, key=lambda arrival: arrival[0])


def _feed(node: SimulatedNode, clock: VirtualClock, coming: Iterator[Arrival], asked: list[int]) -> None:
    origin_ns = clock.now_ns

    def next_one() -> None:
        arrival = next(coming, None)
        if arrival is not None:
            clock.at(origin_ns + int(arrival[0] * 1e9), lambda: come(arrival))

    def come(arrival: Arrival) -> None:
        asked[min(int(arrival[0]), len(asked) - 1)] += 1
        node.ask(arrival[1])
        next_one()

    next_one()
