"""What was seen at one moment of an incident, and what all of them come to. Pure; decoding takes its time, so it is for a thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from appliance.incidents import bundle, frames
from appliance.records import Moment, NodeSnapshot


def spread(chunks: Iterable[bytes], most: int) -> tuple[Moment, ...]:
    """At most so many, evenly spread over the time that is kept; the first and the last are among them."""
    row = [_moment(one) for one in bundle.in_order(chunks)]
    if len(row) <= most:
        return tuple(row)
    first_s, span_s = row[0].uptime_s, row[-1].uptime_s - row[0].uptime_s
    places = {int((one.uptime_s - first_s) / span_s * (most - 1)): one for one in reversed(row)}
    return tuple(places[place] for place in sorted(places))


def at(chunk: bytes, uptime_s: float) -> NodeSnapshot | None:
    """Of a row of snapshots the last one until then, else the first; None for what this version can't read."""
    try:
        row = frames.snapshots(chunk)
        until = [one for one in row if one["uptime_s"] <= uptime_s] or row[:1]
        return msgspec.convert(until[-1], NodeSnapshot) if until else None
    except (ValueError, KeyError, msgspec.MsgspecError):
        return None


def _moment(one: dict[str, Any]) -> Moment:
    """Another version may have left things out."""
    verdict, lately = one.get("verdict") or {}, one.get("lately") or {}
    return Moment(
        time=one["time"],
        uptime_s=one["uptime_s"],
        state=verdict.get("state", "unknown"),
        engine=verdict.get("engine"),
        cause=verdict.get("cause"),
        queue=one.get("queue", {}).get("depth", 0),
        ttft_s=lately.get("ttft_s"),
        ttft_late=lately.get("ttft_late"),
        output_tokens_s=_total([engine.get("output_tokens_s") for engine in one.get("engines", ())]),
    )


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
