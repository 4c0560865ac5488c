"""What is kept of incidents: a list, one of them, and the file with all that was seen around it."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from appliance.records import IncidentState
from web.api import limit_of
from web.ports import IncidentView

_FRAMES: Final = 240
_STATES: Final = tuple(state.value for state in IncidentState)


class IncidentRoutes:
    """404 for one that isn't there, or is no longer kept."""

    def __init__(self, incidents: IncidentView | None) -> None:
        self._incidents = incidents

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/api/incidents", self.list),
            Route("/api/incidents/{id}", self.one),
            Route("/api/incidents/{id}/bundle", self.bundle),
            Route("/api/incidents/{id}/frames", self.frames),
            Route("/api/incidents/{id}/frames/{uptime_s:float}", self.frame),
        ]

    async def list(self, request: Request) -> Response:
        """Newest first; ``?state=open`` or ``closed``."""
        limit, state = limit_of(request.query_params.get("limit")), _state(request.query_params.get("state"))
        return _json([] if self._incidents is None else await self._incidents.incidents(limit, state))

    async def one(self, request: Request) -> Response:
        id = request.path_params["id"]
        incident = None if self._incidents is None else await self._incidents.incident(id)
        if incident is None:
            raise _unknown(id)
        return _json(incident)

    async def bundle(self, request: Request) -> Response:
        """To be opened with ``pd-appliance incidents replay``."""
        id = request.path_params["id"]
        body = None if self._incidents is None else await self._incidents.bundle(id)
        if body is None:
            raise _unknown(id)
        named = {"content-disposition": f'attachment; filename="incident-{id}.pdi"', "cache-control": "no-store"}
        return Response(body, 200, named, media_type="application/gzip")

    async def frames(self, request: Request) -> Response:
        """What was seen around it, in brief; ``?limit=N`` of the moments, evenly spread over that time."""
        id, limit = request.path_params["id"], limit_of(request.query_params.get("limit"), _FRAMES)
        moments = None if self._incidents is None else await self._incidents.moments(id, limit)
        if moments is None:
            raise _unknown(id)
        return _json(moments)

    async def frame(self, request: Request) -> Response:
        """The snapshot of one of these moments, by its uptime."""
        id, uptime_s = request.path_params["id"], request.path_params["uptime_s"]
        frame = None if self._incidents is None else await self._incidents.frame(id, uptime_s)
        if frame is None:
            raise _unknown(id)
        return _json(frame)


def _state(text: str | None) -> str | None:
    if text is None or text in _STATES:
        return text
    raise RequestError(400, f"state must be {' or '.join(_STATES)}, or left out.", param="state")


def _unknown(id: str) -> RequestError:
    return RequestError(404, f"There is no incident {id!r}, or it is no longer kept.", code="not_found")


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), 200, {"cache-control": "no-store"}, media_type="application/json")
