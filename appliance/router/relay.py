"""A stream's way from the engine to the client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from appliance.records import EngineView
from appliance.router import wire
from appliance.router.client import Response, Unreachable
from appliance.router.failures import TOLD_TO_END, LegFailed, Outcome, said
from appliance.router.ports import Reply
from appliance.router.resume import Diverged, Passage
from appliance.router.routes import Route, Way
from appliance.telemetry.timeline import Trace

_log = logging.getLogger(__name__)


class Relay:
    """Of one answering leg. ``passage`` is what the client has of the stream already, where another engine can go on with it."""

    def __init__(
        self, view: EngineView, response: Response, route: Route, reply: Reply, trace: Trace, passage: Passage | None
    ) -> None:
        self._view = view
        self._response = response
        self._reply = reply
        self._trace = trace
        self._passage = passage
        self._looks = route.way is Way.SPLIT  # others' streams tell of failures in events of their own
        self._cut: Callable[[bytes], bytes] = wire.Events().take if self._looks else _as_it_is

    async def first(self) -> bytes:
        """The stream's first bytes. Nothing has left for the client yet: an engine's failure in them can be tried again."""
        data = b""
        while not data:
            chunk = await self._response.some()
            if not chunk:
                raise LegFailed(self._view.name, f"{self._view.name} ended its answer before it began")
            data = self._cut(chunk)
        if self._looks and wire.aborted(data) and not wire.before_abort(data):
            raise LegFailed(self._view.name, f"{self._view.name} {TOLD_TO_END}")
        if not self._looks or wire.STREAM_ERROR not in data:
            return data
        error = wire.stream_error(data)
        if error.answer.status >= 500:
            raise LegFailed(self._view.name, said(self._view, error.answer), answer=error.answer)
        return error.before + error.event

    async def run(self, data: bytes, outcome: Outcome) -> None:
        """Bytes go through as they come. This loop runs once per token of every stream: it does next to nothing else."""
        send, some, sent = self._reply.send, self._response.some, self._trace.chunk
        fails, take, cut = self._fails, self._take, self._cut
        had = b""  # the last that the client has had
        try:
            while True:
                if fails(data):
                    return await self._end_failed(data, outcome)
                new = take(data)
                if new:
                    await send(new)
                had = data
                whole = b""
                while not whole and (chunk := await some()):
                    whole = cut(chunk)
                if not whole:
                    break
                data = whole
                if data != wire.DONE:  # it comes right after the last token, and is none
                    sent(time.monotonic_ns())
        except Unreachable as lost:
            if had.endswith(wire.DONE):
                return await self._end_well()
            raise LegFailed(self._view.name, str(lost), tail=had) from lost
        except Diverged as error:
            message = f"the engine was lost, and another one can't go on: {error}"
            raise LegFailed(self._view.name, message, final=True) from error
        except asyncio.CancelledError:
            if had.endswith(wire.DONE):  # many clients leave with the last event
                self._finish("ok")
            raise
        if self._looks and not had.endswith(wire.DONE):
            raise LegFailed(self._view.name, f"{self._view.name} ended its answer before it was whole", tail=had)
        await self._end_well()

    def _fails(self, data: bytes) -> bool:
        return self._looks and (wire.STREAM_ERROR in data or wire.aborted(data))

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


def _as_it_is(chunk: bytes) -> bytes:
    return chunk
