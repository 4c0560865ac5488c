"""The page of one incident: what it was, on what evidence, what happened in which order, and what was seen at each moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from appliance.records import Incident, IncidentState, Moment, NodeSnapshot, Remedy
from web import assets, contexts, flow, gpus, incident_axis, incident_list, times, words
from web.contexts import TONES, Context, FactContext
from web.fresh import Fresh
from web.incident_axis import AxisContext, EventContext
from web.ports import Actions, IncidentView
from web.render import compact
from web.times import Span
from web.views import Asked, Parts, View

_MOMENTS: Final = 240
_FRESH_S: Final = 2.0
_MOMENTS_FRESH_S: Final = 10.0  # to read them all takes its time
_REMEDIES_BEFORE_S: Final = 600.0  # as far back as changes are told
_REMEDIES_AFTER_S: Final = 60.0
_NONE_SEEN: Final = Markup('<p class="faint">No snapshots of it are kept, or no longer.</p>')


class IncidentFactsContext(Context, frozen=True, kw_only=True):
    """``incident_facts.html``: the live part."""

    id: str
    tone: str
    glyph: str
    open: bool
    what: str
    sentence: str
    when: str
    facts: tuple[FactContext, ...]
    evidence: tuple[str, ...]
    action: str | None
    call: str | None
    gain: str | None
    then: str | None
    ended: str | None


class SeenContext(Context, frozen=True, kw_only=True):
    """``incident_seen.html``: the node at one moment, as the first page would have shown it."""

    clock: str
    offset: str
    tone: str
    glyph: str
    sentence: str
    detail: str | None
    facts: tuple[FactContext, ...]
    verdict: str | None  # what was said of it
    evidence: tuple[str, ...]
    flow: Markup
    gpus: Markup


class ScrubContext(Context, frozen=True, kw_only=True):
    """Which moments can be looked at, and which one is. ``moments``: JSON of ``[uptime, x in percent, words]``."""

    moments: str
    value: int  # of the slider: its position, of 1000
    x: str
    words: str
    earlier: float | None
    later: float | None


class IncidentContext(Context, frozen=True, kw_only=True):
    """``incident.html``."""

    id: str
    parts: Mapping[str, Markup]
    axis: AxisContext
    events: tuple[EventContext, ...]
    scrub: ScrubContext | None  # None where no snapshot is kept
    seen: Markup
    history: str  # where the same span is shown in the charts
    build: str


class IncidentPage:
    """``/incidents/{id}``; ``?at=`` an uptime shows that moment."""

    path = "/incidents/{id}"
    query: tuple[str, ...] = ()  # the moment that is shown is no live part
    template = "incident"
    place = "Incidents"

    def __init__(self, incidents: IncidentView | None, actions: Actions) -> None:
        self._incidents = incidents
        self._actions = actions
        self._latest = Fresh(self._incident, _FRESH_S)
        self._moments = Fresh(self._moments_of, _MOMENTS_FRESH_S, most=4)

    def routes(self) -> list[BaseRoute]:
        """Besides the page: what was seen at a moment."""
        return [Route(f"{self.path}/seen", self.seen)]

    async def view(self, asked: Asked) -> View:
        incident = await self._latest.get(asked.names["id"])
        moments = () if asked.following else await self._moments.get(incident.id)
        at_s = _uptime(asked.query.get("at"))
        index = _index(incident, moments, at_s)
        seen = await self._frame(incident, moments[index].uptime_s) if moments else None

        def parts(snapshot: NodeSnapshot) -> Parts:
            return {"incident_facts": facts(incident, snapshot.time)}

        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            over = incident_axis.span(incident, moments, snapshot.time)
            remedies = meanwhile(self._actions.remedies(), incident, snapshot.time)
            return IncidentContext(
                id=incident.id,
                parts=painted,
                axis=incident_axis.axis(incident, moments, remedies, over),
                events=incident_axis.events(incident, moments, remedies),
                scrub=scrub(incident, moments, index, over) if moments else None,
                seen=_painted(incident, seen) if moments else _NONE_SEEN,
                history=f"/?from={over.start:.0f}&to={over.end:.0f}",
                build=assets.fingerprint(),
            )

        return View(
            title=lambda snapshot: f"Incident {incident.id}: {incident_list.what(incident)}", parts=parts, body=body
        )

    async def seen(self, request: Request) -> Response:
        """The part of the page that shows one moment."""
        incident = await self._latest.get(request.path_params["id"])
        at_s = _uptime(request.query_params.get("at"))
        if at_s is None:
            raise RequestError(400, "at must be an uptime in seconds.", param="at")
        html = _painted(incident, await self._frame(incident, at_s))
        return HTMLResponse(html, headers={"cache-control": "no-store"})

    async def _incident(self, id: str) -> Incident:
        found = None if self._incidents is None else await self._incidents.incident(id)
        if found is None:
            raise RequestError(404, f"There is no incident {id!r}, or it is no longer kept.", code="not_found")
        return found

    async def _moments_of(self, id: str) -> Sequence[Moment]:
        return () if self._incidents is None else await self._incidents.moments(id, _MOMENTS) or ()

    async def _frame(self, incident: Incident, at_s: float) -> NodeSnapshot | None:
        return None if self._incidents is None else await self._incidents.frame(incident.id, at_s)


def _uptime(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise RequestError(400, "at must be an uptime in seconds.", param="at") from None


def _index(incident: Incident, moments: Sequence[Moment], at_s: float | None) -> int:
    """That which was asked for; else the first one at which the cause was named: there is something to see."""
    if at_s is not None:
        return min(range(len(moments)), key=lambda n: abs(moments[n].uptime_s - at_s), default=0)
    named = (n for n, one in enumerate(moments) if (one.state, one.cause) == ("bottleneck", incident.cause))
    opened = (n for n, one in enumerate(moments) if one.time >= incident.opened)
    return next(named, next(opened, 0))


def meanwhile(remedies: Sequence[Remedy], incident: Incident, now: float) -> tuple[Remedy, ...]:
    """Those that were given a while before, during, or right after it; oldest first."""
    until = (incident.closed or now) + _REMEDIES_AFTER_S
    found = [one for one in remedies if incident.opened - _REMEDIES_BEFORE_S <= one.time <= until]
    return tuple(sorted(found, key=lambda one: one.time))


def facts(incident: Incident, now: float) -> IncidentFactsContext:
    """What it was."""
    still, action = incident.state is IncidentState.OPEN, incident.action
    tone = "bad" if still else "off"
    return IncidentFactsContext(
        id=incident.id,
        tone=tone,
        glyph=TONES["warn"] if still else TONES["off"],
        open=still,
        what=incident_list.what(incident),
        sentence=incident.summary,
        when=_when(incident, now),
        facts=_figures(incident),
        evidence=tuple(one.sentence for one in incident.evidence),
        action=action.sentence if action else None,
        call=(action.call or action.setting) if action else None,
        gain=None
        if incident.expected_gain is None
        else f"{words.percent(incident.expected_gain)} of that time, estimated",
        then=incident.next,
        ended=incident.ended,
    )


def _when(incident: Incident, now: float) -> str:
    began = f"{times.day(incident.opened, now)} {times.clock(incident.opened)}"
    lasted = words.age(incident_list.lasted_s(incident, now))
    if incident.closed is None:
        return f"since {began}, for {lasted}"
    return f"{began} to {times.clock(incident.closed)}, {lasted}"


def _figures(incident: Incident) -> tuple[FactContext, ...]:
    found = [
        ("at worst late or failed", words.percent(incident.severity)),
        ("late first tokens", f"about {words.count(incident.late)}" if incident.late else "0"),
        ("failed requests", words.count(incident.failed)),
        ("node", f"{incident.model} as {incident.topology}"),
        ("targets", f"TTFT {words.setting(incident.slo_ttft_s)}, ITL {words.setting(incident.slo_itl_s)}"),
        ("version", incident.version),
    ]
    if incident.reopened:
        found.insert(3, ("came back", words.times(incident.reopened)))
    if len(incident.engines) > 1:
        found.insert(3, ("shared by", ", ".join(incident.engines)))
    return tuple(FactContext(label=label, value=value) for label, value in found)


def scrub(incident: Incident, moments: Sequence[Moment], index: int, over: Span) -> ScrubContext:
    """The control that goes through them."""

    def said(one: Moment) -> str:
        return f"{times.clock(one.time)}, {times.offset(one.time, incident.opened)}"

    row = [[one.uptime_s, round(over.x(one.time), 2), said(one)] for one in moments]
    return ScrubContext(
        moments=json.dumps(row, ensure_ascii=False),
        value=round(10 * over.x(moments[index].time)),
        x=f"{over.x(moments[index].time):.2f}%",
        words=said(moments[index]),
        earlier=moments[index - 1].uptime_s if index > 0 else None,
        later=moments[index + 1].uptime_s if index + 1 < len(moments) else None,
    )


def _painted(incident: Incident, snapshot: NodeSnapshot | None) -> Markup:
    if snapshot is None:
        return Markup('<p class="faint">No snapshot is kept of this moment.</p>')
    return Markup(compact("incident_seen", seen(incident, snapshot)))


def seen(incident: Incident, snapshot: NodeSnapshot) -> SeenContext:
    """The node at one moment."""
    headline, verdict, lately = contexts.headline(snapshot), snapshot.verdict, snapshot.lately
    held = verdict is not None and verdict.state != "ok"
    figures = (
        ("queue", words.count(snapshot.queue.depth)),
        ("in flight", words.count(snapshot.queue.in_flight)),
        ("TTFT, mean of 3 s", words.duration(lately.ttft_s if lately else None)),
        ("late first tokens", words.percent(lately.ttft_late if lately else None)),
        ("ITL, p50", words.duration(snapshot.itl_p50_s)),
        ("output tokens/s", words.number(contexts.token_rates(snapshot)[1])),
    )
    return SeenContext(
        clock=times.clock(snapshot.time),
        offset=times.offset(snapshot.time, incident.opened),
        tone="bad" if held else headline.tone,
        glyph=TONES["bad" if held else headline.tone],
        sentence=headline.sentence,
        detail=headline.detail,
        facts=tuple(FactContext(label=label, value=value) for label, value in figures),
        verdict=verdict.summary if verdict else None,
        evidence=tuple(one.sentence for one in verdict.evidence) if verdict and held else (),
        flow=Markup(compact("flow", flow.flow(snapshot))),
        gpus=Markup(compact("gpus", gpus.gpus(snapshot))),
    )
