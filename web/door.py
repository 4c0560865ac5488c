"""Who may come in: requests that call this node by a name of its own, and pages that may send to it.

A browser sends requests to this machine for any page that asks it to. A page whose own name is made to point here (DNS
rebinding) could then read our answers, and any page could send prompts blindly. Requests give both away: ``Host`` is the
name that the page knows us by, and ``Origin`` the page's own. Browsers send one of each: a request with more of them was put together by
somebody, and is not answered, whatever they say.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final

from appliance.errors import RequestError, quoted

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_READING: Final = ("GET", "HEAD", "OPTIONS")  # answers to other sites' pages are kept from them by the browser
_PORT: Final = re.compile(r":\d+$", re.ASCII)
_ORIGIN: Final = re.compile(r"https?://([^/?#@\s,]+)")


class Door:
    """Looks at two headers of each request.

    Args:
        bound_to: the address that is listened on. On a loopback address only this machine's own names are accepted.
        allowed: further names, with a port or, for any port, without. On other addresses an empty list means any name.
    """

    def __init__(self, bound_to: str, allowed: Collection[str]) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)
        self._any_host = not allowed and not _is_loopback(bound_to)

    def refusal(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> RequestError | None:
        """Why a request with these headers, whose names are in lower case, is not answered; None if it is."""
        said: dict[bytes, str] = {}
        for name, value in headers:
            if name not in (b"host", b"origin"):
                continue
            if name in said:
                return _several(name.decode())
            said[name] = value.decode("latin-1").lower()
        host, origin = said.get(b"host"), said.get(b"origin")
        if host is not None and not self._is_ours(host):
            return _unknown(host)
        if origin is None or method in _READING or self._may_send(origin, host):
            return None
        return _foreign(origin)

    def _is_ours(self, host: str) -> bool:
        return self._any_host or _without_port(host) in _LOOPBACK or self._is_allowed(host)

    def _may_send(self, origin: str, host: str | None) -> bool:
        """What is no origin as browsers write them is nobody's whom we know."""
        found = _ORIGIN.fullmatch(origin)
        return found is not None and (found[1] == host or self._is_allowed(found[1]))

    def _is_allowed(self, host: str) -> bool:
        return host in self._allowed or _without_port(host) in self._allowed


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _without_port(host: str) -> str:
    return _PORT.sub("", host)


def _several(name: str) -> RequestError:
    message = f"There is more than one {name.capitalize()} header in this request: send one, or none."
    return RequestError(400, message, code="repeated_header")


def _unknown(host: str) -> RequestError:
    message = (
        f"This node does not answer to the name {quoted(host)}. If that is right, add it to allowed_hosts in [server]."
    )
    return RequestError(403, message, kind="permission_error", code="unknown_host")


def _foreign(origin: str) -> RequestError:
    message = f"Pages of {quoted(origin)} may not send requests here. If they should, add its host to allowed_hosts in [server]."
    return RequestError(403, message, kind="permission_error", code="foreign_origin")
