"""One request's life."""

from __future__ import annotations

from typing import Final

import msgspec

_NO_ROOM: Final = 429


class Stage(msgspec.Struct, frozen=True):
    """One stage of a request's life."""

    name: str  # one of STAGES
    duration_s: float


STAGES = (
    "queue",  # in the supervisor's queue
    "prefill_wait",  # sent to the prefill engine, not yet scheduled
    "prefill_compute",  # first scheduled until the prompt's KV is complete
    "handoff_wait",  # KV complete, pull not yet begun
    "transfer",  # bytes being copied
    "decode_wait",  # KV there, not yet scheduled on the decode engine
    "first_step",  # scheduled until the first token: of a stream, until it leaves the supervisor
)
"""Stages before the first token, in order. Their durations sum to TTFT. An unsplit request has no hand-off stages."""


def is_clients_own(status: int | None) -> bool:
    """A request was refused for what its client had asked (4xx). That there was no room for it (429) is the node's own failure."""
    return status is not None and 400 <= status < 500 and status != _NO_ROOM


class Pieces(msgspec.Struct, frozen=True, kw_only=True):
    """When pieces of an answer left for the client: of many only some. What they said is nowhere kept."""

    every: int  # one time for so many pieces; the first is that of the first one
    after_s: tuple[float, ...]  # since the request's arrival


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One request from arrival to its end, on the supervisor's CLOCK_MONOTONIC."""

    id: str
    route: str
    arrived: float  # Unix seconds
    stream: bool
    split: bool  # a decode leg was sent
    unsplit_reason: str | None = None
    status: int | None = None  # HTTP status sent; None while it runs or if the client left before one
    outcome: str = "running"  # running | ok | failed | cancelled
    error: str | None = None
    prefill_engine: str | None = None
    decode_engine: str | None = None
    attempts: int = 1
    continued: bool = False  # its stream had begun when its engine was lost, and went on on another one
    prompt_tokens: int | None = None
    output_chunks: int = 0  # pieces streamed to the client
    transfer_bytes: int | None = None
    transfer_copies: int | None = None  # runs of adjacent bytes that these were copied in
    recomputed: bool = False  # the KV was lost on the way and computed again
    ttft_s: float | None = None
    total_s: float | None = None
    stages: tuple[Stage, ...] = ()
    legs: tuple[Leg, ...] = ()
    pieces: Pieces | None = None  # only where one request is asked for


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """One call to one engine."""

    kind: str  # prefill | decode | whole
    engine: str
    outcome: str  # ok | error | unreachable | cancelled
    status: int | None = None
    duration_s: float | None = None
    error: str | None = None
