"""A whole simulated node in one process and without sockets: the real queue, policy, ledger and timelines over simulated engines.

What ``router.request`` does with HTTP is done here with calls; everything that decides is the real thing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from appliance import __version__
from appliance.channel import Down, Fault, FirstToken, Release, Step, Up
from appliance.config import Config
from appliance.costs.fitted import CopyModel, StepModel
from appliance.records import (
    Better,
    EngineState,
    EngineView,
    GpuSnapshot,
    HostReading,
    Moved,
    NodeSnapshot,
    Pair,
    QueueSnapshot,
    RequestCounts,
    Role,
)
from appliance.router import policy
from appliance.router.loads import Loads
from appliance.router.queue import Queue
from appliance.simulator import faults, words
from appliance.simulator.clock import VirtualClock
from appliance.simulator.engine import Engine
from appliance.simulator.fabric import Fabric
from appliance.simulator.faults import Faults
from appliance.simulator.frontend import Frontend
from appliance.simulator.gpus import together
from appliance.simulator.leg import Offer, Outcome
from appliance.simulator.place import EnginePlace
from appliance.simulator.plan import EnginePlan
from appliance.simulator.request import Answered, Asked, Request
from appliance.supervisor.topology import Place, described, relabelled
from appliance.telemetry.collector import Collector
from appliance.telemetry.ledger import Ledger
from appliance.telemetry.timeline import Timelines

_NOTICED_NS: Final = 3_000_000_000  # from the last sign of an engine that hangs to its end
_HANGS: Final = "its EngineCore gave no sign of life for 3.0 s"
_LOOK_NS: Final = 500_000_000  # at an engine that drains
_RESTART_NS: Final = 30_000_000_000  # from its end to its next life: weights are loaded anew


class SimulatedNode:
    """Engines under a virtual clock. Deterministic: the same plans and the same calls give the same answers."""

    def __init__(
        self,
        config: Config,
        plans: Sequence[EnginePlan],
        clock: VirtualClock,
        on_answer: Callable[[Answered], None],
    ) -> None:
        self.clock = clock
        self._on_answer = on_answer
        self._fabric = Fabric(clock, plans[0].link_bytes_s, self._refusal, self._copying)
        self._places = {plan.name: EnginePlace(plan, clock) for plan in plans}
        self.ledger = Ledger(send=self._send)
        self.timelines = Timelines(config.telemetry.recent_requests)
        self.loads = Loads()
        self.queue = Queue(config.router.queue_capacity, "simulated", self.views, self.loads, lambda: clock.now_ns)
        self._bias = faults.Bias()
        self._requests: dict[str, Request] = {}
        self._number = itertools.count(1)
        self._counts = dict.fromkeys(("total", "ok", "failed", "split"), 0)
        self.on_message: Callable[[str, int, Up], None] = lambda engine, epoch, message: None
        for place in self._places.values():
            place.view = place.view_of_life(0, self._places)
        self._collector = Collector(
            config,
            self,
            self,
            self.ledger,
            self.timelines,
            model_name="simulated",
            version=__version__,
            hardware=self,
            kinds={plan.name: plan.kind for plan in plans},
            models=lambda _: StepModel(experts=any(plan.shape.experts for plan in plans)),
            simulated=True,
            clock_ns=lambda: clock.now_ns,
            unix_s=lambda: clock.now_ns * 1e-9,
        )
        for place in self._places.values():
            self._live(place)

    # ---- what the collector and others ask

    def snapshot(self) -> NodeSnapshot:
        """How the node is now: the same that the real one would publish."""
        return self._collector.snapshot(self.clock.now_ns)

    def advised(self, better: Callable[[], Better | None]) -> None:
        """See ``Collector.better``."""
        self._collector.better = better

    def learnt(self, engine: str) -> tuple[StepModel, CopyModel]:
        """See ``Collector.learnt``."""
        return self._collector.learnt(engine)

    @property
    def topology(self) -> str:
        """What the engines are used for now."""
        return described(self._as_places())

    def views(self) -> tuple[EngineView, ...]:
        return tuple(place.view for place in self._places.values())

    def engine(self, name: str) -> Engine:
        """Its present life, or the last one."""
        return self._places[name].engine

    def frontend(self, name: str) -> Frontend:
        return self._places[name].frontend

    def command(self, name: str) -> list[str] | None:
        return None

    def logs(self, name: str) -> list[str] | None:
        """There are none."""
        return None

    def host(self, view: EngineView) -> HostReading | None:
        """See ``telemetry.collector.HardwareSource``."""
        return self._places[view.name].host.read()

    def gpus(self) -> tuple[GpuSnapshot, ...]:
        """See ``telemetry.collector.HardwareSource``."""
        return together(reading for place in self._places.values() for reading in place.gpus.read())

    def not_ready(self) -> str | None:
        return policy.none_ready(self.views())

    def queue_snapshot(self, now_ns: int) -> QueueSnapshot:
        return self.queue.snapshot(now_ns, in_flight=self.under_way)

    def in_flight(self, engine: str) -> int:
        return self.loads[engine].legs

    def outstanding_prompt_tokens(self, engine: str) -> int:
        return self.loads[engine].prompt_tokens

    def pairs(self, now_ns: int) -> tuple[Pair, ...]:
        """Nobody tests them here."""
        return ()

    def counts(self) -> RequestCounts:
        return RequestCounts(**self._counts)

    @property
    def under_way(self) -> int:
        """Requests that have left the queue and are not answered."""
        return len(self._requests) - len(self.queue)

    def overdue(self, since_ns: int, target_ns: int) -> int:
        """Requests that have come since then, and have waited longer than that for their first token, which is not there yet."""
        now_ns = self.clock.now_ns
        waits = (one.waits_since(now_ns) for one in self._requests.values() if one.arrived_ns >= since_ns)
        return sum(wait is not None and wait > target_ns for wait in waits)

    def ask(self, asked: Asked) -> None:
        """A request arrives now."""
        number = next(self._number)
        self._counts["total"] += 1
        trace = self.timelines.begin(f"r{number}", "/v1/completions", True, self.clock.now_ns)
        Request(self, asked, trace, f"r{number}").begin()

    def fault(self, name: str, fault: Fault) -> None:
        """It begins now, or with severity 0 ends. Raises ``ConfigError`` for what can't be."""
        faults.check(fault, name, self._places)
        place = self._places[name]
        if fault.kind in faults.LASTING:
            place.faults[fault.kind, fault.peer] = fault
        elif place.view.state is not EngineState.READY:
            return  # it is not there, and neither hangs nor crashes
        if fault.kind == "skew":
            return self._weigh()
        self._faults(place).apply(fault)
        if fault.kind == "hang":
            self.clock.at(self.clock.now_ns + _NOTICED_NS, partial(self._lose, place, place.epoch, _HANGS))

    # ---- what an owner says; see ``remedies.apply.Hands``

    def drain(self, name: str, *, force: bool = False) -> None:
        """One that is not there takes no work as it is."""
        if self._places[name].view.state is EngineState.READY:
            self._be(self._places[name], state=EngineState.DRAINING)

    def resume(self, name: str) -> None:
        if self._places[name].view.state is EngineState.DRAINING:
            self._be(self._places[name], state=EngineState.READY)

    def restart(self, name: str) -> None:
        """Once what it has begun is done."""
        place = self._places[name]
        self.drain(name)
        self._drained(place, place.epoch)

    def restart_all(self) -> None:
        """One at a time."""
        for number, name in enumerate(self._places):
            self.clock.at(self.clock.now_ns + number * 2 * _RESTART_NS, partial(self.restart, name))

    def weight(self, name: str, weight: float) -> None:
        self._places[name].weight = weight
        self._be(self._places[name], weight=weight)

    def role(self, name: str, role: Role, *, force: bool = False) -> None:
        self._places[name].role = role
        self._be(self._places[name], role=role)

    def relabel(self, layout: str, roles: Mapping[str, Role] | None = None, *, force: bool = False) -> Moved:
        """Raises ``ConfigError`` for a layout of other engines."""
        for name, role in (roles or relabelled(self._as_places(), layout)).items():
            self.role(name, role)
        return Moved()

    def _be(self, place: EnginePlace, **changed: object) -> None:
        place.view = msgspec.structs.replace(place.view, **changed)
        self.queue.pump()

    def _drained(self, place: EnginePlace, epoch: int) -> None:
        if place.epoch != epoch or place.view.state is not EngineState.DRAINING:
            return  # it has ended by itself, or takes work again
        if self.loads[place.plan.name].legs or self.ledger.held_by(place.plan.name):
            self.clock.at(self.clock.now_ns + _LOOK_NS, partial(self._drained, place, epoch))
        else:
            self._be(place, state=EngineState.READY)
            self._lose(place, epoch, None, EngineState.STARTING)

    def _as_places(self) -> list[Place]:
        return [Place(name, place.role, place.plan.tensor_parallel) for name, place in self._places.items()]

    # ---- lives

    def _live(self, place: EnginePlace) -> None:
        """A life begins, ready."""
        name, epoch = place.plan.name, place.epoch
        place.engine = Engine(
            name,
            place.plan.settings,
            self.clock,
            place.physics,
            self._fabric,
            lambda message: self._fold(place, epoch, message),
            lambda outcome: place.frontend.tokens(0, lambda: self._ended(place, epoch, outcome)),
            epoch=epoch,
        )
        place.view = place.view_of_life(epoch, self._places)
        for fault in place.faults.values():
            self._faults(place).apply(fault)
        self._fold(place, epoch, words.ready(place.plan.settings))
        self.queue.pump()

    def _lose(
        self,
        place: EnginePlace,
        epoch: int,
        cause: str | None = "ended by SIGSEGV",
        state: EngineState = EngineState.BACKOFF,
    ) -> None:
        """A life is over, and the next one is some time away."""
        if place.epoch != epoch or place.view.state not in (EngineState.READY, EngineState.DRAINING):
            return
        place.view = msgspec.structs.replace(place.view, state=state, cause=cause, since_ns=self.clock.now_ns)
        self.ledger.lost(place.plan.name, place.epoch, self.clock.now_ns)
        place.engine.die()
        place.epoch += 1
        place.frontend.end()
        place.gpus.ended()
        place.host.ended()
        self.clock.at(self.clock.now_ns + _RESTART_NS, lambda: self._live(place))
        if state is EngineState.STARTING:
            self._starts(place)

    def _starts(self, place: EnginePlace) -> None:
        """It says now and then how far it is."""
        view, now_ns = place.view, self.clock.now_ns
        if view.state is EngineState.STARTING:
            done = (now_ns - view.since_ns) / _RESTART_NS
            place.view = msgspec.structs.replace(view, stage="loading weights", progress=min(done, 1.0))
            self.clock.at(now_ns + _LOOK_NS, partial(self._starts, place))

    def _faults(self, place: EnginePlace) -> Faults:
        return Faults(
            place.engine,
            place.physics,
            place.gpus,
            self._fabric.shares,
            place.frontend,
            partial(self._lose, place, place.epoch),
        )

    def _weigh(self) -> None:
        preferred = {
            name: place.faults["skew", None].severity
            for name, place in self._places.items()
            if ("skew", None) in place.faults
        }
        for name, weight in self._bias.weights(self.views(), preferred).items():
            self.weight(name, weight)

    # ---- what happens between engines

    def _refusal(self, offer: Offer) -> str | None:
        place = self._places[offer.producer]
        held = place.epoch == offer.epoch and place.engine.holds(offer.lease)
        return None if held else f"{offer.producer} no longer holds {offer.lease}"

    def _copying(self, producer: str, consumer: str, more: int, size_bytes: int) -> None:
        for name in (producer, consumer):
            self._places[name].physics.pulls += more
            self._places[name].gpus.copied(size_bytes)

    def _send(self, engine: str, message: Down) -> bool:
        if isinstance(message, Release):
            self._places[engine].engine.release(message.lease, message.reason)
        return True

    def _fold(self, place: EnginePlace, epoch: int, message: Up) -> None:
        now_ns, name = self.clock.now_ns, place.plan.name
        self._collector.fold(name, epoch, message, now_ns)
        self.on_message(name, epoch, message)
        if isinstance(message, Step):  # nearly all are; of no interest to the others
            place.frontend.busy(message.decode_tokens)
            return
        self.ledger.fold(name, epoch, message, now_ns)
        self.timelines.fold(name, message)
        if isinstance(message, FirstToken) and message.request in self._requests:
            request = self._requests[message.request]
            place.frontend.tokens(1, lambda: request.first_token() if place.epoch == epoch else None)

    def _ended(self, place: EnginePlace, epoch: int, outcome: Outcome) -> None:
        """What its API process has not passed on when a life ends is lost with it."""
        request = self._requests.get(outcome.ask.key)
        if request is not None:
            lost = outcome.lost or place.epoch != epoch
            request.leg_ended(msgspec.structs.replace(outcome, lost=lost))

    # ---- what requests call

    def track(self, key: str, request: Request | None) -> None:
        if request is None:
            self._requests.pop(key, None)
        else:
            self._requests[key] = request

    def answer(self, answered: Answered) -> None:
        if answered.error is None:
            self.timelines.wanted.answered(
                answered.asked.prompt_tokens, answered.asked.output_tokens, self.clock.now_ns
            )
        self._counts["ok" if answered.error is None else "failed"] += 1
        self._counts["split"] += answered.split
        self._on_answer(answered)
