"""Introductions: engines are told to map each other's KV memory, and to unmap that of a life that is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from appliance.channel import ClosePeer, OpenPeer, PeerClosed, PeerOpened
from appliance.supervisor.acquaintance import Acquaintances, Key
from appliance.supervisor.engine import Engine
from appliance.supervisor.lifecycle import IN_SERVICE

_AGAIN_S: Final = 2.0  # until engines that failed to meet are introduced again
_log = logging.getLogger("pd-appliance")

Task = Callable[[Coroutine[Any, Any, None], str], None]


class Introductions:
    """Who is told what, and what has come of it."""

    def __init__(self, engines: Collection[Engine], known: Acquaintances, task: Task) -> None:
        """``task`` runs a coroutine beside everything else for as long as the node lives."""
        self._engines = engines
        self._known = known
        self._task = task

    def everyone(self) -> None:
        """Tell all that serve of all others that they have not been told of."""
        serving = [engine for engine in self._engines if engine.life.state in IN_SERVICE and engine.core]
        for consumer in serving:
            for producer in serving:
                if consumer is not producer:
                    self._introduce(consumer, producer)

    def _introduce(self, consumer: Engine, producer: Engine) -> None:
        ranks = consumer.ranks()
        if producer.core is None or not ranks:
            return
        if not self._known.open(consumer.key, producer.key, set(ranks)):
            return
        message = OpenPeer(
            peer=producer.key.engine,
            epoch=producer.key.epoch,
            sockets=producer.core.sockets,
            lease_table=producer.core.lease_table,
        )
        for connection in ranks.values():
            connection.send(message)

    def opened(self, consumer: Engine, message: PeerOpened) -> None:
        """A rank's answer. What failed for want of time or memory may work in a while."""
        producer = Key(message.peer, message.epoch)
        self._known.opened(consumer.key, producer, message.rank, message.error)
        if message.error is not None:
            _log.warning("%s", message.error)
            if not message.refused:
                self._task(self._again(consumer.key, producer), f"{consumer.key.engine} meets {message.peer}")

    async def _again(self, consumer: Key, producer: Key) -> None:
        await asyncio.sleep(_AGAIN_S)
        self._known.forget(consumer, producer)
        self.everyone()

    def closed(self, consumer: Engine, message: PeerClosed) -> None:
        self._known.closed(consumer.key, Key(message.peer, message.epoch), message.rank)

    def gone(self, dead: Key) -> list[Engine]:
        """A life is over: those that may have mapped its memory are told, and returned."""
        self._known.gone(dead)
        told = [e for e in self._engines if e.key.engine != dead.engine and e.life.state in IN_SERVICE]
        for consumer in told:
            ranks = consumer.ranks()
            self._known.close(consumer.key, dead, set(ranks))
            for connection in ranks.values():
                connection.send(ClosePeer(peer=dead.engine, epoch=dead.epoch))
        return told

    async def unmapped(self, dead: Key, patience_s: float) -> None:
        """Until nobody has that life mapped any more, or patience is at its end."""
        try:
            async with asyncio.timeout(patience_s):
                while self._known.still_mapped(dead):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            _log.warning("%s is started again although its last life's memory is still mapped by a peer", dead.engine)
