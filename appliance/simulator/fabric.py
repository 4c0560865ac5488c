"""The links between simulated engines, and who may read whose KV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.simulator.clock import Event, Timer
from appliance.simulator.engine import Engine
from appliance.simulator.leg import Offer
from appliance.simulator.physics import Physics

SETUP_NS: Final = 50_000  # of a hand-off, whatever its size


class Pull:
    """One copy under way."""

    def __init__(self, fabric: Fabric, link: tuple[str, str]) -> None:
        self._fabric = fabric
        self.link = link
        self.event: Event | None = None

    def cancel(self) -> None:
        """Nobody wants it any more; to be called at the most once, and before it is done."""
        if self.event is not None:
            self.event.cancel()
            self._fabric.count(self.link, -1)


class Fabric:
    """One copy at a time on each link, in order. A pull reads the lease before and after it has copied, as the real one does."""

    def __init__(self, timer: Timer, bytes_s: float) -> None:
        self._timer = timer
        self._bytes_s = bytes_s
        self._engines: dict[str, tuple[Engine, Physics]] = {}
        self._free_ns: dict[tuple[str, str], int] = {}  # by producer and consumer: when the link is free again
        self.share: dict[tuple[str, str], float] = {}  # of its speed that a link still has; a fault's

    def add(self, engine: Engine, physics: Physics) -> None:
        self._engines[engine.name] = (engine, physics)

    def pull(self, offer: Offer, consumer: str, size_bytes: int, done: Callable[[int, str | None], None]) -> Pull:
        link = (offer.producer, consumer)
        began_ns = max(self._timer.now_ns, self._free_ns.get(link, 0))
        duration_ns = SETUP_NS + int(size_bytes / (self._bytes_s * self.share.get(link, 1.0)) * 1e9)
        self._free_ns[link] = began_ns + duration_ns
        self.count(link, +1)
        pull = Pull(self, link)
        pull.event = self._timer.at(began_ns + duration_ns, lambda: self._end(pull, offer, began_ns, done))
        return pull

    def _end(self, pull: Pull, offer: Offer, began_ns: int, done: Callable[[int, str | None], None]) -> None:
        self.count(pull.link, -1)
        producer = self._engines.get(offer.producer)
        held = producer is not None and producer[0].holds(offer.lease)
        done(began_ns, None if held else f"{offer.producer} no longer holds {offer.lease}")

    def count(self, link: tuple[str, str], more: int) -> None:
        for name in link:
            if name in self._engines:
                self._engines[name][1].pulls += more
