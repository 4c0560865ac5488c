"""Which of a machine's GPUs engines may be put on, and which of these belong together. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.errors import ConfigError
from appliance.records import Card, Inventory

SHARERS: Final = 2  # engines on one GPU, where there is no other
_MARGIN: Final = 0.08  # of a GPU's memory, that is left alone: as vLLM itself leaves it
_CROWDED: Final = 0.15  # of its memory, that others may have before a GPU counts as taken


def usable(inventory: Inventory) -> tuple[tuple[Card, ...], tuple[str, ...]]:
    """Those that engines may be put on, GPUs that belong together side by side; and why the others are none.

    GPUs that others have much of are left out where there are better ones. Of several kinds, the inventory's is taken, or that with
    the most memory in all.
    """
    why = {card.index: _barred(card) or crowd(card) for card in inventory.cards}
    if all(why.values()):
        why |= {card.index: None for card in inventory.cards if _barred(card) is None and may_take(card) > 0}
    why |= _of_other_kinds([card for card in inventory.cards if why[card.index] is None], inventory.kind)
    cards = sorted((card for card in inventory.cards if why[card.index] is None), key=_neighbourhood)
    left_out = (f"GPU {index}: {reason}" for index, reason in why.items() if reason is not None)
    return tuple(cards), (*left_out, *inventory.lost)


def other_kinds(inventory: Inventory) -> tuple[str, ...]:
    """Names of the GPUs that engines could be on as well, those with the most memory in all first."""
    cards, _ = usable(inventory)
    first = {card.name for card in cards}
    left = [card for card in inventory.cards if card.name not in first]
    if not left:
        return ()
    others = msgspec.structs.replace(inventory, cards=tuple(left), kind=None)
    found, _ = usable(others)
    if not found:
        return ()
    return (found[0].name, *other_kinds(others))


def _neighbourhood(card: Card) -> tuple[int, int, int]:
    """GPUs that belong together are next to each other in its order."""
    return card.island, -1 if card.numa is None else card.numa, card.index


def _barred(card: Card) -> str | None:
    """Why no engine can be on it."""
    if card.mig:
        return (
            "it is cut into parts (MIG), whose memory can't be shared with other engines; "
            f"nvidia-smi -i {card.index} -mig 0 makes it whole"
        )
    if card.compute == "prohibited":
        return f"its compute mode allows nobody; nvidia-smi -i {card.index} -c DEFAULT changes that"
    if card.compute == "exclusive":
        return (
            "its compute mode allows one process, and engines read each other's memory; "
            f"nvidia-smi -i {card.index} -c DEFAULT changes that"
        )
    if not card.memory_bytes:
        return "how much memory it has can't be read; nvidia-smi says more"
    return None


def crowd(card: Card) -> str | None:
    """Who else is on it, where that is more than can be left alone."""
    taken = share_taken(card)
    if taken <= _CROWDED:
        return None
    return f"{taken:.0%} of its memory is taken{by_others(card)}; end that, and it is used"


def by_others(card: Card) -> str:
    """Who is on it; empty where nobody says."""
    by = ", ".join(f"{one.name or 'pid'} {one.pid}" for one in card.others)
    return f" by {by}" if by else ""


def share_taken(card: Card) -> float:
    return 1 - card.free_bytes / card.memory_bytes


def _of_other_kinds(cards: Sequence[Card], wanted: str | None) -> dict[int, str]:
    """Engines hand KV over to their like, and what one does is predicted of the others: they are on GPUs of one kind."""
    kinds: dict[str, list[Card]] = {}
    for card in cards:
        kinds.setdefault(card.name, []).append(card)
    most = max(kinds, key=lambda kind: (kind == wanted, sum(card.memory_bytes for card in kinds[kind])), default="")
    return {
        card.index: f"it is of another kind ({card.name}) than those that engines are put on ({len(kinds[most])} × {most}); "
        f"CUDA_VISIBLE_DEVICES={','.join(str(one.index) for one in kinds[card.name])} puts them there instead"
        for card in cards
        if card.name != most
    }


def grouped(cards: Sequence[Card], size: int) -> list[tuple[Card, ...]]:
    """As many groups of so many GPUs as there are, each within an island; whole NUMA nodes first, and what is left across them."""
    left, found = list(cards), []
    while group := _nearest(left, size):
        found.append(group)
        left = [card for card in left if card not in group]
    return _in_order(found, cards)


def _nearest(cards: Sequence[Card], size: int, *, anywhere: bool = False) -> tuple[Card, ...]:
    """So many that are as near each other as can be: of one NUMA node, else of one island, else, ``anywhere``, of several. Empty: none.

    Of places with enough, the one with the fewest GPUs: so large ones stay whole for those who need them.
    """
    for place in _PLACES if anywhere else _PLACES[:2]:
        together: dict[tuple[int | None, ...], list[Card]] = {}
        for card in cards:
            together.setdefault(place(card), []).append(card)
        if enough := [there for there in together.values() if len(there) >= size]:
            return tuple(_side_by_side(min(enough, key=len), size))
    return ()


_PLACES: Final[tuple[Callable[[Card], tuple[int | None, ...]], ...]] = (
    lambda card: (card.island, card.numa),
    lambda card: (card.island,),
    lambda card: (card.numa,),
    lambda card: (),
)
"""From the nearest on; those of one NUMA node without NVLink come before those of several. Only the first two are within an island."""


def _side_by_side(cards: Sequence[Card], size: int) -> list[Card]:
    """Of as few NUMA nodes as can be, and below as few PCIe switches, the fullest first."""
    nodes, bridges = Counter(card.numa for card in cards), Counter((card.numa, card.bridge) for card in cards)
    ordered = sorted(
        cards,
        key=lambda card: (
            -nodes[card.numa],
            _neighbourhood(card)[:2],
            -bridges[card.numa, card.bridge],
            card.bridge,
            card.index,
        ),
    )
    return sorted(ordered[:size], key=_neighbourhood)


def _in_order(groups: Sequence[tuple[Card, ...]], cards: Sequence[Card]) -> list[tuple[Card, ...]]:
    return sorted(groups, key=lambda group: cards.index(group[0]))


def some(inventory: Inventory) -> tuple[tuple[Card, ...], tuple[str, ...]]:
    """As ``usable``, but raises ``ConfigError`` where there is none."""
    cards, unused = usable(inventory)
    if not cards:
        raise ConfigError("no GPU can be used: " + ("; ".join(unused) or inventory.trouble or "there is none"))
    return cards, unused


def dealt(cards: Sequence[Card], sizes: Sequence[int], *, anywhere: bool = False) -> list[tuple[Card, ...]] | None:
    """GPUs for engines of these sizes, the large ones first, each within an island, or ``anywhere`` where there is none that is large
    enough; two share one where there are too few. None: there are not enough.
    """
    if len(cards) < len(sizes) <= SHARERS * len(cards) and set(sizes) == {1}:
        return [(cards[number % len(cards)],) for number in range(len(sizes))]
    left, found = list(cards), dict[int, list[tuple[Card, ...]]]()
    for size in sorted(sizes, reverse=True):
        group = _nearest(left, size, anywhere=anywhere)
        if not group:
            return None
        found.setdefault(size, []).append(group)
        left = [card for card in left if card not in group]
    waiting = {size: iter(_in_order(groups, cards)) for size, groups in found.items()}
    return [next(waiting[size]) for size in sizes]


def crosses(group: Sequence[Card]) -> bool:
    """Whether NVLink does not connect all of them."""
    return len({card.island for card in group}) > 1


def too_few(cards: Sequence[Card], sizes: Sequence[int]) -> str:
    return f"takes {sum(sizes)} GPUs, and {len(cards)} can be used"


def largest(cards: Sequence[Card]) -> int:
    """Of the islands."""
    return max(sum(1 for _ in island) for _, island in itertools.groupby(cards, key=lambda card: card.island))


def may_take(card: Card) -> float:
    """What engines may have of its memory."""
    return min((1 - _MARGIN) * card.memory_bytes, card.free_bytes - _MARGIN / 4 * card.memory_bytes)


def fraction(group: Sequence[Card]) -> float:
    """That an engine may have of each of its GPUs' memory: vLLM takes the same of all of them."""
    return min(may_take(card) / card.memory_bytes for card in group)


def each_may_take(group: Sequence[Card], share: float | None = None) -> float:
    """Bytes that it has on the smallest of them then; ``share``: that it is told to take, of which there is no more than is free."""
    if share is not None:
        return min(share * min(card.memory_bytes for card in group), *(card.free_bytes for card in group))
    return fraction(group) * min(card.memory_bytes for card in group)


def are_far(groups: Sequence[tuple[Card, ...]]) -> bool:
    """Whether engines have no NVLink between them."""
    return len({card.island for group in groups for card in group}) > 1


def gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
