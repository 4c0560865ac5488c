"""The router as the rest of the house sees it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.channel import CANARY, HandoffEnded, OutputTokens, Up
from appliance.config import RouterConfig
from appliance.errors import RequestError
from appliance.records import EngineView, Pair, QueueSnapshot, RequestCounts, is_clients_own
from appliance.router import legs, policy, routes, wire
from appliance.router.calibration import Calibration
from appliance.router.canary import Canary
from appliance.router.client import Engines, Unreachable
from appliance.router.journal import Journal
from appliance.router.loads import Loads
from appliance.router.pairs import Pairs
from appliance.router.ports import Ledger, Reply, Request
from appliance.router.queue import DRAINING, Queue, not_ready
from appliance.router.request import Desk, Exchange
from appliance.router.routes import Route, Way
from appliance.telemetry.timeline import Timelines, Trace

_log = logging.getLogger(__name__)
_POLL_S: Final = 0.25  # only while requests wait, and only in case nobody told of a change


class _Totals(msgspec.Struct):
    total: int = 0
    ok: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    split: int = 0
    retried: int = 0


class Router:
    """Answers requests with the engines there are. Implements ``web.ports.Inference``; lives on one event loop."""

    def __init__(
        self,
        config: RouterConfig,
        views: Callable[[], Sequence[EngineView]],
        ledger: Ledger,
        timelines: Timelines,
        model_name: str,
        *,
        calibrate_s: float = 0.0,
    ) -> None:
        """``calibrate_s``: for each life of an engine (``calibration``)."""
        self._pairs = Pairs(config.canary_s)
        self._all_views = views
        self._model = model_name
        self._timelines = timelines
        self._totals = _Totals()
        self._serving = 0
        self._loads = Loads()
        self._queue = Queue(config.queue_capacity, model_name, self._views, self._loads)
        self._engines = Engines()
        self._journal = Journal()
        self._desk = Desk(
            config, model_name, self._views, ledger, self._loads, self._queue, self._engines, self._journal
        )
        self._canary = Canary(model_name, views, self._engines, ledger, self._pairs, lambda: not self._serving)
        self.calibration = Calibration(model_name, views, self._engines, calibrate_s, lambda: not self._serving)
        self._tasks: list[asyncio.Task[None]] = []

    def _views(self) -> Sequence[EngineView]:
        """Engines as requests may use them."""
        return self._pairs.without_broken(self._all_views())

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._poll(), name="router queue poll"),
            asyncio.create_task(self._canary.run(), name="canary"),
            asyncio.create_task(self.calibration.run(), name="calibration"),
        ]

    async def close(self) -> None:
        """Close all connections to engines. Requests that still run fail; the web layer ends them before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engines.close()

    async def serve(self, request: Request, reply: Reply) -> None:
        """See ``web.ports.Inference.serve``."""
        route = routes.find(request.method, request.path)
        if route.way is Way.DIRECT:
            await self._direct_in_time(route, request, reply)
        else:
            await self._counted(route, request, reply)

    # ---- what others tell and ask

    def engines_changed(self) -> None:
        """A view has changed: requests that wait may have somewhere to go now."""
        self._queue.pump()

    def engine_lost(self, engine: str, epoch: int) -> None:
        """A life of an engine is over: its connections end now, so that its requests are tried elsewhere at once."""
        self._engines.lost(engine, epoch)
        self._queue.pump()

    def fold(self, engine: str, message: Up) -> None:
        """Take what an engine reports."""
        if isinstance(message, OutputTokens):
            self._journal.fold(message)
        elif isinstance(message, HandoffEnded) and message.lease.startswith(CANARY):
            self._canary.fold(message)
        elif isinstance(message, HandoffEnded):
            self._pairs.used(message.producer, engine, _failure(message), time.monotonic_ns())

    def not_ready(self) -> str | None:
        """Why no request can be served now, in words; None if one can."""
        return DRAINING if self._queue.draining else policy.none_ready(self._views())

    def drain(self) -> None:
        """Take no new requests; those that wait or run are served to the end."""
        self._queue.drain()

    def abandon(self) -> None:
        """Give up what waits or runs: whole answers become a 503, streams end with an error event."""
        self._queue.abandon()
        for view in self._views():
            self._engines.lost(view.name, view.epoch)

    def queue_snapshot(self, now_ns: int) -> QueueSnapshot:
        return self._queue.snapshot(now_ns, in_flight=self._serving - len(self._queue))

    def in_flight(self, engine: str) -> int:
        """Legs open on an engine."""
        return self._loads[engine].legs

    def outstanding_prompt_tokens(self, engine: str) -> int:
        """Of these legs, not yet computed; estimated from the bodies' lengths."""
        return self._loads[engine].prompt_tokens

    def pairs(self, now_ns: int) -> tuple[Pair, ...]:
        """Pairs of engines, and whether KV gets from the one to the other."""
        return self._pairs.snapshot(now_ns)

    def counts(self) -> RequestCounts:
        return msgspec.convert(msgspec.structs.asdict(self._totals), RequestCounts)

    # ---- requests

    async def _counted(self, route: Route, request: Request, reply: Reply) -> None:
        """Serve through the queue, and count how it ended."""
        self._totals.total += 1
        try:
            plan = legs.plan(route, request.body)
            timeout_s = wire.timeout_s(request.headers, self._desk.config.request_timeout_s)
        except RequestError as error:
            self._totals.failed += 1
            self._totals.refused += is_clients_own(error.status)
            raise
        trace = self._timelines.begin(request.id, route.path, plan.stream, time.monotonic_ns())
        exchange = Exchange(self._desk, plan, request, reply, trace, timeout_s)
        self._serving += 1
        self.calibration.interrupt()
        try:
            await self._traced(exchange, reply, trace)
        finally:
            self._serving -= 1
            self._queue.count_output(exchange.client, exchange.output_tokens)
            self._timelines.wanted.answered(trace.prompt_tokens, exchange.output_tokens, time.monotonic_ns())
            self._count(trace)

    async def _traced(self, exchange: Exchange, reply: Reply, trace: Trace) -> None:
        try:
            await exchange.run()
        except RequestError as error:
            trace.finish("failed", error.status, time.monotonic_ns(), error=error.message)
            raise
        except (asyncio.CancelledError, OSError):  # engines' are never this: the client left
            trace.finish("cancelled", 200 if reply.started else None, time.monotonic_ns())
            raise
        except BaseException as error:
            trace.finish("failed", 200 if reply.started else 500, time.monotonic_ns(), error=repr(error))
            raise

    def _count(self, trace: Trace) -> None:
        totals = self._totals
        totals.ok += trace.outcome == "ok"
        totals.failed += trace.outcome == "failed"
        totals.refused += trace.outcome == "failed" and is_clients_own(trace.status)
        totals.cancelled += trace.outcome == "cancelled"
        totals.split += trace.split
        totals.retried += trace.attempts > 1

    async def _direct_in_time(self, route: Route, request: Request, reply: Reply) -> None:
        timeout_s = wire.timeout_s(request.headers, self._desk.config.request_timeout_s)
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                await self._direct(route, request, reply)
        except TimeoutError:
            if reply.started or not deadline.expired():
                raise
            raise RequestError(
                504, f"no answer within {timeout_s:g} s", kind="timeout_error", code="deadline_exceeded"
            ) from None

    async def _direct(self, route: Route, request: Request, reply: Reply) -> None:
        """Ask engines, the least loaded first, until one answers."""
        body = msgspec.json.encode(legs.plan(route, request.body).body) if request.body else b""
        headers = wire.engine_headers(request.headers, request.id)
        target = wire.target(route.path, request.query)
        lost: Unreachable | None = None
        asked: set[str] = set()
        while left := policy.by_load(self._views(), self._loads, asked):
            view = left[0]
            asked.add(view.name)
            try:
                response = await self._engines.send(view, request.method, target, headers, body)
                try:
                    answer = wire.Answer(response.status, response.content_type, await response.all())
                finally:
                    response.close()
            except Unreachable as error:
                lost = error
                continue
            return await _reply_with(reply, request.id, wire.openai_shaped(answer, route))
        raise not_ready(self._model, policy.none_ready(self._views()) or str(lost))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            if len(self._queue):
                try:
                    self._queue.pump()
                except Exception:  # of whoever is served: the others must not wait for ever
                    _log.exception("a turn of the queue")


def _failure(message: HandoffEnded) -> str | None:
    return None if message.ok else message.error or "no reason given"


async def _reply_with(reply: Reply, name: str, answer: wire.Answer) -> None:
    fields = {"content-type": answer.content_type, "x-request-id": name, "content-length": str(len(answer.body))}
    await reply.start(answer.status, [(key.encode(), value.encode("latin-1")) for key, value in fields.items()])
    await reply.send(answer.body)
    await reply.end()
