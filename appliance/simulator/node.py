"""A whole simulated node in one process and without sockets: the real queue, policy, ledger and timelines over simulated engines.

What ``router.request`` does with HTTP is done here with calls; everything that decides is the real thing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec

from appliance.channel import Down, FirstToken, Release, Up
from appliance.config import Config
from appliance.errors import RequestError
from appliance.records import EngineState, EngineView, Role
from appliance.router import policy
from appliance.router.loads import Leg, Loads
from appliance.router.policy import Choice
from appliance.router.queue import Queue, Ticket
from appliance.simulator.clock import VirtualClock
from appliance.simulator.engine import Engine
from appliance.simulator.fabric import Fabric
from appliance.simulator.leg import Ask, Offer, Outcome, Settings
from appliance.simulator.physics import Cost, Physics
from appliance.telemetry.ledger import Ledger
from appliance.telemetry.timeline import Timelines, Trace


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One engine to be simulated."""

    name: str
    role: Role
    settings: Settings
    cost: Cost


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks. ``digests``: see ``engine.Ask``."""

    prompt_tokens: int
    output_tokens: int
    digests: tuple[int, ...] = ()
    client: str = ""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What a client got of it. Times are the node's, ns; None where there was no token."""

    asked: Asked
    arrived_ns: int
    first_token_ns: int | None
    ended_ns: int
    split: bool
    error: str | None = None

    @property
    def ttft_ns(self) -> int | None:
        return None if self.first_token_ns is None else self.first_token_ns - self.arrived_ns

    @property
    def tpot_ns(self) -> int | None:
        """Mean time per output token after the first; None for a single token."""
        if self.first_token_ns is None or self.asked.output_tokens < 2:
            return None
        return (self.ended_ns - self.first_token_ns) // (self.asked.output_tokens - 1)


class SimulatedNode:
    """Engines under a virtual clock. Deterministic: the same seed and the same calls give the same answers."""

    def __init__(
        self,
        config: Config,
        plans: Sequence[Plan],
        clock: VirtualClock,
        link_bytes_s: float,
        seed: int,
        on_answer: Callable[[Answered], None],
        *,
        quiet: bool = False,
    ) -> None:
        """``quiet``: steps take exactly what the cost model says."""
        self.clock = clock
        self._on_answer = on_answer
        self._fabric = Fabric(clock, link_bytes_s)
        self._engines: dict[str, Engine] = {}
        self.physics: dict[str, Physics] = {}
        self._views = {plan.name: _view(plan, plans) for plan in plans}
        self.ledger = Ledger(send=self._send)
        self.timelines = Timelines(config.telemetry.recent_requests)
        self.loads = Loads()
        self.queue = Queue(config.router.queue_capacity, "simulated", self.views, self.loads, lambda: clock.now_ns)
        self._requests: dict[str, _Request] = {}
        self._number = itertools.count(1)
        self.on_message: Callable[[str, Up], None] = lambda engine, message: None
        for plan in plans:
            self._add(plan, f"{seed}/{plan.name}", quiet)

    def _add(self, plan: Plan, seed: str, quiet: bool) -> None:
        physics = Physics(plan.cost, seed, quiet=quiet)
        engine = Engine(
            plan.name,
            plan.settings,
            self.clock,
            physics,
            self._fabric,
            lambda message: self._fold(plan.name, message),
            self._ended,
        )
        self.physics[plan.name] = physics
        self._engines[plan.name] = engine
        self._fabric.add(engine, physics)

    def views(self) -> tuple[EngineView, ...]:
        return tuple(self._views.values())

    def engine(self, name: str) -> Engine:
        return self._engines[name]

    @property
    def under_way(self) -> int:
        """Requests that have left the queue and are not answered."""
        return len(self._requests)

    def ask(self, asked: Asked) -> None:
        """A request arrives now."""
        number = next(self._number)
        trace = self.timelines.begin(f"r{number}", "/v1/completions", True, self.clock.now_ns)
        _Request(self, asked, trace, f"r{number}").begin()

    def _send(self, engine: str, message: Down) -> bool:
        if isinstance(message, Release):
            self._engines[engine].release(message.lease, message.reason)
        return True

    def _fold(self, engine: str, message: Up) -> None:
        now_ns = self.clock.now_ns
        self.ledger.fold(engine, 1, message, now_ns)
        self.timelines.fold(engine, message)
        self.on_message(engine, message)
        if isinstance(message, FirstToken) and message.request in self._requests:
            self._requests[message.request].first_token()

    def _ended(self, outcome: Outcome) -> None:
        request = self._requests.get(outcome.ask.key)
        if request is not None:
            request.leg_ended(outcome)

    # ---- what requests call

    def track(self, key: str, request: _Request | None) -> None:
        if request is None:
            self._requests.pop(key, None)
        else:
            self._requests[key] = request

    def answer(self, answered: Answered) -> None:
        self._on_answer(answered)


class _Request:
    """One request on its way; the counterpart of ``router.request.Exchange``."""

    def __init__(self, node: SimulatedNode, asked: Asked, trace: Trace, key: str) -> None:
        self._node = node
        self._asked = asked
        self._trace = trace
        self._key = key
        self._leg: Leg | None = None
        self._first_ns: int | None = None

    def begin(self) -> None:
        ticket = Ticket(self._asked.prompt_tokens, None, self._deliver, self._refused, client=self._asked.client)
        try:
            self._node.queue.put(ticket, self._trace.marks.arrived)
        except RequestError as error:
            self._refused(error)

    def _deliver(self, choice: Choice, leg: Leg) -> None:
        self._node.track(self._key, self)
        self._trace.next_attempt()
        self._leg = leg
        if choice.unsplit_reason is None:
            self._send("prefill", choice.engine.name, output_tokens=1)
        else:
            self._whole(choice.engine.name, choice.unsplit_reason)

    def _whole(self, engine: str, reason: str) -> None:
        self._trace.unsplit(reason)
        self._send("whole", engine, output_tokens=self._asked.output_tokens)

    def _send(self, phase: str, engine: str, *, output_tokens: int, offer: Offer | None = None) -> None:
        leg, key = self._leg, self._key
        self._trace.on_scheduled = lambda scheduled, tokens: leg.counted(tokens) if leg and scheduled == key else None
        self._trace.dispatched(phase, engine, key, self._node.clock.now_ns)
        ask = Ask(
            key=key,
            phase=phase,
            prompt_tokens=self._asked.prompt_tokens,
            output_tokens=output_tokens,
            digests=self._asked.digests,
            offer=offer,
        )
        self._node.engine(engine).submit(ask)

    def first_token(self) -> None:
        now_ns = self._node.clock.now_ns
        if self._first_ns is None:
            self._first_ns = now_ns
            self._trace.first_byte(now_ns)
            if self._leg is not None:
                self._leg.prefilled()

    def leg_ended(self, outcome: Outcome) -> None:
        now_ns = self._node.clock.now_ns
        engine = self._trace.decode_engine or self._trace.prefill_engine or ""
        kind = outcome.ask.phase
        self._trace.leg_ended(kind, engine, "ok" if not outcome.lost else "unreachable", now_ns, status=200)
        if self._leg is not None:
            self._leg.end()
            self._leg = None
        if outcome.lost:
            self._finish("failed", "its engine was lost")
        elif kind == "prefill":
            self._decode(engine, outcome.offer)
        else:
            self._finish("ok", None)

    def _decode(self, prefill: str, offer: Offer | None) -> None:
        node = self._node
        view = policy.choose_decode(node.views(), node.loads, prefill)
        if view is None or offer is None:
            node.ledger.cancel(self._key, node.clock.now_ns)
            self._leg = node.loads.begin(prefill, self._asked.prompt_tokens)
            return self._whole(prefill, "its KV can't be handed over")
        self._leg = node.loads.begin(view.name, 0)
        self._send("decode", view.name, output_tokens=self._asked.output_tokens, offer=offer)

    def _refused(self, error: RequestError) -> None:
        self._finish("failed", error.message)

    def _finish(self, outcome: str, error: str | None) -> None:
        now_ns = self._node.clock.now_ns
        self._node.track(self._key, None)
        self._trace.finish(outcome, 200 if error is None else 503, now_ns, error=error)
        self._node.answer(
            Answered(
                asked=self._asked,
                arrived_ns=self._trace.marks.arrived,
                first_token_ns=self._first_ns,
                ended_ns=now_ns,
                split=self._trace.split,
                error=error,
            )
        )


def _view(plan: Plan, plans: Sequence[Plan]) -> EngineView:
    settings = plan.settings
    return EngineView(
        name=plan.name,
        role=plan.role,
        state=EngineState.READY,
        epoch=1,
        socket="",
        peers=tuple(other.name for other in plans if other.name != plan.name),
        max_batched_tokens=settings.max_batched_tokens,
        max_running=settings.max_running,
        max_model_len=settings.max_model_len,
        block_tokens=settings.block_tokens,
        kv_blocks=settings.kv_blocks,
    )
