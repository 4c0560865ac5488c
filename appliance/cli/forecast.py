"""Keeps plans of a running node up to date; see ``planner.measured``."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

from appliance.costs.fitted import CopyModel, StepModel
from appliance.planner.measured import measured, present
from appliance.planner.split import advice
from appliance.records import Better, NodeSnapshot, Plans

_log = logging.getLogger("pd-appliance")
_EVERY_S: Final = 10.0  # what is asked is told over a minute, and does not change faster
_WINDOW: Final = 6  # of these: that minute
_SPARING: Final = 50.0  # times what the last plans took, until the next: the core has tokens to deliver


class Source(Protocol):
    """The collector."""

    def updates(self) -> AsyncIterator[NodeSnapshot]: ...
    def learnt(self, engine: str) -> tuple[StepModel, CopyModel]: ...


class Forecast:
    """Implements ``web.ports.Planning``."""

    def __init__(self, source: Source, share: float) -> None:
        """``share``: ``[slo]``'s."""
        self._source = source
        self._share = share
        self._window: deque[NodeSnapshot] = deque(maxlen=_WINDOW)
        self._plans: Plans | None = None
        self._topology: str | None = None  # as it is now; plans may be of one that was changed since
        self._rests_until_s = 0.0  # of the node's uptime
        self._of: object = None  # what the latest plans were made of

    def plans(self) -> Plans | None:
        """The latest; None before there are any."""
        return self._plans

    def better(self) -> Better | None:
        """A layout that is clearly better than the one that there is; None where there is none, or nothing is known."""
        if self._plans is None or self._plans.now != self._topology or (now := present(self._plans)) is None:
            return None
        return advice(now, self._plans.layouts)

    async def run(self) -> None:
        """Until cancelled. While nobody comes and engines stay as they are, nothing is planned anew, but for when what was asked is too
        long ago to count.
        """
        async for snapshot in self._source.updates():
            self._topology = snapshot.topology
            if self._window and snapshot.uptime_s - self._window[-1].uptime_s < _EVERY_S:
                continue
            self._window.append(snapshot)
            of_another = self._plans is None or self._plans.now != snapshot.topology
            of = _of(snapshot)
            due = of != self._of and snapshot.uptime_s >= self._rests_until_s
            if snapshot.engines and (of_another or due):
                began_s, self._of = time.monotonic(), of
                self._plans = await self._made(snapshot)
                self._rests_until_s = snapshot.uptime_s + _SPARING * (time.monotonic() - began_s)

    async def _made(self, snapshot: NodeSnapshot) -> Plans | None:
        """Off the loop, which has tokens to deliver, and so of copies of what goes on learning. A fault costs these plans and no more."""
        steps, copies = copy.deepcopy(self._source.learnt(snapshot.engines[0].name))
        try:
            return await asyncio.to_thread(measured, tuple(self._window), steps, copies, self._share)
        except Exception:
            _log.exception("the plans of this moment failed")
            return None


def _of(snapshot: NodeSnapshot) -> object:
    """What makes other plans."""
    engines = tuple(
        (one.name, one.epoch, one.role, one.kv_blocks_total, one.max_running, one.token_budget, one.calibration)
        for one in snapshot.engines
    )
    return (snapshot.requests, snapshot.demand is None, engines)
