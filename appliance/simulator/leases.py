"""KV blocks that a simulated engine holds for others, each lease ended exactly once."""

from __future__ import annotations

from collections.abc import Callable

from appliance.channel import LeaseEnded, LeaseGranted, Up
from appliance.simulator.clock import Event, Timer
from appliance.simulator.leg import Offer, Sequence


class Leases:
    """Of one engine. ``freed`` is given the blocks of each lease that ends."""

    def __init__(
        self, engine: str, timer: Timer, say: Callable[[Up], None], freed: Callable[[list[int]], None]
    ) -> None:
        self._engine = engine
        self._timer = timer
        self._say = say
        self._freed = freed
        self._held: dict[str, tuple[list[int], int, Event]] = {}  # blocks, consumers still to come, expiry
        self.blocks = 0

    def __contains__(self, lease: str) -> bool:
        return lease in self._held

    def hold(self, sequence: Sequence) -> Offer:
        """The blocks of a prompt that has been computed, for as long as was asked."""
        ask, blocks, now_ns = sequence.ask, sequence.blocks, self._timer.now_ns
        expiry = self._timer.at(now_ns + int(ask.ttl_s * 1e9), lambda: self.release(ask.key, "expired"))
        self._held[ask.key] = (blocks, ask.consumers, expiry)
        self.blocks += len(blocks)
        granted = LeaseGranted(
            lease=ask.key,
            blocks=len(blocks),
            tokens=ask.prompt_tokens,
            consumers=ask.consumers,
            ttl_s=ask.ttl_s,
            at_ns=now_ns,
        )
        self._say(granted)
        return Offer(producer=self._engine, lease=ask.key, tokens=ask.prompt_tokens, blocks=len(blocks))

    def release(self, lease: str, reason: str) -> None:
        """For one consumer, or for all where it was not a consumer that is done. One that is not held is of no interest."""
        held = self._held.get(lease)
        if held is None:
            return
        blocks, consumers, expiry = held
        if reason == "released" and consumers > 1:
            self._held[lease] = (blocks, consumers - 1, expiry)
            return
        del self._held[lease]
        expiry.cancel()
        self.blocks -= len(blocks)
        self._say(LeaseEnded(lease=lease, reason=reason, blocks=len(blocks), at_ns=self._timer.now_ns))
        self._freed(blocks)
