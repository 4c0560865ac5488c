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
    version: int = 2


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one contestant, once."""

    contestant: str
    repetition: int
    load: Load
    rate: float | None  # requests per second that were offered; None: a closed loop
    summary: Summary
    ttfts_s: tuple[float, ...] = ()  # of the good requests
    handoff_bytes_s: float | None = None  # while bytes were copied; None: nobody told


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


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, for ``report.json``."""

    setup: Setup
    versions: dict[str, dict[str, str]]  # by environment
    rates: dict[int, float]
    measured: tuple[Measured, ...]
    started: tuple[Started, ...]
    streamed: tuple[Streamed, ...]
    failed: dict[str, str]
