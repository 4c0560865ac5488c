"""Keeps incidents on disk without ever waiting for the disk: what can't be written stays in memory, and is tried again."""

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

from appliance.config import IncidentsConfig
from appliance.errors import IncidentError
from appliance.incidents import database, frames
from appliance.incidents.database import Batch, Database
from appliance.incidents.frames import Chunk, Thin
from appliance.records import Change, Incident, IncidentState

T = TypeVar("T")
Failure = (sqlite3.Error, OSError, IncidentError)
_AGAIN_S: Final = 15.0  # after a failure
_SAY_AGAIN_S: Final = 600.0  # the same failure
_HELD_BYTES: Final = 16 << 20  # of snapshots that could not be written
_HELD: Final = 1000  # changes that could not be
_log = logging.getLogger("pd-appliance.incidents")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What there was at the start. ``closed``: incidents that were open when the last process ended."""

    ids: frozenset[str] = frozenset()
    changes: tuple[Change, ...] = ()
    last_start: Change | None = None
    closed: tuple[Incident, ...] = ()


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
        self._thins: list[Thin] = []
        self._said: tuple[str, float] = ("", 0.0)
        self._closed = False

    async def open(self, changes_since: float) -> Found:
        """What is there already; nothing if it can't be opened now."""
        try:
            return await self._run(lambda: self._open(changes_since))
        except Failure as error:
            self._complain(error)
            return Found()

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
        self._dirty.clear()
        batch = self._waiting()
        if batch == Batch():
            return True
        over = any(incident.state is IncidentState.CLOSED for incident in batch.incidents)
        try:
            await self._run(lambda: self._write(batch, over))
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
        return True

    async def settle(self, within_s: float) -> None:
        """Write what waits, if that can be done in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.flush()

    async def close(self, within_s: float) -> None:
        """Write what is left, if that can be done in time. Nothing is kept any more."""
        await self.settle(within_s)
        self._closed = True
        if self._mutex.acquire(
            blocking=False
        ):  # else a thread still waits for the disk, and the process's end closes it
            self._shut()
            self._mutex.release()

    # ---- what is to be kept

    def put(self, incident: Incident) -> None:
        self._incidents[incident.id] = incident
        self._dirty.set()

    def put_changes(self, changes: Sequence[Change]) -> None:
        if changes:
            self._changes.extend(changes)
            self._dirty.set()

    def put_frames(self, chunks: Sequence[Chunk], thins: Sequence[Thin]) -> None:
        if chunks:
            self._chunks.extend(chunks)
            self._thins += thins
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

    async def chunks(self, id: str) -> list[bytes]:
        """The snapshots around it, as ``frames.snapshots`` reads them."""
        waiting = [chunk for chunk in self._chunks if chunk.incident == id]
        on_disk = await self._read(lambda kept: kept.chunks(id), list[bytes]())
        return [*on_disk, *(frames.joined(chunk.frames) for chunk in waiting)]

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
            return await self._run(lambda: how(self._database) if self._database is not None else otherwise)
        except Failure as error:
            self._complain(error)
            return otherwise

    # ---- in threads

    async def _run(self, what: Callable[[], T]) -> T:
        """One after the other."""
        async with self._turn:
            if self._closed:
                raise IncidentError("the appliance ends")
            return await asyncio.to_thread(self._alone, what)

    def _alone(self, what: Callable[[], T]) -> T:
        with self._mutex:
            return what()

    def _open(self, changes_since: float) -> Found:
        self._database = kept = database.open_to_write(self._directory)
        found = Found(
            ids=frozenset(kept.ids()),
            changes=tuple(kept.changes(changes_since)),
            last_start=kept.last_change("started"),
            closed=tuple(kept.end_open(self._ended)),
        )
        kept.prune(self._config.keep, self._config.keep_days, time.time())
        return found

    def _write(self, batch: Batch, prune: bool) -> None:
        if self._database is None:
            self._open(time.time())
        kept = self._database
        assert kept is not None
        try:
            kept.write(batch, time.time())
            if prune:
                kept.prune(self._config.keep, self._config.keep_days, time.time())
        except sqlite3.DatabaseError as error:
            if not database.is_ruined(error):
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
            thins=tuple(self._thins),
        )

    def _written(self, batch: Batch) -> None:
        """It need not be held any more. Meanwhile there may be more."""
        for incident in batch.incidents:
            if self._incidents.get(incident.id) is incident:
                del self._incidents[incident.id]
        written = {id(one) for one in (*batch.changes, *batch.chunks)}
        self._changes = deque((one for one in self._changes if id(one) not in written), maxlen=_HELD)
        self._chunks = deque(one for one in self._chunks if id(one) not in written)
        self._thins = self._thins[len(batch.thins) :]

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
    said = str(error)
    if isinstance(error, IncidentError):
        return said
    code = getattr(error, "sqlite_errorcode", None) or 0
    helps = {
        sqlite3.SQLITE_FULL: "make room on that disk, or name a server.state_dir on another one",
        sqlite3.SQLITE_BUSY: "another program has the file open and writes to it; end that",
        sqlite3.SQLITE_READONLY: "let the appliance's user write to it",
        sqlite3.SQLITE_CANTOPEN: "let the appliance's user write to that directory",
        sqlite3.SQLITE_IOERR: "look at the disk (dmesg), or name a server.state_dir on another one",
    }
    return f"{said}; {helps.get(code & 0xFF, 'name another server.state_dir, if that lasts')}; it is tried again"
