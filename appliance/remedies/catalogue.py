"""Orders: in words, as API calls, and their ways back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from appliance.errors import ActionError
from appliance.records import Action, EngineSnapshot, EngineState, Moved, NodeSnapshot, Order, OrderKind, Remedy, Role

_NEEDS: Final[Mapping[OrderKind, str | None]] = {
    OrderKind.ROLE: "role",
    OrderKind.WEIGHT: "weight",
    OrderKind.TOPOLOGY: "topology",
}
_VALUES: Final = ("role", "weight", "topology")
_FORCED: Final = (OrderKind.ROLE, OrderKind.DRAIN, OrderKind.TOPOLOGY)
_DOWN: Final = (EngineState.BACKOFF, EngineState.FAILED, EngineState.STOPPED)
_CONFIGURED: Final[Mapping[OrderKind, str]] = {
    OrderKind.ROLE: "roles are those of the configuration",
    OrderKind.WEIGHT: "all weights are 1",
    OrderKind.TOPOLOGY: "the topology is that of the configuration",
}


def check(order: Order) -> None:
    """Raises ``ActionError`` for an order that lacks something, or says something that has no meaning in it."""
    needed = _NEEDS.get(order.kind)
    of_engine = order.kind not in (OrderKind.RESTART, OrderKind.TOPOLOGY)
    needs = ("engine" if of_engine else None, needed)
    if missing := [repr(name) for name in needs if name and getattr(order, name) is None]:
        raise ActionError(f"order {order.kind.value!r} needs {' and '.join(missing)}", invalid=True)
    if order.engine is not None and order.kind is OrderKind.TOPOLOGY:
        raise ActionError("order 'topology' is of the whole node: leave 'engine' out", invalid=True)
    for value in _VALUES:
        if value != needed and getattr(order, value) is not None:
            raise ActionError(f"order {order.kind.value!r} has no {value!r}: leave it out", invalid=True)
    if order.roles is not None and order.kind is not OrderKind.TOPOLOGY:
        raise ActionError(f"order {order.kind.value!r} has no 'roles': leave it out", invalid=True)
    if order.force and order.kind not in _FORCED:
        raise ActionError(f"order {order.kind.value!r} can't be forced: leave 'force' out", invalid=True)


def call(order: Order) -> str:
    """The API call that gives it: ``POST /api/engines/e1/weight {"weight": 0.5}``."""
    values = {"role": order.role, "weight": order.weight, "topology": order.topology, "roles": order.roles}
    body = {name: value for name, value in (*values.items(), ("force", order.force or None)) if value is not None}
    said = f" {msgspec.json.format(msgspec.json.encode(body), indent=0).decode()}" if body else ""
    path = f"engines/{order.engine}/{order.kind.value}" if order.engine else order.kind.value
    return f"POST /api/{path}{said}"


def advise(sentence: str, order: Order, setting: str | None = None) -> Action:
    """An action that one order does."""
    return Action(sentence=sentence, order=order, call=call(order), setting=setting)


def words(order: Order, node: NodeSnapshot) -> str:
    """What is done, beside how it is now: ``e1's weight in routing: 1 → 0.5``."""
    return _WORDS[order.kind](order, node)


def moves(moved: Moved) -> str:
    """What becomes of engines: ``e0, e1 start, e2 ends``."""
    verbs = ((moved.starts, "start"), (moved.ends, "end"))
    said = [f"{', '.join(names)} {verb}{'s' * (len(names) == 1)}" for names, verb in verbs if names]
    return ", ".join(said) or "nothing restarts"


def undo(order: Order, node: NodeSnapshot) -> Order | None:
    """What takes it back, of a node as it was before; None where nothing does, or nothing changes. Who has forced the one forces both."""
    engine = of(node, order.engine)
    if not changes(order, node):
        return None
    if order.kind is OrderKind.TOPOLOGY:
        roles = {one.name: one.role for one in node.engines}
        return Order(kind=OrderKind.TOPOLOGY, topology=node.topology, roles=roles, force=order.force)
    if engine is None:
        return None
    if order.kind is OrderKind.ROLE:
        return Order(kind=OrderKind.ROLE, engine=order.engine, role=engine.role, force=order.force)
    if order.kind is OrderKind.WEIGHT:
        return Order(kind=OrderKind.WEIGHT, engine=order.engine, weight=engine.weight)
    if order.kind is OrderKind.DRAIN:
        return Order(kind=OrderKind.RESUME, engine=order.engine)
    if order.kind is OrderKind.RESUME and engine.state is EngineState.DRAINING:
        kind = OrderKind.RESTART if engine.restarting else OrderKind.DRAIN
        return Order(kind=kind, engine=order.engine)
    return None


def forced(order: Order) -> Order:
    """The same by force; what is never refused for want of it needs none."""
    return msgspec.structs.replace(order, force=True) if order.kind in _FORCED else order


def changes(order: Order, node: NodeSnapshot) -> bool:
    """Whether a node that is like this becomes another one by it."""
    engine = of(node, order.engine)
    if order.kind is OrderKind.TOPOLOGY:
        roles = {one.name: one.role for one in node.engines}
        return (order.topology or "").strip().lower() != node.topology or order.roles not in (None, roles)
    if order.kind is OrderKind.RESTART or engine is None:
        return True
    if order.kind is OrderKind.ROLE:
        return order.role is not engine.role
    if order.kind is OrderKind.WEIGHT:
        return order.weight != engine.weight
    rests = engine.state is EngineState.DRAINING
    return not rests if order.kind is OrderKind.DRAIN else rests or bool(restarted(order, node))


def resets(order: Order, node: NodeSnapshot) -> bool:
    """Whether a start of the appliance has undone it, of a node as it is since. All engines take work then, or will."""
    return order.kind is not OrderKind.RESUME and changes(order, node)


def overlap(earlier: Remedy, later: Remedy) -> bool:
    """Whether the later one changes what the earlier one has changed."""
    return any(
        (what == other and None in (name, engine)) or (what, name) == (other, engine)
        for what, name in _sets(earlier)
        for other, engine in _touches(later)
    )


def _sets(remedy: Remedy) -> set[tuple[str, str | None]]:
    """What it was given for. A layout begins and ends engines, and what these are told later does not end it."""
    return {("role", None)} if remedy.order.kind is OrderKind.TOPOLOGY else _touches(remedy)


def _touches(remedy: Remedy) -> set[tuple[str, str | None]]:
    """What it changes of which engine; None: of all."""
    order = remedy.order
    started: set[tuple[str, str | None]] = {("work", name) for name in remedy.restarts}
    if order.kind is OrderKind.TOPOLOGY:
        anew = {(what, name) for what in ("work", "weight") for name in (*remedy.restarts, *remedy.ends)}
        return {("role", None), *anew}
    if order.kind in (OrderKind.DRAIN, OrderKind.RESUME):
        return started | {("work", order.engine)}
    return started if order.kind is OrderKind.RESTART else {(order.kind.value, order.engine)}


def reset(order: Order) -> str:
    """Why it does not hold after a start of the appliance."""
    what = _CONFIGURED.get(order.kind, "all engines take work")
    return f"the appliance was started again, and since then {what}"


def restarted(order: Order, node: NodeSnapshot) -> tuple[str, ...]:
    """Engines that it starts again. Where these are all, it passes over those that don't serve."""
    if order.kind is OrderKind.RESTART and order.engine is None:
        return tuple(engine.name for engine in node.engines if engine.state is EngineState.READY)
    engine = of(node, order.engine)
    again = order.kind is OrderKind.RESTART or (order.kind is OrderKind.RESUME and engine and engine.state in _DOWN)
    return (engine.name,) if again and engine is not None else ()


def of(node: NodeSnapshot, name: str | None) -> EngineSnapshot | None:
    """That engine; None if there is no such."""
    return next((engine for engine in node.engines if engine.name == name), None)


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
    if restarted(order, node):
        return f"{order.engine} is tried again"
    engine = of(node, order.engine)
    instead = " instead of being started again" if engine is not None and engine.restarting else ""
    return f"{order.engine} takes work again{instead}"


def _restart(order: Order, node: NodeSnapshot) -> str:
    if order.engine is None:
        return f"{', '.join(restarted(order, node)) or 'no engine'}: started again, one after the other"
    others = [engine for engine in node.engines if engine.name != order.engine and engine.state is EngineState.READY]
    alone = "" if others else "; no other engine takes requests meanwhile"
    return f"{order.engine} is started again once what it has begun is done, or [server] grace_s is over{alone}"


def _topology(order: Order, node: NodeSnapshot) -> str:
    return f"topology: {node.topology} → {order.topology}"


_WORDS: Final[Mapping[OrderKind, Words]] = {
    OrderKind.ROLE: _role,
    OrderKind.WEIGHT: _weight,
    OrderKind.DRAIN: _drain,
    OrderKind.RESUME: _resume,
    OrderKind.RESTART: _restart,
    OrderKind.TOPOLOGY: _topology,
}
