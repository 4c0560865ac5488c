"""``/v1/*``: a bounded body in, the router's bytes out, and a client's leaving told at once.

This is plain ASGI. A streamed answer passes here chunk by chunk, so nothing but ``send`` may stand in its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Sequence
from typing import Final

from starlette.types import Receive, Scope, Send

from appliance.errors import RequestError
from web import bodies, errors
from web.connection import SendNow, sends_now
from web.ports import Inference, InferenceRequest

_log = logging.getLogger(__name__)
Headers = Sequence[tuple[bytes, bytes]]
_SETTING: Final = "[server] max_body_bytes"
_ID: Final = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9._:-]{1,128}")  # it stands in paths, where dots mean other places


class AsgiReply:
    """``Reply`` over ASGI's ``send``, and over ``now``, which never waits."""

    __slots__ = ("_mark", "_now", "_send", "started")

    def __init__(self, send: Send, mark: Headers, now: SendNow | None = None) -> None:
        self._send = send
        self._now = now
        self._mark = mark
        self.started = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._mark]})

    async def send(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    def send_now(self, chunk: bytes) -> bool:
        return self._now is not None and self._now(chunk)

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class OpenAI:
    """ASGI app for ``/v1/*``.

    Args:
        inference: answers the requests.
        max_body_bytes: larger bodies are refused with 413 and never held in memory.
        max_held_bytes: of all bodies at once; what would be beyond is refused with 503.
        mark: headers of every answer.
    """

    def __init__(self, inference: Inference, max_body_bytes: int, max_held_bytes: int, mark: Headers = ()) -> None:
        self._mark = mark
        self._inference = inference
        self._max_body_bytes = max_body_bytes
        self._room = bodies.Room(max_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        request_id = _request_id(headers)
        reply = AsgiReply(send, self._mark, sends_now(scope))
        try:
            with self._room.share() as share:
                body = await bodies.read(headers, receive, self._max_body_bytes, share, _SETTING)
                await self._serve(_request(request_id, headers, scope, body), reply, receive)
        except bodies.ClientLeft:
            return
        except RequestError as error:
            await _fail(reply, request_id, error, error)
        except Exception as error:
            await _fail(reply, request_id, errors.unexpected(), error)

    async def _serve(self, request: InferenceRequest, reply: AsgiReply, receive: Receive) -> None:
        """Run the request until it is answered or its client has left, whichever is first."""
        serving = asyncio.create_task(self._inference.serve(request, reply), name=f"serve {request.id}")
        leaving = asyncio.create_task(_left(receive), name=f"client of {request.id}")
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            left = not serving.done()
        finally:
            leaving.cancel()
            serving.cancel()
            await asyncio.wait({leaving, serving})
        if not left:
            serving.result()
        elif not serving.cancelled() and serving.exception() is not None:
            _log.warning("request %s, cancelled: %r", request.id, serving.exception())


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _request(request_id: str, headers: dict[str, str], scope: Scope, body: bytes) -> InferenceRequest:
    return InferenceRequest(
        id=request_id,
        peer=(scope.get("client") or ("",))[0],
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"],
        headers=headers,
        body=body,
    )


def _headers(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _request_id(headers: dict[str, str]) -> str:
    """The client's ``X-Request-Id`` if that is safe to pass on, else a new one. Two requests may have the same."""
    sent = headers.get("x-request-id", "")
    return sent if _ID.fullmatch(sent) else uuid.uuid4().hex


async def _fail(reply: AsgiReply, request_id: str, error: RequestError, cause: Exception) -> None:
    """Answer with the error; where an answer has begun, returning without its end makes the server close the connection."""
    if cause is not error or reply.started:
        _log.error(
            "request %s: %s", request_id, "broke off in mid-answer" if reply.started else "failed", exc_info=cause
        )
    if reply.started:
        return
    status, headers, body = errors.encoded(error)
    with contextlib.suppress(OSError):  # the client may be gone
        await reply.start(status, [*headers, (b"x-request-id", request_id.encode())])
        await reply.send(body)
        await reply.end()
