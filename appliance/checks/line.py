"""One line of a check."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Standing(StrEnum):
    """How it stands."""

    OK = "ok"
    WARN = "warn"  # it works, but not as well as it could
    BAD = "bad"  # serving would fail, or fail later
    SKIPPED = "skipped"  # it could not be looked at, or does not matter here


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    what: str
    standing: Standing
    said: str
    remedy: str | None = None
    bytes_s: float | None = None  # of a transport: what it moved
    limit_bytes_s: float | None = None  # and what a plain copy of the same pieces comes to here


def ok(what: str, said: str) -> Line:
    return Line(what=what, standing=Standing.OK, said=said)


def warn(what: str, said: str, remedy: str) -> Line:
    return Line(what=what, standing=Standing.WARN, said=said, remedy=remedy)


def bad(what: str, said: str, remedy: str) -> Line:
    return Line(what=what, standing=Standing.BAD, said=said, remedy=remedy)


def skipped(what: str, said: str) -> Line:
    return Line(what=what, standing=Standing.SKIPPED, said=said)
