"""One request through both of its legs, or whole through one.

Nothing leaves for the client before the answering leg's first bytes are here, so a failure up to then is tried again
elsewhere. Each leg's outcome is recorded on its own, against its own engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from appliance.config import RouterConfig
from appliance.errors import RequestError
from appliance.records import EngineState, EngineView, Role
from appliance.router import legs, policy, wire
from appliance.router.admission import Admission
from appliance.router.client import Engines, Response, Unreachable
from appliance.router.failures import LegFailed, Outcome, read
from appliance.router.journal import Journal
from appliance.router.loads import Leg, Loads
from appliance.router.ports import Ledger, Reply, Request
from appliance.router.queue import ABANDONED, Queue, abandoned, not_ready
from appliance.router.relay import Relay
from appliance.router.resume import Passage
from appliance.router.tries import Tries
from appliance.router.wire import Answer
from appliance.telemetry.timeline import Trace

_log = logging.getLogger(__name__)
_GONE_S: Final = (
    12.0  # until an engine that failed is known to have ended: longer than one that was told to end has for it
)
_FAREWELL_S: Final = 2.0


@dataclass(frozen=True)
class Desk:
    """What all requests share."""

    config: RouterConfig
    model: str
    views: Callable[[], Sequence[EngineView]]
    ledger: Ledger
    loads: Loads
    queue: Queue
    engines: Engines
    journal: Journal


class Exchange:
    """One request and its answer."""

    def __init__(
        self, desk: Desk, plan: legs.Plan, request: Request, reply: Reply, trace: Trace, timeout_s: float
    ) -> None:
        self.client = request.peer  # API keys tell nothing while nobody verifies them
        self._timeout_s = timeout_s
        self._desk = desk
        self._plan = plan
        self._request = request
        self._reply = reply
        self._trace = trace
        self._target = wire.target(plan.route.path, request.query)
        self._nonce = secrets.token_hex(8)  # two requests of one id must not share a lease
        self._tries = Tries(desk.config.attempts)
        self._admission = Admission(desk.queue, plan, self.client, trace.marks.arrived, desk.config.queue_timeout_s)
        self._passage = Passage() if plan.resumable and desk.config.continue_streams else None
        self._answering = _NOBODY
        self._said = ""  # the key under which the journal has what the answering leg says
        self._answer_tokens = self._said_tokens = 0
        self._forced: legs.Tokens = ()  # what was said so far, if another engine is to go on

    async def run(self) -> None:
        """Answer. Raises ``RequestError`` before anything was sent; cancelled, it leaves nothing on any engine."""
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                await self._try()
        except TimeoutError:
            if not deadline.expired():
                raise
            await self._expire()
        finally:
            self._said_tokens = sum(map(len, self._desk.journal.close(self._said)))

    @property
    def output_tokens(self) -> int:
        """What the client has been given: as counted by the engine, or else in pieces."""
        if self._trace.stream:
            return max(self._trace.output_chunks, self._said_tokens)
        return self._answer_tokens

    async def _try(self) -> None:
        failure: LegFailed | None = None
        while True:
            try:
                return await self._attempt(again=failure is not None)
            except LegFailed as error:
                failure = error
                _log.warning("request %s, attempt %d: %s", self._trace.id, self._trace.attempts, error.detail)
                if not self._try_again(error) or (self._reply.started and not await self._go_on(error)):
                    return await self._give_up(error)
            except RequestError:
                if failure is None:
                    raise
                told = failure.answer is not None and not failure.lost
                if not told and not self._reply.started:
                    raise
                return await self._give_up(failure)  # what an engine said of it is a better answer than the queue's

    def _try_again(self, failure: LegFailed) -> bool:
        ready = policy.by_load(self._desk.views(), self._desk.loads)
        again = self._tries.again(failure, (view.name for view in ready), time.monotonic_ns())
        return again and not self._desk.queue.abandoned

    async def _go_on(self, failure: LegFailed) -> bool:
        """Prepare for another engine to take a stream over that has begun; False if that can't be done correctly."""
        if self._passage is None or not self._passage.resumable:
            return False
        if failure.engine == self._answering.name:
            await self._desk.engines.gone(
                failure.engine, self._answering.epoch, _GONE_S
            )  # then it has been heard to its end
        self._forced = _longer(self._forced, self._desk.journal.close(self._said))
        self._passage.begin_again()
        self._trace.go_on()
        _log.warning("request %s: goes on elsewhere after %d tokens", self._trace.id, sum(map(len, self._forced)))
        return True

    async def _give_up(self, failure: LegFailed) -> None:
        if self._reply.started:
            message = ABANDONED if self._desk.queue.abandoned else str(failure)
            await self._reply.send(wire.broken_off(self._plan.route, failure.tail, message))
            await self._reply.end()
            self._finish("failed", 200, message)
        elif self._desk.queue.abandoned:
            raise abandoned()
        elif self._tries.deadly:
            message = f"{self._tries.deadly} ended while they worked on this request: it is not tried again"
            raise RequestError(503, message, kind="server_error", code="engine_lost")
        elif failure.answer is not None and not failure.lost:
            await self._pass_on(failure.answer)
        else:
            tries = f" ({self._trace.attempts} attempts)" if self._trace.attempts > 1 else ""
            raise RequestError(503, f"{failure}{tries}", kind="server_error", code="engine_lost", retry_after_s=1.0)

    async def _expire(self) -> None:
        """Its time is up. Both legs have been cancelled; what the client is told must not wait for a client that does not read."""
        message = (
            f"the answer was not complete after {self._timeout_s:g} s, which is the longest: "
            f"ask for more with {wire.TIMEOUT_HEADER}, within [router] request_timeout_s"
        )
        if not self._reply.started:
            raise RequestError(504, message, kind="timeout_error", code="deadline_exceeded")
        whole = self._trace.outcome == "ok"  # it has had all, and only the end was still to be said
        self._finish("failed", 200, message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                if self._trace.stream and not whole:
                    await self._reply.send(wire.broken_off(self._plan.route, b"", message, "deadline_exceeded"))
                if self._trace.stream:
                    await self._reply.end()

    # ---- one attempt

    async def _attempt(self, again: bool) -> None:
        failed_on = self._tries.failed_on
        if self._reply.started:
            choice, leg = await self._admission.to_go_on(failed_on)
        else:
            choice, leg = await self._admission.to_begin(failed_on, again=again)
        self._tries.begin(time.monotonic_ns())
        self._trace.next_attempt()
        key = f"{self._trace.id}.{self._nonce}.{self._trace.attempts}"
        with leg:
            if choice.unsplit_reason is None:
                await self._split(choice.engine, leg, key)
            else:
                await self._whole(choice.engine, leg, key, choice.unsplit_reason)

    async def _split(self, view: EngineView, leg: Leg, key: str) -> None:
        self._trace.on_scheduled = lambda scheduled, tokens: leg.counted(tokens) if scheduled == key else None
        try:
            answer = await self._prefill(view, key)
            leg.end()
            if answer.status != 200:
                self._trace.unsplit("the prefill leg answered with an error")
                return await self._pass_on(answer)
            kept = legs.kept(answer.body)
            decode = policy.choose_decode(self._desk.views(), self._desk.loads, view.name, self._tries.failed_on)
            if decode is None or not kept.any:
                self._desk.ledger.cancel(key)
                return await self._fall_back(view, decode, key)
            with self._desk.loads.begin(decode.name, 0) as decoding:
                await self._answer("decode", decode, decoding, legs.decode_body(self._plan, kept, self._forced), key)
        finally:
            self._desk.ledger.cancel(key)

    async def _prefill(self, view: EngineView, key: str) -> Answer:
        body = legs.prefill_body(self._plan, key, self._desk.config.lease_ttl_s)
        with self._recorded("prefill", view, key) as outcome:
            response = await self._send(view, body, "-prefill")
            try:
                return await read(view, response, outcome, self._plan.route)
            finally:
                response.close()

    async def _fall_back(self, prefill: EngineView, decode: EngineView | None, key: str) -> None:
        """The prompt was computed, but its KV can't be handed over."""
        if decode is not None:
            return await self._whole_on(decode, key, f"{prefill.name} kept no KV")
        ready = policy.by_load(self._desk.views(), self._desk.loads, self._tries.failed_on)
        again = [view for view in ready if view.name == prefill.name] or ready  # its prefix cache still has the prompt
        if not again:
            raise not_ready(
                self._desk.model,
                policy.none_ready(self._desk.views()) or "every engine that is ready has just failed it",
            )
        await self._whole_on(again[0], key, f"no decode engine shares the memory of {prefill.name} any more")

    async def _whole_on(self, view: EngineView, key: str, reason: str) -> None:
        with self._desk.loads.begin(view.name, self._plan.prompt_tokens) as leg:
            await self._whole(view, leg, f"{key}w", reason)

    async def _whole(self, view: EngineView, leg: Leg, key: str, reason: str) -> None:
        self._trace.unsplit(reason)
        self._trace.on_scheduled = lambda scheduled, tokens: leg.counted(tokens) if scheduled == key else None
        # An unstreamed answer comes long after its prompt is done: the window opens with its first token.
        self._trace.on_first_token = lambda begun: leg.prefilled() if begun == key else None
        await self._answer("whole", view, leg, legs.whole_body(self._plan, key, self._forced), key)

    # ---- the answering leg

    async def _answer(self, kind: str, view: EngineView, leg: Leg, body: bytes, key: str) -> None:
        self._listen(view, key)
        with self._recorded(kind, view, key) as outcome:
            response = await self._send(view, body, "")
            outcome.status = response.status
            streams = response.streams and response.status == 200
            if response.status == 200:
                self._trace.answered(streams)
            try:
                if streams:
                    await self._stream(view, leg, response, outcome)
                else:
                    answer = await read(view, response, outcome, self._plan.route)
                    leg.prefilled()
                    await self._pass_on(answer)
            finally:
                response.close()

    def _listen(self, view: EngineView, key: str) -> None:
        """From now on the journal keeps what this leg says, so that another engine could go on."""
        self._desk.journal.close(self._said)
        if self._passage is not None:
            self._said, self._answering = key, view
            self._desk.journal.open(key, self._plan.consumers)

    async def _stream(self, view: EngineView, leg: Leg, response: Response, outcome: Outcome) -> None:
        relay = Relay(view, response, self._plan.route, self._reply, self._trace, self._passage)
        data = await relay.first()
        leg.prefilled()
        if not self._reply.started:
            await self._start(200, response.content_type, None)
        await relay.run(data, outcome)

    async def _pass_on(self, answer: Answer) -> None:
        """An answer that has been read to its end."""
        if self._reply.started:
            message = f"its answer can't be gone on with: {wire.error_message(answer.body) or answer.status}"
            raise LegFailed(self._trace.decode_engine or "an engine", message, final=True)
        answer = wire.openai_shaped(answer, self._plan.route)
        self._answer_tokens = wire.output_tokens(answer)
        await self._start(answer.status, answer.content_type, len(answer.body))
        await self._reply.send(answer.body)
        await self._reply.end()
        failed = answer.status >= 400
        self._finish("failed" if failed else "ok", answer.status, wire.error_message(answer.body) if failed else None)

    async def _start(self, status: int, content_type: str, length: int | None) -> None:
        await asyncio.sleep(0)  # what engines have already said about this request belongs into its Server-Timing
        self._trace.first_byte(time.monotonic_ns())
        await self._reply.start(status, wire.head(self._trace, content_type, length))

    def _finish(self, outcome: str, status: int, error: str | None = None) -> None:
        self._trace.finish(outcome, status, time.monotonic_ns(), error=error)

    # ---- both kinds of legs

    async def _send(self, view: EngineView, body: bytes, suffix: str) -> Response:
        own_id = not suffix and "request_id" in self._plan.body  # vLLM takes the body's, unless a header comes
        headers = wire.engine_headers(self._request.headers, None if own_id else self._trace.id + suffix)
        return await self._desk.engines.send(view, "POST", self._target, headers, body)

    @contextlib.contextmanager
    def _recorded(self, kind: str, view: EngineView, key: str) -> Iterator[Outcome]:
        """One leg's entry on the timeline, however it ends."""
        self._trace.dispatched(kind, view.name, key, time.monotonic_ns())
        outcome = Outcome()
        try:
            yield outcome
        except Unreachable as error:
            outcome.kind, outcome.error = "unreachable", error.detail
            raise LegFailed(view.name, str(error)) from error
        except LegFailed as failure:
            outcome.kind = "unreachable" if failure.answer is None else "error"
            outcome.error = str(failure)
            raise
        except BaseException:  # the client left
            outcome.kind = "cancelled"
            raise
        finally:
            now_ns = time.monotonic_ns()
            self._trace.leg_ended(kind, view.name, outcome.kind, now_ns, status=outcome.status, error=outcome.error)


_NOBODY: Final = EngineView(name="", role=Role.BOTH, state=EngineState.STOPPED, epoch=0, socket="")


def _longer(old: legs.Tokens, new: legs.Tokens) -> legs.Tokens:
    """By sequence: what was said before an engine had repeated all of it is not forgotten."""
    pairs = itertools.zip_longest(old, new, fillvalue=())
    return [max(pair, key=len) for pair in pairs]
