"""What the scheduler half tells the worker half in each step, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from appliance.engine.kv.params import Ticket


class Pull(msgspec.Struct, frozen=True, kw_only=True):
    """Bring a peer's blocks into ours for one request. ``pairs`` has (peer's block, our block) per KV group."""

    request_id: str  # vLLM's
    ticket: Ticket
    pairs: tuple[tuple[tuple[int, int], ...], ...]
    inline: bool


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """How a pull went on the ranks that have reported. ``bytes`` is their sum, the times are the outermost."""

    bytes: int
    copies: int
    start_ns: int
    end_ns: int
    error: str | None = None

    def with_rank(self, other: Transfer) -> Transfer:
        return Transfer(
            bytes=self.bytes + other.bytes,
            copies=self.copies + other.copies,
            start_ns=min(self.start_ns, other.start_ns),
            end_ns=max(self.end_ns, other.end_ns),
            error=self.error or other.error,
        )


class Pulls(KVConnectorMetadata):
    """The pulls that begin in this step."""

    def __init__(self, pulls: list[Pull]) -> None:
        self.pulls = pulls


class Transfers(KVConnectorWorkerMetadata):
    """The pulls that ended since the last step, by vLLM's request id."""

    def __init__(self, ended: dict[str, Transfer]) -> None:
        self.ended = ended

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, Transfers)
        return Transfers(other.added_to(self.ended))

    def added_to(self, others: Mapping[str, Transfer]) -> dict[str, Transfer]:
        """Together with what other ranks have reported."""
        merged = dict(others)
        for request_id, transfer in self.ended.items():
            merged[request_id] = merged[request_id].with_rank(transfer) if request_id in merged else transfer
        return merged
