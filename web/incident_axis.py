"""Everything about one incident on one axis of time: what was said, what changed, remedies, and how queue and first tokens fared. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from appliance.records import ChangeKind, Incident, Moment, Remedy, Said
from web import causes, times, words
from web.contexts import TONES, Context
from web.times import Span, TickContext

_TONES: Final = {"ok": "ok", "bottleneck": "bad", "unknown": "warn"}
_BEFORE_S: Final = 20.0  # of the axis, where no snapshot was kept
_ROOM_PERCENT: Final = 12.0  # a bar so wide has room for words
_HEIGHT: Final = 100.0


class SaidContext(Context, frozen=True, kw_only=True):
    """A verdict, for as long as it stood. ``x`` and ``width`` in percent."""

    x: str
    width: str
    tone: str
    label: str | None  # where there is room
    title: str


class MarkContext(Context, frozen=True, kw_only=True):
    """Something that happened. ``x`` in percent."""

    x: str
    title: str


class CurveContext(Context, frozen=True, kw_only=True):
    """A figure over time, in a box of 1000 by 100."""

    label: str
    top: str  # what the height is
    area: str  # a path
    line: str
    target_y: str | None


class AxisContext(Context, frozen=True, kw_only=True):
    """``incident_axis.html``. ``opened_x`` and ``closed_x`` in percent; ``moments``: JSON of ``[uptime, x in percent, words]``."""

    moments: str  # that can be looked at
    ticks: tuple[TickContext, ...]
    opened_x: str
    closed_x: str | None
    verdicts: tuple[SaidContext, ...]
    changes: tuple[MarkContext, ...]
    remedies: tuple[MarkContext, ...]
    curves: tuple[CurveContext, ...]


class EventsContext(Context, frozen=True, kw_only=True):
    """``incident_events.html``: all that happened, in its order."""

    id: str
    events: tuple[EventContext, ...]
    charts: str  # where the same span is shown in the charts


class EventContext(Context, frozen=True, kw_only=True):
    """A line of it."""

    clock: str
    iso: str
    offset: str  # from when it was opened
    kind: str
    tone: str
    glyph: str
    sentence: str
    at: float | None  # the moment to look at, by uptime


def span(incident: Incident, moments: Sequence[Moment], now: float) -> Span:
    """What was seen, or a little more than the incident."""
    if not moments:
        return Span(incident.opened - _BEFORE_S, (incident.closed or now) + _BEFORE_S)
    return Span(min(incident.opened, moments[0].time), max(incident.closed or 0.0, moments[-1].time))


def axis(incident: Incident, moments: Sequence[Moment], remedies: Sequence[Remedy], over: Span) -> AxisContext:
    return AxisContext(
        moments=json.dumps(
            [[one.uptime_s, round(over.x(one.time), 2), said_of(one, incident)] for one in moments], ensure_ascii=False
        ),
        ticks=over.ticks(),
        opened_x=_at(over, incident.opened),
        closed_x=None if incident.closed is None else _at(over, incident.closed),
        verdicts=tuple(_verdicts(incident, over)),
        changes=tuple(MarkContext(x=_at(over, one.time), title=one.sentence) for one in incident.changes),
        remedies=tuple(MarkContext(x=_at(over, one.time), title=one.sentence) for one in remedies),
        curves=tuple(_curves(incident, moments, over)),
    )


def said_of(moment: Moment, incident: Incident) -> str:
    """When it was, in words."""
    return f"{times.clock(moment.time)}, {times.offset(moment.time, incident.opened)}"


def _at(over: Span, moment: float) -> str:
    return f"{over.x(moment):.2f}%"


def _verdicts(incident: Incident, over: Span) -> Iterator[SaidContext]:
    """Each stands until the next one, the last one until it was closed."""
    ends = [one.time for one in incident.verdicts[1:]] + [incident.closed or over.end]
    for said, until in zip(incident.verdicts, ends, strict=False):
        x, end_x = over.x(said.time), over.x(max(until, said.time))
        label = _said(said)
        yield SaidContext(
            x=f"{x:.2f}%",
            width=f"{max(0.3, end_x - x):.2f}%",
            tone=_TONES.get(said.state, "warn"),
            label=label if end_x - x >= _ROOM_PERCENT else None,
            title=f"{label}: {said.summary}",
        )


def _said(said: Said) -> str:
    if said.state == "ok":
        return "no bottleneck"
    return causes.words(said)


def _curves(incident: Incident, moments: Sequence[Moment], over: Span) -> Iterator[CurveContext]:
    """None of them where nothing is known."""
    figures: tuple[tuple[str, Callable[[Moment], float | None], Callable[[float | None], str], float | None], ...] = (
        ("queue", lambda one: float(one.queue), _whole, None),
        ("TTFT, mean", lambda one: one.ttft_s, words.duration, incident.slo_ttft_s),
        ("late first tokens", lambda one: one.ttft_late, words.percent, None),
        ("output tokens/s", lambda one: one.output_tokens_s, words.number, None),
    )
    for label, figure, said, target in figures:
        values = [figure(one) for one in moments]
        highest = max((value for value in values if value is not None), default=0.0)
        if highest > 0:
            top = max(highest, target or 0.0) * 1.05
            line = "".join(_line(moments, values, top, over))
            area = "".join(_area(moments, values, top, over))
            y = None if target is None else f"{_HEIGHT * (1 - target / top):.1f}"
            yield CurveContext(label=label, top=said(highest), line=line, area=area, target_y=y)


def _whole(amount: float | None) -> str:
    return words.count(None if amount is None else round(amount))


def _runs(
    moments: Sequence[Moment], values: Sequence[float | None], top: float, over: Span
) -> Iterator[list[tuple[float, float]]]:
    """Points in a box of 1000 by 100, without those that are not known."""
    run: list[tuple[float, float]] = []
    for moment, value in zip(moments, values, strict=True):
        if value is not None:
            run.append((10 * over.x(moment.time), _HEIGHT * (1 - value / top)))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _line(moments: Sequence[Moment], values: Sequence[float | None], top: float, over: Span) -> Iterator[str]:
    for run in _runs(moments, values, top, over):
        yield "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run)


def _area(moments: Sequence[Moment], values: Sequence[float | None], top: float, over: Span) -> Iterator[str]:
    for run in _runs(moments, values, top, over):
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
        yield f"M{run[0][0]:.1f} {_HEIGHT:.0f}L{points}L{run[-1][0]:.1f} {_HEIGHT:.0f}Z"


def events(incident: Incident, moments: Sequence[Moment], remedies: Sequence[Remedy], over: Span) -> EventsContext:
    """All that happened, oldest first."""
    found: list[tuple[float, str, str, str]] = [
        (one.time, "said", _TONES.get(one.state, "warn"), one.summary) for one in incident.verdicts
    ]
    found += [(one.time, _kind(one.kind), "off", one.sentence) for one in incident.changes]
    found += [(one.time, f"remedy, by {one.by}", "busy", _brought(one)) for one in remedies]
    return EventsContext(
        id=incident.id,
        events=tuple(_event(incident, moments, *one) for one in sorted(found, key=lambda one: one[0])),
        charts=f"/?from={over.start:.0f}&to={over.end:.0f}",
    )


def _kind(kind: ChangeKind) -> str:
    return "traffic" if kind is ChangeKind.TRAFFIC else "changed"


def _brought(remedy: Remedy) -> str:
    return remedy.sentence + (f" It brought: {remedy.brought}." if remedy.brought else "")


def _event(
    incident: Incident, moments: Sequence[Moment], time: float, kind: str, tone: str, sentence: str
) -> EventContext:
    seen = bool(moments) and moments[0].time <= time <= moments[-1].time + 1
    return EventContext(
        clock=times.clock(time),
        iso=times.iso(time),
        offset=times.offset(time, incident.opened),
        kind=kind,
        tone=tone,
        glyph=TONES[tone],
        sentence=sentence,
        at=nearest(moments, time).uptime_s if seen else None,
    )


def nearest(moments: Sequence[Moment], time: float) -> Moment:
    """In time; of at least one."""
    return min(moments, key=lambda one: abs(one.time - time))
