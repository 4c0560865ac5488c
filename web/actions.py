"""What an owner may tell the node. Every route is a POST, which ``Door`` lets no page of another site send."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import ActionError, RequestError
from web.ports import Actions

T = TypeVar("T")


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
            Route("/api/engines/{name}/weight", self.weight, methods=["POST"]),
            Route("/api/restart", self.restart_all, methods=["POST"]),
        ]

    def _of_engine(self, verb: str, do: Callable[[str], None]) -> Callable[[Request], Response]:
        async def endpoint(request: Request) -> Response:
            name = request.path_params["name"]
            tried(lambda: do(name))
            return asked_for({"engine": name, "asked": verb})

        return endpoint  # type: ignore[return-value]

    async def weight(self, request: Request) -> Response:
        name, asked = request.path_params["name"], read(await request.body(), Weight)
        tried(lambda: self._actions.weight(name, asked.weight))
        return asked_for({"engine": name, "asked": "weight", "weight": asked.weight})

    async def restart_all(self, request: Request) -> Response:
        tried(self._actions.restart_all)
        return asked_for({"asked": "restart"})


class Weight(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/api/engines/{name}/weight``."""

    weight: float


def read(body: bytes, kind: type[T]) -> T:
    """What an order says. Raises ``RequestError`` 400 that names what is wrong."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except ValueError as error:
        raise RequestError(400, f"the body can't be read: {error}", code="invalid_body") from None


def tried(do: Callable[[], None]) -> None:
    try:
        do()
    except ActionError as error:
        raise _refusal(error) from error


def _refusal(error: ActionError) -> RequestError:
    if error.unknown:
        return RequestError(404, str(error), code="not_found")
    if error.invalid:
        return RequestError(400, str(error), code="invalid_value")
    return RequestError(409, str(error), code="not_now")


def asked_for(body: dict[str, object]) -> Response:
    return Response(msgspec.json.encode(body), 202, {"cache-control": "no-store"}, media_type="application/json")
