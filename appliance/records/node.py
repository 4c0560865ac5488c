"""The whole node at one moment."""

from __future__ import annotations

from typing import Final

import msgspec

from appliance.records.engine import EngineSnapshot
from appliance.records.gpu import GpuSnapshot
from appliance.records.plan import Better, Demand
from appliance.records.request import Stage, Timeline
from appliance.records.verdict import Verdict

LINKS_S: Final = 5.0
MOST_TIMES: Final = 8.0  # as long as it should take, that one hand-off is taken for


class LinkSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Hand-offs from one engine to another, of the last ``LINKS_S`` seconds; of slow ones, how slow the last of them were."""

    producer: str
    consumer: str
    handoffs_s: float
    bytes_s: float | None = None  # while bytes were being copied
    slowdown: float | None = None  # time that they took, of what they take on links that are well


class QueueSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The router's queue."""

    depth: int = 0
    capacity: int = 0
    oldest_s: float | None = None  # that one has waited: since it came, or lost the engine that answered it
    in_flight: int = 0  # requests taken from the queue and not yet answered to the end


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """KV blocks held on one engine for a decode leg on another."""

    id: str
    owner: str  # engine that holds the blocks
    blocks: int
    tokens: int
    consumers: int  # pulls still to come
    age_s: float
    remaining_s: float
    consumer: str | None = None  # engine that takes them over, once it is chosen
    request: str | None = None  # for which; None for a test of a pair of engines


class Unexplained(msgspec.Struct, frozen=True, kw_only=True):
    """KV blocks that an engine says are leased, and that no lease accounts for."""

    engine: str
    blocks: int
    age_s: float  # for which there have been some without a break


class LedgerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All leases, and what became of the past ones."""

    leases: tuple[Lease, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()
    granted: int = 0
    released: int = 0
    cancelled: int = 0
    expired: int = 0
    lost: int = 0  # ended by the death of their owner


class HandoffSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Hand-offs since the start, and the rate of the recent ones."""

    count: int = 0
    failed: int = 0  # recomputed by the decode engine
    bytes: int = 0
    recent_s: float | None = None  # hand-offs per second
    recent_bytes_s: float | None = None  # while bytes were being copied, not per wall second
    last_error: str | None = None  # of the last five minutes


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A prefill engine and a decode engine that requests are split over, and whether KV gets from the one to the other."""

    prefill: str
    decode: str
    ok: bool | None  # None: not known yet
    in_use: bool = True  # False while it is broken: nothing is split over it
    age_s: float | None = None  # since it was last tested or used
    duration_s: float | None = None  # of the last test, both legs
    error: str | None = None  # why a test failed, or why it could not be made


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests since the start."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    refused: int = 0  # of these, for what the client had asked (``is_clients_own``)
    cancelled: int = 0
    split: int = 0  # a decode leg was sent; however it ended
    retried: int = 0

    @property
    def failed_here(self) -> int:
        """Those that failed, but for the refused: what the node has failed to do."""
        return self.failed - self.refused


class SupervisorSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The supervisor's own cost."""

    memory_bytes: int | None = None
    cpu_share: float | None = None  # of one core
    loop_delay_ms: float | None = None  # how late the event loop ran its last tick


LATELY_S: Final = 3.0
BRIEF_S: Final = 4.0


class Lately(msgspec.Struct, frozen=True, kw_only=True):
    """Requests whose first token came in the last ``LATELY_S`` seconds. None where there was none."""

    first_tokens: int
    ttft_late: float | None = None  # share that came later than the target
    ttft_s: float | None = None  # mean
    stages: tuple[Stage, ...] = ()  # means; they sum to ``ttft_s``
    prompt_tokens: float | None = None  # mean
    behind_long: float | None = (
        None  # of the time that late ones waited for an engine, the share behind prompts many times as long
    )
    long_tokens: float | None = None  # of such prompts, mean
    ended: int = 0  # requests that were answered to the end or failed, whenever they had come
    good: float | None = None  # share of these that met both targets
    brief: int = 0  # of these, that had come at most ``BRIEF_S`` before they ended: they tell of now
    brief_missed: float | None = None  # share of the brief ones that missed one of the targets


class NodeSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole node at one moment; immutable. ``time`` is Unix seconds."""

    time: float
    version: str
    model: str
    topology: str
    simulated: bool
    ready: bool
    reason: str | None  # why it is not ready, in words
    uptime_s: float
    engines: tuple[EngineSnapshot, ...]
    gpus: tuple[GpuSnapshot, ...] = ()
    notes: tuple[str, ...] = ()  # where engines are, and why there, in words
    queue: QueueSnapshot
    ledger: LedgerSnapshot
    handoffs: HandoffSnapshot
    links: tuple[LinkSnapshot, ...] = ()
    pairs: tuple[Pair, ...] = ()
    requests: RequestCounts
    supervisor: SupervisorSnapshot
    slo_ttft_s: float
    slo_itl_s: float
    ttft_p50_s: float | None = None  # of the recent requests
    ttft_p99_s: float | None = None
    itl_p50_s: float | None = None
    lately: Lately | None = None
    overdue: int | None = (
        None  # requests that have waited for their first token for longer than the target, and have none yet
    )
    demand: Demand | None = None
    better: Better | None = None
    recent: tuple[Timeline, ...] = ()  # newest first
    verdict: Verdict | None = None
