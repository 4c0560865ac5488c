"""How a request waits for an engine: in the queue, for a while; and if its answer has begun, for one to come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

from appliance.errors import RequestError
from appliance.router.legs import Plan
from appliance.router.loads import Leg
from appliance.router.policy import Choice
from appliance.router.queue import Queue, Ticket

_PATIENCE_S: Final = 30.0  # of a stream without an engine
_LOOK_S: Final = 0.1


class Admission:
    """One request's."""

    def __init__(self, queue: Queue, plan: Plan, client: str, arrived_ns: int, longest_s: float) -> None:
        """``longest_s``: in the queue, at a time."""
        self._queue = queue
        self._plan = plan
        self._client = client
        self._arrived_ns = arrived_ns
        self._longest_s = longest_s

    async def to_go_on(self, avoid: Collection[str]) -> tuple[Choice, Leg]:
        """For a stream that has begun: where there is no engine, one may come back. Raises ``RequestError``."""
        deadline, since_ns = time.monotonic() + _PATIENCE_S, time.monotonic_ns()  # until now it was being answered
        while True:
            try:
                return await self._admitted(avoid, True, max(0.0, deadline - time.monotonic()), since_ns)
            except RequestError as error:
                if error.code != "no_engine_ready" or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK_S)

    async def to_begin(self, avoid: Collection[str], *, again: bool) -> tuple[Choice, Leg]:
        """The engine to go to, and the leg booked there. ``again``: it has waited before, and goes first.

        Raises ``RequestError``: there is no engine, no room in the queue, or it has waited for too long.
        """
        return await self._admitted(avoid, again, self._longest_s, self._arrived_ns)

    async def _admitted(
        self, avoid: Collection[str], again: bool, longest_s: float, since_ns: int
    ) -> tuple[Choice, Leg]:
        future: asyncio.Future[tuple[Choice, Leg]] = asyncio.get_running_loop().create_future()
        ticket = Ticket(
            self._plan.prompt_tokens,
            self._plan.unsplit_reason,
            deliver=lambda choice, leg: None if future.done() else future.set_result((choice, leg)),
            refuse=lambda error: None if future.done() else future.set_exception(error),
            avoid=avoid,
            client=self._client,
        )
        try:
            self._queue.put(ticket, since_ns, again=again)
            async with asyncio.timeout(longest_s) as patience:
                return await future
        except BaseException as error:
            self._queue.withdraw(ticket)
            if isinstance(error, TimeoutError) and patience.expired():
                raise self._queue.too_long(longest_s) from None
            raise
