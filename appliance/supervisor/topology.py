"""How many engines there are, and what each is for: ``NpMd`` or ``Nb``, with tensor-parallel sizes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from appliance.errors import ConfigError
from appliance.records import Role

_SPLIT: Final = re.compile(r"([0-9]{1,4})p([0-9]{1,4})d(?:@tp([0-9]{1,4})(?::tp([0-9]{1,4}))?)?")
_AGGREGATED: Final = re.compile(r"([0-9]{1,4})b(?:@tp([0-9]{1,4}))?")
_STAGED: Final = re.compile(r"[0-9pdb]+@.*pp ?[0-9]+.*")
_SHOWN: Final = 80  # characters of what is none
_MOST_ENGINES: Final = 64
_MOST_RANKS: Final = 64
_EXAMPLES: Final = "1p1d, 2b, 2p1d@tp2:tp4 or 1b@tp8"


Groups = tuple[tuple[Role, int, int], ...]  # role, engines, tensor-parallel size


class Place(msgspec.Struct, frozen=True):
    """One engine of a topology."""

    name: str
    role: Role
    tensor_parallel: int = 1


class Topology(msgspec.Struct, frozen=True):
    """Engines in order: prefill, then decode."""

    layout: str
    places: tuple[Place, ...]


def parse(layout: str) -> Topology:
    """Raises ``ConfigError`` that says what would be right."""
    text = layout.strip().lower()
    if split := _SPLIT.fullmatch(text):
        groups = _split(layout, int(split[1]), int(split[2]), int(split[3] or 1), int(split[4] or split[3] or 1))
    elif both := _AGGREGATED.fullmatch(text):
        groups = ((Role.BOTH, int(both[1]), int(both[2] or 1)),)
    elif _STAGED.fullmatch(text):
        raise ConfigError(
            f"topology {layout[:_SHOWN]!r}: engines over several pipeline stages (pp) are not supported: give each as many GPUs "
            "by tensor parallelism (tp), as in 1p1d@tp2"
        )
    else:
        raise ConfigError(f"topology {layout[:_SHOWN]!r} is not one: write NpMd or Nb, as in {_EXAMPLES}")
    _check(layout, groups)
    engines = [(role, size) for role, count, size in groups for _ in range(count)]
    return Topology(text, tuple(Place(f"e{number}", role, size) for number, (role, size) in enumerate(engines)))


def described(places: Sequence[Place]) -> str:
    """The layout of engines as they are used now.

    As no configuration can say: of both kinds at once, ``1p1d2b``; of several sizes in one role, ``3b@tp1+tp4``.
    """
    counts = Counter(place.role for place in places)
    letters = ((Role.PREFILL, "p"), (Role.DECODE, "d"), (Role.BOTH, "b"))
    layout = "".join(f"{counts[role]}{letter}" for role, letter in letters if counts[role])
    sizes = [sorted({place.tensor_parallel for place in places if place.role is role}) for role, _ in letters]
    said = ["+".join(f"tp{size}" for size in found) for found in sizes if found]
    if set(said) == {"tp1"}:
        return layout
    return f"{layout}@{said[0] if len(set(said)) == 1 else ':'.join(said)}"


def is_of(places: Sequence[Place], layout: str) -> bool:
    """Whether a layout is of these engines, and only their roles may be others. Raises ``ConfigError`` for what is none."""
    return Counter(place.tensor_parallel for place in places) == Counter(
        place.tensor_parallel for place in parse(layout).places
    )


def relabelled(places: Sequence[Place], layout: str, serving: Collection[str] = ()) -> dict[str, Role]:
    """Each engine's role in a layout of the same engines, changing as few as can be.

    Engines that are ``serving`` have the first choice, so that a role is not left to one that is down. Raises ``ConfigError`` for a
    layout that takes other engines.
    """
    if not is_of(places, layout):
        sizes = Counter(place.tensor_parallel for place in places)
        there = " and ".join(f"{count} of {size} GPUs" if size > 1 else str(count) for size, count in sizes.items())
        raise ConfigError(
            f"topology {layout!r} takes other engines than there are ({there}): write it into the configuration "
            f"([topology] layout) and start the appliance again, or end it and pd-appliance serve --topology {layout}"
        )
    wanted = Counter((place.role, place.tensor_parallel) for place in parse(layout).places)
    roles: dict[str, Role] = {}
    for place in sorted(
        places, key=lambda place: (wanted[place.role, place.tensor_parallel] == 0, place.name not in serving)
    ):
        role = place.role if wanted[place.role, place.tensor_parallel] else _lacking(wanted, place.tensor_parallel)
        wanted[role, place.tensor_parallel] -= 1
        roles[place.name] = role
    return {place.name: roles[place.name] for place in places}


def _lacking(wanted: Counter[tuple[Role, int]], size: int) -> Role:
    return next(role for (role, of), count in wanted.items() if of == size and count > 0)


def _split(layout: str, prefill: int, decode: int, prefill_size: int, decode_size: int) -> Groups:
    if not prefill or not decode:
        raise ConfigError(f"topology {layout!r} needs at least one prefill and one decode engine, as in {_EXAMPLES}")
    return (Role.PREFILL, prefill, prefill_size), (Role.DECODE, decode, decode_size)


def _check(layout: str, groups: Groups) -> None:
    count = sum(count for _, count, _ in groups)
    if not 0 < count <= _MOST_ENGINES:
        raise ConfigError(f"topology {layout!r} has {count} engines: 1 to {_MOST_ENGINES} are possible")
    if not all(0 < size <= _MOST_RANKS for *_, size in groups):
        raise ConfigError(f"topology {layout!r}: a tensor-parallel size is from 1 to {_MOST_RANKS}")
