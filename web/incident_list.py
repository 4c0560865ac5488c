"""The page of incidents: what held the node back, when, and how much it hurt; what is open on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from markupsafe import Markup

from appliance.records import Incident, IncidentState, NodeSnapshot
from web import causes, times, words
from web.contexts import TONES, ChoicesContext, Context, choices
from web.fresh import Fresh
from web.ports import IncidentView
from web.times import Span, TickContext
from web.views import Asked, Parts, View

_PATH: Final = "/incidents"
_MOST: Final = 200
_FRESH_S: Final = 2.0
_LANES: Final = 12
_LEAST_PERCENT: Final = 0.4  # of the width, that even the shortest one is seen
NODE: Final = "node"  # where no engine is to blame


class SpellContext(Context, frozen=True, kw_only=True):
    """One incident as a bar on the time line; in percent."""

    href: str
    title: str
    x: str
    width: str
    y: str  # the worse, the higher
    height: str
    open: bool


class LaneContext(Context, frozen=True, kw_only=True):
    """All of one engine on the time line."""

    label: str
    bars: tuple[SpellContext, ...]


class IncidentRowContext(Context, frozen=True, kw_only=True):
    """One incident in the table."""

    id: str
    open: bool
    tone: str
    glyph: str
    what: str  # cause and where
    sentence: str
    day: str
    clock: str
    iso: str
    lasted: str
    severity: str
    severity_percent: int
    late: str
    failed: str
    again: str | None  # how often it came back


class IncidentSummaryContext(Context, frozen=True, kw_only=True):
    """``incident_summary.html``: how it is, and all of them on one axis of time."""

    tone: str
    glyph: str
    sentence: str
    lanes: tuple[LaneContext, ...]
    ticks: tuple[TickContext, ...]
    filtered: bool
    kept: bool  # somebody keeps incidents


class IncidentListContext(Context, frozen=True, kw_only=True):
    """``incident_list.html``."""

    rows: tuple[IncidentRowContext, ...]


class IncidentsContext(Context, frozen=True, kw_only=True):
    """``incidents.html``."""

    parts: Mapping[str, Markup]
    groups: tuple[ChoicesContext, ...]


class IncidentList:
    """``/incidents``; ``?state=open&engine=e1&cause=engine_hung`` narrow it down."""

    path = _PATH
    query: tuple[str, ...] = ("state", "engine", "cause")
    template = "incidents"
    place = "Incidents"

    def __init__(self, incidents: IncidentView | None) -> None:
        self._incidents = incidents
        self._latest = Fresh(self._ask, _FRESH_S)

    async def _ask(self, limit: int) -> Sequence[Incident]:
        return [] if self._incidents is None else await self._incidents.incidents(limit, None)

    async def view(self, asked: Asked) -> View:
        everything = await self._latest.get(_MOST)
        wanted = {name: asked.query[name] for name in _FILTERS if asked.query.get(name)}
        shown = [one for one in everything if all(_FILTERS[name](one) == value for name, value in wanted.items())]

        def parts(snapshot: NodeSnapshot) -> Parts:
            kept = self._incidents is not None
            brief = summary(shown, snapshot.time, filtered=bool(wanted), kept=kept)
            return {"incident_summary": brief, "incident_list": listed(shown, snapshot.time)}

        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            return IncidentsContext(parts=painted, groups=filters(everything, wanted))

        return View(title=lambda snapshot: "Incidents", parts=parts, body=body)


_FILTERS: Final[Mapping[str, Callable[[Incident], str]]] = {
    "state": lambda one: one.state.value,
    "engine": lambda one: place(one),
    "cause": lambda one: one.cause or "none",
}


def filters(incidents: Sequence[Incident], wanted: Mapping[str, str]) -> tuple[ChoicesContext, ...]:
    """Links; each filter has the values that there are, and that which was asked for."""
    query, found = {name: wanted.get(name, "") for name in _FILTERS}, []
    for name, value_of in _FILTERS.items():
        values = sorted({*map(value_of, incidents), query[name]} - {""})
        if len(values) > 1 or query[name]:
            options = [("all", ""), *((_said(name, value), value) for value in values)]
            found.append(choices(name.capitalize(), _PATH, query, name, options))
    return tuple(found)


def _said(name: str, value: str) -> str:
    if name == "state":
        return "over" if value == IncidentState.CLOSED else value
    return causes.plain(value) if name == "cause" and value != "none" else value


def listed(incidents: Sequence[Incident], now: float) -> IncidentListContext:
    """Newest first; open ones on top."""
    ordered = sorted(incidents, key=lambda one: one.state is not IncidentState.OPEN)
    return IncidentListContext(rows=tuple(_row(one, now) for one in ordered))


def summary(incidents: Sequence[Incident], now: float, *, filtered: bool, kept: bool) -> IncidentSummaryContext:
    """Those to be shown. ``kept``: somebody keeps incidents."""
    span = Span(min((one.opened for one in incidents), default=now - 3600), now)
    tone, sentence = _headline(incidents, now, filtered)
    return IncidentSummaryContext(
        tone=tone,
        glyph=TONES[tone],
        sentence=sentence,
        lanes=_lanes(incidents, span),
        ticks=span.ticks(),
        filtered=filtered,
        kept=kept,
    )


def _headline(incidents: Sequence[Incident], now: float, filtered: bool) -> tuple[str, str]:
    among = " among these" if filtered else ""
    still = [one for one in incidents if one.state is IncidentState.OPEN]
    if still:
        are = "is" if len(still) == 1 else "are"
        return (
            "bad",
            f"{words.several(len(still), 'incident')} {are} open{among}: {words.listing([causes.words(one) for one in still])}.",
        )
    if not incidents:
        return "ok", f"No incident{' is' if filtered else ''} {'like these' if filtered else 'so far'}."
    ended = max(one.closed or one.opened for one in incidents)
    return "ok", f"No incident is open{among}. The last one ended {words.age(max(0.0, now - ended))} ago."


def place(incident: Incident) -> str:
    """The engine or the link that it is of."""
    return " → ".join(incident.link) if incident.link else incident.engine or NODE


def lasted_s(incident: Incident, now: float) -> float:
    """Until now, if it is open."""
    return max(0.0, (incident.closed or now) - incident.opened)


def _lanes(incidents: Sequence[Incident], span: Span) -> tuple[LaneContext, ...]:
    """Engines by name, and the rest; of very many places the last ones share a lane."""
    places = sorted({place(one) for one in incidents})
    lanes = [*places[: _LANES - 1], "others"] if len(places) > _LANES else places
    by_lane: dict[str, list[SpellContext]] = {lane: [] for lane in lanes}
    for one in incidents:
        by_lane.get(place(one), by_lane[lanes[-1]]).append(_bar(one, span))
    return tuple(LaneContext(label=lane, bars=tuple(bars)) for lane, bars in by_lane.items())


def _bar(incident: Incident, span: Span) -> SpellContext:
    x, until = span.x(incident.opened), span.x(incident.closed or span.end)
    width, tall = max(_LEAST_PERCENT, until - x), 25 + 75 * (incident.severity or 0.0)
    severity = "" if incident.severity is None else f", at worst {words.percent(incident.severity)} late or failed"
    return SpellContext(
        href=f"/incidents/{incident.id}",
        title=f"{causes.words(incident)}, {times.clock(incident.opened)}, {words.age(lasted_s(incident, span.end))}{severity}",
        x=f"{min(x, 100 - width):.2f}%",
        width=f"{width:.2f}%",
        y=f"{100 - tall:.0f}%",
        height=f"{tall:.0f}%",
        open=incident.state is IncidentState.OPEN,
    )


def _row(incident: Incident, now: float) -> IncidentRowContext:
    still = incident.state is IncidentState.OPEN
    tone = "bad" if still else "off"
    return IncidentRowContext(
        id=incident.id,
        open=still,
        tone=tone,
        glyph=TONES["warn"] if still else TONES["off"],
        what=causes.words(incident),
        sentence=incident.summary,
        day=times.day(incident.opened, now),
        clock=times.clock(incident.opened),
        iso=times.iso(incident.opened),
        lasted=words.age(lasted_s(incident, now)),
        severity=words.percent(incident.severity),
        severity_percent=round(100 * (incident.severity or 0.0)),
        late=words.count(incident.late),
        failed=words.count(incident.failed),
        again=f"came back {words.times(incident.reopened)}" if incident.reopened else None,
    )
