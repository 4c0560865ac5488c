"""A simulated engine in real time: the core, and what it tells the supervisor and the HTTP side.

What a step has brought is told when the step is over, tokens to the supervisor first: whoever has had a token has had it said there.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable
from typing import Final

from appliance.channel import Down, Fault, Hardware, LeaseEnded, Message, OutputTokens, Release, Step, Up
from appliance.costs.gpus import gpu
from appliance.engine.kv.lease import LeaseTable
from appliance.engine.kv.params import Offer, Ticket, Whole, prompt_digest
from appliance.engine.kv.settings import Settings
from appliance.simulator import leg, text, words
from appliance.simulator.engine import Engine
from appliance.simulator.fabric import Fabric
from appliance.simulator.faults import Faults
from appliance.simulator.frontend import Frontend
from appliance.simulator.gpus import VirtualGpus
from appliance.simulator.host import VirtualHost
from appliance.simulator.leg import Ask, Outcome, Sequence
from appliance.simulator.links import Peers
from appliance.simulator.physics import Physics
from appliance.simulator.plan import EnginePlan
from appliance.simulator.realtime import RealClock
from appliance.simulator.stream import Stream

_READ_NS: Final = 500_000_000  # between readings of the GPUs


class LiveEngine:
    """Implements ``api.Core``. All on one event loop."""

    def __init__(
        self, plan: EnginePlan, model: str, settings: Settings, clock: RealClock, send: Callable[[Message], None]
    ) -> None:
        self.model = model
        self.max_model_len = plan.settings.max_model_len
        self._plan = plan
        self._settings = settings
        self._clock = clock
        self._send = send
        self._streams: dict[str, tuple[Stream, int]] = {}  # by the core's key: the stream, and which sequence
        self._keys: dict[Stream, list[str]] = {}
        self._number = itertools.count()
        self._tokens: list[tuple[Stream, int]] = []  # of the present step
        self._outcomes: list[Outcome] = []
        self._table = LeaseTable(settings.lease_table(), create=True)
        self.peers = Peers(plan, settings, send)
        self._frontend = Frontend(clock, quiet=not plan.noise)
        self._gpus = VirtualGpus(
            gpu(plan.gpu), plan.first_gpu, plan.tensor_parallel, plan.memory_bytes, plan.name, clock
        )
        self._host = VirtualHost(clock, self._frontend)
        self._physics = Physics(
            plan.cost(), f"{plan.chance}/{settings.epoch}", noise=plan.noise, gpus=self._gpus, host=self._host
        )
        self._fabric = Fabric(clock, plan.link_bytes_s, self.peers.refusal, self._copying)
        self._core = Engine(
            plan.name,
            plan.settings,
            clock,
            self._physics,
            self._fabric,
            self._say,
            self._outcomes.append,
            told=self._told,
            epoch=settings.epoch,
            table=self._table,
        )
        self._faults = Faults(self._core, self._physics, self._gpus, self._fabric.shares, self._frontend, _crash)

    def begin(self) -> None:
        """Say that it is there."""
        places = (str(self._settings.kv_socket(0)),), str(self._settings.lease_table())
        self._send(words.ready(self._plan.settings, *places))
        self._read_gpus()

    # ---- what the supervisor says

    def receive(self, message: Down) -> None:
        match message:
            case Release():
                self._core.release(message.lease, message.reason)
            case Fault():
                self._faults.apply(message)

    # ---- what the HTTP side asks

    def submit(self, stream: Stream) -> None:
        asks = self._asks(stream)
        for number, ask in enumerate(asks):
            self._streams[ask.key] = (stream, number)
        self._keys[stream] = [ask.key for ask in asks]
        self._frontend.request(len(stream.prompt), lambda: self._begin(stream, asks))

    def leave(self, stream: Stream) -> None:
        """Whoever asked is gone, or has all that there is."""
        for key in self._keys.pop(stream, ()):
            if self._streams.pop(key, None) is not None:
                self._core.abort(key)

    def _begin(self, stream: Stream, asks: Iterable[Ask]) -> None:
        if stream in self._keys:  # else it has left already
            for ask in asks:
                self._core.submit(ask)

    def _asks(self, stream: Stream) -> list[Ask]:
        params, prompt = stream.params, stream.prompt
        name = params.request if params is not None else f"local-{next(self._number)}"
        several = len(stream.answers) > 1
        return [
            Ask(
                key=f"{name}#{number}" if several else name,
                request=name,
                silent=params is None,
                phase=_phase(params),
                prompt_tokens=len(prompt),
                output_tokens=len(answer),
                digests=text.block_digests([*prompt, *answer], self._plan.settings.block_tokens),
                consumers=params.consumers if isinstance(params, Offer) else 1,
                ttl_s=params.ttl_s if isinstance(params, Offer) else 60.0,
                offer=_offer(params, prompt) if isinstance(params, Ticket) else None,
            )
            for number, answer in enumerate(stream.answers)
        ]

    # ---- what the core says

    def _told(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            known = self._streams.get(sequence.ask.key)
            if known is not None:
                self._tokens.append(known)

    def _say(self, message: Up) -> None:
        if isinstance(message, Step):
            self._tell()
        elif isinstance(message, LeaseEnded) and message.reason == "released":
            self._gpus.copied(message.blocks * self._plan.settings.block_bytes)  # somebody has fetched it
        self._send(message)

    def _tell(self) -> None:
        """What the step has brought: to the supervisor, and then to those who asked."""
        tokens, self._tokens = self._tokens, []
        outcomes = list(self._outcomes)
        self._outcomes.clear()
        items = tuple(_said(stream, number) for stream, number in tokens if _is_teed(stream, number))
        if items:
            self._send(OutputTokens(items=items))
        for stream, number in tokens:
            stream.planned[number] += 1
        if tokens or outcomes:
            self._frontend.tokens(len(tokens), lambda: self._pass_on(tokens, outcomes))

    def _pass_on(self, tokens: list[tuple[Stream, int]], outcomes: list[Outcome]) -> None:
        for stream, number in tokens:
            stream.made[number] += 1
        for outcome in outcomes:
            known = self._streams.pop(outcome.ask.key, None)
            if known is not None:
                self._ended(known[0], outcome)
        for stream in {stream for stream, _ in tokens}:
            stream.tell()

    def _ended(self, stream: Stream, outcome: Outcome) -> None:
        stream.open -= 1
        if outcome.offer is not None:
            stream.ticket = _ticket(outcome.offer, stream.prompt)
        stream.tell()

    def _copying(self, producer: str, consumer: str, more: int, size_bytes: int) -> None:
        """Of the two ends only this one is disturbed: the other is another process, which nobody tells."""
        self._physics.pulls += more
        self._gpus.copied(size_bytes)

    def _read_gpus(self) -> None:
        now_ns = self._clock.now_ns
        self._send(Hardware(gpus=self._gpus.read(), host=self._host.read()))
        self._clock.at(now_ns + _READ_NS, self._read_gpus)


def _phase(params: Offer | Ticket | Whole | None) -> str:
    if isinstance(params, Offer):
        return "prefill"
    return "decode" if isinstance(params, Ticket) else "whole"


def _offer(ticket: Ticket, prompt: Iterable[int]) -> leg.Offer | None:
    """None where the ticket is for another prompt."""
    if ticket.prompt != prompt_digest(list(prompt)):
        return None
    return leg.Offer(
        producer=ticket.engine,
        epoch=ticket.epoch,
        lease=ticket.request,
        tokens=ticket.tokens,
        blocks=ticket.blocks[0] if ticket.blocks else (),
        slot=ticket.slot,
        generation=ticket.generation,
    )


def _ticket(offer: leg.Offer, prompt: Iterable[int]) -> Ticket:
    return Ticket(
        request=offer.lease,
        do_remote_prefill=True,
        engine=offer.producer,
        epoch=offer.epoch,
        slot=offer.slot,
        generation=offer.generation,
        tokens=offer.tokens,
        prompt=prompt_digest(list(prompt)),
        blocks=(offer.blocks,),
    )


def _is_teed(stream: Stream, number: int) -> bool:
    return isinstance(stream.params, Ticket | Whole) and number < stream.params.tee


def _said(stream: Stream, number: int) -> tuple[str, int, tuple[int, ...]]:
    assert stream.params is not None
    return stream.params.request, number, (stream.answers[number][stream.planned[number]],)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
