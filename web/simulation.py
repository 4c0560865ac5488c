"""What may be done to a simulated node besides: faults. On others every route says that there is nothing simulated."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from web import answers
from web.actions import told, tried
from web.ports import Simulation


class FaultBody(msgspec.Struct, forbid_unknown_fields=True):
    """``severity`` is the share of the capacity that is lost, 0 to 1."""

    kind: str
    severity: float = 0.5
    peer: str | None = None


class SimulationRoutes:
    """404 for an engine that isn't there, 400 for a fault that isn't one, 409 for what can't be now."""

    def __init__(self, simulation: Simulation | None) -> None:
        self._simulation = simulation

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/api/sim", self.state),
            Route("/api/sim/engines/{name}/fault", self.fault, methods=["POST"]),
            Route("/api/sim/engines/{name}/fault", self.mend, methods=["DELETE"]),
        ]

    async def state(self, request: Request) -> Response:
        simulation = self._there()
        body = {"scenario": simulation.title, "faults": simulation.faults()}
        return answers.json(body)

    async def fault(self, request: Request) -> Response:
        simulation, name = self._there(), request.path_params["name"]
        body = await told(request, FaultBody)
        tried(lambda: simulation.fault(name, body.kind, body.severity, body.peer))
        return answers.asked_for({"engine": name, "asked": "fault", **msgspec.structs.asdict(body)})

    async def mend(self, request: Request) -> Response:
        """``?kind=`` ends those of one kind only."""
        simulation, name = self._there(), request.path_params["name"]
        tried(lambda: simulation.mend(name, request.query_params.get("kind")))
        return answers.asked_for({"engine": name, "asked": "mend"})

    def _there(self) -> Simulation:
        if self._simulation is None:
            raise RequestError(404, "this node is not simulated: it has no faults to be had", code="not_simulated")
        return self._simulation
