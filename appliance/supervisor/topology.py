"""How many engines there are, and what each is for: ``NpMd`` or ``Nb``, with tensor-parallel sizes."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from appliance.errors import ConfigError
from appliance.records import Role

_SPLIT: Final = re.compile(r"([0-9]+)p([0-9]+)d(?:@tp([0-9]+)(?::tp([0-9]+))?)?")
_AGGREGATED: Final = re.compile(r"([0-9]+)b(?:@tp([0-9]+))?")
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
    else:
        raise ConfigError(f"topology {layout!r} is not one: write NpMd or Nb, as in {_EXAMPLES}")
    _check(layout, groups)
    engines = [(role, size) for role, count, size in groups for _ in range(count)]
    return Topology(text, tuple(Place(f"e{number}", role, size) for number, (role, size) in enumerate(engines)))


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
