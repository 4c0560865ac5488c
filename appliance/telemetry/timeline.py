"""Timelines: what became of each request, stage by stage, on the node's one clock.

The router puts marks on a ``Trace`` as it goes (``marks.py``); engines add theirs over the channel (``Timelines.fold``).

The first token of a stream is there when its bytes leave for the client; that of an answer in one piece, which no client ever sees
alone, when the engine has made it.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from appliance.channel import CANARY, FirstToken, HandoffEnded, LeaseGranted, Scheduled, Up
from appliance.records import Lease, LedgerSnapshot, Leg, Stage, Timeline
from appliance.telemetry.demand import Wanted
from appliance.telemetry.lately import Begun
from appliance.telemetry.marks import Marks, Sent, stages

_NS: Final = 1e-9
_GAPS_KEPT: Final = 4096
_ONE_STEP_NS: Final = 500_000  # no engine makes a step in less


class Trace:
    """One request's marks and outcomes; written by the router and by ``Timelines.fold``, from one event loop."""

    def __init__(self, owner: Timelines, id: str, route: str, stream: bool, now_ns: int, unix_s: float) -> None:
        self.id = id
        self.route = route
        self.stream = stream
        self.marks = Marks(arrived=now_ns)
        self.split = False
        self.unsplit_reason: str | None = None
        self.status: int | None = None
        self.outcome = "running"
        self.error: str | None = None
        self.prefill_engine: str | None = None
        self.decode_engine: str | None = None
        self.attempts = 0
        self.continued = False  # from here on only legs are noted: where TTFT went has been told
        self.prompt_tokens: int | None = None
        self.output_chunks = 0
        self.last_chunk_ns = 0
        self.sent = Sent()
        self.transfer_bytes: int | None = None
        self.transfer_copies: int | None = None
        self.recomputed = False
        self.total_ns: int | None = None
        self.legs: list[Leg] = []
        self.keys: list[str] = []  # the router's; only what is said about the last one is of interest
        self.on_scheduled: Callable[[str, int], None] | None = None  # called with key and prompt tokens
        self.on_first_token: Callable[[str], None] | None = None  # called with key
        self._began: dict[tuple[str, str], int] = {}
        self._owner = owner
        self._unix_s = unix_s
        self._told: Timeline | None = None  # once it is over and somebody has asked

    # ---- marks of the router's

    def next_attempt(self) -> None:
        """Another try begins."""
        self.attempts += 1

    def dispatched(self, kind: str, engine: str, key: str, now_ns: int) -> None:
        """A leg is sent. ``prefill`` and ``whole`` come with a new key, ``decode`` with that of the prefill leg."""
        if key not in self.keys:
            self.keys.append(key)
            self._owner.keys[key] = self
        self._began[kind, engine] = now_ns
        if self.continued:
            return
        self.split = kind == "decode"
        if self.split:
            self.decode_engine, self.marks.decode_sent = engine, now_ns
            return
        self.marks.restart(now_ns)
        self.prefill_engine = engine
        self.decode_engine = engine if kind == "whole" else None
        if kind == "prefill":
            self.unsplit_reason = None

    def unsplit(self, reason: str) -> None:
        """Said before the whole leg is dispatched: why there is only one."""
        if not self.continued:
            self.unsplit_reason = reason

    def go_on(self) -> None:
        """The stream has begun, its engine is lost, and another one is about to take it over."""
        self.continued = True

    def answered(self, stream: bool) -> None:
        """The answer begins. Whether it is a stream is the engine's word: vLLM reads ``"stream": "true"`` as true, too."""
        if self.continued:
            return
        if stream and not self.stream:
            self.marks.first_token = None  # a stream's is there when it leaves
        self.stream = stream

    def leg_ended(
        self, kind: str, engine: str, outcome: str, now_ns: int, *, status: int | None = None, error: str | None = None
    ) -> None:
        """A leg is over; ``outcome`` is ok, error, unreachable or cancelled."""
        self._told = None
        began = self._began.pop((kind, engine), now_ns)
        seconds = (now_ns - began) * _NS
        self.legs.append(Leg(kind=kind, engine=engine, outcome=outcome, status=status, duration_s=seconds, error=error))
        if kind == "prefill" and outcome == "ok":
            self.marks.prefilled = now_ns
            if self.marks.kept is None:
                self.marks.kept = now_ns

    def first_byte(self, now_ns: int) -> None:
        """The status line and the first bytes leave for the client."""
        if self.marks.first_token is None:
            self.marks.first_token = now_ns
        self.last_chunk_ns = now_ns
        self.output_chunks = 1
        self.sent.add(now_ns - self.marks.arrived)
        self._owner.begun.add(self, now_ns)

    def chunk(self, now_ns: int) -> None:
        """Another piece has been sent. Called for every one, so it does next to nothing."""
        self.output_chunks += 1
        if self.output_chunks >= self.sent.due:
            self.sent.add(now_ns - self.marks.arrived)
        gap_ns = now_ns - self.last_chunk_ns
        if gap_ns < _ONE_STEP_NS:
            return
        self._owner.gaps.append(gap_ns)
        self.last_chunk_ns = now_ns

    def finish(self, outcome: str, status: int | None, now_ns: int, *, error: str | None = None) -> None:
        """The request is over; ``outcome`` is ok, failed or cancelled. Only the first call counts."""
        if self.outcome != "running":
            return
        self.outcome, self.status, self.error = outcome, status, error
        self.total_ns = now_ns - self.marks.arrived
        self.on_scheduled = self.on_first_token = None
        self._owner.finished(self, now_ns)

    # ---- what is read

    @property
    def ttft_ns(self) -> int | None:
        first = self.marks.first_token
        return None if first is None else max(0, first - self.marks.arrived)

    def stages(self, now_ns: int) -> tuple[Stage, ...]:
        """Stages so far; see the function of this name."""
        ended = now_ns if self.total_ns is None else self.marks.arrived + self.total_ns
        return stages(self.marks, self.split, ended)

    def server_timing(self) -> str:
        """The stages as a ``Server-Timing`` header, in milliseconds; to be asked after ``first_byte``.

        The header of an answer in one piece leaves when all is over, so that it has the decoding, too.
        """
        found = [*self.stages(self.last_chunk_ns)]
        if not self.stream and self.marks.first_token is not None:
            found.append(Stage("decode", max(0, self.last_chunk_ns - self.marks.first_token) * _NS))
        return ", ".join(f"{stage.name};dur={stage.duration_s * 1e3:.3f}" for stage in found)

    def timeline(self, now_ns: int) -> Timeline:
        """An immutable copy of it all. Of what is over, one for all who ask, until a late message has something to add."""
        found = self._told or self._timeline(now_ns)
        if self.total_ns is not None:
            self._told = found
        return found

    def _timeline(self, now_ns: int) -> Timeline:
        ttft_ns = self.ttft_ns
        return Timeline(
            id=self.id,
            route=self.route,
            arrived=self._unix_s,
            stream=self.stream,
            split=self.split,
            unsplit_reason=self.unsplit_reason,
            status=self.status,
            outcome=self.outcome,
            error=self.error,
            prefill_engine=self.prefill_engine,
            decode_engine=self.decode_engine,
            attempts=max(1, self.attempts),
            continued=self.continued,
            prompt_tokens=self.prompt_tokens,
            output_chunks=self.output_chunks,
            transfer_bytes=self.transfer_bytes,
            transfer_copies=self.transfer_copies,
            recomputed=self.recomputed,
            ttft_s=None if ttft_ns is None else ttft_ns * _NS,
            total_s=None if self.total_ns is None else self.total_ns * _NS,
            stages=self.stages(now_ns),
            legs=tuple(self.legs),
        )

    # ---- marks of the engines'

    def fold(self, engine: str, key: str, message: Scheduled | FirstToken | LeaseGranted | HandoffEnded) -> None:
        """What an engine says about one of this request's keys; an attempt that was given up is of no interest."""
        if key != self.keys[-1]:
            return
        self._told = None
        if self.continued:
            self._call(key, message)
        elif isinstance(message, Scheduled):
            self._scheduled(engine, key, message)
        elif isinstance(message, FirstToken):
            self._first_token(key, message)
        elif isinstance(message, LeaseGranted):
            self.marks.kept = message.at_ns
        else:
            self._handed_off(message)

    def _scheduled(self, engine: str, key: str, message: Scheduled) -> None:
        """The first time counts: with ``n`` > 1, or after a failed load, there are several."""
        marks = self.marks
        if self.split and engine == self.decode_engine:
            marks.decode_scheduled = message.at_ns if marks.decode_scheduled is None else marks.decode_scheduled
        elif marks.scheduled is None:
            marks.scheduled = message.at_ns
            self.prompt_tokens = message.prompt_tokens or self.prompt_tokens
            self._owner.begun.scheduled(self)
        self.prompt_tokens = message.prompt_tokens or self.prompt_tokens
        self._call(key, message)

    def _first_token(self, key: str, message: FirstToken) -> None:
        self.marks.made = message.at_ns if self.marks.made is None else self.marks.made
        if not self.stream and self.marks.first_token is None:
            self.marks.first_token = message.at_ns
        self._call(key, message)

    def _call(self, key: str, message: Scheduled | FirstToken | LeaseGranted | HandoffEnded) -> None:
        """Whoever waits for that."""
        if isinstance(message, Scheduled) and self.on_scheduled is not None:
            self.on_scheduled(key, message.prompt_tokens)
        elif isinstance(message, FirstToken) and self.on_first_token is not None:
            self.on_first_token(key)

    def _handed_off(self, message: HandoffEnded) -> None:
        """With ``n`` > 1 there are several pulls: the stage is that of the first, bytes and copies are those of all."""
        self.transfer_bytes = (self.transfer_bytes or 0) + message.bytes
        self.transfer_copies = (self.transfer_copies or 0) + message.copies
        self.recomputed = self.recomputed or not message.ok
        if self.marks.pull_began is None:
            self.marks.pull_began = message.start_ns
            self.marks.pull_ended = message.end_ns


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of the recent requests; None where there are none. TTFT is of streamed ones: others show no first token.

    ITL is of the gaps between the pieces of streamed answers. Pieces less than half a millisecond apart count as one: they
    come of one step of the engine, and are no two tokens that a reader waited for. Such are a chat's first event, which
    only says who speaks, and the usage after the last token; ``[DONE]`` is no piece at all. With their gaps of nothing
    short answers would look faster than they are.
    """

    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    itl_p50_s: float | None = None
    itl_p99_s: float | None = None


class Timelines:
    """All running requests and the last ``capacity`` finished ones. Used from one event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._running: dict[Trace, None] = {}  # a client may use one id twice
        self._finished: deque[Trace] = deque()
        self._by_id: dict[str, Trace] = {}
        self.keys: dict[str, Trace] = {}  # by the router's key; kept as long as the trace, for late messages
        self.gaps: deque[int] = deque(maxlen=_GAPS_KEPT)
        self.begun = Begun()
        self.wanted = Wanted()

    def begin(self, id: str, route: str, stream: bool, now_ns: int) -> Trace:
        """A request has arrived."""
        trace = Trace(self, id, route, stream, now_ns, time.time())
        self._running[trace] = None
        self.wanted.came(now_ns)
        self._by_id[id] = trace
        return trace

    def finished(self, trace: Trace, now_ns: int) -> None:
        """Called by the trace itself."""
        self.begun.ended(trace, now_ns)
        self._running.pop(trace, None)
        self._finished.append(trace)
        while len(self._finished) > self._capacity:
            self._forget(self._finished.popleft())

    def fold(self, engine: str, message: Up) -> None:
        """Put an engine's message on the trace that it belongs to, if there is one."""
        if isinstance(message, Scheduled | FirstToken):
            self._fold(engine, message.request, message)
        elif isinstance(message, LeaseGranted | HandoffEnded):
            self._fold(engine, message.lease, message)

    def _fold(self, engine: str, key: str, message: Scheduled | FirstToken | LeaseGranted | HandoffEnded) -> None:
        trace = self.keys.get(key)
        if trace is not None:
            trace.fold(engine, key, message)

    def recent(self, limit: int, now_ns: int | None = None) -> list[Timeline]:
        """Newest first, running ones too, with the stages they have so far."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        everything = [*self._running, *self._finished]
        newest = heapq.nlargest(max(0, limit), everything, key=lambda trace: trace.marks.arrived)
        return [trace.timeline(now_ns) for trace in newest]

    def overdue(self, now_ns: int, target_s: float) -> int:
        """How many run that have waited for their first token for longer than that, and have none yet."""
        since_ns = now_ns - round(target_s / _NS)
        return sum(one.marks.first_token is None and one.marks.arrived < since_ns for one in self._running)

    def get(self, id: str, now_ns: int | None = None) -> Timeline | None:
        """The newest request of that id, and when the pieces of its answer left."""
        trace = self._by_id.get(id)
        if trace is None:
            return None
        found = trace.timeline(time.monotonic_ns() if now_ns is None else now_ns)
        return msgspec.structs.replace(found, pieces=trace.sent.pieces())

    def named(self, ledger: LedgerSnapshot) -> LedgerSnapshot:
        """With the request that each lease is for, and the engine that takes its blocks over."""
        return replace(ledger, leases=tuple(map(self._named, ledger.leases)))

    def _named(self, lease: Lease) -> Lease:
        if lease.id.startswith(CANARY):
            return replace(lease, consumer=lease.id.removeprefix(CANARY).split(".")[1])
        trace = self.keys.get(lease.id)
        return lease if trace is None else replace(lease, request=trace.id, consumer=trace.decode_engine)

    def percentiles(self) -> Percentiles:
        """TTFT and ITL of the requests kept here."""
        answered = [trace for trace in self._finished if trace.stream and _good(trace)]
        ttfts = sorted(trace.ttft_ns for trace in answered if trace.ttft_ns is not None)
        gaps = sorted(self.gaps)
        return Percentiles(
            ttft_p50_s=percentile(ttfts, 0.5),
            ttft_p99_s=percentile(ttfts, 0.99),
            itl_p50_s=percentile(gaps, 0.5),
            itl_p99_s=percentile(gaps, 0.99),
        )

    def _forget(self, trace: Trace) -> None:
        for key in trace.keys:
            self.keys.pop(key, None)
        if self._by_id.get(trace.id) is trace:
            del self._by_id[trace.id]


def _good(trace: Trace) -> bool:
    return trace.status is not None and trace.status < 400


def percentile(ordered_ns: Sequence[int], share: float) -> float | None:
    """Nearest rank, in seconds, of values in ascending order; None of nothing."""
    if not ordered_ns:
        return None
    rank = max(0, min(len(ordered_ns) - 1, -(-int(share * 1000) * len(ordered_ns) // 1000) - 1))
    return ordered_ns[rank] * _NS
