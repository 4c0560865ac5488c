"""The links between simulated engines, and who may read whose KV."""

from __future__ import annotations

from collections import deque
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
    """One copy, under way or waiting for its link."""

    def __init__(self, fabric: Fabric, offer: Offer, consumer: str, size_bytes: int, done: Done) -> None:
        self._fabric = fabric
        self.offer = offer
        self.consumer = consumer
        self.size_bytes = size_bytes
        self.done = done
        self.began_ns = 0
        self.refusal: str | None = None
        self.event: Event | None = None  # its end, once it has begun

    @property
    def link(self) -> tuple[str, str]:
        return self.offer.producer, self.consumer

    def cancel(self) -> None:
        """Nobody wants it any more; to be called at the most once, and before it is done."""
        self._fabric.cancel(self)


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
        self._pulls: dict[tuple[str, str], deque[Pull]] = {}  # by link; the first one is under way
        self.shares = Shares()

    def pull(self, offer: Offer, consumer: str, size_bytes: int, done: Done) -> Pull:
        """See ``leg.Fabric``."""
        pull = Pull(self, offer, consumer, size_bytes, done)
        line = self._pulls.setdefault(pull.link, deque())
        line.append(pull)
        if len(line) == 1:
            self._begin(pull)
        return pull

    def cancel(self, pull: Pull) -> None:
        """Called by the pull."""
        if pull.event is None:
            self._pulls[pull.link].remove(pull)
        else:
            pull.event.cancel()
            self._over(pull)

    def _begin(self, pull: Pull) -> None:
        pull.began_ns, pull.refusal = self._timer.now_ns, self._refusal(pull.offer)
        size = 0 if pull.refusal else pull.size_bytes
        duration_ns = SETUP_NS + int(size / (self._bytes_s * self.shares.of(*pull.link)) * 1e9)
        self._copying(*pull.link, +1, size)
        pull.event = self._timer.at(pull.began_ns + duration_ns, lambda: self._end(pull))

    def _end(self, pull: Pull) -> None:
        self._over(pull)
        pull.done(pull.began_ns, pull.refusal or self._refusal(pull.offer))

    def _over(self, pull: Pull) -> None:
        """The link is free for the next one."""
        self._copying(*pull.link, -1, 0)
        line = self._pulls[pull.link]
        line.popleft()
        if line:
            self._begin(line[0])
