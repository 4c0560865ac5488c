"""Where engines could be on a machine's GPUs, before there is a node: every layout, what it would bring, and which to take. Pure.

A layout is infeasible where its engines find no GPUs that belong together, where a model's heads can't be shared out, or where weights and
the KV of one request do not fit; each says why. What is left is predicted as a running node's layouts are (``split.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from appliance.errors import ConfigError
from appliance.planner import split
from appliance.planner.node import CopyTime, Engines, Settings, StepTime, Targets
from appliance.records import Card, Demand, Inventory, Plan, Role

_MARGIN: Final = 0.10  # of a GPU's memory, that is left alone
_CROWDED: Final = 0.15  # of its memory, that others may have before a GPU counts as taken
_SIZES: Final = (1, 2, 4, 8, 16)
_SHARERS: Final = 2  # engines on one GPU, where there is no other

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


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. ``best`` None: none is feasible."""

    placements: tuple[Placement, ...]
    best: str | None
    why: str
    unused: tuple[str, ...] = ()  # GPUs that no layout uses, and why not


def place(inventory: Inventory, wanted: Wanted) -> Placed:
    """Every layout of the machine's GPUs. Raises ``ConfigError`` where there is no GPU to use."""
    cards, unused = usable(inventory)
    if not cards:
        raise ConfigError("no GPU can be used: " + ("; ".join(unused) or "there is none"))
    if len(cards) == 1:
        found = _on_one(cards[0], wanted)
    else:
        found = tuple(
            placement for size in _SIZES if size <= len(cards) for placement in _of_size(cards, size, inventory, wanted)
        )
    best, why = _choose(found, wanted.demand)
    return Placed(placements=found, best=best.layout if best else None, why=why, unused=unused)


# ---- which GPUs


def usable(inventory: Inventory) -> tuple[tuple[Card, ...], tuple[str, ...]]:
    """Those that engines may be put on, GPUs that belong together side by side; and why the others are none."""
    refused = [(card, _why_not(card)) for card in inventory.cards]
    cards = sorted((card for card, why in refused if why is None), key=_neighbourhood)
    return tuple(cards), tuple(f"GPU {card.index}: {why}" for card, why in refused if why is not None)


def _neighbourhood(card: Card) -> tuple[int, int, int]:
    return card.island, -1 if card.numa is None else card.numa, card.index


def _why_not(card: Card) -> str | None:
    if card.mig:
        return "it is cut into parts (MIG), whose memory can't be shared with other engines; nvidia-smi -mig 0 makes it whole"
    if card.compute == "prohibited":
        return "its compute mode allows nobody; nvidia-smi -c DEFAULT changes that"
    if card.compute == "exclusive":
        return "its compute mode allows one process, and engines read each other's memory; nvidia-smi -c DEFAULT changes that"
    taken = 1 - card.free_bytes / card.memory_bytes
    if taken > _CROWDED:
        by = ", ".join(f"{one.name or 'pid'} {one.pid}" for one in card.others)
        return f"{taken:.0%} of its memory is taken{f' by {by}' if by else ''}; end that, or name the GPUs to be used"
    return None


def _groups(cards: Sequence[Card], size: int) -> list[tuple[Card, ...]]:
    """As many groups of so many GPUs as there are, each within an island; NUMA nodes are kept together as far as that goes."""
    groups = []
    for _, island in itertools.groupby(cards, key=lambda card: card.island):
        there = list(island)
        groups += [tuple(there[at : at + size]) for at in range(0, len(there) - size + 1, size)]
    return groups


# ---- layouts


def _of_size(cards: Sequence[Card], size: int, inventory: Inventory, wanted: Wanted) -> tuple[Placement, ...]:
    groups = _groups(cards, size)
    count = len(cards) // size
    layouts = [split.name(*pair, _named(count, size)) for pair in _pairs(count)]
    if len(groups) < count:
        largest = max(sum(1 for _ in island) for _, island in itertools.groupby(cards, key=lambda card: card.island))
        reason = f"tensor-parallel engines need {size} GPUs that are connected by NVLink, and at most {largest} are"
        return tuple(_none(layout, size, reason) for layout in layouts)
    try:
        room = _room(groups, size, wanted)
    except ConfigError as error:
        return tuple(_none(layout, size, str(error)) for layout in layouts)
    if isinstance(room, str):
        return tuple(_none(layout, size, room) for layout in layouts)
    engines = _engines(count, size, room, wanted)
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
    model, least = wanted.model, min((card for group in groups for card in group), key=_may_take)
    weights = model.weight_bytes(size)
    kv_bytes = _may_take(least) / sharers - wanted.reserve_bytes - weights
    has = f"GPU {least.index} has {_gib(_may_take(least) / sharers)} for an engine"
    needs = f"weights take {_gib(weights)} of each of {size} GPUs" if size > 1 else f"weights take {_gib(weights)}"
    if kv_bytes <= 0:
        return (
            f"{has}, and {needs}, besides {_gib(wanted.reserve_bytes)} for activations and graphs: "
            "more GPUs per engine, or fewer bits per weight, would do"
        )
    longest = model.kv_bytes(wanted.context, size)
    if longest > kv_bytes:
        return (
            f"{has} and {needs}: the KV of one request of {wanted.context:,} tokens takes {_gib(longest)}, and {_gib(kv_bytes)} are left; "
            "a shorter --context, or more GPUs per engine, would do"
        )
    mean = _mean(wanted.demand.prompt_tokens) + _mean(wanted.demand.output_tokens) / 2
    return Room(
        kv_bytes=kv_bytes,
        tokens=int(kv_bytes / longest * wanted.context),
        requests=kv_bytes / model.kv_bytes(max(1, round(mean)), size),
    )


def _may_take(card: Card) -> float:
    """What engines may have of its memory."""
    return min((1 - _MARGIN) * card.memory_bytes, card.free_bytes - _MARGIN / 4 * card.memory_bytes)


def _engines(count: int, size: int, room: Room, wanted: Wanted) -> Engines:
    """As the planner knows them. Its KV counts tokens of requests that are as long as the demand's are."""
    mean = _mean(wanted.demand.prompt_tokens) + _mean(wanted.demand.output_tokens) / 2
    times = wanted.times(size)
    return Engines(
        count=count,
        step=times.step,
        copy=times.copy,
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
    apart = _apart(roles, groups, inventory)
    if apart is not None:
        return _none(layout, engines.tensor_parallel, apart)
    plan = split.plan(wanted.demand, engines, wanted.targets, *pair)
    idle = sum(1 for card in inventory.cards) - engines.count * engines.tensor_parallel
    return Placement(
        layout=layout,
        feasible=True,
        reason=plan.reason or "meets the targets",
        seats=tuple(
            Seat(
                name=f"e{number}",
                role=role,
                gpus=tuple(card.uuid for card in group),
                memory_fraction=min(_may_take(card) / card.memory_bytes for card in group),
            )
            for number, (role, group) in enumerate(zip(roles, groups, strict=False))
        ),
        tensor_parallel=engines.tensor_parallel,
        kv_tokens=room.tokens,
        requests=room.requests,
        plan=plan,
        remarks=(f"{idle} GPU{'s' if idle > 1 else ''} without an engine",) if idle else (),
    )


def _apart(roles: Sequence[Role], groups: Sequence[tuple[Card, ...]], inventory: Inventory) -> str | None:
    """Engines that hand KV over read each other's memory."""
    seats = list(zip(roles, groups, strict=False))
    for (one, first), (other, second) in itertools.product(seats, seats):
        if one is Role.PREFILL and other is Role.DECODE:
            for here, there in itertools.product(first, second):
                if (min(here.uuid, there.uuid), max(here.uuid, there.uuid)) in inventory.apart:
                    return (
                        f"GPU {there.index} can't read the memory of GPU {here.index}, so no KV gets there; "
                        "nvidia-smi topo -p2p r shows it"
                    )
    return None


def _on_one(card: Card, wanted: Wanted) -> tuple[Placement, ...]:
    """One GPU: an engine of its own, or two that share it."""
    return tuple(_shared(card, wanted, roles) for roles in ((Role.PREFILL, Role.DECODE), (Role.BOTH,)))


def _shared(card: Card, wanted: Wanted, roles: tuple[Role, ...]) -> Placement:
    layout = "1p1d" if len(roles) == _SHARERS else "1b"
    room = _room([(card,)], 1, wanted, len(roles))
    if isinstance(room, str):
        return _none(layout, 1, room)
    alone = len(roles) == 1
    plan = split.plan(wanted.demand, _engines(1, 1, room, wanted), wanted.targets, 0, 0) if alone else None
    return Placement(
        layout=layout,
        feasible=True,
        reason=(plan.reason or "meets the targets") if plan else "two engines that share a GPU are not predicted",
        seats=tuple(
            Seat(
                name=f"e{number}",
                role=role,
                gpus=(card.uuid,),
                memory_fraction=_may_take(card) / card.memory_bytes / len(roles),
            )
            for number, role in enumerate(roles)
        ),
        tensor_parallel=1,
        kv_tokens=room.tokens,
        requests=room.requests,
        plan=plan,
        remarks=() if alone else ("both engines share GPU " + str(card.index),),
    )


# ---- which to take


def _choose(found: Sequence[Placement], demand: Demand) -> tuple[Placement | None, str]:
    """That with the highest rate within the targets; of equals, the one with fewer engines."""
    feasible = [one for one in found if one.feasible]
    if not feasible:
        return None, "no layout is feasible: the reasons say what stands against each"
    known = [one for one in feasible if one.plan is not None and one.plan.predicted is not None]
    if not known:
        return feasible[0], "nothing can be predicted for any: the first that fits"
    best = max(known, key=_rate_s)
    rate_s = _rate_s(best)
    if rate_s <= 0:
        return max(
            known, key=_good
        ), "no layout meets the targets at any rate: the one with the most requests within them"
    enough = "more than" if rate_s > demand.rate_s else "less than"
    why = f"it meets the targets up to {rate_s:.3g} requests/s (predicted), the highest of all"
    return best, f"{why}, and {enough} the {demand.rate_s:g} that are asked for"


def _rate_s(one: Placement) -> float:
    return one.plan.predicted.most_rate_s if one.plan and one.plan.predicted else 0.0


def _good(one: Placement) -> float:
    return one.plan.predicted.good if one.plan and one.plan.predicted else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
