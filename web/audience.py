"""Who looks at what is live, so that one client can't take it from the others. A client is a network address, as in the router's queue."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Final, TypeVar

from appliance.errors import RequestError

K = TypeVar("K")
STREAMS_EACH: Final = 128  # an address may be a whole office's
_RETRY_S: Final = 10.0


class Audience:
    """How many streams each client follows."""

    def __init__(self, each: int = STREAMS_EACH) -> None:
        self._each = each
        self._streams: Counter[str] = Counter()

    def check(self, client: str) -> None:
        """Raises ``RequestError`` 429 where it has as many as one may have."""
        if self._streams[client] >= self._each:
            message = f"{client} follows {self._each} live streams already, and nobody may follow more; close some."
            raise RequestError(429, message, kind="rate_limit_error", code="too_many_streams", retry_after_s=_RETRY_S)

    @contextlib.contextmanager
    def seat(self, client: str) -> Iterator[None]:
        """For as long as it follows one."""
        self._streams[client] += 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]


def gives_way(feeds: Mapping[K, Collection[str]], client: str) -> K | None:
    """Of feeds with the clients that follow each, oldest first: the one that ends, so that ``client`` can have another one. Pure.

    It is one that nobody follows, or else the oldest of whoever follows the most, of those that nobody else follows; None where nobody
    has clearly more than ``client`` would have.
    """
    for feed, clients in feeds.items():
        if not clients:
            return feed
    shares = Counter(one for clients in feeds.values() for one in clients)
    alone = {feed: next(iter(clients)) for feed, clients in feeds.items() if len(clients) == 1}
    greediest = max(alone, key=lambda feed: shares[alone[feed]], default=None)  # the first of several
    if greediest is None or shares[alone[greediest]] <= shares[client] + 1:
        return None
    return greediest
