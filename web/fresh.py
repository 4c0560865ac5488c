"""What was asked a moment ago is not asked again: many viewers, and many ticks, share one answer."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Fresh(Generic[K, T]):
    """Answers that are at most so old; one question at a time, and the oldest answers are forgotten."""

    def __init__(
        self,
        ask: Callable[[K], Awaitable[T]],
        age_s: float,
        most: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._age_s = age_s
        self._most = most
        self._clock = clock
        self._known: OrderedDict[K, tuple[float, T]] = OrderedDict()
        self._turn = asyncio.Lock()

    async def get(self, key: K) -> T:
        """Raises what the question raises; that is not kept."""
        async with self._turn:
            known = self._known.get(key)
            if known is not None and self._clock() - known[0] < self._age_s:
                return known[1]
            found = await self._ask(key)
            self._known[key] = (self._clock(), found)
            self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
            return found
