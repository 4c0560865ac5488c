"""Asking a node that runs, for commands that do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from appliance import __version__
from appliance.errors import ActionError

T = TypeVar("T")
URL: Final = "http://127.0.0.1:8000"
_TIMEOUT_S: Final = 10.0


def ask(url: str, method: str, *path: str, query: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the node at ``url`` answers to a request for a path, given in parts.

    Raises ``ActionError`` with what it says, or why it says nothing.
    """
    found = _answer(url, method, path, query, body)
    if not isinstance(found, dict):
        raise _no_node(url)
    return found


def ask_for(url: str, kind: type[T], *path: str, query: str = "") -> T:
    """The record that the node answers with to a GET. Raises ``ActionError``."""
    try:
        return msgspec.convert(_answer(url, "GET", path, query), kind)
    except msgspec.ValidationError as error:
        raise _no_node(url) from error


def _answer(url: str, method: str, path: tuple[str, ...], query: str, body: dict[str, Any] | None = None) -> Any:
    target = f"{url.rstrip('/')}/{'/'.join(quote(part, safe='') for part in path)}{query}"
    try:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(target, data, {"user-agent": f"pd-appliance/{__version__}"}, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ActionError(_message(error.read()) or f"{target} answered {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ActionError(f"no node answers at {url} ({error}); name the right one with --url") from error


def _no_node(url: str) -> ActionError:
    return ActionError(f"{url} answers, but not as a node does; name the right one with --url")


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
