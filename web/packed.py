"""What is long and seldom asked for goes out compressed where it may: pages, their files, and history.

Not so live streams, each of whose pieces would be packed for each viewer, nor what programs poll.
"""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

_NOT: Final = re.compile(r"0(\.0{0,3})?")  # the weight of what a client does not want


class Gzip(GZipMiddleware):
    """Starlette's looks whether gzip is named, and not whether it is refused by that."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            said = "gzip" if takes_gzip(headers.getlist("accept-encoding")) else "identity"
            scope = {**scope, "headers": [*headers.raw]}
            MutableHeaders(scope=scope)["accept-encoding"] = said
        await super().__call__(scope, receive, send)


def takes_gzip(said: list[str]) -> bool:
    """By the values of ``Accept-Encoding`` (RFC 9110, 12.5.3): a name counts for more than a star. Who says nothing gets it as it is."""
    wants = {}
    for one in ",".join(said).split(","):
        name, *parameters = (part.strip().lower() for part in one.split(";"))
        weights = [part.removeprefix("q=") for part in parameters if part.startswith("q=")]
        wants[name] = not (weights and _NOT.fullmatch(weights[0]))
    return wants.get("gzip", wants.get("x-gzip", wants.get("*", False)))


PACKED: Final = (Middleware(Gzip, minimum_size=1000, compresslevel=5),)
"""For a route."""
