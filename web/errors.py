"""Errors as answers: one shape, OpenAI's, on every route; pages for those who look at one (``web.refused``)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from appliance.errors import RequestError, cut

Tell = Callable[[Scope, RequestError], Response]
"""Answers with an error."""


def unexpected() -> RequestError:
    """What a client is told of a fault of ours; the rest is in the log."""
    return RequestError(500, "Internal error. The log of pd-appliance has the details.", kind="internal_server_error")


def encoded(error: RequestError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error."""
    body = msgspec.json.encode(error.body())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", retry_after(error.retry_after_s).encode()))
    return error.status, headers, body


def retry_after(seconds: float) -> str:
    """As the header has it."""
    return str(max(1, math.ceil(seconds)))


def last_words(error: RequestError) -> bytes:
    """The same as it goes over a connection that ends with it."""
    status, headers, body = encoded(error)
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in (*headers, (b"connection", b"close"))]
    return b"\r\n".join((*lines, b"", body))


def answer(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """The same as a Starlette response, with further ``headers``."""
    status, own, body = encoded(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in own} | dict(headers or {}))


def handlers(tell: Tell) -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """What Starlette asks to answer: our own errors, its own (routes that don't exist, methods that aren't allowed), and all else, which
    the server logs."""

    async def on_request_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return tell(request.scope, error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = tell(request.scope, _of_starlette(request, error))
        response.headers.update(error.headers or {})
        return response

    async def on_unexpected(request: Request, error: Exception) -> Response:
        return tell(request.scope, unexpected())

    return {RequestError: on_request_error, HTTPException: on_http_exception, Exception: on_unexpected}


def _of_starlette(request: Request, error: HTTPException) -> RequestError:
    path = cut(request.url.path)
    messages = {
        404: f"There is nothing at {path}.",
        405: f"{path} does not answer {request.method}.",
    }
    message = messages.get(error.status_code, error.detail)
    return RequestError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
