"""How the node was, over time."""

from __future__ import annotations

import msgspec


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Series on one grid of times, in Unix seconds.

    Each value is of the ``step_s`` seconds that begin at its time, by readings that are ``resolution_s`` apart. None where nothing was
    read: before the node was there, while it was not, and where there was nothing to read.
    """

    since: float
    until: float
    step_s: float
    resolution_s: float
    time: tuple[float, ...] = ()
    series: dict[str, list[float | None]] = {}  # means; ``e0.kv_usage`` is an engine's, ``gpu0.tensor`` a GPU's
    highest: dict[str, list[float | None]] = {}  # of those whose peaks matter
    lowest: dict[str, list[float | None]] = {}
