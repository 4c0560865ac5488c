"""The links of a simulated engine that is a process: peers' lease tables are mapped as real engines map them, and nothing is copied.

The protocol is the real one, handshake included; only the memory is missing, whose copying takes as long as it would.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance.channel import ClosePeer, Down, Message, OpenPeer, PeerClosed, PeerOpened
from appliance.engine.kv.handshake import PROTOCOL, KvServer, Manifest, ask, fingerprint, refusal
from appliance.engine.kv.layout import Layout
from appliance.engine.kv.lease import LeaseTable
from appliance.engine.kv.settings import Settings
from appliance.errors import HandoffError
from appliance.simulator.leg import Offer
from appliance.simulator.plan import EnginePlan

TRANSPORT: Final = "simulated"


class Peers:
    """Whose KV this engine can read."""

    def __init__(self, plan: EnginePlan, settings: Settings, send: Callable[[Message], None]) -> None:
        """Listens for those who want to read this one's."""
        self._send = send
        self._manifest = manifest(plan, settings)
        self._tables: dict[tuple[str, int], LeaseTable] = {}
        self._server = KvServer(settings.kv_socket(0), self._manifest, [])

    def receive(self, message: Down) -> None:
        """On the link's thread: a peer's answer may take a while."""
        if isinstance(message, OpenPeer):
            self._send(self._open(message))
        elif isinstance(message, ClosePeer):
            self._send(self._close(message))

    def _open(self, message: OpenPeer) -> PeerOpened:
        """Map a peer's lease table. Says what stands in the way."""
        key = (message.peer, message.epoch)
        opened = PeerOpened(peer=message.peer, epoch=message.epoch, rank=0)
        if key in self._tables:
            return opened
        try:
            theirs, _ = ask(message.sockets[0], message.peer)
            reason = refusal(self._manifest, theirs)
            if reason is not None:
                return PeerOpened(peer=message.peer, epoch=message.epoch, rank=0, error=reason, refused=True)
            self._tables[key] = LeaseTable(Path(message.lease_table), create=False)
        except (HandoffError, OSError) as error:
            return PeerOpened(peer=message.peer, epoch=message.epoch, rank=0, error=str(error))
        return opened

    def _close(self, message: ClosePeer) -> PeerClosed:
        table = self._tables.pop((message.peer, message.epoch), None)
        if table is not None:
            table.close()
        return PeerClosed(peer=message.peer, epoch=message.epoch, rank=0)

    def refusal(self, offer: Offer) -> str | None:
        """Why what was offered is not to be had now."""
        table = self._tables.get((offer.producer, offer.epoch))
        if table is None:
            return f"the memory of {offer.producer} (life {offer.epoch}) is not mapped"
        try:
            held = table[offer.slot] == offer.generation
        except ValueError:
            return f"the memory of {offer.producer} was closed"
        return None if held else f"the lease on the blocks of {offer.producer} has ended"


def manifest(plan: EnginePlan, settings: Settings) -> Manifest:
    """What an engine says of its memory, which is not there."""
    traits = {
        "model": plan.shape.name,
        "kv format": plan.shape.kv_format.value,
        "block tokens": str(plan.settings.block_tokens),
    }
    return Manifest(
        protocol=PROTOCOL,
        engine=settings.engine,
        epoch=settings.epoch,
        rank=0,
        ranks=plan.tensor_parallel,
        transport=TRANSPORT,
        traits=traits,
        fingerprint=fingerprint(traits),
        layout=Layout((), ()),
        handles=(),
    )
