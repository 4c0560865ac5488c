"""Orders: in words, as API calls, and their ways back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from appliance.errors import ActionError
from appliance.records import Action, EngineSnapshot, EngineState, NodeSnapshot, Order, OrderKind, Role

_NEEDS: Final[Mapping[OrderKind, str | None]] = {
    OrderKind.ROLE: "role",
    OrderKind.WEIGHT: "weight",
    OrderKind.TOPOLOGY: "topology",
}
_VALUES: Final = ("role", "weight", "topology")
_DOWN: Final = (EngineState.BACKOFF, EngineState.FAILED)


def check(order: Order) -> None:
    """Raises ``ActionError`` for an order that lacks something, or says something that has no meaning in it."""
    needed = _NEEDS.get(order.kind)
    if needed and getattr(order, needed) is None:
        raise ActionError(f"order {order.kind.value!r} needs {needed!r}", invalid=True)
    if order.engine is None and order.kind not in (OrderKind.RESTART, OrderKind.TOPOLOGY):
        raise ActionError(f"order {order.kind.value!r} needs 'engine'", invalid=True)
    if order.engine is not None and order.kind is OrderKind.TOPOLOGY:
        raise ActionError("order 'topology' is of the whole node: leave 'engine' out", invalid=True)
    for value in _VALUES:
        if value != needed and getattr(order, value) is not None:
            raise ActionError(f"order {order.kind.value!r} has no {value!r}: leave it out", invalid=True)


def call(order: Order) -> str:
    """The API call that gives it: ``POST /api/engines/e1/weight {"weight": 0.5}``."""
    if order.kind is OrderKind.TOPOLOGY:
        return f'POST /api/topology {{"topology": "{order.topology}"}}'
    if order.engine is None:
        return "POST /api/restart"
    path = f"POST /api/engines/{order.engine}/{order.kind.value}"
    if order.kind is OrderKind.ROLE and order.role is not None:
        return f'{path} {{"role": "{order.role.value}"}}'
    return f'{path} {{"weight": {order.weight:g}}}' if order.kind is OrderKind.WEIGHT else path


def advise(sentence: str, order: Order, setting: str | None = None) -> Action:
    """An action that one order does."""
    return Action(sentence=sentence, order=order, call=call(order), setting=setting)


def words(order: Order, node: NodeSnapshot) -> str:
    """What is done, beside how it is now: ``e1's weight in routing: 1 → 0.5``."""
    return _WORDS[order.kind](order, node)


def undo(order: Order, node: NodeSnapshot) -> Order | None:
    """What takes it back, of a node as it was before; None where nothing does, or nothing changes."""
    engine = of(node, order.engine)
    if order.kind is OrderKind.TOPOLOGY:
        return _or_nothing(msgspec.structs.replace(order, topology=node.topology), order)
    if engine is None:
        return None
    if order.kind is OrderKind.ROLE:
        return _or_nothing(msgspec.structs.replace(order, role=engine.role), order)
    if order.kind is OrderKind.WEIGHT:
        return _or_nothing(msgspec.structs.replace(order, weight=engine.weight), order)
    if order.kind is OrderKind.DRAIN and engine.state is EngineState.READY:
        return Order(kind=OrderKind.RESUME, engine=order.engine)
    if order.kind is OrderKind.RESUME and engine.state is EngineState.DRAINING:
        return Order(kind=OrderKind.DRAIN, engine=order.engine)
    return None


def touches(order: Order) -> tuple[str, str | None]:
    """What it changes: a later order that changes the same takes its place. Roles are the topology's."""
    if order.kind in (OrderKind.ROLE, OrderKind.TOPOLOGY):
        return "roles", None
    if order.kind in (OrderKind.DRAIN, OrderKind.RESUME):
        return "draining", order.engine
    return order.kind.value, order.engine


def restarted(order: Order, node: NodeSnapshot) -> tuple[str, ...]:
    """Engines that it starts again."""
    if order.kind is OrderKind.RESTART:
        return (order.engine,) if order.engine else tuple(engine.name for engine in node.engines)
    engine = of(node, order.engine)
    again = order.kind is OrderKind.RESUME and engine is not None and engine.state in _DOWN
    return (engine.name,) if again and engine is not None else ()


def of(node: NodeSnapshot, name: str | None) -> EngineSnapshot | None:
    """That engine; None if there is no such."""
    return next((engine for engine in node.engines if engine.name == name), None)


def _or_nothing(back: Order, order: Order) -> Order | None:
    return None if back == order else back


# ---- words

Words = Callable[[Order, NodeSnapshot], str]


def _role(order: Order, node: NodeSnapshot) -> str:
    engine = of(node, order.engine)
    return f"{order.engine} {_for(engine.role) if engine else '—'} → {_for(order.role)}; nothing restarts"


def _for(role: Role | None) -> str:
    return {None: "—", Role.BOTH: "prefills and decodes", Role.PREFILL: "prefills", Role.DECODE: "decodes"}[role]


def _weight(order: Order, node: NodeSnapshot) -> str:
    engine = of(node, order.engine)
    return f"{order.engine}'s weight in routing: {engine.weight if engine else 1.0:g} → {order.weight:g}"


def _drain(order: Order, node: NodeSnapshot) -> str:
    return f"{order.engine} takes no new work; what it has begun it finishes"


def _resume(order: Order, node: NodeSnapshot) -> str:
    return f"{order.engine} is tried again" if restarted(order, node) else f"{order.engine} takes work again"


def _restart(order: Order, node: NodeSnapshot) -> str:
    if order.engine is None:
        return "all engines are started again, one after the other"
    return f"{order.engine} is started again once what it has begun is done"


def _topology(order: Order, node: NodeSnapshot) -> str:
    return f"topology: {node.topology} → {order.topology}; nothing restarts"


_WORDS: Final[Mapping[OrderKind, Words]] = {
    OrderKind.ROLE: _role,
    OrderKind.WEIGHT: _weight,
    OrderKind.DRAIN: _drain,
    OrderKind.RESUME: _resume,
    OrderKind.RESTART: _restart,
    OrderKind.TOPOLOGY: _topology,
}
