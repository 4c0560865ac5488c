"""What a benchmark run finds out; written as JSON, and read by ``report``."""

from __future__ import annotations

import msgspec

from bench.figures import Summary
from bench.memcpy import Copied

APPLIANCE, AGGREGATED = "appliance 1p1d", "vLLM aggregated"


class Cell(msgspec.Struct, frozen=True):
    """One kind of load."""

    prompt_tokens: int
    concurrency: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One cell on one server."""

    server: str
    repetition: int
    cell: Cell
    summary: Summary


class StartUp(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds since the process was started. ``page_s`` is None for a server without a page."""

    server: str
    repetition: int
    page_s: float | None
    engines_ready_s: dict[str, float]
    first_token_s: float


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """An idle part of a server: the supervisor, or an engine with all its processes."""

    server: str
    part: str
    processes: int
    pss_bytes: int  # proportional set size
    idle_cpu: float  # of one core


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One hand-off's copying, from its request's timeline."""

    bytes: int
    copies: int
    duration_s: float

    @property
    def bytes_s(self) -> float:
        return self.bytes / self.duration_s


class Handoffs(msgspec.Struct, frozen=True, kw_only=True):
    """The timelines of one cell's requests, and ``memmove`` of as many bytes right after it."""

    repetition: int
    cell: Cell
    requests: int  # with a timeline
    split: int
    recomputed: int
    transfers: tuple[Transfer, ...]
    memmove: Copied | None  # in pieces of 64 KiB
    memmove_alike: Copied | None  # in as many pieces as the hand-offs


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run has measured."""

    started: float  # Unix seconds
    duration_s: float
    repetitions: int
    output_tokens: int
    kv_cache_bytes: int  # per engine
    machine: dict[str, str]
    versions: dict[str, str]
    start_ups: tuple[StartUp, ...]
    usages: tuple[Usage, ...]
    runs: tuple[Run, ...]
    handoffs: tuple[Handoffs, ...]
