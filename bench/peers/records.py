"""What is found out; each record is one JSON file of the results' directory."""

from __future__ import annotations

import msgspec

from bench.figures import Summary
from bench.peers.loads import Load, Scale
from bench.records import Usage


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What must be the same for all that lies in one directory."""

    scale: Scale
    kv_cache_bytes: int
    machine: dict[str, str]
    sources: str = ""  # a digest of the appliance's, and of the bench's
    versions: dict[str, str] = {}
    peers: dict[str, str] = {}  # digests of what each peer's environment is made of
    version: int = 3


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the KV of a load's prompts."""

    bytes_s: float | None  # while it was copied; None: nothing was
    missed: int  # prompts that were computed where the answer was made, by ours; failed and expired transfers of NIXL's


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one contestant, once."""

    contestant: str
    repetition: int
    load: Load
    rate: float | None  # requests per second that were offered; None: a closed loop
    summary: Summary
    ttfts_s: tuple[float, ...] = ()  # of the good requests
    handed: Handed | None = None  # None: nobody told

    @property
    def handoff_bytes_s(self) -> float | None:
        return self.handed.bytes_s if self.handed is not None else None

    @property
    def failures(self) -> int:
        """Requests that failed, or were not split as this contestant is there to do; some may be both."""
        return max(self.summary.errors, self.handed.missed if self.handed is not None else 0)


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a contestant, and what it takes at rest after some requests."""

    contestant: str
    repetition: int
    page_s: float | None
    first_token_s: float
    usages: tuple[Usage, ...]


class Streamed(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend takes while engines give each stream a token every some milliseconds."""

    contestant: str
    repetition: int
    streams: int
    events: int  # that reached clients meanwhile
    events_per_token: float | None
    pace_ms: float  # between two events of a stream
    cpu_us_per_event: float  # of the frontend's process
    memory_bytes: int  # PSS
    errors: int
    ttft_through_s: tuple[float, ...] = ()  # p50, p99 with some 16 answers under way, through it
    ttft_direct_s: tuple[float, ...] = ()  # of the engine without it


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One that failed. It was started once more; loads that it had gone through before are kept."""

    contestant: str
    repetition: int
    why: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, for ``report.json``."""

    setup: Setup
    versions: dict[str, dict[str, str]]  # by environment
    rates: dict[int, float]
    measured: tuple[Measured, ...]
    started: tuple[Started, ...]
    streamed: tuple[Streamed, ...]
    tries: tuple[Try, ...] = ()
    failed: dict[str, str] = {}
