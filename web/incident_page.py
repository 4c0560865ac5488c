"""The page of one incident: what it was, on what evidence, what happened in which order, and what was seen at each moment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from appliance.records import Incident, IncidentState, Moment, NodeSnapshot, Remedy
from web import assets, causes, contexts, flow, gpus, incident_axis, incident_list, times, words
from web.contexts import TONES, Context, FactContext
from web.fresh import Fresh
from web.incident_axis import AxisContext, EventsContext
from web.ports import Actions, IncidentView, NodeView
from web.render import compact
from web.times import Span
from web.views import Asked, Parts, View

_MOMENTS: Final = 240
_FRESH_S: Final = 2.0
_COURSE_FRESH_S: Final = 10.0  # to read all moments takes its time
_SETTLED_S: Final = (
    120.0  # after its end: snapshots are kept for half a minute more, and it may be opened again within a minute
)
_REMEDIES_BEFORE_S: Final = 600.0  # as far back as changes are told
_REMEDIES_AFTER_S: Final = 60.0
_NONE_SEEN: Final = Markup('<p class="faint">No snapshots of it are kept, or no longer.</p>')
_NONE_YET: Final = Markup('<p class="faint">No snapshot of it is kept yet.</p>')


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
    """Which moment is looked at first, and those beside it; moments go by their uptime."""

    at: float
    value: int  # of the slider: its position, of 1000
    x: str
    words: str
    earlier: float | None
    later: float | None


class IncidentContext(Context, frozen=True, kw_only=True):
    """``incident.html``."""

    id: str
    parts: Mapping[str, Markup]
    scrub: ScrubContext | None  # None where no snapshot is kept, or none yet
    seen: Markup
    build: str


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What happened until now, and what was seen."""

    moments: tuple[Moment, ...]
    over: Span
    axis: AxisContext
    events: EventsContext


class IncidentPage:
    """``/incidents/{id}``; ``?at=`` an uptime shows that moment. While it is open, and for a while after, its course goes on."""

    path = "/incidents/{id}"
    query: tuple[str, ...] = ()  # the moment that is shown is no live part
    template = "incident"
    place = "Incidents"

    def __init__(self, node: NodeView, incidents: IncidentView | None, actions: Actions) -> None:
        self._node = node
        self._incidents = incidents
        self._actions = actions
        self._latest = Fresh(self._incident, _FRESH_S)
        self._courses = Fresh(self._course, _COURSE_FRESH_S, most=4)

    def routes(self) -> list[BaseRoute]:
        """Besides the page: what was seen at a moment."""
        return [Route(f"{self.path}/seen", self.seen)]

    async def view(self, asked: Asked) -> View:
        incident = await self._latest.get(asked.names["id"])
        at_s = _uptime(asked.query.get("at"))
        if asked.following and self._is_settled(incident):
            return self._view(incident, None)
        course = await self._courses.get(incident.id)
        if asked.following or not course.moments:
            return self._view(incident, course)
        index = _index(incident, course.moments, at_s)
        seen = _painted(incident, await self._frame(incident, course.moments[index].uptime_s))
        return self._view(incident, course, scrub(incident, course.moments, index, course.over), seen)

    def _view(
        self, incident: Incident, course: Course | None, scrub: ScrubContext | None = None, seen: Markup | None = None
    ) -> View:
        """``course``: None where it does not go on, and who asks has it."""

        def parts(snapshot: NodeSnapshot) -> Parts:
            goes_on = {} if course is None else {"incident_axis": course.axis, "incident_events": course.events}
            return {"incident_facts": facts(incident, snapshot.time), **goes_on}

        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            shown = seen or (_NONE_YET if incident.state is IncidentState.OPEN else _NONE_SEEN)
            return IncidentContext(id=incident.id, parts=painted, scrub=scrub, seen=shown, build=assets.fingerprint())

        return View(title=lambda snapshot: f"Incident {incident.id}: {causes.words(incident)}", parts=parts, body=body)

    def _is_settled(self, incident: Incident) -> bool:
        """It has been over for so long that nothing more is kept of it."""
        return incident.closed is not None and self._node.latest().time > incident.closed + _SETTLED_S

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

    async def _course(self, id: str) -> Course:
        incident = await self._latest.get(id)
        moments = () if self._incidents is None else tuple(await self._incidents.moments(id, _MOMENTS) or ())
        now = self._node.latest().time
        over = incident_axis.span(incident, moments, now)
        remedies = meanwhile(self._actions.remedies(), incident, now)
        return Course(
            moments=moments,
            over=over,
            axis=incident_axis.axis(incident, moments, remedies, over),
            events=incident_axis.events(incident, moments, remedies, over),
        )

    async def _frame(self, incident: Incident, at_s: float) -> NodeSnapshot | None:
        return None if self._incidents is None else await self._incidents.frame(incident.id, at_s)


def _uptime(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        at_s = float(text)
    except ValueError:
        at_s = math.nan
    if not math.isfinite(at_s):
        raise RequestError(400, "at must be an uptime in seconds.", param="at")
    return at_s


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
        what=causes.words(incident),
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
    here = moments[index]
    return ScrubContext(
        at=here.uptime_s,
        value=round(10 * over.x(here.time)),
        x=f"{over.x(here.time):.2f}%",
        words=incident_axis.said_of(here, incident),
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
