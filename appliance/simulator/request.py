"""One request on its way through a simulated node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from appliance.errors import RequestError
from appliance.records import EngineView
from appliance.router import policy
from appliance.router.loads import Leg, Loads
from appliance.router.policy import Choice
from appliance.router.queue import Queue, Ticket
from appliance.simulator.clock import VirtualClock
from appliance.simulator.engine import Engine
from appliance.simulator.frontend import Frontend
from appliance.simulator.leg import Ask, Offer, Outcome
from appliance.telemetry.ledger import Ledger
from appliance.telemetry.timeline import Trace


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks. ``digests``: see ``leg.Ask``."""

    prompt_tokens: int
    output_tokens: int
    digests: Sequence[int] = ()
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


class Node(Protocol):
    """What a request needs of its node."""

    clock: VirtualClock
    queue: Queue
    loads: Loads
    ledger: Ledger

    def views(self) -> Sequence[EngineView]: ...
    def engine(self, name: str) -> Engine: ...
    def frontend(self, name: str) -> Frontend: ...
    def track(self, key: str, request: Request | None) -> None: ...
    def answer(self, answered: Answered) -> None: ...


class Request:
    """One request on its way; the counterpart of ``router.request.Exchange``."""

    def __init__(self, node: Node, asked: Asked, trace: Trace, key: str) -> None:
        self._node = node
        self._asked = asked
        self._trace = trace
        self._key = key
        self._leg: Leg | None = None
        self._first_ns: int | None = None

    def begin(self) -> None:
        """Into the queue, unless it is longer than a context; what of its answer does not fit any more is cut off, as in vLLM."""
        room = min(view.max_model_len for view in self._node.views()) - self._asked.prompt_tokens
        if room < 1:
            return self._refused(RequestError(400, "the prompt is longer than the model's context"))
        if room < self._asked.output_tokens:
            self._asked = msgspec.structs.replace(self._asked, output_tokens=room)
        self._node.track(self._key, self)
        ticket = Ticket(self._asked.prompt_tokens, None, self._deliver, self._refused, client=self._asked.client)
        try:
            self._node.queue.put(ticket, self._trace.marks.arrived)
        except RequestError as error:
            self._refused(error)

    def _deliver(self, choice: Choice, leg: Leg) -> None:
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
        node = self._node
        node.frontend(engine).request(ask.prompt_tokens, lambda: node.engine(engine).submit(ask))

    def waits_since(self, now_ns: int) -> int | None:
        """For how long it has had no token; None once it has one."""
        return None if self._first_ns is not None else now_ns - self.arrived_ns

    @property
    def arrived_ns(self) -> int:
        return self._trace.marks.arrived

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
        if self._trace.split or outcome != "ok":
            self._node.ledger.cancel(self._key, now_ns)  # whatever is still held for it
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
