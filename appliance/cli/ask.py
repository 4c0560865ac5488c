"""Asking a node that runs, for commands that do."""

from __future__ import annotations

import http
import http.client
import json
import urllib.error
import urllib.request
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from appliance import __version__
from appliance.errors import ActionError

URL: Final = "http://127.0.0.1:8000"
_TIMEOUT_S: Final = 10.0
T = TypeVar("T")


def ask(url: str, method: str, *path: str, query: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the node at ``url`` answers to a request for a path, given in parts.

    Raises ``ActionError`` with what it says, or why it says nothing.
    """
    try:
        found = json.loads(_fetch(url, method, *path, query=query, body=body))
    except ValueError as error:
        raise no_node(url, error) from error
    if not isinstance(found, dict):
        raise ActionError(f"{target(url, *path)} answers, but not as a node does; name the right one with --url")
    return found


def read(url: str, kind: type[T], *path: str, query: str = "") -> T:
    """What is there, as a record. Fields that this version does not know are passed over. Raises ``ActionError``."""
    try:
        return msgspec.json.decode(_fetch(url, "GET", *path, query=query), type=kind)
    except msgspec.MsgspecError as error:
        raise not_as_a_node(url, error) from error


def target(url: str, *path: str, query: str = "") -> str:
    return f"{url.rstrip('/')}/{'/'.join(quote(part, safe='') for part in path)}{query}"


def no_node(url: str, error: Exception) -> ActionError:
    return ActionError(f"no node answers at {url} ({error}); name the right one with --url")


def not_as_a_node(url: str, error: Exception) -> ActionError:
    return ActionError(
        f"{url} answers, but not as a node of this version does ({error}); name the right one with --url"
    )


def _fetch(url: str, method: str, *path: str, query: str = "", body: dict[str, Any] | None = None) -> bytes:
    """Raises ``ActionError``, whose ``unknown`` says that there is no such thing."""
    where = target(url, *path, query=query)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {"user-agent": f"pd-appliance/{__version__}", "content-type": "application/json"}
        request = urllib.request.Request(where, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError as error:
        message = _message(error.read()) or f"{where} answered {error.code}"
        raise ActionError(message, unknown=error.code == http.HTTPStatus.NOT_FOUND) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise no_node(url, error) from error


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
