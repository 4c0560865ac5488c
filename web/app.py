"""The one ASGI app: the OpenAI API beside the page, the JSON API, metrics and live streams."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.records import NodeSnapshot
from web import assets, errors, views
from web.actions import ActionRoutes
from web.api import Api, encoded_snapshot
from web.audience import Audience
from web.door import Door
from web.engines import EnginePage, Engines
from web.history import HistoryRoutes
from web.incident_list import IncidentList
from web.incident_page import IncidentPage
from web.incidents import IncidentRoutes
from web.ledger import Kv
from web.openai import OpenAI
from web.overview import Overview
from web.packed import PACKED
from web.pages import Pages
from web.plan_page import PlanPage
from web.plans import PlanRoutes
from web.playground import Playground
from web.ports import Actions, Explain, HistoryView, IncidentView, Inference, MarkView, NodeView, Planning, Simulation
from web.refused import Refusals
from web.request_list import RequestList
from web.request_page import RequestPage
from web.simulation import SimulationRoutes
from web.stream import Feed
from web.views import Page

_POLICY: Final = (
    f"default-src 'none'; script-src 'self' {assets.source(views.THEME)}; "
    f"style-src 'self' {' '.join(map(assets.source, views.STYLES))}; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_INFERENCE: Final = ("/v1/", "/tokenize", "/detokenize")
_SIMULATED: Final = {"x-simulated": "true"}
_PLAIN: Final = {"x-content-type-options": "nosniff"}  # of what no browser is to show as a page
_GUARDS: Final = {
    **_PLAIN,
    "content-security-policy": _POLICY,
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def create_app(
    *,
    inference: Inference,
    node: NodeView,
    actions: Actions,
    simulation: Simulation | None = None,
    incidents: IncidentView | None = None,
    planning: Planning | None = None,
    history: HistoryView | None = None,
    marks: MarkView | None = None,
    explain: Explain | None = None,
    max_body_bytes: int,
    max_held_bytes: int,
    metrics: Callable[[NodeSnapshot], bytes],
    bound_to: str,
    allowed_hosts: Collection[str] = (),
) -> Site:
    """Build the app.

    Args:
        inference: answers ``/v1/*`` and the tokenizer's routes.
        node: everything else shows what this says.
        actions: is told what an owner wants done.
        simulation: of a simulated node; every answer then says that it is one.
        incidents: what is kept of them.
        planning: what other layouts would bring.
        history: how the node was.
        marks: what happened to it meanwhile.
        explain: says what held a request up.
        max_body_bytes: of a request to ``/v1/*``.
        max_held_bytes: of all these requests under way.
        metrics: a snapshot as Prometheus text (``appliance.telemetry.exposition.render``).
        bound_to: the address that is listened on; with ``allowed_hosts`` it decides which requests are answered (``Door``).
    """
    incident, plan = IncidentPage(node, incidents, actions), PlanPage(node, planning, actions)
    mark = _SIMULATED if simulation else {}
    return Site(
        OpenAI(inference, max_body_bytes, max_held_bytes, _raw({**_PLAIN, **mark})),
        node,
        [
            Overview(actions, history),
            Engines(),
            EnginePage(node, actions),
            RequestList(node),
            RequestPage(node, explain),
            IncidentList(incidents),
            incident,
            Kv(),
            plan,
            Playground(),
        ],
        [
            *ActionRoutes(actions).routes(),
            *SimulationRoutes(simulation).routes(),
            *IncidentRoutes(incidents).routes(),
            *PlanRoutes(planning).routes(),
            *HistoryRoutes(node, history, marks).routes(),
            *incident.routes(),
            *plan.routes(),
        ],
        metrics,
        Door(bound_to, allowed_hosts),
        {**_GUARDS, **mark},
    )


class Site:
    """ASGI app. What engines answer goes past Starlette, whose layers would each handle every chunk of a streamed answer."""

    def __init__(
        self,
        openai: ASGIApp,
        node: NodeView,
        pages: Sequence[Page],
        orders: Sequence[BaseRoute],
        metrics: Callable[[NodeSnapshot], bytes],
        door: Door,
        guards: Mapping[str, str],
    ) -> None:
        audience = Audience()
        self._pages = Pages(node, pages, audience)
        self._door = door
        self._openai = openai
        self._events = Feed(node, encoded_snapshot)
        api = Api(node, self._events, metrics, audience)
        self._refusals = Refusals(node)
        self._guards = guards
        rest = Starlette(
            routes=[
                *self._pages.routes(),
                *api.routes(),
                *orders,
                Mount("/static", Static(directory=assets.directory("static"), check_dir=False), middleware=PACKED),
            ],
            exception_handlers=errors.handlers(self._refusals.answer),
        )
        rest.router.redirect_slashes = (
            False  # a path with a slash too many is not ours, and a redirect would name the Host sent
        )
        self._rest = Guard(rest, guards)  # around Starlette's own answer to a fault, too

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._rest(scope, receive, send)
        refusal = self._door.refusal(scope["method"], scope["headers"])
        if refusal is not None:
            headers = _PLAIN if scope["path"].startswith(_INFERENCE) else self._guards
            await Guard(self._refusals.alone(scope, refusal), headers)(scope, receive, send)
        elif scope["path"].startswith(_INFERENCE):
            await self._openai(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    def close_streams(self) -> None:
        """End ``/events`` and ``/live/*``; to be called before the server is told to stop, which else waits for them."""
        self._events.close()
        self._pages.close()


def _raw(headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode(), value.encode()) for name, value in headers.items())


class Guard:
    """Adds the headers that keep a browser from doing with our pages what we never do."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, guarded)


class Static(StaticFiles):
    """Static files. Those asked for with ``?v=<fingerprint>`` never change."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lasting = scope["query_string"] == f"v={assets.fingerprint()}".encode()

        async def aged(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (200, 304):
                age = "public, max-age=31536000, immutable" if lasting else "no-cache"
                MutableHeaders(scope=message)["cache-control"] = age
            await send(message)

        await super().__call__(scope, receive, aged)
