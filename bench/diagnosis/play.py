"""One case, played on a simulated node under its virtual clock, with the diagnoser looking on."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from appliance.costs.roofline import DEFAULT, Efficiency
from appliance.diagnosis.verdicts import Diagnoser
from appliance.errors import ActionError
from appliance.planner.measured import measured, present
from appliance.planner.split import advice
from appliance.records import Better, NodeSnapshot, Order, Verdict
from appliance.remedies.apply import Remedies
from appliance.simulator.clock import VirtualClock
from appliance.simulator.node import SimulatedNode
from appliance.simulator.plan import EnginePlan
from appliance.simulator.request import Answered
from appliance.simulator.scenario import BLOCK_TOKENS, Loaded, Scenario, config, plans
from appliance.simulator.traces import Arrival
from appliance.simulator.traffic import Traffic, arrivals
from bench.diagnosis.baselines import RULES
from bench.diagnosis.cases import AFTER_S, FAULT_S, ONSET_S, Case, World
from bench.diagnosis.goodput import Answer, Clients
from bench.diagnosis.nodes import NODES

TICK_S: Final = 0.5
ALL_S: Final = ONSET_S + FAULT_S + AFTER_S
MODELS: Final = Path(__file__).parents[2] / "appliance" / "presets"
_FOLLOWS_S: Final = 3.0  # from a verdict to the order that it advises
_AGAIN_S: Final = 15.0  # from one order to the next
_CONSTANTS: Final = ("memory", "matrix", "experts", "attention", "allreduce_s", "layer_s", "moe_layer_s", "step_s")
_SOME: Final = 3  # requests, of which fewer tell nothing
_PLANS_S: Final = 10.0
_PLANS_OF: Final = 6


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict that was new, in seconds of the case."""

    at_s: float
    state: str
    engine: str | None
    cause: str | None
    summary: str
    link: tuple[str, str] | None = None
    evidence: tuple[str, ...] = ()
    advice: str = ""


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a case.

    ``good``: by second, requests that arrived then and were answered within the targets; ``asked``: all of them. ``named``: by rule, the
    engine that it named for most of the time in which the fault lasted. ``orders``: given by whoever followed advice.
    """

    case: Case
    said: tuple[Said, ...]
    good: tuple[int, ...]
    asked: tuple[int, ...]
    impact_s: float | None = None  # when somebody was hurt first, once it had begun
    recovered_s: float | None = None  # from when on, once it was over, whoever came was answered in time; None: not yet
    named: dict[str, str | None] = {}
    orders: tuple[str, ...] = ()


def play(
    case: Case, *, injected: bool = True, watched: bool = True, follow: bool = False, duration_s: float = ALL_S
) -> Played:
    """``injected`` False: the same traffic, and nothing is done to it. ``follow``: somebody does what verdicts advise."""
    scenario = _scenario(case, injected)
    clock = VirtualClock()
    origin_ns = clock.now_ns
    clients = Clients(scenario.slo.ttft_s, scenario.slo.itl_s, int(duration_s))
    loaded = Loaded(scenario, MODELS)
    engines = [_of_world(plan, case) for plan in plans(loaded, scenario.layout)]
    node = SimulatedNode(config(scenario), engines, clock, lambda one: clients.answered(_answer(one, origin_ns)))
    _feed(node, clock, _traffic(loaded, case, duration_s, injected), clients)
    if injected:
        _injure(node, clock, case)
    look = _Look(node, clock, scenario.slo.share, follow)
    if injected or not case.orders_at_s:
        clock.at(origin_ns + int(case.orders_at_s * 1e9), lambda: look.obey(case.orders))
    if watched:
        look()
    clock.run(origin_ns + int(duration_s * 1e9))
    waits = node.overdue(origin_ns, int(scenario.slo.ttft_s * 1e9))
    return Played(
        case=case,
        said=tuple(look.said),
        good=tuple(clients.good),
        asked=tuple(clients.asked),
        impact_s=clients.impact_s(ONSET_S) if injected else None,
        recovered_s=clients.recovered_s(ONSET_S + FAULT_S) if injected and waits < _SOME else None,
        named={rule: max(found, key=found.__getitem__, default=None) for rule, found in look.named.items()},
        orders=tuple(look.orders),
    )


def _answer(one: Answered, origin_ns: int) -> Answer:
    return Answer(
        arrived_s=(one.arrived_ns - origin_ns) * 1e-9,
        ended_s=(one.ended_ns - origin_ns) * 1e-9,
        ok=one.error is None,
        ttft_s=None if one.ttft_ns is None else one.ttft_ns * 1e-9,
        pace_s=None if one.tpot_ns is None else one.tpot_ns * 1e-9,
    )


class _Look:
    """Whoever looks at each snapshot: the diagnoser, the baselines, and an owner who does as advised."""

    def __init__(self, node: SimulatedNode, clock: VirtualClock, share: float, follow: bool) -> None:
        self._node, self._clock, self._follow = node, clock, follow
        self._origin_ns = clock.now_ns
        self._diagnose = Diagnoser(share)
        self._latest = node.snapshot()
        self.remedies = Remedies(node, lambda: self._latest)
        self._ordered_s = 0.0
        self._share = share
        self._minute: deque[NodeSnapshot] = deque(maxlen=_PLANS_OF)
        self._better: Better | None = None
        node.advised(lambda: self._better)
        self.said: list[Said] = []
        self.named: dict[str, Counter[str]] = {rule: Counter() for rule in RULES}
        self.orders: list[str] = []

    def obey(self, orders: Iterable[Order]) -> None:
        """What an owner says, for reasons of his own."""
        for order in orders:
            self.remedies.apply(order, "bench")

    def __call__(self) -> None:
        """Now, and at every tick from now on."""
        snapshot, at_s = self._node.snapshot(), (self._clock.now_ns - self._origin_ns) * 1e-9
        verdict = self._diagnose(snapshot)
        self._latest = replace(snapshot, verdict=verdict)
        self._plan(snapshot, hurt=verdict.state != "ok")
        if not self.said or changed(self.said[-1], verdict):
            self.said.append(told(at_s, verdict))
        if ONSET_S < at_s <= ONSET_S + FAULT_S:
            self._ask_others(snapshot)
        if self._follow and at_s > ONSET_S:
            self._do(verdict, at_s)
        self._clock.at(self._clock.now_ns + int(TICK_S * 1e9), self)

    def _plan(self, snapshot: NodeSnapshot, hurt: bool) -> None:
        """What the node's forecast does beside it. Of a node that is well nobody asks."""
        if self._minute and snapshot.uptime_s - self._minute[-1].uptime_s < _PLANS_S:
            return
        self._minute.append(snapshot)
        plans = measured(self._minute, *self._node.learnt(snapshot.engines[0].name), self._share) if hurt else None
        now = present(plans) if plans else None
        self._better = advice(now, plans.layouts) if plans and now else None

    def _ask_others(self, snapshot: NodeSnapshot) -> None:
        for rule, found in self.named.items():
            engine = RULES[rule](snapshot)
            if engine is not None:
                found[engine] += 1

    def _do(self, verdict: Verdict, at_s: float) -> None:
        order: Order | None = verdict.action.order if verdict.action else None
        if verdict.state != "bottleneck" or order is None or at_s - self.said[-1].at_s < _FOLLOWS_S:
            return
        if self.orders and at_s - self._ordered_s < _AGAIN_S:
            return
        try:
            remedy = self.remedies.apply(order, "bench")
        except ActionError:
            return
        self._ordered_s = at_s
        self.orders.append(f"{at_s:.1f} s: {remedy.sentence}")


def told(at_s: float, verdict: Verdict) -> Said:
    """A verdict, as it is kept."""
    return Said(
        at_s=at_s,
        state=verdict.state,
        engine=verdict.engine,
        cause=verdict.cause,
        summary=verdict.summary,
        link=verdict.link,
        evidence=tuple(one.sentence for one in verdict.evidence),
        advice=verdict.action.sentence if verdict.action else "",
    )


def changed(last: Said, verdict: Verdict) -> bool:
    """It says something else."""
    return (last.state, last.engine, last.cause) != (verdict.state, verdict.engine, verdict.cause)


def _scenario(case: Case, injected: bool) -> Scenario:
    scenario = NODES[case.node]
    return replace(
        scenario,
        seed=case.seed,
        engine=case.engines if case.engines and injected else scenario.engine,
        traffic=_times(case.traffic or scenario.traffic, case.load),
    )


def _times(traffic: Traffic, load: float) -> Traffic:
    return replace(traffic, rate=load * traffic.rate)


def _of_world(plan: EnginePlan, case: Case) -> EnginePlan:
    return replace(plan, noise=case.world.noise, efficiency=_efficiency(case.world, f"{case.node} {case.seed}"))


def _efficiency(world: World, chance: str) -> Efficiency:
    """The same for all engines of a node: it is the model of the world that is off."""
    drawn = random.Random(chance)
    off = {name: 1 + drawn.choice((-1, 1)) * world.constants for name in _CONSTANTS}
    return replace(DEFAULT, **{name: getattr(DEFAULT, name) * factor for name, factor in off.items()})


def _injure(node: SimulatedNode, clock: VirtualClock, case: Case) -> None:
    origin_ns = clock.now_ns
    for fault in case.faults:
        clock.at(origin_ns + int(fault.at_s * 1e9), partial(node.fault, fault.engine, fault.begins))
        if fault.until_s is not None:
            clock.at(origin_ns + int(fault.until_s * 1e9), partial(node.fault, fault.engine, fault.ends))


def _traffic(loaded: Loaded, case: Case, duration_s: float, injected: bool) -> Iterator[Arrival]:
    own = arrivals(loaded.scenario.traffic, case.seed, duration_s, BLOCK_TOKENS, loaded.directory)
    if case.surge is None or not injected:
        return own
    more = arrivals(_times(case.surge, case.load), case.seed + 7_000_000, FAULT_S, BLOCK_TOKENS, loaded.directory)
    later = ((at_s + ONSET_S, asked) for at_s, asked in more)
    return heapq.merge(own, later, key=lambda arrival: arrival[0])


def _feed(node: SimulatedNode, clock: VirtualClock, coming: Iterator[Arrival], clients: Clients) -> None:
    origin_ns = clock.now_ns

    def next_one() -> None:
        arrival = next(coming, None)
        if arrival is not None:
            clock.at(origin_ns + int(arrival[0] * 1e9), lambda: come(arrival))

    def come(arrival: Arrival) -> None:
        clients.come(arrival[0])
        node.ask(arrival[1])
        next_one()

    next_one()
