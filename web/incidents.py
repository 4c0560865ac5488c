"""What is kept of incidents: a list, one of them, and the file with all that was seen around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from appliance.records import IncidentState, Moment
from web import answers
from web.api import limit_of
from web.fresh import Fresh
from web.ports import IncidentView

_FRAMES: Final = 240
_FRESH_S: Final = 2.0  # what takes all that was seen: one at a time, and not again at once
_STATES: Final = tuple(state.value for state in IncidentState)


class IncidentRoutes:
    """404 for one that isn't there, or is no longer kept."""

    def __init__(self, incidents: IncidentView | None) -> None:
        self._incidents = incidents
        self._bundles = Fresh(self._bundle, _FRESH_S, most=2)
        self._moments = Fresh(self._moments_of, _FRESH_S, most=4)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/api/incidents", self.list),
            Route("/api/incidents/{id}", self.one),
            Route("/api/incidents/{id}/bundle", self.bundle),
            Route("/api/incidents/{id}/frames", self.frames),
            Route("/api/incidents/{id}/frames/{uptime_s}", self.frame),
        ]

    async def list(self, request: Request) -> Response:
        """Newest first; ``?state=open`` or ``closed``."""
        limit, state = limit_of(request.query_params.get("limit")), _state(request.query_params.get("state"))
        return answers.json([] if self._incidents is None else await self._incidents.incidents(limit, state))

    async def one(self, request: Request) -> Response:
        id = request.path_params["id"]
        incident = None if self._incidents is None else await self._incidents.incident(id)
        if incident is None:
            raise answers.unknown("incident", id)
        return answers.json(incident)

    async def bundle(self, request: Request) -> Response:
        """To be opened with ``pd-appliance incidents replay``."""
        id = request.path_params["id"]
        body = await self._bundles.get(id)
        if body is None:
            raise answers.unknown("incident", id)
        named = {"content-disposition": f'attachment; filename="incident-{id}.pdi"', **answers.NOT_KEPT}
        return Response(body, 200, named, media_type="application/gzip")

    async def frames(self, request: Request) -> Response:
        """What was seen around it, in brief; ``?limit=N`` of the moments, evenly spread over that time."""
        id, limit = request.path_params["id"], limit_of(request.query_params.get("limit"), _FRAMES)
        moments = await self._moments.get((id, limit))
        if moments is None:
            raise answers.unknown("incident", id)
        return answers.json(moments)

    async def frame(self, request: Request) -> Response:
        """The snapshot of one of these moments, by its uptime."""
        id, uptime_s = request.path_params["id"], _uptime(request.path_params["uptime_s"])
        frame = None if self._incidents is None else await self._incidents.frame(id, uptime_s)
        if frame is None:
            raise answers.unknown("incident", id)
        return answers.json(frame)

    async def _bundle(self, id: str) -> bytes | None:
        return None if self._incidents is None else await self._incidents.bundle(id)

    async def _moments_of(self, asked: tuple[str, int]) -> Sequence[Moment] | None:
        return None if self._incidents is None else await self._incidents.moments(*asked)


def _uptime(text: str) -> float:
    """A moment of an incident. Raises ``RequestError`` for what is none."""
    try:
        uptime_s = float(text)
    except ValueError:
        uptime_s = math.nan
    if not math.isfinite(uptime_s):
        message = "The moment must be an uptime in seconds, as /api/incidents/{id}/frames has them: 1234.5."
        raise RequestError(400, message, param="uptime_s")
    return uptime_s


def _state(text: str | None) -> str | None:
    if text is None or text in _STATES:
        return text
    raise RequestError(400, f"state must be {' or '.join(_STATES)}, or left out.", param="state")
