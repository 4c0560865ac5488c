"""What an owner may tell the node, and what came of it. Every order is a POST, which ``Door`` lets no page of another site send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final, TypeVar, get_args, get_type_hints

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import ActionError, RequestError, cut
from appliance.records import Order, OrderKind, Remedy, Role
from web import answers, bodies
from web.api import limit_of
from web.ports import Actions

T = TypeVar("T")
_MOST: Final = 1000
_LARGEST_BYTES: Final = 64 << 10  # an order is some words
_WHOSE: Final = "of any order; no setting changes it"
_PLAIN: Final = (OrderKind.DRAIN, OrderKind.RESUME, OrderKind.RESTART)


class ActionRoutes:
    """Answers 202 with what was asked and the remedy that it is; 404 for an engine that isn't there, 409 where it can't be done now."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def routes(self) -> list[BaseRoute]:
        plain = [
            Route(f"/api/engines/{{name}}/{kind.value}", self._of_engine(kind), methods=["POST"]) for kind in _PLAIN
        ]
        return [
            *plain,
            Route("/api/engines/{name}/weight", self.weight, methods=["POST"]),
            Route("/api/engines/{name}/role", self.role, methods=["POST"]),
            Route("/api/topology", self.topology, methods=["POST"]),
            Route("/api/restart", self.restart_all, methods=["POST"]),
            Route("/api/remedies", self.remedies, methods=["GET"]),
            Route("/api/remedies", self.apply, methods=["POST"]),
            Route("/api/remedies/{id}", self.remedy, methods=["GET"]),
            Route("/api/remedies/{id}/undo", self.undo, methods=["POST"]),
        ]

    def _of_engine(self, kind: OrderKind) -> Callable[[Request], Response]:
        async def endpoint(request: Request) -> Response:
            asked = await told(request, PlainBody)
            return self._give(request, Order(kind=kind, engine=request.path_params["name"], force=asked.force))

        return endpoint  # type: ignore[return-value]

    async def weight(self, request: Request) -> Response:
        asked = await told(request, WeightBody)
        return self._give(
            request, Order(kind=OrderKind.WEIGHT, engine=request.path_params["name"], weight=asked.weight)
        )

    async def role(self, request: Request) -> Response:
        asked, name = await told(request, RoleBody), request.path_params["name"]
        return self._give(request, Order(kind=OrderKind.ROLE, engine=name, role=asked.role, force=asked.force))

    async def topology(self, request: Request) -> Response:
        asked = msgspec.structs.asdict(await told(request, TopologyBody))
        return self._give(request, Order(kind=OrderKind.TOPOLOGY, **asked))

    async def restart_all(self, request: Request) -> Response:
        await told(request, NoBody)
        return self._give(request, Order(kind=OrderKind.RESTART))

    async def apply(self, request: Request) -> Response:
        """An order as verdicts have them: ``{"kind": "weight", "engine": "e1", "weight": 0.5}``."""
        return self._give(request, Order(**msgspec.structs.asdict(await told(request, OrderBody))))

    async def undo(self, request: Request) -> Response:
        asked, id = await told(request, PlainBody), request.path_params["id"]
        return _answer(tried(lambda: self._actions.undo(id, _by(request), force=asked.force)))

    async def remedies(self, request: Request) -> Response:
        """Newest first; ``?limit=`` of them."""
        limit = limit_of(request.query_params.get("limit"), _MOST)
        return answers.json(self._actions.remedies()[:limit])

    async def remedy(self, request: Request) -> Response:
        """One of them."""
        id = request.path_params["id"]
        for remedy in self._actions.remedies():
            if remedy.id == id:
                return answers.json(remedy)
        raise answers.unknown("remedy", id)

    def _give(self, request: Request, order: Order) -> Response:
        return _answer(tried(lambda: self._actions.apply(order, _by(request))))


class NoBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an order that says all in its address."""


class OrderBody(Order, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/remedies``. A field that there is not may be a slip: without ``engine``, a restart is of all."""


class PlainBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/api/engines/{name}/drain`` and its like, and of undo, which need none."""

    force: bool = False


class WeightBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/api/engines/{name}/weight``."""

    weight: float


class RoleBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/api/engines/{name}/role``."""

    role: Role
    force: bool = False


class TopologyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/api/topology``."""

    topology: str
    roles: dict[str, Role] | None = None
    force: bool = False


async def told(request: Request, kind: type[T]) -> T:
    """What an order says. Raises ``RequestError``: 400 that names what is wrong, 413, 408."""
    try:
        with bodies.Room(_LARGEST_BYTES).share() as share:
            body = await bodies.read(request.headers, request.receive, _LARGEST_BYTES, share, _WHOSE)
        return msgspec.json.decode(body or b"{}", type=kind)
    except bodies.ClientLeft:
        raise RequestError(400, "the body broke off", code="invalid_body") from None
    except ValueError as error:
        said = f"the body can't be read: {cut(str(error))}{_instead(str(error), kind)}"
        raise RequestError(400, said, code="invalid_body") from None


def _instead(said: str, kind: type[Any]) -> str:
    """What would be right, of a field that has one of some values."""
    field = said.rpartition("`$.")[2].strip("`[].")
    if not said.startswith("Invalid enum value") or (hint := get_type_hints(kind).get(field)) is None:
        return ""
    return f"; what would be right: {', '.join(repr(value) for value in _values(hint))}"


def _values(hint: Any) -> Iterator[Any]:
    """Of enums in it."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        yield from (one.value for one in hint)
    for inner in get_args(hint):
        yield from _values(inner)


def tried(do: Callable[[], T]) -> T:
    """What it returns. Raises ``RequestError`` where it can't be done."""
    try:
        return do()
    except ActionError as error:
        raise _refusal(error) from error


def _refusal(error: ActionError) -> RequestError:
    if error.unknown:
        return RequestError(404, str(error), code="not_found")
    if error.invalid:
        return RequestError(400, str(error), code="invalid_value")
    return RequestError(409, str(error), code="not_now")


def _by(request: Request) -> str:
    if request.headers.get("hx-request"):
        return "page"
    return "cli" if request.headers.get("user-agent", "").startswith("pd-appliance") else "api"


def _answer(remedy: Remedy) -> Response:
    return answers.asked_for(
        {
            "asked": remedy.order.kind.value,
            "engine": remedy.order.engine,
            "restarts": remedy.restarts,
            "ends": remedy.ends,
            "remedy": remedy,
        }
    )
