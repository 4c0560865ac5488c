"""Errors as answers: one shape, OpenAI's, on every route."""

from __future__ import annotations

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError


def unexpected() -> RequestError:
    """What a client is told of a fault of ours; the rest is in the log."""
    return RequestError(500, "Internal error. The log of pd-appliance has the details.", kind="internal_server_error")


def encoded(error: RequestError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error."""
    body = msgspec.json.encode(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    return error.status, headers, body


def answer(error: RequestError) -> Response:
    """The same as a Starlette response."""
    status, headers, body = encoded(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


async def on_request_error(request: Request, error: Exception) -> Response:
    """Handler of ``RequestError``."""
    assert isinstance(error, RequestError)
    return answer(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler of Starlette's own: routes that don't exist, methods that aren't allowed."""
    assert isinstance(error, HTTPException)
    messages = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.url.path} does not answer {request.method}.",
    }
    message = messages.get(error.status_code, error.detail)
    response = answer(RequestError(error.status_code, message, code="not_found" if error.status_code == 404 else None))
    response.headers.update(error.headers or {})
    return response


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Handler of everything else; the server logs it."""
    return answer(unexpected())
