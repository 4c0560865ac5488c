"""The newest requests as waterfalls: where each one's time to first token went. Pure, like ``web.contexts``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from appliance.records import STAGES, Leg, NodeSnapshot, Role, Timeline
from web import words
from web.contexts import TONES, Context, FactContext

ROWS: Final = 12
LABELS: Final = {
    "queue": "queue",
    "prefill_wait": "prefill wait",
    "prefill_compute": "prefill",
    "handoff_wait": "hand-off wait",
    "transfer": "transfer",
    "decode_wait": "decode wait",
    "first_step": "first step",
}
_OUTCOMES: Final = {"running": "busy", "ok": "ok", "failed": "bad", "cancelled": "off"}
_SCALES_S: Final = tuple(step * 10.0**power for power in range(-3, 4) for step in (1, 2, 5))


class LegendContext(Context, frozen=True, kw_only=True):
    """One stage in the legend."""

    stage: str
    label: str


class BarContext(Context, frozen=True, kw_only=True):
    """One stage of one request; positions in percent of the scale."""

    stage: str
    title: str
    x: str
    width: str


class RowContext(Context, frozen=True, kw_only=True):
    """``request.html``: one request."""

    key: str  # unlike the id, no other row's
    id: str
    clock: str  # when it came, the server's time of day
    route: str
    path: str  # the engines it ran on
    marks: tuple[str, ...]  # what was not as usual
    outcome: str
    tone: str
    glyph: str
    ttft: str
    mostly: str | None  # the stage that took most of it
    bars: tuple[BarContext, ...]
    spoken: str  # the bars, in words
    stages: tuple[FactContext, ...]
    details: tuple[FactContext, ...]
    error: str | None


class RequestsContext(Context, frozen=True, kw_only=True):
    """``requests.html``: the newest requests, on one scale."""

    rows: tuple[RowContext, ...]
    legend: tuple[LegendContext, ...]
    scale: str  # how long the full width is
    target: str  # for TTFT
    target_x: str | None  # where that is, if it is on the scale


def requests(snapshot: NodeSnapshot) -> RequestsContext:
    newest = snapshot.recent[:ROWS]
    scale_s = scale([sum(stage.duration_s for stage in timeline.stages) for timeline in newest])
    target = snapshot.slo_ttft_s
    splits = any(engine.role is not Role.BOTH for engine in snapshot.engines)
    return RequestsContext(
        rows=tuple(row(timeline, scale_s, splits) for timeline in newest),
        legend=tuple(LegendContext(stage=stage, label=LABELS[stage]) for stage in STAGES),
        scale=words.setting(scale_s),
        target=words.setting(target),
        target_x=_share(target, scale_s) if target <= scale_s else None,
    )


def seconds(timeline: Timeline) -> float:
    """To the first token, or so far."""
    return sum(stage.duration_s for stage in timeline.stages) if timeline.ttft_s is None else timeline.ttft_s


def _first(timeline: Timeline) -> str:
    """Of one that has had no first token, for how long it waited or still does."""
    if timeline.ttft_s is None and seconds(timeline) > 0:
        return f"> {words.duration(seconds(timeline))}"
    return words.duration(timeline.ttft_s)


def scale(lengths_s: Sequence[float]) -> float:
    """The least of 1, 2, 5 times a power of ten that holds them all, in seconds; 0.1 for none."""
    longest = max(lengths_s, default=0.1)
    return next((step for step in _SCALES_S if step >= longest), longest)


def row(timeline: Timeline, scale_s: float, splits: bool = True) -> RowContext:
    """One request on a scale of ``scale_s`` seconds, no shorter than it; ``splits``: on this node, requests are split as a rule."""
    tone = _OUTCOMES.get(timeline.outcome, "off")
    parts = [
        f"{LABELS.get(s.name, s.name)} {words.duration(s.duration_s)}" for s in timeline.stages if s.duration_s > 0
    ]
    return RowContext(
        key=f"{timeline.id}-{timeline.arrived * 1e6:.0f}",  # clients choose ids; one event loop takes requests in one by one
        id=timeline.id,
        clock=time.strftime("%H:%M:%S", time.localtime(timeline.arrived)),
        route=timeline.route.removeprefix("/v1/"),
        path=path(timeline),
        marks=_marks(timeline, splits),
        outcome=_outcome(timeline),
        tone=tone,
        glyph=TONES[tone],
        ttft=_first(timeline),
        mostly=_mostly(timeline),
        bars=_bars(timeline, scale_s),
        spoken=", ".join(parts) or "no stage yet",
        stages=tuple(_detail(LABELS.get(s.name, s.name), words.duration(s.duration_s)) for s in timeline.stages),
        details=_details(timeline),
        error=timeline.error,
    )


def _bars(timeline: Timeline, scale_s: float) -> tuple[BarContext, ...]:
    bars, start_s = [], 0.0
    for stage in timeline.stages:
        if stage.duration_s > 0:
            title = f"{LABELS.get(stage.name, stage.name)} {words.duration(stage.duration_s)}"
            x, width = _share(start_s, scale_s), _share(stage.duration_s, scale_s)
            bars.append(BarContext(stage=stage.name, title=title, x=x, width=width))
        start_s += stage.duration_s
    return tuple(bars)


def _share(part_s: float, whole_s: float) -> str:
    return f"{100 * part_s / whole_s:.2f}%"


def path(timeline: Timeline) -> str:
    """The engines that it ran on."""
    if timeline.prefill_engine is None:
        return words.DASH
    if timeline.split:
        return f"{timeline.prefill_engine} → {timeline.decode_engine}"
    prefilling = timeline.decode_engine is None and timeline.outcome == "running"
    return f"{timeline.prefill_engine} → …" if prefilling else timeline.prefill_engine


def _marks(timeline: Timeline, splits: bool) -> tuple[str, ...]:
    whole = (
        splits and not timeline.split and timeline.decode_engine is not None
    )  # None: it came no further than prefill
    found = [(timeline.attempts > 1, f"attempt {timeline.attempts}"), (timeline.recomputed, "recomputed")]
    found += [(timeline.continued, "continued")]
    found += [
        (whole, "whole"),
        (not timeline.stream, "unstreamed"),
    ]
    return tuple(mark for holds, mark in found if holds)


def _outcome(timeline: Timeline) -> str:
    if timeline.outcome == "failed" and timeline.status is not None:
        return f"failed ({timeline.status})"
    return timeline.outcome


def _mostly(timeline: Timeline) -> str | None:
    longest = max(timeline.stages, key=lambda stage: stage.duration_s, default=None)
    if longest is None or longest.duration_s <= 0:
        return None
    return f"{LABELS.get(longest.name, longest.name)} {words.duration(longest.duration_s)}"


def _details(timeline: Timeline) -> tuple[FactContext, ...]:
    found = [
        ("prompt tokens", words.count(timeline.prompt_tokens)),
        ("pieces sent", words.count(timeline.output_chunks)),
        ("handed over", handed_over(timeline)),
        ("decoding", words.duration(_decoding_s(timeline))),
        ("whole time", words.duration(timeline.total_s)),
        *((f"{leg.kind} leg", _leg(leg)) for leg in timeline.legs),
    ]
    if timeline.unsplit_reason:
        found.append(("not split", timeline.unsplit_reason))
    return tuple(_detail(label, value) for label, value in found)


def _decoding_s(timeline: Timeline) -> float | None:
    """From the first token to the end."""
    if timeline.total_s is None or timeline.ttft_s is None:
        return None
    return max(0.0, timeline.total_s - timeline.ttft_s)


def handed_over(timeline: Timeline) -> str:
    """Its KV: how much, and in how many copies."""
    copies = timeline.transfer_copies
    if timeline.transfer_bytes is None or not copies:
        return words.traffic(timeline.transfer_bytes)
    return f"{words.traffic(timeline.transfer_bytes)} in {'1 copy' if copies == 1 else f'{copies:,} copies'}"


def _leg(leg: Leg) -> str:
    error = f": {leg.error}" if leg.error else ""
    return f"{leg.engine} {leg.outcome}, {words.duration(leg.duration_s)}{error}"


def _detail(label: str, value: str) -> FactContext:
    return FactContext(label=label, value=value)
