"""Requests as rows of a table, each a waterfall on the scale of all. Pure, like ``web.contexts``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from appliance.records import NodeSnapshot, Timeline
from web import times, waterfall, words
from web.contexts import TONES, Context, splits
from web.render import compact

EMPTY: Final = "None yet. Each request will leave a line here that shows where its time went."
_WITHIN: Final = 0.98  # of the rows lie within the scale; the others go beyond it
_SEEN: Final = 0.001  # of the scale: what is shorter is narrower than a pixel
_SHORT: Final = 7  # characters of an id


class BarContext(Context, frozen=True, kw_only=True):
    """A stage in a row; in percent of the scale. (Rows are many: they are said in one piece, not stage by stage.)"""

    stage: str
    x: str
    width: str


class LineContext(Context, frozen=True, kw_only=True):
    """``request_line.html``: one row."""

    key: str  # unlike the id, no other row's
    id: str
    short: str
    clock: str  # when it came, the server's time of day
    path: str  # the engines it ran on
    bars: tuple[BarContext, ...]
    spoken: str  # the bars, in words
    beyond: bool  # it is longer than the scale
    target_x: str | None  # where the target for TTFT is, if it is on the scale
    ttft: str
    late: bool
    mostly: str | None  # the stage that took most of it
    total: str
    outcome: str
    tone: str
    glyph: str
    marks: tuple[str, ...]  # what was not as usual
    error: str | None


class RowsContext(Context, frozen=True, kw_only=True):
    """``request_rows.html``."""

    sentence: str | None
    rows: Markup
    empty: str | None  # why there are none
    scale: str  # how long the full width is
    target: str
    target_x: str | None


def rows(shown: Sequence[Timeline], snapshot: NodeSnapshot, sentence: str | None, empty: str = EMPTY) -> RowsContext:
    """The table. ``empty``: what is said where there are none."""
    target_s = snapshot.slo_ttft_s
    scale_s = waterfall.scale(_most(shown))
    whole = splits(snapshot)
    return RowsContext(
        sentence=sentence,
        rows=Markup("\n").join(_row(one, scale_s, target_s, whole) for one in shown),
        empty=None if shown else empty,
        scale=words.setting(scale_s),
        target=words.setting(target_s),
        target_x=waterfall.target_x(target_s, scale_s),
    )


def _most(timelines: Sequence[Timeline]) -> list[float]:
    """How long nearly all of them are: one that waited for a minute must not make all others invisible."""
    lengths = sorted(map(waterfall.seconds, timelines))
    return lengths[: max(1, round(_WITHIN * len(lengths)))]


@functools.lru_cache(maxsize=2048)
def _row(timeline: Timeline, scale_s: float, target_s: float, splits: bool) -> Markup:
    """What is over does not change any more, and is asked for again and again."""
    return Markup(compact("request_line", line(timeline, scale_s, target_s, splits)))


def line(timeline: Timeline, scale_s: float, target_s: float, splits: bool = True) -> LineContext:
    """One row on a scale of ``scale_s`` seconds. ``splits``: on this node, requests are split as a rule."""
    parts = [one for one in waterfall.stretches(timeline) if one.lasts_s > 0]
    tone = waterfall.tone(timeline)
    return LineContext(
        key=f"{timeline.id[-_SHORT:]}-{timeline.arrived * 1e6:.0f}",  # clients choose ids; one event loop takes requests in one by one
        id=timeline.id,
        short=_short(timeline.id),
        clock=times.clock(timeline.arrived),
        path=waterfall.path(timeline),
        bars=tuple(_bar(one, scale_s) for one in parts if one.lasts_s >= _SEEN * scale_s),
        spoken=", ".join(one.said for one in parts) or "no stage yet",
        beyond=waterfall.seconds(timeline) > scale_s,
        target_x=waterfall.target_x(target_s, scale_s),
        ttft=_first(timeline),
        late=is_slow(timeline, target_s),
        mostly=waterfall.mostly(timeline),
        total=words.duration(timeline.total_s),
        outcome=waterfall.outcome(timeline),
        tone=tone,
        glyph=TONES[tone],
        marks=_marks(timeline, splits),
        error=timeline.error,
    )


def is_slow(timeline: Timeline, target_s: float) -> bool:
    """The first token came later than the target, or is later already."""
    return waterfall.seconds(timeline) > target_s


def _bar(one: waterfall.Stretch, scale_s: float) -> BarContext:
    x, width = waterfall.share(one.begins_s, scale_s), waterfall.share(one.lasts_s, scale_s)
    return BarContext(stage=one.stage, x=x, width=width)


def _short(id: str) -> str:
    """Its end: those that clients number begin alike."""
    return id if len(id) <= _SHORT else f"…{id[1 - _SHORT :]}"


def _first(timeline: Timeline) -> str:
    """Of one that has had no first token, for how long it waited or still does."""
    if timeline.ttft_s is None and waterfall.seconds(timeline) > 0:
        return f"> {words.duration(waterfall.seconds(timeline))}"
    return words.duration(timeline.ttft_s)


def _marks(timeline: Timeline, splits: bool) -> tuple[str, ...]:
    further = timeline.decode_engine is not None  # else it came no further than prefill
    found = (
        (timeline.attempts > 1, f"attempt {timeline.attempts}"),
        (timeline.recomputed, "recomputed"),
        (timeline.continued, "continued"),
        (splits and further and not timeline.split, "whole"),
        (not timeline.stream, "unstreamed"),
    )
    return tuple(mark for holds, mark in found if holds)
