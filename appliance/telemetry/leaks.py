"""KV blocks that an engine says are leased, and that the ledger knows of no lease for. Pure.

Both are told at moments of their own, so they differ for an instant at each hand-off. What has been too many at every tick for some
seconds is no such difference.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from appliance.records import EngineSnapshot, Lease, Unexplained

_STANDS_NS: Final = 5 * 1_000_000_000  # several heartbeats of an idle engine


class Leaks:
    """Is given each tick's engines and leases."""

    def __init__(self) -> None:
        self._seen: dict[
            tuple[str, int], deque[tuple[int, int]]
        ] = {}  # (when, blocks) of a life of an engine, since there are some
        self._since: dict[tuple[str, int], int] = {}

    def fold(self, engines: Sequence[EngineSnapshot], leases: Sequence[Lease], now_ns: int) -> tuple[Unexplained, ...]:
        """Those that stand: as many as there were at least, all the time."""
        explained: Counter[str] = Counter()
        for lease in leases:
            explained[lease.owner] += lease.blocks
        living = {(one.name, one.epoch): (one.leased_blocks or 0) - explained[one.name] for one in engines}
        for life in [life for life in self._seen if living.get(life, 0) <= 0]:
            del self._seen[life], self._since[life]
        return tuple(one for life, blocks in living.items() if (one := self._stands(life, blocks, now_ns)) is not None)

    def _stands(self, life: tuple[str, int], blocks: int, now_ns: int) -> Unexplained | None:
        if blocks <= 0:
            return None
        since_ns = self._since.setdefault(life, now_ns)
        seen = self._seen.setdefault(life, deque())
        seen.append((now_ns, blocks))
        while now_ns - seen[0][0] > _STANDS_NS:
            seen.popleft()
        if now_ns - since_ns < _STANDS_NS:
            return None
        return Unexplained(engine=life[0], blocks=min(count for _, count in seen), age_s=(now_ns - since_ns) * 1e-9)
