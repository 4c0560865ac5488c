"""The links between simulated engines, and who may read whose KV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.simulator.clock import Event, Timer
from appliance.simulator.leg import Offer

SETUP_NS: Final = 50_000  # of a hand-off, whatever its size

Done = Callable[[int, str | None], None]
Refusal = Callable[[Offer], str | None]
Copying = Callable[[str, str, int, int], None]


class Shares:
    """What links still have of their speed, 0 to 1. A link's faults at either end count."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str | None], float] = {}

    def set(self, engine: str, peer: str | None, left: float) -> None:
        """Of the link to a peer, or of all links of an engine."""
        self._left[engine, peer] = left

    def of(self, producer: str, consumer: str) -> float:
        ends = ((producer, consumer), (consumer, producer), (producer, None), (consumer, None))
        return min((self._left[end] for end in ends if end in self._left), default=1.0)


class Pull:
    """One copy under way."""

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self.event: Event | None = None

    def cancel(self) -> None:
        """Nobody wants it any more; to be called at the most once, and before it is done."""
        if self.event is not None:
            self.event.cancel()
            self._over()


class Fabric:
    """One copy at a time on each link, in order. A pull looks at the lease before and after it has copied, as the real one does."""

    def __init__(self, timer: Timer, bytes_s: float, refusal: Refusal, copying: Copying) -> None:
        """What it calls.

        Args:
            refusal: says why what was offered is not to be had now.
            copying: is told of producer, consumer, the change in the copies under way between them, and the bytes of one that begins.
        """
        self._timer = timer
        self._bytes_s = bytes_s
        self._refusal = refusal
        self._copying = copying
        self._free_ns: dict[tuple[str, str], int] = {}  # by producer and consumer: when the link is free again
        self.shares = Shares()

    def pull(self, offer: Offer, consumer: str, size_bytes: int, done: Done) -> Pull:
        """See ``leg.Fabric``."""
        link = (offer.producer, consumer)
        began_ns = max(self._timer.now_ns, self._free_ns.get(link, 0))
        refusal = self._refusal(offer)
        duration_ns = SETUP_NS
        if refusal is None:
            duration_ns += int(size_bytes / (self._bytes_s * self.shares.of(*link)) * 1e9)
        self._free_ns[link] = began_ns + duration_ns
        self._copying(*link, +1, 0 if refusal else size_bytes)
        pull = Pull(lambda: self._copying(*link, -1, 0))
        pull.event = self._timer.at(began_ns + duration_ns, lambda: self._end(offer, consumer, began_ns, refusal, done))
        return pull

    def _end(self, offer: Offer, consumer: str, began_ns: int, refusal: str | None, done: Done) -> None:
        self._copying(offer.producer, consumer, -1, 0)
        done(began_ns, refusal or self._refusal(offer))
