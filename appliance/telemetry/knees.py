"""The knee of each engine, found once for all who ask: it takes some tenths of a second beside the loop, and depends on its steps alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

import msgspec

from appliance.costs import knee
from appliance.records import KneeReading
from appliance.telemetry.steps import Steps, reading

FRESH_S: Final = 20.0  # with more of the same steps it hardly changes
_Of = tuple[int, int]  # a life of the engine, and how many steps it was found from


class _Found(msgspec.Struct, frozen=True):
    of: _Of
    at_s: float
    reading: KneeReading


class Knees:
    """To be asked from the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: dict[str, _Found] = {}
        self._finding: dict[str, asyncio.Task[KneeReading]] = {}

    async def get(self, engine: str, epoch: int, steps: Steps) -> KneeReading:
        """That of a life's steps. One that was found is told again while there are no other steps, and for ``FRESH_S`` if there are."""
        of = (epoch, steps.usable)
        known = self._found.get(engine)
        if known is not None and (known.of == of or self._is_fresh(known, epoch)):
            return known.reading
        if (finding := self._finding.get(engine)) is None:
            finding = asyncio.create_task(self._find(engine, of, steps), name=f"knee of {engine}")
            self._finding[engine] = finding
            finding.add_done_callback(lambda _: self._finding.pop(engine))
        return await asyncio.shield(finding)  # who asks first may leave before the others

    def _is_fresh(self, known: _Found, epoch: int) -> bool:
        return known.of[0] == epoch and known.reading.tokens is not None and self._clock() - known.at_s < FRESH_S

    async def _find(self, engine: str, of: _Of, steps: Steps) -> KneeReading:
        seen = steps.of_all_sizes()
        found = await asyncio.to_thread(knee.find, seen, random.Random(len(seen)))
        told = reading(found, knee.missing(seen))
        self._found[engine] = _Found(of, self._clock(), told)
        return told
