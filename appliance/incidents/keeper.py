"""Holds it together: follows the snapshots, keeps what is an incident, and has the owner told."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from appliance.config import Config
from appliance.incidents import bundle, moments
from appliance.incidents.changes import Changes
from appliance.incidents.frames import Recorder
from appliance.incidents.hooks import Hooks
from appliance.incidents.store import Store
from appliance.incidents.tracker import BEFORE_S, STOPPED, EventKind, Tracker
from appliance.records import Change, ChangeKind, Incident, IncidentTotals, Moment, NodeSnapshot, Remedy, new_run

_log = logging.getLogger("pd-appliance.incidents")
_LEAST_S: Final = 2.0  # to tell of the end, whatever grace there is
_FLUSH_S: Final = 3.0
_SAVED_S: Final = 10.0  # what is open, in between


class Incidents:
    """Implements ``web.ports.IncidentView``. ``run`` follows the node until cancelled, then ``close`` says good-bye."""

    def __init__(self, config: Config, directory: Path) -> None:
        """``directory``: where they are kept."""
        self._store = Store(directory, config.incidents, STOPPED)
        self._hooks = Hooks(config.incidents, os.environ)
        self._changes = Changes()
        self._tracker = Tracker(config.slo.share, run=new_run())
        self._recorder = Recorder(secrets.token_bytes(16))
        self._slo_share = config.slo.share
        self._last_start: Change | None = None
        self._last: NodeSnapshot | None = None
        self._saved_s = 0.0  # uptime
        self.recall: Callable[[Sequence[Remedy]], None] = lambda remedies: None
        """Told which remedies earlier runs have left, oldest first."""
        self._opened = 0
        self._closed: Counter[str] = Counter()

    async def run(self, snapshots: AsyncIterator[NodeSnapshot]) -> None:
        """Follow them. A fault in here must not end the node."""
        async with asyncio.TaskGroup() as group:
            await self._safely(self._begin())
            group.create_task(self._store.run())
            async for snapshot in snapshots:
                try:
                    self._fold(snapshot)
                except Exception:
                    _log.exception("this snapshot's part in incidents is lost")

    async def close(self, within_s: float, hurry: asyncio.Event) -> None:
        """Close what is open, have it told, and write what is left."""
        await self._safely(self._close(within_s, hurry))

    async def _close(self, within_s: float, hurry: asyncio.Event) -> None:
        if self._last is not None:
            for event in self._tracker.end(self._last):
                self._take(event.kind, event.incident, self._last.uptime_s)
            self._store.put_frames(*self._recorder.due(self._last.uptime_s, everything=True))
        await self._store.settle(_FLUSH_S)
        await self._hooks.finish(max(within_s, _LEAST_S), hurry)
        await self._store.close(_FLUSH_S)

    def keep_remedy(self, remedy: Remedy) -> None:
        """In the same file."""
        self._store.put_remedy(remedy)

    # ---- what is asked

    async def incidents(self, limit: int, state: str | None) -> list[Incident]:
        """Newest first. ``state``: open or closed only."""
        return await self._store.incidents(limit, state)

    async def incident(self, id: str) -> Incident | None:
        """None if there is no such, or it is not kept any more."""
        return await self._store.incident(id)

    async def between(self, since: float, until: float, limit: int) -> tuple[list[Change], list[Incident]]:
        """What changed between two times, and what held the node back then: the newest of each, oldest first."""
        return await self._store.between(since, until, limit)

    async def bundle(self, id: str) -> bytes | None:
        """The file of it."""
        incident = await self._store.incident(id)
        if incident is None:
            return None
        return await asyncio.to_thread(bundle.write, incident, await self._store.chunks(id))

    def totals(self) -> IncidentTotals:
        """For metrics."""
        return IncidentTotals(
            open=self._tracker.open is not None,
            opened=self._opened,
            closed=dict(self._closed),
            untold=self._hooks.untold,
            kept=self._store.writes,
        )

    async def moments(self, id: str, limit: int) -> Sequence[Moment] | None:
        """What the snapshots around it come to, spread evenly over that time; None if there is no such incident."""
        if await self._store.incident(id) is None:
            return None
        return await asyncio.to_thread(moments.spread, await self._store.chunks(id), limit)

    async def frame(self, id: str, uptime_s: float) -> NodeSnapshot | None:
        """The snapshot of that moment, or the last one before; the first one if that was before all of them."""
        chunk = await self._store.chunk(id, uptime_s)
        return None if chunk is None else await asyncio.to_thread(moments.at, chunk, uptime_s)

    # ---- what happens

    async def _begin(self) -> None:
        await self._store.open(time.time() - BEFORE_S)
        self._learn()

    def _learn(self) -> None:
        """What there was on disk, as soon as that can be read."""
        found = self._store.found()
        if found is None:
            return
        self._tracker.know(found.ids, found.changes)
        self._last_start = found.last_start
        for incident in found.closed:
            _log.warning("incident %s was open when the appliance ended: it is closed", incident.id)
            self._hooks.tell(EventKind.CLOSED, incident)
        self.recall(found.remedies)

    async def _safely(self, what: Awaitable[None]) -> None:
        try:
            await what
        except Exception:
            _log.exception("incidents: what was to be done at the beginning or the end failed")

    def _fold(self, snapshot: NodeSnapshot) -> None:
        self._last = snapshot
        self._learn()
        changes = [self._after_start(one) for one in self._changes.fold(snapshot)]
        self._store.put_changes(changes)
        self._recorder.fold(snapshot)
        for event in self._tracker.fold(snapshot, changes):
            self._take(event.kind, event.incident, snapshot.uptime_s)
        self._store.put_frames(*self._recorder.due(snapshot.uptime_s))
        incident = self._tracker.open
        if incident is not None and snapshot.uptime_s - self._saved_s >= _SAVED_S:
            self._save(incident, snapshot.uptime_s)

    def _take(self, event: EventKind, incident: Incident, now_s: float) -> None:
        self._save(incident, now_s)
        if event is EventKind.OPENED:
            self._opened += 1
            self._recorder.begin(incident.id, now_s)
        elif event is EventKind.CLOSED:
            self._closed[incident.cause or "unknown"] += 1
            self._recorder.end(incident.id, now_s)
        if event is not EventKind.UPDATED:
            _log.warning("incident %s %s: %s", incident.id, event, incident.summary)
            self._hooks.tell(event, incident)

    def _save(self, incident: Incident, now_s: float) -> None:
        self._saved_s = now_s
        self._store.put(incident)

    def _after_start(self, change: Change) -> Change:
        """A start with other settings than the last one's says so."""
        last = self._last_start
        if change.kind is not ChangeKind.STARTED or last is None or last.after == change.after:
            return change
        return replace(change, before=last.after, sentence=f"{change.sentence} Before, it was {last.after}.")
