"""Spells in which something held the node back, and what changed."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from appliance.records.verdict import Action, Evidence


class ChangeKind(StrEnum):
    """What is not as it was."""

    STARTED = "started"  # the appliance
    TOPOLOGY = "topology"
    ROLE = "role"
    WEIGHT = "weight"
    DRAINED = "drained"  # takes no new work
    RESUMED = "resumed"  # takes work again
    ENDED = "ended"  # an engine, by itself or on purpose
    RESTARTED = "restarted"  # another life of an engine begins
    READY = "ready"  # and it serves
    TRAFFIC = "traffic"  # more or fewer requests, or longer or shorter ones


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something about the node that is not as it was. ``time`` is in Unix seconds; ``before`` and ``after`` in words."""

    time: float
    kind: ChangeKind
    sentence: str
    engine: str | None = None
    before: str | None = None
    after: str | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict that was new, and stood until the next one. ``time`` is in Unix seconds."""

    time: float
    state: str  # ok | bottleneck | unknown
    summary: str
    engine: str | None = None
    link: tuple[str, str] | None = None
    cause: str | None = None


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """What one of the snapshots around an incident comes to. ``time`` is in Unix seconds; ``uptime_s`` is what it is found by."""

    time: float
    uptime_s: float
    state: str  # of the verdict: ok | bottleneck | unknown
    engine: str | None = None
    cause: str | None = None
    queue: int = 0  # requests
    ttft_s: float | None = None  # of the last seconds, mean
    ttft_late: float | None = None  # share of first tokens
    output_tokens_s: float | None = None


class IncidentState(StrEnum):
    """Whether it is over."""

    OPEN = "open"
    CLOSED = "closed"


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A spell in which something held the node back. Times are in Unix seconds.

    What it is said to be (engine, cause, evidence, action) is of the verdict that explains it best: an engine that was gone, else the
    first of those that stood long. ``summary`` and ``evidence`` are as they were when that hurt most, ``action`` and ``next`` as they
    were said last.
    """

    id: str  # when it was opened, in UTC: 261126-1432
    opened: float
    state: IncidentState = IncidentState.OPEN
    closed: float | None = None
    ended: str | None = None  # why it is closed, in words
    reopened: int = 0  # times that the same thing was back soon after it seemed over
    engine: str | None = None
    engines: tuple[str, ...] = ()
    link: tuple[str, str] | None = None
    stage: str | None = None
    cause: str | None = None  # None: nothing told why
    summary: str = ""
    severity: float | None = (
        None  # at its peak, the share of first tokens or tokens that were late, or of requests that failed
    )
    late: int = 0  # first tokens that came late meanwhile, about
    failed: int = 0  # requests that failed meanwhile
    evidence: tuple[Evidence, ...] = ()
    action: Action | None = None
    expected_gain: float | None = None
    next: str | None = None
    verdicts: tuple[Said, ...] = ()  # oldest first
    changes: tuple[Change, ...] = ()  # of the ten minutes before, and since; oldest first
    simulated: bool = False
    version: str = ""  # of the appliance
    model: str = ""
    topology: str = ""  # when it was opened
    slo_ttft_s: float | None = None
    slo_itl_s: float | None = None
    slo_share: float | None = None


class IncidentTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What there has been of incidents since the appliance's start."""

    open: bool = False
    opened: int = 0  # or opened again
    closed: dict[str, int] = {}  # by what explained them in the end; "unknown" where nothing did
    untold: int = 0  # notices that the owner's command or webhook did not take
    kept: bool = True  # on disk; else in memory only
