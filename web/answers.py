"""Answers in JSON: of this moment, and not to be kept by whoever passes them on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.responses import Response

from appliance.errors import RequestError, quoted

NOT_KEPT: Final = {"cache-control": "no-store"}


def json(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Records and plain data."""
    return encoded(msgspec.json.encode(body), status, headers)


def encoded(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """What is JSON already."""
    return Response(body, status, {**NOT_KEPT, **(headers or {})}, media_type="application/json")


def asked_for(body: object) -> Response:
    """An order was taken; what comes of it shows in the snapshots."""
    return json(body, 202)


def unknown(what: str, name: str) -> RequestError:
    """404 of something that is called by a name."""
    return RequestError(404, f"There is no {what} {quoted(name)}, or it is no longer kept.", code="not_found")
