"""Where engines could be on a machine's GPUs, before there is a node: every layout, what it would bring, and which to take. Pure.

A layout is infeasible where its engines find no GPUs that belong together, where a model can't be shared out, or where weights and the KV
of one request do not fit; each says why. What is left is predicted as a running node's layouts are (``split.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from appliance.errors import ConfigError
from appliance.planner import split
from appliance.planner.cards import (
    are_far,
    by_others,
    crosses,
    crowd,
    dealt,
    each_may_take,
    gib,
    grouped,
    largest,
    may_take,
    share_taken,
    some,
    too_few,
)
from appliance.planner.choice import choose
from appliance.planner.node import Engines
from appliance.planner.room import Room, Short, room, roomiest
from appliance.planner.seats import Group, remarks, seats, sharers
from appliance.planner.wanted import SETTINGS, Placed, Placement, Wanted
from appliance.records import Card, Inventory, Plan, Role

_SIZES: Final = (1, 2, 4, 8, 16)


class Form(msgspec.Struct, frozen=True):
    """Engines of a layout: how many prefill and decode, of how many GPUs each; or do both, where none prefills."""

    prefill: int
    decode: int
    prefill_size: int
    decode_size: int

    @property
    def roles(self) -> list[Role]:
        if not self.prefill:
            return [Role.BOTH] * self.decode
        return [Role.PREFILL] * self.prefill + [Role.DECODE] * self.decode

    @property
    def sizes(self) -> list[int]:
        return [self.prefill_size] * self.prefill + [self.decode_size] * self.decode

    @property
    def layout(self) -> str:
        return split.named(self.prefill, self.decode, self.prefill_size, self.decode_size)

    @property
    def largest(self) -> int:
        return max(self.sizes)


def place(inventory: Inventory, wanted: Wanted) -> Placed:
    """Every layout of the machine's GPUs. Raises ``ConfigError`` where there is no GPU to use.

    Engines of several GPUs are put where NVLink connects these; only where nothing else fits over PCIe, too, and then unpredicted.
    """
    cards, unused = some(inventory)
    if len(cards) == 1:  # an engine of its own, or two that share it
        found = tuple(
            _on(form, [cards] * len(form.roles), inventory, wanted) for form in (Form(1, 1, 1, 1), Form(0, 1, 1, 1))
        )
    else:
        found = tuple(_placement(form, cards, inventory, wanted) for form in (*_alike(cards), *_unlike(cards)))
    if len(cards) > 1 and not any(one.feasible for one in found):
        found = _over_pcie(found, cards, inventory, wanted)
    best, why = choose(found, wanted)
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
    sizes, roles = [size for _, size in places], [role for role, _ in places]
    groups = dealt(cards, sizes) or dealt(cards, sizes, anywhere=True)
    if groups is None:
        raise ConfigError(
            f"topology {layout!r} {too_few(cards, sizes)}" + "".join(f"; not used: {one}" for one in unused)
        )
    rooms = _rooms_asked(roles, groups, wanted)
    if isinstance(rooms, _Full):
        raise ConfigError(f"topology {layout!r} does not fit: {rooms.why}")
    usual = wanted.settings if wanted else SETTINGS
    found = seats(roles, groups, rooms, usual, inventory)
    known = [room for room in rooms if room is not None]
    return Placement(
        layout=layout,
        feasible=True,
        reason="it is what was asked for",
        seats=found,
        tensor_parallel=max(sizes),
        kv_tokens=min((room.tokens for room in known), default=None),
        requests=min((room.requests for room in known), default=None),
        remarks=remarks(found, groups, usual, inventory),
        staged=any(seat.sees for seat in found),
    )


# ---- which layouts there are


def _alike(cards: Sequence[Card]) -> Iterable[Form]:
    """Of as many engines of one size as find GPUs, or would, were these connected."""
    for size in (size for size in _SIZES if size <= len(cards)):
        count = len(grouped(cards, size)) or len(cards) // size
        yield from (Form(prefill, count - prefill, size, size) for prefill in range(1, count))
        yield Form(0, count, size, size)


def _unlike(cards: Sequence[Card]) -> Iterable[Form]:
    """Of two sizes: of those that find GPUs which NVLink connects, the ones that leave the fewest idle."""
    for sizes in itertools.permutations(_SIZES, 2):
        forms = sorted(_filling(len(cards), *sizes), key=lambda form: -sum(form.sizes))
        for _, alike in itertools.groupby(forms, key=lambda form: sum(form.sizes)):
            if found := [form for form in alike if dealt(cards, form.sizes) is not None]:
                yield from found
                break


def _filling(count: int, prefill_size: int, decode_size: int) -> Iterable[Form]:
    """For each number of prefill engines, as many that decode as there are GPUs left for."""
    for prefill in range(1, (count - decode_size) // prefill_size + 1):
        yield Form(prefill, (count - prefill * prefill_size) // decode_size, prefill_size, decode_size)


def _over_pcie(
    found: Sequence[Placement], cards: Sequence[Card], inventory: Inventory, wanted: Wanted
) -> tuple[Placement, ...]:
    """The same, with engines of several GPUs wherever these are."""
    forms = {form.layout: form for form in _alike(cards) if form.largest > 1}
    return tuple(
        _placement(forms[one.layout], cards, inventory, wanted, anywhere=True) if one.layout in forms else one
        for one in found
    )


# ---- one of them


def _placement(
    form: Form, cards: Sequence[Card], inventory: Inventory, wanted: Wanted, *, anywhere: bool = False
) -> Placement:
    groups = dealt(cards, form.sizes, anywhere=anywhere)
    if groups is None:
        return _none(
            form,
            f"tensor-parallel engines need {form.largest} GPUs that are connected by NVLink, and at most {largest(cards)} are; "
            f"--topology {form.layout} puts them on others, over PCIe",
        )
    return _on(form, groups, inventory, wanted)


def _on(form: Form, groups: Sequence[Group], inventory: Inventory, wanted: Wanted) -> Placement:
    rooms = _rooms(form.roles, groups, wanted)
    if isinstance(rooms, _Full):
        return _none(form, rooms.why, rooms.fits)
    unknown = _unpredictable(groups)
    plan = None if unknown else _plan(form, groups, rooms, wanted)
    found = seats(form.roles, groups, rooms, wanted.settings, inventory)
    least = min(rooms[form.prefill :], key=lambda room: room.tokens)
    return Placement(
        layout=form.layout,
        feasible=True,
        reason=(plan.reason if plan else unknown) or "meets the targets",
        seats=found,
        tensor_parallel=form.largest,
        kv_tokens=least.tokens,
        requests=least.requests,
        plan=plan,
        remarks=remarks(found, groups, wanted.settings, inventory),
        staged=bool(form.prefill) and any(seat.sees for seat in found),
    )


def _unpredictable(groups: Sequence[Group]) -> str | None:
    """Why the cost model says nothing of such engines."""
    if max(sharers(groups).values()) > 1:
        return "two engines that share a GPU are not predicted"
    return "engines whose ranks meet over PCIe are not predicted" if any(map(crosses, groups)) else None


def _none(form: Form, reason: str, fits: int = 0) -> Placement:
    return Placement(layout=form.layout, feasible=False, reason=reason, tensor_parallel=form.largest, fits=fits)


def _plan(form: Form, groups: Sequence[Group], rooms: Sequence[Room], wanted: Wanted) -> Plan:
    """Predicted."""
    decoding = _engines(form.decode, form.decode_size, rooms[form.prefill :], wanted)
    if not form.prefill:
        return split.plan(wanted.demand, decoding, wanted.targets, 0, 0)
    times = wanted.times(min(form.prefill_size, form.decode_size))  # ranks copy side by side: as many as both have
    copy = times.far if are_far(groups) and times.far else times.copy
    prefilling = _engines(form.prefill, form.prefill_size, rooms[: form.prefill], wanted)
    return split.between(
        wanted.demand, prefilling, msgspec.structs.replace(decoding, copy=copy), wanted.targets, form.layout
    )


def _engines(count: int, size: int, rooms: Sequence[Room], wanted: Wanted) -> Engines:
    """As the planner knows them. Its KV counts tokens of requests that are as long as the demand's are."""
    room = min(rooms, key=lambda room: room.kv_bytes)
    return Engines(
        count=count,
        step=wanted.times(size).step,
        kv_tokens=max(room.tokens, int(room.requests * wanted.length)),
        settings=dict.fromkeys(Role, room.settings),
        tensor_parallel=size,
    )


# ---- room for them


class _Full(msgspec.Struct, frozen=True):
    """There is no room. ``fits``: tokens of the longest request for which there would be."""

    why: str
    fits: int = 0


def _rooms(roles: Sequence[Role], groups: Sequence[Group], wanted: Wanted) -> list[Room] | _Full:
    """Or why there is none."""
    engines, rooms = sharers(groups), []
    try:
        for role, group in zip(roles, groups, strict=True):
            there_bytes = each_may_take(group, wanted.share) / max(engines[card.uuid] for card in group)
            settings = wanted.settings[role]
            reckon = room if role in wanted.firm else roomiest
            found = reckon(wanted.model, there_bytes, len(group), settings, wanted.context, wanted.length)
            if isinstance(found, Short):
                return _Full(_why_short(found, group, _named(group, groups), there_bytes, wanted.context), found.fits)
            rooms.append(found)
    except ConfigError as error:
        return _Full(str(error))
    return rooms


def _rooms_asked(
    roles: Sequence[Role], groups: Sequence[Group], wanted: Wanted | None
) -> Sequence[Room | None] | _Full:
    """None for each where nothing is known of the model."""
    if wanted is not None:
        return _rooms(roles, groups, wanted)
    if max(sharers(groups).values()) > 1:
        return _Full(
            "two engines can share a GPU only where the model's config.json says how much memory each needs for what"
        )
    return [None] * len(groups)


def _named(group: Group, groups: Sequence[Group]) -> str:
    """The GPU that has the least, if it is not like all others."""
    several = {card.uuid for there in groups for card in there}
    alike = {may_take(card) for there in groups for card in there}
    return "each GPU" if len(several) > 1 and len(alike) == 1 else f"GPU {min(group, key=may_take).index}"


def _why_short(short: Short, group: Group, named: str, there_bytes: float, context: int) -> str:
    size, budget = len(group), short.settings.token_budget
    has = f"{named} has {gib(there_bytes)} for an engine{_taken(group)}"
    weights = f"weights take {gib(short.weight_bytes)}" + (f" of each of {size} GPUs" if size > 1 else "")
    steps = f"{gib(short.working_bytes)} for steps of {budget:,} tokens, libraries and CUDA graphs"
    if not short.fits:
        return f"{has}, and {weights}, besides {steps}: more GPUs per engine, or fewer bits per weight, would do"
    return (
        f"{has} and {weights}, besides {steps}: the KV of one request of {context:,} tokens takes {gib(short.longest_bytes)}, and "
        f"{gib(short.kv_bytes)} are left; requests of up to {short.fits:,} tokens would fit "
        f"(--context {short.fits}, or --max-model-len in [engine] args), or more GPUs per engine would do"
    )


def _taken(group: Group) -> str:
    """What others have of it, and who these are."""
    told = [f"{share_taken(card):.0%} of GPU {card.index} is taken{by_others(card)}" for card in group if crowd(card)]
    return f" ({'; '.join(told)}: ending that leaves more)" if told else ""
