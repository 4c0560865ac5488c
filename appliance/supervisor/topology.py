"""How many engines there are, and what each is for: ``NpMd`` or ``Nb``, with tensor-parallel sizes."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from appliance.errors import ConfigError
from appliance.records import Role

_SPLIT: Final = re.compile(r"(\d+)p(\d+)d(?:@tp(\d+)(?::tp(\d+))?)?")
_AGGREGATED: Final = re.compile(r"(\d+)b(?:@tp(\d+))?")
_MOST_ENGINES: Final = 64
_EXAMPLES: Final = "1p1d, 2b, 2p1d@tp2:tp4 or 1b@tp8"


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
        prefill, decode = int(split[1]), int(split[2])
        sizes = int(split[3] or 1), int(split[4] or split[3] or 1)
        roles = [(Role.PREFILL, sizes[0])] * prefill + [(Role.DECODE, sizes[1])] * decode
        if not prefill or not decode:
            raise ConfigError(
                f"topology {layout!r} needs at least one prefill and one decode engine, as in {_EXAMPLES}"
            )
    elif both := _AGGREGATED.fullmatch(text):
        roles = [(Role.BOTH, int(both[2] or 1))] * int(both[1])
    else:
        raise ConfigError(f"topology {layout!r} is not one: write NpMd or Nb, as in {_EXAMPLES}")
    _check(layout, roles)
    return Topology(text, tuple(Place(f"e{number}", role, size) for number, (role, size) in enumerate(roles)))


def _check(layout: str, roles: list[tuple[Role, int]]) -> None:
    if not 0 < len(roles) <= _MOST_ENGINES:
        raise ConfigError(f"topology {layout!r} has {len(roles)} engines: 1 to {_MOST_ENGINES} are possible")
    if any(size < 1 for _, size in roles):
        raise ConfigError(f"topology {layout!r}: a tensor-parallel size is 1 or more")
