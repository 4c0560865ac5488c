"""The JSON API, health and metrics. Everything here reads one snapshot and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from appliance.records import NodeSnapshot
from web import answers
from web.audience import Audience
from web.ports import NodeView
from web.stream import Feed, event, stream

_LIMIT_DEFAULT: Final = 50
_LIMIT_MAX: Final = 1000
_NUMBER_MAX: Final = 10**15
_RETRY_S: Final = 2
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def encoded_snapshot(snapshot: NodeSnapshot) -> dict[str, bytes]:
    """The snapshot as ``/events`` sends it."""
    return {"snapshot": event(msgspec.json.encode(snapshot).decode())}


class Api:
    """Endpoints over a node's read side.

    Args:
        node: what is shown.
        events: the feed of ``encoded_snapshot``.
        metrics: a snapshot as Prometheus text.
        audience: who follows ``events``, and whatever else is live.
    """

    def __init__(
        self, node: NodeView, events: Feed, metrics: Callable[[NodeSnapshot], bytes], audience: Audience
    ) -> None:
        self._node = node
        self._events = events
        self._audience = audience
        self._metrics = metrics

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/events", self.events),
            Route("/api/node", self.snapshot),
            Route("/api/diagnosis", self.diagnosis),
            Route("/api/requests", self.requests),
            Route("/api/requests/{id}", self.request),
            Route("/api/engines/{name}/logs", self.logs),
            Route("/api/engines/{name}/command", self.command),
            Route("/api/engines/{name}/steps", self.steps),
            Route("/api/engines/{name}/knee", self.knee),
        ]

    async def health(self, request: Request) -> Response:
        """The supervisor's event loop turns; says nothing of the engines."""
        return answers.json({"status": "alive"})

    async def diagnosis(self, request: Request) -> Response:
        """What holds the node back."""
        verdict = self._node.latest().verdict
        if verdict is None:
            raise RequestError(503, "nothing is known of the node yet", code="not_yet", retry_after_s=_RETRY_S)
        return answers.json(verdict)

    async def ready(self, request: Request) -> Response:
        """Whether a request sent now would be served."""
        snapshot = self._node.latest()
        if snapshot.ready:
            return answers.json({"status": "ready"})
        body = {"status": "not ready", "reason": snapshot.reason or "No engine is ready yet."}
        return answers.json(body, status=503, headers={"retry-after": str(_RETRY_S)})

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics(self._node.latest()), headers=answers.NOT_KEPT, media_type=_METRICS_TYPE)

    async def events(self, request: Request) -> Response:
        return await stream(request, self._events, self._audience)

    async def snapshot(self, request: Request) -> Response:
        return answers.json(self._node.latest())

    async def requests(self, request: Request) -> Response:
        """A list of timelines, newest first."""
        return answers.json(self._node.timelines(limit_of(request.query_params.get("limit"))))

    async def request(self, request: Request) -> Response:
        timeline = self._node.timeline(request.path_params["id"])
        if timeline is None:
            raise answers.unknown("request", request.path_params["id"])
        return answers.json(timeline)

    async def logs(self, request: Request) -> Response:
        """The last lines; ``?format=text`` for reading them in a browser."""
        name = request.path_params["name"]
        lines = self._node.logs(name)
        if lines is None:
            raise answers.unknown("engine", name)
        if request.query_params.get("format") == "text":
            return PlainTextResponse("\n".join(lines) + "\n", headers=answers.NOT_KEPT)
        return answers.json({"engine": name, "lines": lines})

    async def command(self, request: Request) -> Response:
        """The command line that the engine is started with, without secrets."""
        name = request.path_params["name"]
        found = self._node.command(name)
        if found is None:
            raise answers.unknown("engine", name)
        return answers.json({"engine": name, "command": found})

    async def steps(self, request: Request) -> Response:
        """The latest steps, oldest first; ``?since=N`` for those after that number."""
        name = request.path_params["name"]
        since = _number(request.query_params.get("since"), "since", 0, _NUMBER_MAX, 0)
        found = self._node.steps(name, since, limit_of(request.query_params.get("limit"), _LIMIT_MAX))
        if found is None:
            raise answers.unknown("engine", name)
        return answers.json({"engine": name, "simulated": self._node.latest().simulated, "steps": found})

    async def knee(self, request: Request) -> Response:
        """The smallest prefill batch that saturates the engine, or why it is not known."""
        name = request.path_params["name"]
        found = await self._node.knee(name)
        if found is None:
            raise answers.unknown("engine", name)
        return answers.json({"engine": name, "simulated": self._node.latest().simulated, "knee": found})


def limit_of(text: str | None, default: int = _LIMIT_DEFAULT) -> int:
    """What ``?limit=`` says. Raises ``RequestError`` for what is none."""
    return _number(text, "limit", 1, _LIMIT_MAX, default)


def _number(text: str | None, name: str, least: int, most: int, default: int) -> int:
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most:
        return int(text)
    raise RequestError(400, f"{name} must be a whole number from {least} to {most}.", param=name)
