"""Where engines could be on a machine's GPUs, before there is a node: every layout, what it would bring, and which to take. Pure.

A layout is infeasible where its engines find no GPUs that belong together, where a model's heads can't be shared out, or where weights and
the KV of one request do not fit; each says why. What is left is predicted as a running node's layouts are (``split.py``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from appliance.errors import ConfigError
from appliance.planner import split
from appliance.planner.cards import (
    SHARERS,
    are_far,
    crowd,
    dealt,
    each_may_take,
    fraction,
    gib,
    grouped,
    largest,
    may_take,
    share_taken,
    some,
    too_few,
    usable,
)
from appliance.planner.node import CopyTime, Engines, Settings, StepTime, Targets
from appliance.records import Card, Demand, Inventory, Plan, Role

_SIZES: Final = (1, 2, 4, 8, 16)

SETTINGS: Final[Mapping[Role, Settings]] = {
    Role.PREFILL: Settings(token_budget=8192, places=256),
    Role.DECODE: Settings(token_budget=2048, places=256),
    Role.BOTH: Settings(token_budget=8192, places=256),
}
"""Of vLLM, by role: a prefill engine's steps may be long, as nobody on it waits for the next token."""


class Footprint(Protocol):
    """What a model takes on each of ``tp`` GPUs. Both raise ``ConfigError`` where its heads can't be shared out to so many."""

    def weight_bytes(self, tp: int = 1) -> float: ...

    def kv_bytes(self, tokens: int, tp: int = 1) -> float:
        """Of one request."""
        ...


class Times(msgspec.Struct, frozen=True):
    """How long steps and hand-offs take on engines of one size."""

    step: StepTime
    copy: CopyTime
    far: CopyTime | None = None  # between GPUs that NVLink does not connect; the same, where not told


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be placed."""

    model: Footprint
    context: int  # the longest request, in tokens
    demand: Demand
    targets: Targets
    times: Callable[[int], Times]  # by tensor-parallel size
    reserve_bytes: int  # that an engine needs on each GPU besides weights and KV
    settings: Mapping[Role, Settings] = msgspec.field(default_factory=lambda: SETTINGS)


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """One engine and its GPUs."""

    name: str
    role: Role
    gpus: tuple[str, ...]  # UUIDs
    memory_fraction: float  # of each GPU's memory, as vLLM's --gpu-memory-utilization has it
    kv_bytes: int | None = None  # on each GPU; None: whatever vLLM finds to be left
    sees: tuple[str, ...] = ()  # other engines' GPUs, whose memory comes to it by way of the host's


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One layout on the machine. ``reason``: why it is infeasible; ``remarks``: what its owner should know."""

    layout: str
    feasible: bool
    reason: str
    seats: tuple[Seat, ...] = ()
    tensor_parallel: int
    kv_tokens: int | None = None  # of one engine, in requests of the longest kind
    requests: float | None = None  # that one engine keeps at once, of the demand's mean length
    plan: Plan | None = None  # predicted
    remarks: tuple[str, ...] = ()
    staged: bool = False  # KV goes through the host's memory between some of its engines


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. ``best`` None: none is feasible."""

    placements: tuple[Placement, ...]
    best: str | None
    why: str
    unused: tuple[str, ...] = ()  # GPUs that no layout uses, and why not


def place(inventory: Inventory, wanted: Wanted) -> Placed:
    """Every layout of the machine's GPUs. Raises ``ConfigError`` where there is no GPU to use."""
    cards, unused = some(inventory)
    if len(cards) == 1:
        found = _on_one(cards[0], inventory, wanted)
    else:
        found = tuple(
            placement for size in _SIZES if size <= len(cards) for placement in _of_size(cards, size, inventory, wanted)
        )
    best, why = _choose(found, wanted.demand)
    return Placed(placements=found, best=best.layout if best else None, why=why, unused=unused)


def seated(inventory: Inventory, places: Sequence[tuple[Role, int]], layout: str, wanted: Wanted | None) -> Placement:
    """A layout that somebody has asked for, on as many of the GPUs as it takes. Nothing is predicted.

    Args:
        places: role and tensor-parallel size of each engine, in order.
        wanted: None where nothing is known of the model: whether it fits shows when engines load it.

    Raises:
        ConfigError: there are too few GPUs that can be used, or they have too little memory.
    """
    cards, unused = some(inventory)
    sizes = [size for _, size in places]
    groups = dealt(cards, sizes)
    if groups is None:
        raise ConfigError(
            f"topology {layout!r} {too_few(cards, sizes)}" + "".join(f"; not used: {one}" for one in unused)
        )
    sharers = Counter(card.uuid for group in groups for card in group)
    rooms = [_room_of(group, max(sharers[card.uuid] for card in group), wanted) for group in groups]
    if reason := next((room for room in rooms if isinstance(room, str)), None):
        raise ConfigError(f"topology {layout!r} does not fit: {reason}")
    known = [room for room in rooms if isinstance(room, Room)]
    seats = _seats([role for role, _ in places], groups, known or [None] * len(places), sharers, inventory)
    return Placement(
        layout=layout,
        feasible=True,
        reason="it is what was asked for",
        seats=seats,
        tensor_parallel=max(sizes),
        kv_tokens=min((room.tokens for room in known), default=None),
        requests=min((room.requests for room in known), default=None),
        remarks=_remarks(seats, groups, sharers, inventory),
        staged=any(seat.sees for seat in seats),
    )


# ---- layouts


def _of_size(cards: Sequence[Card], size: int, inventory: Inventory, wanted: Wanted) -> tuple[Placement, ...]:
    groups = grouped(cards, size)
    count = len(cards) // size
    layouts = [split.name(*pair, _named(count, size)) for pair in _pairs(count)]
    if len(groups) < count:
        reason = (
            f"tensor-parallel engines need {size} GPUs that are connected by NVLink, and at most {largest(cards)} are"
        )
        return tuple(_none(layout, size, reason) for layout in layouts)
    try:
        room = _room(groups, size, wanted)
    except ConfigError as error:
        return tuple(_none(layout, size, str(error)) for layout in layouts)
    if isinstance(room, str):
        return tuple(_none(layout, size, room) for layout in layouts)
    engines = _engines(count, size, room, wanted, far=are_far(groups))
    return tuple(
        _placement(layout, pair, groups, engines, inventory, wanted)
        for layout, pair in zip(layouts, _pairs(count), strict=True)
    )


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(prefill, count - prefill) for prefill in range(1, count)] + [(0, 0)]


def _named(count: int, size: int) -> Engines:
    """Only its name is asked for."""
    return Engines(count=count, step=lambda *_: None, kv_tokens=0, settings={}, tensor_parallel=size)


def _none(layout: str, size: int, reason: str) -> Placement:
    return Placement(layout=layout, feasible=False, reason=reason, tensor_parallel=size)


class Room(msgspec.Struct, frozen=True):
    """For KV, on each GPU of an engine that has the least of it."""

    kv_bytes: float
    tokens: int
    requests: float


def _room(groups: Sequence[tuple[Card, ...]], size: int, wanted: Wanted, sharers: int = 1) -> Room | str:
    """Or why there is none. Raises ``ConfigError`` where heads can't be shared out."""
    model, group = wanted.model, min(groups, key=each_may_take)
    least, there = min(group, key=may_take), each_may_take(group) / sharers
    weights = model.weight_bytes(size)
    kv_bytes = there - wanted.reserve_bytes - weights
    has = f"GPU {least.index} has {gib(there)} for an engine"
    needs = f"weights take {gib(weights)} of each of {size} GPUs" if size > 1 else f"weights take {gib(weights)}"
    if kv_bytes <= 0:
        return (
            f"{has}, and {needs}, besides {gib(wanted.reserve_bytes)} for activations and graphs: "
            "more GPUs per engine, or fewer bits per weight, would do"
        )
    longest = model.kv_bytes(wanted.context, size)
    if longest > kv_bytes:
        return (
            f"{has} and {needs}: the KV of one request of {wanted.context:,} tokens takes {gib(longest)}, and {gib(kv_bytes)} are left; "
            "shorter requests (plan --context, or --max-model-len in [engine] args), or more GPUs per engine, would do"
        )
    mean = _mean(wanted.demand.prompt_tokens) + _mean(wanted.demand.output_tokens) / 2
    return Room(
        kv_bytes=kv_bytes,
        tokens=int(kv_bytes / longest * wanted.context),
        requests=kv_bytes / model.kv_bytes(max(1, round(mean)), size),
    )


def _room_of(group: tuple[Card, ...], sharers: int, wanted: Wanted | None) -> Room | str | None:
    """None where nothing is known of the model."""
    if wanted is None:
        shared = (
            "two engines can share a GPU only where the model's config.json says how much memory each needs for what"
        )
        return shared if sharers > 1 else None
    try:
        return _room([group], len(group), wanted, sharers)
    except ConfigError as error:
        return str(error)


def _engines(count: int, size: int, room: Room, wanted: Wanted, *, far: bool = False) -> Engines:
    """As the planner knows them. Its KV counts tokens of requests that are as long as the demand's are."""
    mean = _mean(wanted.demand.prompt_tokens) + _mean(wanted.demand.output_tokens) / 2
    times = wanted.times(size)
    return Engines(
        count=count,
        step=times.step,
        copy=times.far if far and times.far else times.copy,
        kv_tokens=max(room.tokens, int(room.requests * mean)),
        settings=dict(wanted.settings),
        tensor_parallel=size,
    )


def _placement(
    layout: str,
    pair: tuple[int, int],
    groups: Sequence[tuple[Card, ...]],
    engines: Engines,
    inventory: Inventory,
    wanted: Wanted,
) -> Placement:
    roles = [Role.PREFILL] * pair[0] + [Role.DECODE] * pair[1] if pair[0] else [Role.BOTH] * engines.count
    room = _room(groups, engines.tensor_parallel, wanted)
    assert isinstance(room, Room)
    plan = split.plan(wanted.demand, engines, wanted.targets, *pair)
    seats = _seats(roles, groups, [room] * len(roles), Counter(), inventory)
    return Placement(
        layout=layout,
        feasible=True,
        reason=plan.reason or "meets the targets",
        seats=seats,
        tensor_parallel=engines.tensor_parallel,
        kv_tokens=room.tokens,
        requests=room.requests,
        plan=plan,
        remarks=_remarks(seats, groups[: len(roles)], Counter(), inventory),
        staged=pair != (0, 0) and any(seat.sees for seat in seats),
    )


def _seats(
    roles: Sequence[Role],
    groups: Sequence[tuple[Card, ...]],
    rooms: Sequence[Room | None],
    sharers: Mapping[str, int],
    inventory: Inventory,
) -> tuple[Seat, ...]:
    """``sharers``: engines on a GPU, where that is more than one."""
    taken = list(zip(roles, groups, rooms, strict=False))
    return tuple(
        Seat(
            name=f"e{number}",
            role=role,
            gpus=tuple(card.uuid for card in group),
            memory_fraction=fraction(group) / max(1, *(sharers.get(card.uuid, 1) for card in group)),
            kv_bytes=int(room.kv_bytes) if room and any(sharers.get(card.uuid, 1) > 1 for card in group) else None,
            sees=_unreadable(group, [there for _, there, _ in taken], inventory),
        )
        for number, (role, group, room) in enumerate(taken)
    )


def _unreadable(group: tuple[Card, ...], groups: Sequence[tuple[Card, ...]], inventory: Inventory) -> tuple[str, ...]:
    """Other engines' GPUs whose memory these can't read. Whoever sees both can copy by way of the host's memory."""
    pairs = itertools.product((card for there in groups for card in there if card not in group), group)
    apart = [
        there.uuid
        for there, here in pairs
        if (min(here.uuid, there.uuid), max(here.uuid, there.uuid)) in inventory.apart
    ]
    return tuple(dict.fromkeys(apart))


def _remarks(
    seats: Sequence[Seat], groups: Sequence[tuple[Card, ...]], sharers: Mapping[str, int], inventory: Inventory
) -> tuple[str, ...]:
    """What its owner should know."""
    cards = {card.uuid: card for group in groups for card in group}
    shared = [card.index for uuid, card in cards.items() if sharers.get(uuid, 1) > 1]
    idle = len(usable(inventory)[0]) - len(cards)
    staged = sorted({cards[gpu].index for seat in seats for gpu in (*seat.sees, *(seat.gpus if seat.sees else ()))})
    crowded = [
        f"{share_taken(card):.0%} of GPU {card.index} is taken by others" for card in cards.values() if crowd(card)
    ]
    found = [f"{SHARERS} engines share GPU {index}, half of what may be had of its memory each" for index in shared]
    if staged and any(seat.role is not Role.BOTH for seat in seats):
        found.append(
            f"GPUs {', '.join(map(str, staged))} can't all read each other's memory (nvidia-smi topo -p2p r): "
            "KV goes through the host's memory, which is slower"
        )
    if idle > 0:
        found.append(f"{idle} GPU{'s' if idle > 1 else ''} without an engine")
    return (*found, *crowded)


def _on_one(card: Card, inventory: Inventory, wanted: Wanted) -> tuple[Placement, ...]:
    """One GPU: an engine of its own, or two that share it."""
    return tuple(_shared(card, inventory, wanted, roles) for roles in ((Role.PREFILL, Role.DECODE), (Role.BOTH,)))


def _shared(card: Card, inventory: Inventory, wanted: Wanted, roles: tuple[Role, ...]) -> Placement:
    layout = "1p1d" if len(roles) == SHARERS else "1b"
    room = _room([(card,)], 1, wanted, len(roles))
    if isinstance(room, str):
        return _none(layout, 1, room)
    alone = len(roles) == 1
    plan = split.plan(wanted.demand, _engines(1, 1, room, wanted), wanted.targets, 0, 0) if alone else None
    groups, sharers = [(card,)] * len(roles), {card.uuid: len(roles)}
    seats = _seats(roles, groups, [room] * len(roles), sharers, inventory)
    return Placement(
        layout=layout,
        feasible=True,
        reason=(plan.reason or "meets the targets") if plan else "two engines that share a GPU are not predicted",
        seats=seats,
        tensor_parallel=1,
        kv_tokens=room.tokens,
        requests=room.requests,
        plan=plan,
        remarks=_remarks(seats, groups, sharers, inventory),
    )


# ---- which to take


def _choose(found: Sequence[Placement], demand: Demand) -> tuple[Placement | None, str]:
    """That with the highest rate within the targets; of equals, the one with fewer engines.

    Two engines that share the only GPU are taken unpredicted: that prefill and decode are apart is what a node is for. KV through the
    host's memory is taken only where there is nothing else.
    """
    feasible = [one for one in found if one.feasible]
    if not feasible:
        return None, "no layout is feasible: the reasons say what stands against each"
    if shared := next((one for one in feasible if any(seat.kv_bytes for seat in one.seats)), None):
        return (
            shared,
            "prefill and decode share the one GPU that can be used, unpredicted; 1b would have one engine on all of it",
        )
    feasible = [one for one in feasible if not one.staged] or feasible
    known = [one for one in feasible if one.plan is not None and one.plan.predicted is not None]
    if not known:
        return _plainest(
            feasible
        ), "nothing can be predicted here: as few GPUs per engine as will do, and each engine does both"
    best = max(known, key=_rate_s)
    rate_s = _rate_s(best)
    if rate_s <= 0:
        return max(
            known, key=_good
        ), "no layout meets the targets at any rate: the one with the most requests within them"
    enough = "more than" if rate_s > demand.rate_s else "less than"
    why = f"it meets the targets up to {rate_s:.3g} requests/s (predicted), the highest of all"
    return best, f"{why}, and {enough} the {demand.rate_s:g} that are asked for"


def _plainest(feasible: Sequence[Placement]) -> Placement:
    """Roles can be given to such engines while they serve."""
    return min(feasible, key=lambda one: (one.tensor_parallel, any(seat.role is not Role.BOTH for seat in one.seats)))


def _rate_s(one: Placement) -> float:
    return one.plan.predicted.most_rate_s if one.plan and one.plan.predicted else 0.0


def _good(one: Placement) -> float:
    return one.plan.predicted.good if one.plan and one.plan.predicted else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
