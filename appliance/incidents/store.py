"""Keeps incidents and remedies on disk without ever waiting for the disk: what can't be written stays in memory, and is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from appliance import statefile
from appliance.config import IncidentsConfig
from appliance.errors import IncidentError
from appliance.incidents import database, frames
from appliance.incidents.database import Batch, Database
from appliance.incidents.frames import Chunk, Thin
from appliance.records import Change, Incident, IncidentState, Remedy

T = TypeVar("T")
Failure = (sqlite3.Error, OSError, IncidentError)
_AGAIN_S: Final = 15.0  # after a failure
_SAY_AGAIN_S: Final = 600.0  # the same failure
_HELD_BYTES: Final = 16 << 20  # of snapshots that could not be written
_HELD: Final = 1000  # changes that could not be
_HELD_INCIDENTS: Final = 200  # that could not be
_READ_S: Final = 5.0  # for what is asked of the disk, until what is in memory is the answer
_SILENT: Final = (
    f"the disk has not answered for {_READ_S:g} s; look at it (dmesg), or name a server.state_dir on another one"
)
_log = logging.getLogger("pd-appliance.incidents")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What there was when the file was opened. ``closed``: incidents that were open when the last process ended."""

    ids: frozenset[str] = frozenset()
    changes: tuple[Change, ...] = ()
    last_start: Change | None = None
    closed: tuple[Incident, ...] = ()
    remedies: tuple[Remedy, ...] = ()  # oldest first


class Store:
    """One for the run of a supervisor. ``put…`` return at once; nothing here raises for what the disk does."""

    def __init__(self, directory: Path, config: IncidentsConfig, ended: str) -> None:
        """``ended``: why an incident is closed that was open when the last process ended, in words."""
        self._directory = directory
        self._config = config
        self._ended = ended
        self._database: Database | None = None
        self._turn = asyncio.Lock()  # who asks next; the mutex is for a thread that nobody waits for any more
        self._mutex = threading.Lock()
        self._dirty = asyncio.Event()
        self._incidents: dict[str, Incident] = {}  # not written yet, or not in this shape
        self._changes: deque[Change] = deque(maxlen=_HELD)
        self._chunks: deque[Chunk] = deque()
        self._thins: dict[tuple[str, float], Thin] = {}  # the last one of a beginning says all
        self._remedies: dict[str, Remedy] = {}  # as incidents
        self._mine: set[str] = set()  # incidents of this process
        self._found: Found | None = None
        self._changes_since = time.time()
        self._began = (time.time(), time.monotonic())
        self._said: tuple[str, float] = ("", 0.0)
        self._closed = False

    async def open(self, changes_since: float, within_s: float = _READ_S) -> None:
        """Open it now if that can be done in time, or else when there is something to write. ``found`` tells what was there."""
        self._changes_since = changes_since
        try:
            await self._in_time(self._open, within_s)
        except Failure as error:
            self._complain(error)

    def found(self) -> Found | None:
        """What there was, once it is known; told once."""
        found, self._found = self._found, None
        return found

    async def run(self) -> None:
        """Write what has been put, until cancelled."""
        while True:
            await self._dirty.wait()
            if not await asyncio.shield(
                asyncio.ensure_future(self.flush())
            ):  # or what was written would be written again
                await asyncio.sleep(_AGAIN_S)

    async def flush(self) -> bool:
        """Write what has been put. False if that failed, and all of it is still to be written."""
        async with self._turn:  # whoever has it may be writing what waits now
            self._dirty.clear()
            batch = self._waiting()
            if batch == Batch():
                return True
            over = bool(batch.remedies) or any(one.state is IncidentState.CLOSED for one in batch.incidents)
            try:
                await self._in_turn(lambda: self._use(lambda kept: kept.write(batch, time.time())))
            except Failure as error:
                self._dirty.set()
                self._complain(error)
                return False
            except Exception:  # a fault of ours, that another try would not mend, must not end the node
                _log.exception("what was to be kept of incidents is lost")
            self._written(batch)
            if self._said[0]:
                _log.warning("incidents are kept in %s again", self._directory)
                self._said = ("", 0.0)
            if over:
                await self._prune()
        return True

    async def _prune(self) -> None:
        """Forget what is too old, or too much; where that fails it is done the next time, and nothing is written twice for it."""
        keep, keep_days = self._config.keep, self._config.keep_days
        try:
            await self._in_turn(lambda: self._use(lambda kept: kept.prune(keep, keep_days, self._now())))
        except Failure as error:
            self._complain(error)
        except Exception:
            _log.exception("what is too old of incidents could not be forgotten")

    async def settle(self, within_s: float) -> None:
        """Write what waits. If that can't be done in so many seconds, it goes on, and nobody waits for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.shield(asyncio.ensure_future(self.flush()))  # as in ``run``

    @property
    def writes(self) -> bool:
        """Whether what is put gets to the disk, as far as is known."""
        return not self._said[0]

    async def close(self, within_s: float) -> None:
        """Write what is left, if that can be done in so many seconds. Nothing is kept any more."""
        deadline = asyncio.get_running_loop().time() + within_s
        await self.settle(within_s)
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline), self._turn:
                pass  # whoever is still at it is done: the file is another's after this
        if self._mutex.acquire(
            blocking=False
        ):  # else a thread still waits for the disk, and the process's end closes it
            self._shut()
            self._mutex.release()

    # ---- what is to be kept

    def put(self, incident: Incident) -> None:
        self._mine.add(incident.id)
        self._incidents[incident.id] = incident
        if len(self._incidents) > _HELD_INCIDENTS:
            del self._incidents[next(iter(self._incidents))]  # the oldest; at most the newest one is open
        self._dirty.set()

    def put_remedy(self, remedy: Remedy) -> None:
        self._remedies[remedy.id] = remedy
        self._dirty.set()

    def put_changes(self, changes: Sequence[Change]) -> None:
        if changes:
            self._changes.extend(changes)
            self._dirty.set()

    def put_frames(self, chunks: Sequence[Chunk], thins: Sequence[Thin]) -> None:
        if chunks:
            self._chunks.extend(chunks)
            self._thins |= {(thin.incident, thin.since_s): thin for thin in thins}
            self._forget()
            self._dirty.set()

    # ---- what is kept

    async def incidents(self, limit: int, state: str | None) -> list[Incident]:
        """Newest first, those that are not on disk included."""
        waiting = dict(self._incidents)  # one that is about to be closed on disk is open there still
        on_disk = await self._read(lambda kept: kept.incidents(limit + len(waiting), state), list[Incident]())
        held = [one for one in waiting.values() if state is None or one.state.value == state]
        return database.newest([*held, *(one for one in on_disk if one.id not in waiting)], limit)

    async def incident(self, id: str) -> Incident | None:
        """None if there is no such, or it is not kept any more."""
        return self._incidents.get(id) or await self._read(lambda kept: kept.incident(id), None)

    async def between(self, since: float, until: float, limit: int) -> tuple[list[Change], list[Incident]]:
        """The newest of each, oldest first, those that are not on disk included."""
        held, open_now = list(self._changes), dict(self._incidents)
        nothing: tuple[list[Change], list[Incident]] = ([], [])
        changes, incidents = await self._read(lambda kept: kept.between(since, until, limit), nothing)
        changes += [one for one in held if since <= one.time < until and one not in changes]
        incidents = [one for one in incidents if one.id not in open_now] + [
            one for one in open_now.values() if one.opened < until and (one.closed is None or one.closed >= since)
        ]
        return changes[-limit:], database.newest(incidents, limit)[::-1]

    async def chunks(self, id: str) -> list[bytes]:
        """The snapshots around it, as ``frames.snapshots`` reads them."""
        waiting = [chunk for chunk in self._chunks if chunk.incident == id]
        on_disk = await self._read(lambda kept: kept.chunks(id), list[bytes]())
        held = (frames.joined(chunk.frames) for chunk in waiting)
        return [*on_disk, *(one for one in held if one not in on_disk)]  # meanwhile they may have been written

    async def chunk(self, id: str, uptime_s: float) -> bytes | None:
        """That one of them in which this moment is, or what was seen last before it; the first one if that was before all of them."""
        waiting = [chunk for chunk in self._chunks if chunk.incident == id and chunk.since_s <= uptime_s]
        if waiting:
            return frames.joined(waiting[-1].frames)
        return await self._read(lambda kept: kept.chunk(id, uptime_s), None)

    async def _read(self, how: Callable[[Database], T], otherwise: T) -> T:
        if self._closed:
            return otherwise
        try:
            return await self._in_time(
                lambda: how(self._database) if self._database is not None else otherwise, _READ_S
            )
        except Failure as error:
            self._complain(error)
            return otherwise

    # ---- in threads

    async def _in_time(self, what: Callable[[], T], within_s: float) -> T:
        """Raises ``IncidentError`` where the disk takes longer: its thread is left to it."""
        try:
            async with asyncio.timeout(within_s):
                return await self._run(what)
        except TimeoutError:
            raise IncidentError(_SILENT) from None

    async def _run(self, what: Callable[[], T]) -> T:
        """One after the other."""
        async with self._turn:
            return await self._in_turn(what)

    async def _in_turn(self, what: Callable[[], T]) -> T:
        """For who has the turn."""
        if self._closed:
            raise IncidentError("the appliance ends")
        if self._mutex.locked():
            raise IncidentError(_SILENT)  # nobody waits for that thread any more, and no second one shall hang
        return await statefile.beside(lambda: self._alone(what))

    def _alone(self, what: Callable[[], T]) -> T:
        with self._mutex:
            return what()

    def _open(self) -> None:
        """All of it, or it is tried again: what was left open must be closed once."""
        kept = database.open_to_write(self._directory)
        try:
            self._found = Found(
                ids=frozenset(kept.ids()),
                changes=tuple(kept.changes(self._changes_since)),
                last_start=kept.last_change("started"),
                closed=tuple(kept.end_open(self._ended, frozenset(self._mine))),
                remedies=tuple(kept.remedies()),
            )
        except BaseException:
            kept.close()
            raise
        self._database = kept

    def _now(self) -> float:
        """The time, for what is too old: a clock that is set forward makes nothing older."""
        began, began_s = self._began
        return min(time.time(), began + time.monotonic() - began_s)

    def _use(self, what: Callable[[Database], None]) -> None:
        if self._database is None:
            self._open()
        kept = self._database
        assert kept is not None
        try:
            what(kept)
        except sqlite3.DatabaseError as error:
            if not statefile.is_ruined(error):
                raise
            self._shut()  # it is set aside when it is opened again
            raise

    def _shut(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    # ---- what waits

    def _waiting(self) -> Batch:
        return Batch(
            incidents=tuple(self._incidents.values()),
            changes=tuple(self._changes),
            chunks=tuple(self._chunks),
            thins=tuple(self._thins.values()),
            remedies=tuple(self._remedies.values()),
        )

    def _written(self, batch: Batch) -> None:
        """It need not be held any more. Meanwhile there may be more."""
        for incident in batch.incidents:
            if self._incidents.get(incident.id) is incident:
                del self._incidents[incident.id]
        for remedy in batch.remedies:
            if self._remedies.get(remedy.id) is remedy:
                del self._remedies[remedy.id]
        written = {id(one) for one in (*batch.changes, *batch.chunks)}
        self._changes = deque((one for one in self._changes if id(one) not in written), maxlen=_HELD)
        self._chunks = deque(one for one in self._chunks if id(one) not in written)
        thinned = {id(one) for one in batch.thins}
        self._thins = {key: thin for key, thin in self._thins.items() if id(thin) not in thinned}

    def _forget(self) -> None:
        """The oldest snapshots, of those that could not be written for long."""
        held = sum(len(frame.data) for chunk in self._chunks for frame in chunk.frames)
        while held > _HELD_BYTES:
            held -= sum(len(frame.data) for frame in self._chunks.popleft().frames)

    def _complain(self, error: Exception) -> None:
        """Once, and again after a while: with what to do."""
        now = time.monotonic()
        if str(error) == self._said[0] and now - self._said[1] < _SAY_AGAIN_S:
            return
        self._said = (str(error), now)
        _log.error("incidents are kept in memory only, not in %s: %s", self._directory, _remedy(error))


def _remedy(error: Exception) -> str:
    """What is wrong, and what would help."""
    return str(error) if isinstance(error, IncidentError) else f"{statefile.remedy(error)}; it is tried again"
