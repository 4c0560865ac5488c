"""KV blocks that a simulated engine holds for others. The book is the real one; a virtual clock ends what has expired."""

from __future__ import annotations

from collections.abc import Callable

from appliance.channel import LeaseEnded, LeaseGranted, Up
from appliance.engine.kv.lease import HeldLease, LeaseBook, Table
from appliance.simulator.clock import Event, Timer
from appliance.simulator.leg import Offer, Sequence


class Leases:
    """Of one life of an engine. ``freed`` is given the blocks of each lease that ends."""

    def __init__(
        self,
        engine: str,
        epoch: int,
        table: Table,
        timer: Timer,
        say: Callable[[Up], None],
        freed: Callable[[list[int]], None],
    ) -> None:
        self._engine = engine
        self._epoch = epoch
        self._timer = timer
        self._say = say
        self._freed = freed
        self._book = LeaseBook(table)
        self._expiry: dict[str, Event] = {}
        self.blocks = 0

    def __contains__(self, lease: str) -> bool:
        return lease in self._expiry

    def hold(self, sequence: Sequence) -> Offer | None:
        """The blocks of a prompt that has been computed, for as long as was asked. None where that can't be."""
        ask, now_ns = sequence.ask, self._timer.now_ns
        deadline_ns = now_ns + int(ask.ttl_s * 1e9)
        held = self._book.grant(ask.key, tuple(sequence.blocks), ask.prompt_tokens, ask.consumers, deadline_ns)
        if held is None:
            return None
        self._expiry[ask.key] = self._timer.at(deadline_ns, lambda: self.release(ask.key, "expired"))
        self.blocks += len(held.blocks)
        granted = LeaseGranted(
            lease=held.id,
            blocks=len(held.blocks),
            tokens=held.tokens,
            consumers=held.consumers,
            ttl_s=ask.ttl_s,
            at_ns=now_ns,
        )
        self._say(granted)
        return self._offer(held)

    def release(self, lease: str, reason: str) -> None:
        """For one consumer, or for all where it was not a consumer that is done. One that is not held is of no interest."""
        held = self._book.end(lease, all_consumers=reason != "released")
        if held is None:
            return
        self._expiry.pop(lease).cancel()
        self.blocks -= len(held.blocks)
        self._say(LeaseEnded(lease=lease, reason=reason, blocks=len(held.blocks), at_ns=self._timer.now_ns))
        self._freed(list(held.blocks))

    def keep(self) -> None:
        """Whoever would end those that expire does nothing any more."""
        for expiry in self._expiry.values():
            expiry.cancel()

    def _offer(self, held: HeldLease) -> Offer:
        return Offer(
            producer=self._engine,
            epoch=self._epoch,
            lease=held.id,
            tokens=held.tokens,
            blocks=held.blocks,
            slot=held.slot,
            generation=held.generation,
        )
