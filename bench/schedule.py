"""Which faults happen when, and to whom: a pure function of the seed.

Faults that end an engine come in blocks with one victim each, so that every other engine has a quiet time that is longer than the
supervisor's measure of a stable one. What concerns the whole node comes in between.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import msgspec

BLOCK_S: Final = 80.0
_ENGINE_TIMES_S: Final = (4.0, 30.0, 56.0)  # in a block
_NODE_TIMES_S: Final = (19.0, 45.0, 70.0)
_JITTER_S: Final = 3.0

ENGINE_FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "kill": ("API", "EngineCore", "resource_tracker"),
    "stop": ("API", "EngineCore", "API 1 s", "EngineCore 1 s", "EngineCore 4 s", "all 3 s"),
    "oom": ("EngineCore data", "API data"),
    "twin": ("leaves", "garbage"),
}
"""What befalls one engine, by group: the variants."""
NODE_FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "forkserver": ("kill", "stop 3 s", "kill with an engine"),
    "fds": ("limit", "connections", "limit and a kill"),
    "disk": ("runtime full", "runtime read-only"),
    "channel": ("garbage", "truncated", "version", "huge", "silence", "foreign", "early", "flood"),
    "kv": ("garbage", "truncated", "version", "silence", "closes", "callers"),
    "clients": ("leave", "stall"),
}
"""What befalls the node."""
GROUPS: Final = (*ENGINE_FAULTS, *NODE_FAULTS)


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. ``victim`` is an engine; a fault of the node's may need one, too."""

    at_s: float
    group: str
    variant: str
    victim: str

    @property
    def kind(self) -> str:
        return f"{self.group}: {self.variant}"


def schedule(seed: int, duration_s: float, engines: Sequence[str], only: Sequence[str] = GROUPS) -> list[Planned]:
    """Faults in order of time; none in the last 15 seconds.

    ``only``: groups (``fds``), kinds (``fds: limit``), or what is to be left out of all (``-fds``). Raises ``ValueError`` for one that
    there isn't.
    """
    kinds = _kinds(only)
    rng = random.Random(f"faults {seed}")
    of_engines, of_node = (_Deck(_variants(faults, kinds), rng) for faults in (ENGINE_FAULTS, NODE_FAULTS))
    first, found = rng.randrange(len(engines)), list[Planned]()
    for block in range(int(duration_s // BLOCK_S) + 1):
        victim = engines[(first + block) % len(engines)]
        for deck, times in ((of_engines, _ENGINE_TIMES_S), (of_node, _NODE_TIMES_S)):
            for time_s in times if deck else ():
                at_s = block * BLOCK_S + time_s + rng.uniform(0, _JITTER_S)
                group, variant = deck.draw()
                found.append(Planned(at_s=round(at_s, 2), group=group, variant=variant, victim=victim))
    return sorted((one for one in found if one.at_s <= duration_s - 15), key=lambda one: one.at_s)


def _kinds(only: Sequence[str]) -> set[str]:
    """As ``group: variant``."""
    every = {
        f"{group}: {variant}" for some in (ENGINE_FAULTS, NODE_FAULTS) for group in some for variant in some[group]
    }
    chosen = {name: {kind for kind in every if name.lstrip("-") in (kind, kind.partition(":")[0])} for name in only}
    if unknown := sorted(name for name, kinds in chosen.items() if not kinds):
        raise ValueError(f"no such faults: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    wanted = {kind for name, kinds in chosen.items() if not name.startswith("-") for kind in kinds}
    unwanted = {kind for name, kinds in chosen.items() if name.startswith("-") for kind in kinds}
    return (wanted or every) - unwanted


def _variants(faults: dict[str, tuple[str, ...]], kinds: set[str]) -> list[tuple[str, str]]:
    every = ((group, variant) for group, variants in faults.items() for variant in variants)
    return [one for one in every if ": ".join(one) in kinds]


class _Deck:
    """Every card once before any comes again."""

    def __init__(self, cards: list[tuple[str, str]], rng: random.Random) -> None:
        self._cards = cards
        self._rng = rng
        self._left: list[tuple[str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._cards)

    def draw(self) -> tuple[str, str]:
        if not self._left:
            self._left = self._rng.sample(self._cards, len(self._cards))
        return self._left.pop()
