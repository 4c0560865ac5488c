"""The newest requests, a row each; also the list that ``why`` shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.text import Text

from appliance.cli import glyphs
from appliance.cli.live.layout import Column, Section, table
from appliance.records import NodeSnapshot, Timeline
from web import words
from web.times import clock
from web.waterfall import LABELS, path

_SHORTEST: Final = 8  # characters of an id
_STYLES: Final = {"failed": "bold red", "cancelled": "yellow", "running": "cyan"}
_SIZES: Final = ((8.4, 12), (8.0, 6), (7.0, 3))


def requests(snapshot: NodeSnapshot, width: int) -> Section:
    """What came last, and where each one's time to first token went."""
    sizes = [(rank, listed(snapshot.recent[:most], width, snapshot.slo_ttft_s)) for rank, most in _SIZES]
    return Section.of(*sizes) if snapshot.recent else Section([])


def listed(
    timelines: Sequence[Timeline], width: int, target_s: float, short: Mapping[str, str] | None = None
) -> list[Text]:
    """A head and a row for each. ``short``: ids as short as they can be told apart, which ``why`` takes."""
    ids = short or shortened([timeline.id for timeline in timelines])

    def late(timeline: Timeline) -> str:
        return "yellow" if timeline.ttft_s is not None and timeline.ttft_s > target_s else ""

    columns: list[Column[Timeline]] = [
        Column("  request", lambda t: f"  {ids[t.id]}", right=False),
        Column("came", lambda t: clock(t.arrived), rank=4, right=False),
        Column("outcome", outcome, right=False, style=lambda t: _STYLES.get(t.outcome, "")),
        Column("engines", lambda t: path(t).replace(" → ", "→"), rank=2, right=False),
        Column("prompt", lambda t: words.count(t.prompt_tokens), rank=5),
        Column("pieces", lambda t: words.count(t.output_chunks), rank=6),
        Column("TTFT", lambda t: glyphs.seconds(t.ttft_s), rank=1, style=late),
        Column("whole", lambda t: glyphs.seconds(t.total_s), rank=5),
        Column("mostly", mostly, rank=3, right=False),
    ]
    return table(columns, timelines, width)


def shortened(ids: Sequence[str]) -> dict[str, str]:
    """The shortest beginnings of all that no two of them share."""
    different = set(ids)
    for length in range(_SHORTEST, max(map(len, different), default=0)):
        if len({id[:length] for id in different}) == len(different):
            return {id: id[:length] for id in different}
    return {id: id for id in different}


def outcome(timeline: Timeline) -> str:
    if timeline.outcome == "failed" and timeline.status is not None:
        return f"failed {timeline.status}"
    return timeline.outcome


def mostly(timeline: Timeline) -> str:
    """The stage before the first token that took most."""
    longest = max(timeline.stages, key=lambda stage: stage.duration_s, default=None)
    if longest is None or longest.duration_s <= 0:
        return words.DASH
    return f"{LABELS.get(longest.name, longest.name)} {glyphs.seconds(longest.duration_s)}"
