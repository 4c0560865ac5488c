"""What holds the node back."""

from __future__ import annotations

from typing import Final

import msgspec

from appliance.records.remedy import Order

GAINS_REQUESTS: Final = frozenset({"disaggregation_not_worth_it"})
"""Causes against which another layout is advised: what that brings is not of time."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Something measured that speaks for a verdict, beside what it would be if all were well."""

    measured: float
    expected: float | None
    unit: str
    sentence: str


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    ``order`` does it while the node serves, and ``call`` is the API call that gives it. ``setting``: what to write where, if it takes
    a restart.
    """

    sentence: str
    order: Order | None = None
    call: str | None = None
    setting: str | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the node back. ``since`` is in Unix seconds; ``confidence`` 0 to 1."""

    state: str  # ok | bottleneck | unknown
    summary: str
    since: float
    engine: str | None = None
    engines: tuple[str, ...] = ()  # all that share it
    link: tuple[str, str] | None = None
    stage: str | None = None  # prefill | handoff | decode | frontend
    cause: str | None = None
    confidence: float | None = None
    evidence: tuple[Evidence, ...] = ()
    action: Action | None = None
    expected_gain: float | None = None
    """Estimated: the share by which what is late would get shorter; of another layout (``GAINS_REQUESTS``), the share of the requests that
    would meet the targets besides."""
    next: str | None = None  # what would hold it back then
