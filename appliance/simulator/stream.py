"""One request at a simulated engine, between its HTTP side and its core."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from appliance.engine.kv.params import Offer, Ticket, Whole


class Stream:
    """What is said of its sequences; the core writes, the HTTP side reads."""

    def __init__(
        self, prompt: Sequence[int], answers: Sequence[Sequence[int]], limit: int, params: Offer | Ticket | Whole | None
    ) -> None:
        """``answers``: the tokens that each sequence will say. ``limit``: the most that it might have."""
        self.prompt = prompt
        self.answers = answers
        self.limit = limit
        self.params = params
        self.planned = [0] * len(answers)  # tokens that the core has made
        self.made = [0] * len(answers)  # of these, those that have got through the API process
        self.open = len(answers)  # sequences that have not ended
        self.ticket: Ticket | None = None  # of a prefill leg whose KV is held
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        return self.open == 0

    def tell(self) -> None:
        """Something of it has changed."""
        self._news.set()

    async def news(self) -> None:
        """Wait until something has."""
        await self._news.wait()
        self._news.clear()

    async def end(self) -> None:
        """Wait until it is over."""
        while not self.over:
            await self.news()
