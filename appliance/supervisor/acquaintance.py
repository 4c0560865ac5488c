"""Which engine has mapped whose KV memory: the bookkeeping of introductions. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Key(NamedTuple):
    """One life of one engine."""

    engine: str
    epoch: int


class Acquaintances:
    """Who was told to map or unmap whom, and which ranks have answered."""

    def __init__(self) -> None:
        self._opening: dict[tuple[Key, Key], set[int]] = {}  # (consumer, producer) → ranks still to answer
        self._open: set[tuple[Key, Key]] = set()
        self._errors: dict[tuple[Key, Key], str] = {}
        self._closing: dict[tuple[Key, Key], set[int]] = {}

    def open(self, consumer: Key, producer: Key, ranks: set[int]) -> bool:
        """The consumer is being told; False if it was before."""
        pair = (consumer, producer)
        if pair in self._opening or pair in self._open or pair in self._errors:
            return False
        self._opening[pair] = set(ranks)
        return True

    def opened(self, consumer: Key, producer: Key, rank: int, error: str | None) -> None:
        pair = (consumer, producer)
        if pair not in self._opening:
            return
        if error is not None:
            self._errors.setdefault(pair, error)
        self._opening[pair].discard(rank)
        if not self._opening[pair]:
            del self._opening[pair]
            if pair not in self._errors:
                self._open.add(pair)

    def forget(self, consumer: Key, producer: Key) -> None:
        """Nothing is known of them any more: they may be introduced again."""
        self._forget(lambda pair: pair == (consumer, producer))

    def close(self, consumer: Key, producer: Key, ranks: set[int]) -> None:
        """The consumer is being told to unmap."""
        self.forget(consumer, producer)
        self._closing[(consumer, producer)] = set(ranks)

    def closed(self, consumer: Key, producer: Key, rank: int) -> None:
        waiting = self._closing.get((consumer, producer))
        if waiting is not None:
            waiting.discard(rank)
            if not waiting:
                del self._closing[(consumer, producer)]

    def still_mapped(self, producer: Key) -> bool:
        """True while somebody has not yet said that it unmapped this life."""
        return any(pair[1] == producer for pair in self._closing)

    def gone(self, key: Key) -> None:
        """A life has ended: it maps nothing any more, and nobody may use what was mapped of it."""
        self._forget(lambda pair: key in pair)
        self._closing = {pair: ranks for pair, ranks in self._closing.items() if pair[0] != key}

    def peers(self, consumer: Key) -> tuple[str, ...]:
        return tuple(sorted(pair[1].engine for pair in self._open if pair[0] == consumer))

    def errors(self, consumer: Key) -> tuple[str, ...]:
        return tuple(error for pair, error in sorted(self._errors.items()) if pair[0] == consumer)

    def _forget(self, condition: Callable[[tuple[Key, Key]], bool]) -> None:
        self._opening = {pair: ranks for pair, ranks in self._opening.items() if not condition(pair)}
        self._open = {pair for pair in self._open if not condition(pair)}
        self._errors = {pair: error for pair, error in self._errors.items() if not condition(pair)}
