"""A stream's way from the engine to the client."""

from __future__ import annotations

import asyncio
import logging
import time

from appliance.records import EngineView
from appliance.router import wire
from appliance.router.client import Response, Unreachable
from appliance.router.connection import Taker
from appliance.router.failures import TOLD_TO_END, LegFailed, Outcome, said
from appliance.router.ports import Reply
from appliance.router.resume import Diverged, Passage
from appliance.router.routes import Route, Way
from appliance.telemetry.timeline import Trace

_log = logging.getLogger(__name__)


class Relay:
    """Of one answering leg. ``passage`` is what the client has of the stream already, where another engine can go on with it.

    What is ordinary goes from the engine's socket to the client's as it comes, and no task wakes for it (``_pass``); a
    stream's beginning, its end, its failures, and what a slow client makes wait, are ``run``'s.
    """

    def __init__(
        self, view: EngineView, response: Response, route: Route, reply: Reply, trace: Trace, passage: Passage | None
    ) -> None:
        self._view = view
        self._response = response
        self._reply = reply
        self._trace = trace
        self._passage = passage
        # Others' streams tell of failures in events of their own: these are not looked at.
        self._events = wire.Events() if route.way is Way.SPLIT else None
        self._had = b""  # the last that the client has had

    async def first(self) -> bytes:
        """The stream's first bytes. Nothing has left for the client yet: an engine's failure in them can be tried again."""
        data = await self._next(None)
        if not data:
            raise LegFailed(self._view.name, f"{self._view.name} ended its answer before it began")
        if self._events is None:
            return data
        if wire.aborted(data) and not wire.before_abort(data):
            raise LegFailed(self._view.name, f"{self._view.name} {TOLD_TO_END}")
        if wire.STREAM_ERROR not in data:
            return data
        error = wire.stream_error(data)
        if error.answer.status >= 500:
            raise LegFailed(self._view.name, said(self._view, error.answer), answer=error.answer)
        return error.before + error.event

    async def run(self, data: bytes, outcome: Outcome) -> None:
        """Until the end, from what was first."""
        try:
            while data:
                if self._fails(data):
                    return await self._end_failed(data, outcome)
                await self._send_new(data)
                self._had = data
                data = await self._next(self._pass)
                if data and data != wire.DONE:  # it comes right after the last token, and is none
                    self._trace.chunk(time.monotonic_ns())
        except Unreachable as lost:
            if self._had.endswith(wire.DONE):
                return await self._end_well()
            raise LegFailed(self._view.name, str(lost), tail=self._had) from lost
        except Diverged as error:
            message = f"the engine was lost, and another one can't go on: {error}"
            raise LegFailed(self._view.name, message, final=True) from error
        except asyncio.CancelledError:
            if self._had.endswith(wire.DONE):  # many clients leave with the last event
                self._finish("ok")
            raise
        if self._events is not None and not self._had.endswith(wire.DONE):
            raise LegFailed(self._view.name, f"{self._view.name} ended its answer before it was whole", tail=self._had)
        await self._end_well()

    async def _next(self, taker: Taker | None) -> bytes:
        """Whole events that were not taken; empty at the end."""
        while chunk := await self._response.some(taker):
            data = chunk if self._events is None else self._events.take(chunk)
            if data:
                return data
        return b""

    def _pass(self, chunk: bytes) -> bool:
        """One piece of what is ordinary; else False. This runs once per token of every stream: it does next to nothing else."""
        if self._events is not None and not self._events.plain(chunk):
            return False
        passage = self._passage
        if passage is not None and passage.continues:
            return False
        if not self._reply.send_now(chunk):
            return False
        if passage is not None:
            passage.keep(chunk)
        self._had = chunk
        self._trace.chunk(time.monotonic_ns())
        return True

    def _fails(self, data: bytes) -> bool:
        return self._events is not None and wire.fails(data)

    async def _end_failed(self, data: bytes, outcome: Outcome) -> None:
        """vLLM ends a stream that failed in order. The client gets the error, but no ``[DONE]``: it is not whole.

        Raises ``LegFailed`` where its engine is about to end: another one may go on.
        """
        if wire.aborted(data):
            await self._send_new(wire.before_abort(data))
            raise LegFailed(self._view.name, f"{self._view.name} {TOLD_TO_END}")
        error = wire.stream_error(data)
        await self._send_new(error.before)
        if wire.engine_died(error.answer):
            raise LegFailed(self._view.name, said(self._view, error.answer), answer=error.answer)
        outcome.kind, outcome.error = "error", wire.error_message(error.answer.body) or "no reason given"
        _log.warning("request %s, in mid-stream: %s", self._trace.id, outcome.error)
        self._finish("failed", outcome.error)  # whether or not the client stays to hear it
        await self._reply.send(error.event)
        await self._reply.end()

    async def _end_well(self) -> None:
        await self._reply.end()
        self._finish("ok")

    def _finish(self, outcome: str, error: str | None = None) -> None:
        self._trace.finish(outcome, 200, time.monotonic_ns(), error=error)

    async def _send_new(self, data: bytes) -> None:
        new = self._take(data)
        if new:
            await self._reply.send(new)

    def _take(self, data: bytes) -> bytes:
        """What of it is the client's."""
        return data if self._passage is None else self._passage.take(data)
