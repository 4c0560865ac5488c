"""Engines of a layout on their GPUs: what each may have of them, what it has to see of others', and what its owner should know. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from appliance.planner.cards import SHARERS, crosses, crowd, fraction, share_taken, usable
from appliance.planner.node import Settings
from appliance.planner.room import Room
from appliance.planner.wanted import Seat
from appliance.records import Card, Inventory, Role

Group = tuple[Card, ...]


def sharers(groups: Sequence[Group]) -> Counter[str]:
    """Engines on each GPU."""
    return Counter(card.uuid for group in groups for card in group)


def seats(
    roles: Sequence[Role],
    groups: Sequence[Group],
    rooms: Sequence[Room | None],
    usual: Mapping[Role, Settings],
    inventory: Inventory,
) -> tuple[Seat, ...]:
    """``rooms``: None where nothing is known of the model, which then has the ``usual`` settings."""
    engines = sharers(groups)
    return tuple(
        Seat(
            name=f"e{number}",
            role=role,
            gpus=tuple(card.uuid for card in group),
            memory_fraction=fraction(group) / max(engines[card.uuid] for card in group),
            settings=room.settings if room else usual[role],
            kv_bytes=int(room.kv_bytes) if room and any(engines[card.uuid] > 1 for card in group) else None,
            sees=_unreadable(group, groups, inventory),
        )
        for number, (role, group, room) in enumerate(zip(roles, groups, rooms, strict=True))
    )


def remarks(
    seated: Sequence[Seat], groups: Sequence[Group], usual: Mapping[Role, Settings], inventory: Inventory
) -> tuple[str, ...]:
    """What its owner should know."""
    cards = {card.uuid: card for group in groups for card in group}
    shared = [cards[gpu].index for gpu, engines in sharers(groups).items() if engines > 1]
    idle = len(usable(inventory)[0]) - len(cards)
    return (
        *(f"{SHARERS} engines share GPU {index}, half of what may be had of its memory each" for index in shared),
        *_apart(seated, cards),
        *(_over_pcie(seat, group) for seat, group in zip(seated, groups, strict=True) if crosses(group)),
        *_smaller(seated, usual),
        *([f"{idle} GPU{'s' if idle > 1 else ''} without an engine"] if idle > 0 else []),
        *(f"{share_taken(card):.0%} of GPU {card.index} is taken by others" for card in cards.values() if crowd(card)),
    )


def _apart(seated: Sequence[Seat], cards: Mapping[str, Card]) -> list[str]:
    staged = sorted({cards[gpu].index for seat in seated for gpu in (*seat.sees, *(seat.gpus if seat.sees else ()))})
    if not staged or all(seat.role is Role.BOTH for seat in seated):
        return []
    return [
        f"GPUs {', '.join(map(str, staged))} can't all read each other's memory (nvidia-smi topo -p2p r): "
        "KV goes through the host's memory, which is slower"
    ]


def _over_pcie(seat: Seat, group: Group) -> str:
    indexes = ", ".join(str(card.index) for card in group)
    return f"NVLink does not connect all of {seat.name}'s GPUs ({indexes}): its ranks meet over PCIe, which is slower and not predicted"


def _smaller(seated: Sequence[Seat], usual: Mapping[Role, Settings]) -> list[str]:
    budgets = {
        seat.role: seat.settings.token_budget
        for seat in seated
        if seat.settings.token_budget < usual[seat.role].token_budget
    }
    return [
        f"{role.value} steps of {budget:,} tokens: more would leave too little room for KV"
        for role, budget in budgets.items()
    ]


def _unreadable(group: Group, groups: Sequence[Group], inventory: Inventory) -> tuple[str, ...]:
    """Other engines' GPUs whose memory these can't read. Whoever sees both can copy by way of the host's memory."""
    pairs = itertools.product((card for there in groups for card in there if card not in group), group)
    apart = [
        there.uuid
        for there, here in pairs
        if (min(here.uuid, there.uuid), max(here.uuid, there.uuid)) in inventory.apart
    ]
    return tuple(dict.fromkeys(apart))
