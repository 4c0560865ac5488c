"""The connector's half beside the memory: exports this rank's KV, maps its peers', and copies.

Small pulls are copied in the engine's loop, where they cost less than a thread's hand-over; large ones on a thread that runs beside the
forward pass. Whatever goes wrong in a pull is a failed load, which vLLM recomputes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

from appliance.channel import ClosePeer, Down, OpenPeer, PeerClosed, PeerOpened
from appliance.engine.kv.handshake import KvServer, Manifest, ask, refusal, refused
from appliance.engine.kv.lease import LeaseTable
from appliance.engine.kv.pulls import Pull, Transfer, Transfers
from appliance.engine.kv.routes import Copy, Route, copies, difference, routes
from appliance.engine.kv.transport import MemoryTransport, PeerMemory
from appliance.errors import HandoffError

if TYPE_CHECKING:
    from appliance.engine.link import Link


class Refusal(HandoffError):
    """Two engines whose KV will never fit, however often it is tried."""


class Peer:
    """One life of a peer: the memory of those of its ranks that are needed, with the way from it, and its lease table, mapped here."""

    def __init__(self, sources: Sequence[tuple[Route, PeerMemory]], leases: LeaseTable) -> None:
        self._sources = sources
        self.leases = leases

    def bring(self, pull: Pull) -> tuple[int, int]:
        """Copy; bytes, and runs that they were copied in."""
        plans = [(memory, copies(route, pull.pairs)) for route, memory in self._sources]
        for memory, plan in plans:
            memory.copy(plan)
        moved: list[Copy] = [copy for _, plan in plans for copy in plan]
        return sum(copy.size for copy in moved), len(moved)

    def close(self) -> None:
        for _, memory in self._sources:
            memory.close()
        self.leases.close()


class WorkerHalf:
    """KV memory of one worker rank, and that of its peers."""

    def __init__(
        self, link: Link, transport: MemoryTransport, manifest: Manifest, socket: Path, descriptors: list[int]
    ) -> None:
        """``manifest`` describes what ``transport`` has exported; ``socket`` is where peers ask for it."""
        self._link = link
        self._transport = transport
        self._manifest = manifest
        self._server = KvServer(socket, manifest, descriptors)
        self._peers: dict[tuple[str, int], Peer] = {}
        self._lock = threading.Lock()
        self._ended: dict[str, Transfer] = {}
        self._reported: dict[str, Transfer] = {}
        self._thread = ThreadPoolExecutor(1, "appliance-pull")
        link.on_message(self.receive)

    # ---- peers, on the link's thread

    def receive(self, message: Down) -> None:
        if isinstance(message, OpenPeer):
            self._link.send(self._open(message))
        elif isinstance(message, ClosePeer):
            self._close((message.peer, message.epoch))
            self._link.send(PeerClosed(peer=message.peer, epoch=message.epoch, rank=self._manifest.rank))

    def _open(self, message: OpenPeer) -> PeerOpened:
        opened = PeerOpened(peer=message.peer, epoch=message.epoch, rank=self._manifest.rank)
        key = (message.peer, message.epoch)
        if key in self._peers:
            return opened
        try:
            peer = self._map(message)
        except (HandoffError, OSError) as error:
            return replace(opened, error=str(error), refused=isinstance(error, Refusal))
        with self._lock:
            self._peers[key] = peer
        return opened

    def _map(self, message: OpenPeer) -> Peer:
        """Raises ``Refusal`` if these two lives can never share KV, ``HandoffError`` or ``OSError`` if it did not work now."""
        leases = LeaseTable(Path(message.lease_table), create=False)
        try:
            return self._ask(message, leases)
        except BaseException:
            leases.close()
            raise

    def _ask(self, message: OpenPeer, leases: LeaseTable) -> Peer:
        with contextlib.ExitStack() as unused, contextlib.ExitStack() as undo:
            answers = [self._answer(message, rank, unused) for rank in range(len(message.sockets))]
            layouts = [theirs.layout for theirs, _ in answers]
            if reason := difference(self._manifest.layout, layouts):
                raise Refusal(refused(self._manifest, answers[0][0], reason))
            sources = []
            for route in routes(self._manifest.layout, layouts, self._manifest.rank, self._manifest.ranks):
                theirs, descriptors = answers[route.rank]
                taken, descriptors[:] = list(descriptors), []
                memory = self._transport.open(theirs.handles, taken, theirs.layout.storage_bytes)
                undo.callback(memory.close)
                sources.append((route, memory))
            undo.pop_all()
            return Peer(sources, leases)

    def _answer(self, message: OpenPeer, rank: int, unused: contextlib.ExitStack) -> tuple[Manifest, list[int]]:
        """What a rank of a peer says of its memory. Descriptors that nobody takes are closed with ``unused``."""
        theirs, descriptors = ask(message.sockets[rank], message.peer)
        unused.callback(_close_all, descriptors)
        reason = refusal(self._manifest, theirs)
        if reason is None and (theirs.engine, theirs.epoch) != (message.peer, message.epoch):
            reason = f"{theirs.engine} (life {theirs.epoch}) answered for {message.peer} (life {message.epoch})"
        if reason is None and (theirs.rank, theirs.ranks) != (rank, len(message.sockets)):
            reason = f"rank {theirs.rank} of {theirs.ranks} answered for rank {rank} of {len(message.sockets)} of {message.peer}"
        if reason is not None:
            raise Refusal(reason)
        return theirs, descriptors

    def _close(self, key: tuple[str, int]) -> None:
        with self._lock:
            peer = self._peers.pop(key, None)
        if peer is not None:
            peer.close()

    # ---- pulls, on the engine's loop

    def before_forward(self, pulls: Iterable[Pull]) -> None:
        """Start the large pulls beside the forward pass. The one before may still write into blocks that they are for."""
        beside = [pull for pull in pulls if not pull.inline]
        if beside:
            self._transport.fence()
        for pull in beside:
            self._thread.submit(self._run, pull)

    def at_load(self, pulls: Iterable[Pull]) -> None:
        """Run the small pulls here and now."""
        here = [pull for pull in pulls if pull.inline]
        if here:
            self._transport.fence()
        for pull in here:
            self._run(pull)

    def take_results(self) -> KVConnectorTransferResults:
        """Every pull that ended, once."""
        with self._lock:
            self._reported, self._ended = self._ended, {}
        failed = {request_id for request_id, transfer in self._reported.items() if transfer.error}
        return KVConnectorTransferResults(finished_recving=set(self._reported), failed_recving=failed)

    def take_details(self) -> Transfers | None:
        """What ``take_results`` has just reported, in detail."""
        reported, self._reported = self._reported, {}
        return Transfers(reported) if reported else None

    def close(self) -> None:
        self._server.close()
        self._thread.shutdown(wait=True, cancel_futures=True)
        for key in list(self._peers):
            self._close(key)

    def _run(self, pull: Pull) -> None:
        start_ns = time.monotonic_ns()
        size = runs = 0
        error = None
        try:
            size, runs = self._pull(pull)
        except Exception as failure:  # a pull that nobody reports would keep its request waiting for ever
            error = str(failure) or repr(failure)
        transfer = Transfer(bytes=size, copies=runs, start_ns=start_ns, end_ns=time.monotonic_ns(), error=error)
        with self._lock:
            self._ended[pull.request_id] = transfer

    def _pull(self, pull: Pull) -> tuple[int, int]:
        """Bytes and runs copied. Raises ``HandoffError`` if what was copied may not be what was leased."""
        ticket = pull.ticket
        with self._lock:
            peer = self._peers.get((ticket.engine, ticket.epoch))
        if peer is None:
            raise HandoffError(f"the memory of {ticket.engine} (life {ticket.epoch}) is not mapped")
        if any(source == 0 for group in pull.pairs for source, _ in group):
            raise HandoffError(f"{ticket.engine} did not keep all the blocks that are needed")
        _check_lease(peer, pull, "before the pull")
        moved = peer.bring(pull)
        _check_lease(peer, pull, "during the pull")
        return moved


def _check_lease(peer: Peer, pull: Pull, when: str) -> None:
    try:
        generation = peer.leases[pull.ticket.slot]
    except ValueError:
        raise HandoffError(f"{pull.ticket.engine} was closed {when}") from None
    if generation != pull.ticket.generation:
        raise HandoffError(f"the lease on the blocks of {pull.ticket.engine} ended {when}")


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
