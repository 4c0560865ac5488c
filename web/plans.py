"""``GET /api/plan``: what is predicted for each layout of the node's engines, now."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from web import answers
from web.ports import Planning


class PlanRoutes:
    """None where nobody plans."""

    def __init__(self, planning: Planning | None) -> None:
        self._planning = planning

    def routes(self) -> list[BaseRoute]:
        return [Route("/api/plan", self.plan)] if self._planning is not None else []

    async def plan(self, request: Request) -> Response:
        assert self._planning is not None
        plans = self._planning.plans()
        if plans is None:
            raise RequestError(503, "nothing is known of the node yet", code="not_yet", retry_after_s=2)
        return answers.json(plans)
