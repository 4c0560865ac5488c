"""Asking a node that runs, for commands that do."""

from __future__ import annotations

import http
import http.client
import ipaddress
import json
import urllib.error
import urllib.request
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from appliance import __version__
from appliance.errors import ActionError, quoted

URL: Final = "http://127.0.0.1:8000"
_TIMEOUT_S: Final = 10.0
_OURS: Final = ("api", "v1")  # where paths of a node begin
T = TypeVar("T")


def ask(url: str, method: str, *path: str, query: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the node at ``url`` answers to a request for a path, given in parts.

    Raises ``ActionError`` with what it says, or why it says nothing.
    """
    try:
        found = json.loads(fetch(url, method, *path, query=query, body=body))
    except ValueError as error:
        raise no_node(url, error) from error
    if not isinstance(found, dict):
        raise ActionError(f"{target(url, *path)} answers, but not as a node does; name the right one with --url")
    return found


def read(url: str, kind: type[T], *path: str, query: str = "") -> T:
    """What is there, as a record. Fields that this version does not know are passed over. Raises ``ActionError``."""
    try:
        return msgspec.json.decode(fetch(url, "GET", *path, query=query), type=kind)
    except msgspec.MsgspecError as error:
        raise not_as_a_node(url, error) from error


def target(url: str, *path: str, query: str = "") -> str:
    """The whole address; of a node that is named as ``host:port``, too. Raises ``ActionError`` for what can be no node's."""
    return f"{_base(url)}/{'/'.join(quote(part, safe='') for part in path)}{query}"


def _base(url: str) -> str:
    """A proxy may have put a node below a path, and so there may be one."""
    base = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(base)
        host = parts.hostname
    except ValueError as error:
        raise _no_address(url, f"is no address ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise _no_address(url, f"is of {parts.scheme or 'nothing'}, and nodes speak http or https")
    if not host:
        raise _no_address(url, "names no host" if url else "is empty")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise _no_address(url, f"has no port of a node ({parts.netloc.rpartition(':')[2]}): there are 1 to 65535")
    path = parts.path.rstrip("/")
    ours = next((number for number, part in enumerate(path.split("/")) if part in _OURS), None)
    if ours is not None or parts.query or parts.fragment:
        right = f"{parts.scheme}://{parts.netloc}{'/'.join(path.split('/')[:ours])}"
        raise ActionError(f"--url {quoted(url)} says more than where the node is: write --url {right}", invalid=True)
    return f"{parts.scheme}://{parts.netloc}{path}"


def _no_address(url: str, why: str) -> ActionError:
    return ActionError(f"--url {quoted(url)} {why}: write the node's address, as in {URL}", invalid=True)


def not_serving(url: str) -> str | None:
    """Why a request sent now would not be served; None where it would be, or the node doesn't say."""
    try:
        fetch(url, "GET", "ready")
    except ActionError as error:
        refused = error.__cause__
        if isinstance(refused, urllib.error.HTTPError) and refused.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return str(error)
    return None


def no_node(url: str, error: Exception) -> ActionError:
    """``error``: urllib's own says less in its words than the one that it is about."""
    why = error.reason if isinstance(error, urllib.error.URLError) else error
    said = (why.strerror if isinstance(why, OSError) else None) or why
    return ActionError(f"no node answers at {url} ({said}); name the right one with --url")


def not_as_a_node(url: str, error: Exception) -> ActionError:
    return ActionError(
        f"{url} answers, but not as a node of this version does ({error}); name the right one with --url"
    )


def fetch(
    url: str,
    method: str,
    *path: str,
    query: str = "",
    body: dict[str, Any] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> bytes:
    """Raises ``ActionError``, whose ``unknown`` says that there is no such thing."""
    return answered(url, method, *path, query=query, body=body, timeout_s=timeout_s)[0]


def answered(
    url: str,
    method: str,
    *path: str,
    query: str = "",
    body: dict[str, Any] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> tuple[bytes, bool]:
    """The same, and whether the node says that it is simulated."""
    where = target(url, *path, query=query)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {"user-agent": f"pd-appliance/{__version__}", "content-type": "application/json"}
        request = urllib.request.Request(where, data, headers, method=method)
        with _opener(where).open(request, timeout=timeout_s) as answer:
            found: bytes = answer.read()
            return found, answer.headers.get("x-simulated") == "true"
    except urllib.error.HTTPError as error:
        message = _message(error) or f"{where} answered {error.code}"
        raise ActionError(message, unknown=error.code == http.HTTPStatus.NOT_FOUND) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise no_node(url, error) from error


def _opener(url: str) -> urllib.request.OpenerDirector:
    """No proxy reaches what listens on this machine only."""
    proxies = (
        urllib.request.ProxyHandler({}) if is_here(urlsplit(url).hostname or "") else urllib.request.ProxyHandler()
    )
    return urllib.request.build_opener(proxies)


def is_here(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _message(error: urllib.error.HTTPError) -> str | None:
    """What the node says of what it refuses, or is not ready for."""
    try:
        said = json.loads(error.read())
        return str(said["error"]["message"] if "error" in said else said["reason"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None
