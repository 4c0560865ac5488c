"""What an engine can be told, and what will come of it. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from appliance.records import EngineSnapshot, EngineState, NodeSnapshot, Order, OrderKind, Role
from web import flow, words
from web.contexts import Context

_USES: Final = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.BOTH: "prefill and decode"}
_REFUSED: Final = "this is refused unless it is forced, from the command line or the API"
_WHOLE: Final = "until it is ready again, the others do the whole of each request"
_NOBODY: Final = "until it is ready again, requests are refused"
_DOWN: Final = (EngineState.BACKOFF, EngineState.FAILED)


class OrderContext(Context, frozen=True, kw_only=True):
    """One thing that it can be told."""

    label: str
    what: str  # what will happen
    order: str  # as JSON
    call: str


class OrdersContext(Context, frozen=True, kw_only=True):
    """``engine_orders.html``."""

    orders: tuple[OrderContext, ...]
    weight: str
    role: str


def orders(engine: EngineSnapshot, snapshot: NodeSnapshot) -> OrdersContext:
    """Those that have a meaning now."""
    return OrdersContext(
        orders=(*_service(engine, snapshot), *_uses(engine, snapshot)),
        weight=f"{engine.weight:g}",
        role=_USES[engine.role],
    )


def _uses(engine: EngineSnapshot, snapshot: NodeSnapshot) -> tuple[OrderContext, ...]:
    return tuple(_use(engine, role, snapshot) for role in Role if role is not engine.role)


def _use(engine: EngineSnapshot, role: Role, snapshot: NodeSnapshot) -> OrderContext:
    what = (
        f"{engine.name} is used for {_USES[role]} from now on, no longer for {_USES[engine.role]}: "
        "what it has begun it finishes, and nothing restarts."
    )
    if role is Role.BOTH:
        what = f"{engine.name} is used for prefill and decode from now on; nothing restarts."
    return OrderContext(
        label=f"Use it for {_USES[role]}…",
        what=what + _alone(engine, snapshot, _REFUSED, left=role),
        order=_order(Order(kind=OrderKind.ROLE, engine=engine.name, role=role)),
        call=f'POST /api/engines/{engine.name}/role {{"role": "{role.value}"}}',
    )


def _service(engine: EngineSnapshot, snapshot: NodeSnapshot) -> tuple[OrderContext, ...]:
    name, begun = engine.name, words.several(engine.in_flight, "request") if engine.in_flight else "nothing"
    refused = _alone(engine, snapshot, _REFUSED)
    meanwhile = _WHOLE if _others(engine, snapshot) else _NOBODY
    drain = f"{name} takes no new work; what it has begun it finishes ({begun} now).{refused}"
    resume = f"{name} is tried again." if engine.state in _DOWN else f"{name} takes work again."
    restart = (
        f"{name} takes no new work, finishes what it has begun ({begun} now), and is started again."
        f"{_alone(engine, snapshot, meanwhile)} Its KV and prefix cache are lost."
    )
    found = {OrderKind.DRAIN: ("Drain…", drain), OrderKind.RESUME: ("Resume…", resume)}
    kinds = [OrderKind.DRAIN] if engine.state in (EngineState.READY, EngineState.SUSPECT) else []
    kinds += [OrderKind.RESUME] if engine.state in (EngineState.DRAINING, EngineState.STOPPED, *_DOWN) else []
    if engine.state in flow.WORK:
        found[OrderKind.RESTART] = ("Restart…", restart)
        kinds.append(OrderKind.RESTART)
    return tuple(
        OrderContext(
            label=found[kind][0],
            what=found[kind][1],
            order=_order(Order(kind=kind, engine=name)),
            call=f"POST /api/engines/{name}/{kind.value}",
        )
        for kind in kinds
    )


def _alone(engine: EngineSnapshot, snapshot: NodeSnapshot, then: str, left: Role | None = None) -> str:
    """What nobody would do then, where it is the only one, and what comes of that. ``left``: the role that it keeps or gets."""
    others = _others(engine, snapshot)
    missing = []
    if engine.role.prefills and not (left and left.prefills) and not any(other.role.prefills for other in others):
        missing.append("prefills")
    if engine.role.decodes and not (left and left.decodes) and not any(other.role.decodes for other in others):
        missing.append("decodes")
    return f" No other engine {' or '.join(missing)}: {then}." if missing else ""


def _others(engine: EngineSnapshot, snapshot: NodeSnapshot) -> list[EngineSnapshot]:
    return [other for other in snapshot.engines if other.name != engine.name and other.state is EngineState.READY]


def _order(order: Order) -> str:
    return msgspec.json.encode(order).decode()
