"""What an owner may tell the node. Every route is a POST, which ``Door`` lets no page of another site send."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import ActionError, RequestError
from web.ports import Actions


class ActionRoutes:
    """Answers 202 with what was asked; 404 for an engine that isn't there, 409 where it can't be done now."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def routes(self) -> list[BaseRoute]:
        verbs = {"drain": self._actions.drain, "resume": self._actions.resume, "restart": self._actions.restart}
        return [
            *(
                Route(f"/api/engines/{{name}}/{verb}", self._of_engine(verb, do), methods=["POST"])
                for verb, do in verbs.items()
            ),
            Route("/api/restart", self.restart_all, methods=["POST"]),
        ]

    def _of_engine(self, verb: str, do: Callable[[str], None]) -> Callable[[Request], Response]:
        async def endpoint(request: Request) -> Response:
            name = request.path_params["name"]
            _tried(lambda: do(name))
            return _asked({"engine": name, "asked": verb})

        return endpoint  # type: ignore[return-value]

    async def restart_all(self, request: Request) -> Response:
        _tried(self._actions.restart_all)
        return _asked({"asked": "restart"})


def _tried(do: Callable[[], None]) -> None:
    try:
        do()
    except ActionError as error:
        status, code = (404, "not_found") if error.unknown else (409, "not_now")
        raise RequestError(status, str(error), code=code) from error


def _asked(body: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), 202, {"cache-control": "no-store"}, media_type="application/json")
