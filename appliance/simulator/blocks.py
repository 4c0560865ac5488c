"""KV blocks of one simulated engine, with a prefix cache: what nobody uses stays until its place is needed.

As in vLLM, but that blocks which hold nothing that could be found again are taken before those that do, whichever were given back first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Blocks:
    """Numbered from 1. ``digest``: what a full block holds, all that comes before it included."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._blank: list[int] = []  # free, and nothing in them any more
        self._fresh = 1  # the first of those that nobody has had yet, which are free, too
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, and can be found; least recently used first
        self._users: dict[int, int] = {}  # of blocks that can be found; any other in use has one
        self._digest: dict[int, int] = {}
        self._by_digest: dict[int, int] = {}
        self.withheld = 0  # of those that are free or will be; a fault's

    @property
    def free(self) -> int:
        """That can be taken."""
        return max(0, self.count - self._fresh + 1 + len(self._blank) + len(self._idle) - self.withheld)

    def cached(self, digests: Sequence[int]) -> list[int]:
        """The blocks of the longest beginning that is in the cache."""
        found = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """One more user of each of those that ``cached`` has found."""
        for block in blocks:
            users = self._users[block]
            if not users:
                del self._idle[block]
            self._users[block] = users + 1

    def take(self, count: int) -> list[int] | None:
        """So many new ones; None if there are not so many."""
        if count > self.free:
            return None
        blank = self._blank
        if len(blank) < count:
            fresh = min(count - len(blank), self.count - self._fresh + 1)
            blank.extend(range(self._fresh, self._fresh + fresh))
            self._fresh += fresh
        while len(blank) < count:
            blank.append(self._forget_oldest())
        taken = blank[-count:] if count else []
        del blank[len(blank) - count :]
        return taken

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._by_digest[self._digest.pop(block)], self._users[block]
        return block

    def fill(self, block: int, digest: int) -> None:
        """It is full now, and can be found. (Two may hold the same; the first one is found.)"""
        if digest not in self._by_digest and block not in self._digest:
            self._by_digest[digest] = block
            self._digest[block] = digest
            self._users.setdefault(block, 1)

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user less of each; the last of them first, so that beginnings stay longest."""
        users = self._users
        if users.keys().isdisjoint(blocks):
            self._blank.extend(reversed(blocks))
            return
        for block in reversed(blocks):
            if block not in users:
                self._blank.append(block)
                continue
            users[block] -= 1
            if users[block]:
                continue
            if block in self._digest:
                self._idle[block] = None
            else:  # the cache was lost meanwhile
                del users[block]
                self._blank.append(block)

    def lose_cache(self) -> None:
        """Nothing can be found any more; what is in use stays in use."""
        for block in self._idle:
            del self._users[block]
        self._blank += self._idle
        self._idle.clear()
        self._digest.clear()
        self._by_digest.clear()
