"""What was asked a moment ago is not asked again: many viewers, and many ticks, share one answer."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


_WORTH: Final = 20.0  # times as long as an answer took, it is good for: asking is no more than a twentieth of all work


class Fresh(Generic[K, T]):
    """Answers that are at most so old, or a little older where they take long; one question at a time, and the oldest are forgotten."""

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
        self._known: OrderedDict[K, tuple[float, T]] = OrderedDict()  # with the time until which they are good
        self._turn = asyncio.Lock()

    async def get(self, key: K) -> T:
        """Raises what the question raises; that is not kept."""
        async with self._turn:
            known = self._known.get(key)
            began_s = self._clock()
            if known is not None and began_s < known[0]:
                return known[1]
            found = await self._ask(key)
            took_s = self._clock() - began_s
            self._known[key] = (began_s + took_s + max(self._age_s, _WORTH * took_s), found)
            self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
            return found
