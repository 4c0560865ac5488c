"""The connector's half in EngineCore: grants leases on what was prefilled here, and plans pulls of what was prefilled elsewhere.

All methods but ``receive`` run on EngineCore's main loop, and none of them raises. Leased blocks are pinned by a reference of our
own in vLLM's block pool instead of vLLM's delayed free, which would keep an idle engine spinning.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

from appliance.channel import Down, HandoffEnded, LeaseEnded, LeaseGranted, Release
from appliance.engine.kv.lease import HeldLease, LeaseBook, LeaseTable
from appliance.engine.kv.params import Offer, Ticket, prompt_digest, read, ticket_params
from appliance.engine.kv.pulls import Pull, Pulls, Transfer, Transfers

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from appliance.engine.link import Link

_ENDED_WELL = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)


class SchedulerHalf:
    """Leases granted and pulls under way of one engine."""

    def __init__(
        self,
        *,
        engine: str,
        epoch: int,
        link: Link,
        table: Path,
        group_tokens: tuple[int, ...],
        inline_bytes: int,
        block_bytes: tuple[int, ...],
    ) -> None:
        """``group_tokens``, ``block_bytes``: tokens and bytes of a block, per KV group."""
        self._engine = engine
        self._epoch = epoch
        self._link = link
        self._group_tokens = group_tokens
        self._block_bytes = block_bytes
        self._inline_bytes = inline_bytes
        self._book = LeaseBook(LeaseTable(table, create=True))
        self._manager: KVCacheManager | None = None
        self._releases: deque[Release] = deque()
        self._tickets: dict[str, Ticket] = {}  # of requests that have not begun to pull, by vLLM's request id
        self._pulling: dict[str, Ticket] = {}
        self._reported: dict[str, Transfer] = {}  # by those ranks that are done, of pulls that others are not done with
        self._planned: list[Pull] = []

    def bind(self, manager: KVCacheManager) -> None:
        self._manager = manager

    @property
    def fetching(self) -> int:
        """Requests whose KV is on its way in."""
        return len(self._pulling)

    @property
    def leased_blocks(self) -> int:
        return self._book.blocks

    # ---- leases on our own blocks

    def receive(self, message: Down) -> None:
        """Take a message on the link's thread; the main loop acts on it in ``tick``."""
        if isinstance(message, Release):
            self._releases.append(message)

    def tick(self, now_ns: int) -> None:
        """End the leases that were released, cancelled, or have expired."""
        while self._releases:
            release = self._releases.popleft()
            ended = self._book.end(release.lease, all_consumers=release.reason != "released")
            if ended is not None:
                self._free(ended, release.reason, now_ns)
        if len(self._book):
            for ended in self._book.expired(now_ns):
                self._free(ended, "expired", now_ns)

    def finished(self, request: Request, block_ids: tuple[list[int], ...]) -> dict[str, Any] | None:
        """A request is over. What its answer says about its KV: a ticket, if it was to be kept and is whole."""
        self._drop(request)
        offer = read(request.kv_transfer_params)
        if not isinstance(offer, Offer) or request.status not in _ENDED_WELL or self._manager is None:
            return None
        if request.prompt_token_ids is None:  # embeddings
            return None
        now_ns = time.monotonic_ns()
        kept = tuple(
            tuple(ids[: -(-request.num_prompt_tokens // tokens)])
            for ids, tokens in zip(block_ids, self._group_tokens, strict=True)
        )
        pinned = tuple(block for group in kept for block in group if block)
        held = self._book.grant(
            offer.request, pinned, request.num_prompt_tokens, offer.consumers, now_ns + int(offer.ttl_s * 1e9)
        )
        if held is None:
            return None
        self._manager.block_pool.touch([self._manager.block_pool.blocks[block] for block in pinned])
        self._link.send(
            LeaseGranted(
                lease=held.id,
                blocks=len(pinned),
                tokens=held.tokens,
                consumers=held.consumers,
                ttl_s=offer.ttl_s,
                at_ns=now_ns,
            )
        )
        return ticket_params(
            Ticket(
                request=held.id,
                do_remote_prefill=True,
                engine=self._engine,
                epoch=self._epoch,
                slot=held.slot,
                generation=held.generation,
                tokens=held.tokens,
                prompt=prompt_digest(request.prompt_token_ids),
                blocks=kept,
            )
        )

    def _free(self, lease: HeldLease, reason: str, now_ns: int) -> None:
        assert self._manager is not None
        pool = self._manager.block_pool
        pool.free_blocks([pool.blocks[block] for block in reversed(lease.blocks)])
        self._link.send(LeaseEnded(lease=lease.id, reason=reason, blocks=len(lease.blocks), at_ns=now_ns))

    # ---- pulls of a peer's blocks

    def arrived(self, request: Request) -> None:
        ticket = read(request.kv_transfer_params)
        if not isinstance(ticket, Ticket):
            return
        reason = self._misfit(ticket, request)
        if reason is None:
            self._tickets[request.request_id] = ticket
        else:
            self._report(ticket, _instant(time.monotonic_ns(), reason))

    def _misfit(self, ticket: Ticket, request: Request) -> str | None:
        """Why what a ticket names is not this prompt's KV."""
        if len(ticket.blocks) != len(self._group_tokens):
            return f"the ticket has {len(ticket.blocks)} KV groups, this engine {len(self._group_tokens)}"
        prompt = request.prompt_token_ids or []
        if ticket.tokens != len(prompt) or ticket.prompt != prompt_digest(prompt):
            return "the prompt is not the one that was prefilled"
        return None

    def matched_tokens(self, request: Request, computed: int) -> int:
        """Prompt tokens beyond ``computed`` that a pull would bring."""
        ticket = self._tickets.get(request.request_id)
        return max(0, ticket.tokens - computed) if ticket else 0

    def allocated(self, request: Request, blocks: KVCacheBlocks, external: int) -> None:
        """Blocks are there for ``external`` tokens to come; 0 if the prefix cache has them all."""
        ticket = self._tickets.pop(request.request_id, None)
        if ticket is None:
            return
        if external == 0:
            self._report(ticket, _instant(time.monotonic_ns(), None))
            return
        pairs = self._pairs(ticket, blocks.get_block_ids(), ticket.tokens - external)
        size = sum(len(group) * block for group, block in zip(pairs, self._block_bytes, strict=True))
        self._pulling[request.request_id] = ticket
        self._planned.append(
            Pull(request_id=request.request_id, ticket=ticket, pairs=pairs, inline=size <= self._inline_bytes)
        )

    def _pairs(
        self, ticket: Ticket, local: tuple[list[int], ...], computed: int
    ) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(peer's block, ours) from the first block that holds a token which isn't computed; ours skips nothing it wants.

        A block of ours whose counterpart the peer did not keep is paired with the null block: the worker fails such a pull.
        """
        pairs = []
        for theirs, ours, tokens in zip(ticket.blocks, local, self._group_tokens, strict=True):
            last = -(-ticket.tokens // tokens)
            positions = range(computed // tokens, min(last, len(ours)))
            pairs.append(tuple((theirs[i] if i < len(theirs) else 0, ours[i]) for i in positions if ours[i]))
        return tuple(pairs)

    def take_planned(self) -> Pulls:
        """The pulls planned since the last step."""
        planned, self._planned = self._planned, []
        return Pulls(planned)

    def transferred(self, output: KVConnectorOutput) -> None:
        """What ranks report, each in a step of its own; and pulls that are over on all of them."""
        details = output.kv_connector_worker_meta
        if isinstance(details, Transfers):
            self._reported = details.added_to(self._reported)
        failed = output.failed_recving or ()
        for request_id in output.finished_recving or ():
            ticket, transfer = self._pulling.pop(request_id, None), self._reported.pop(request_id, None)
            if ticket is not None:
                unknown = _instant(time.monotonic_ns(), "no details" if request_id in failed else None)
                self._report(ticket, transfer or unknown)

    def _drop(self, request: Request) -> None:
        """A request that ended before it began to pull wants nothing any more.

        No hand-off has failed: its client left. The router, who knows that, has the lease released.
        """
        self._tickets.pop(request.request_id, None)

    def _report(self, ticket: Ticket, transfer: Transfer) -> None:
        self._link.send(
            HandoffEnded(
                lease=ticket.request,
                producer=ticket.engine,
                ok=transfer.error is None,
                bytes=transfer.bytes,
                tokens=ticket.tokens,
                start_ns=transfer.start_ns,
                end_ns=transfer.end_ns,
                copies=transfer.copies,
                error=transfer.error,
            )
        )


def _instant(now_ns: int, error: str | None) -> Transfer:
    return Transfer(bytes=0, copies=0, start_ns=now_ns, end_ns=now_ns, error=error)
