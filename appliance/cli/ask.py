"""Asking a node that runs, for commands that do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import quote

from appliance.errors import ActionError

URL: Final = "http://127.0.0.1:8000"
_TIMEOUT_S: Final = 10.0


def ask(url: str, method: str, *path: str, query: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the node at ``url`` answers to a request for a path, given in parts.

    Raises ``ActionError`` with what it says, or why it says nothing.
    """
    target = f"{url.rstrip('/')}/{'/'.join(quote(part, safe='') for part in path)}{query}"
    try:
        data, headers = None if body is None else json.dumps(body).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(target, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise ActionError(_message(error.read()) or f"{target} answered {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ActionError(f"no node answers at {url} ({error}); name the right one with --url") from error
    if not isinstance(found, dict):
        raise ActionError(f"{target} answers, but not as a node does; name the right one with --url")
    return found


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
