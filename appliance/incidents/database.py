"""Incidents and remedies in SQLite: one file in the state directory, written by one process at a time. Everything here blocks."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from appliance import statefile
from appliance.errors import IncidentError
from appliance.incidents import frames
from appliance.incidents.frames import Chunk, Thin
from appliance.records import Change, Incident, IncidentState, Remedy

T = TypeVar("T")
FILE: Final = "incidents.db"
_CHANGES_KEPT: Final = 5000
_DAY_S: Final = 86_400.0
_CANT_SHARE: Final = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)  # with one who writes: the directory can only be read
_STEPS: Final = (  # from each format of the file to the next; a new file takes all of them
    """
CREATE TABLE incidents (id TEXT PRIMARY KEY, opened REAL NOT NULL, state TEXT NOT NULL, updated REAL NOT NULL, data TEXT NOT NULL);
CREATE INDEX incidents_opened ON incidents (opened);
CREATE TABLE changes (number INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY, incident TEXT NOT NULL, since REAL NOT NULL, until REAL NOT NULL, thinned INTEGER NOT NULL DEFAULT 0,
    data BLOB NOT NULL
);
CREATE INDEX chunks_incident ON chunks (incident, since);
""",
    "CREATE TABLE remedies (id TEXT PRIMARY KEY, time REAL NOT NULL, data TEXT NOT NULL);",
)
KIND: Final = statefile.Kind(
    file=FILE,
    lock="incidents.lock",
    what="incidents",
    application_id=0x50444149,  # PDAI
    steps=_STEPS,
    error=IncidentError,
)
_log = logging.getLogger("pd-appliance.incidents")


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be written at once."""

    incidents: tuple[Incident, ...] = ()
    changes: tuple[Change, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    thins: tuple[Thin, ...] = ()
    remedies: tuple[Remedy, ...] = ()


class Database:
    """An open file. Used by one thread at a time; all may raise ``sqlite3.Error``."""

    def __init__(self, connection: sqlite3.Connection, lock: int = -1) -> None:
        self._connection = connection
        self._lock = lock  # descriptor; held for as long as it is open

    def close(self) -> None:
        """Harmless a second time."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- written

    def write(self, batch: Batch, now: float) -> None:
        """All of it, or nothing."""
        with self._transaction():
            for incident in batch.incidents:
                self._put(incident, now)
            for change in batch.changes:
                row = (change.time, change.kind.value, _text(change))
                self._connection.execute("INSERT INTO changes (time, kind, data) VALUES (?, ?, ?)", row)
            for chunk in batch.chunks:
                row_of = (chunk.incident, chunk.since_s, chunk.until_s, frames.joined(chunk.frames))
                self._connection.execute(
                    "INSERT INTO chunks (incident, since, until, data) VALUES (?, ?, ?, ?)", row_of
                )
            for thin in batch.thins:
                self._thin(thin)
            for remedy in batch.remedies:
                self._connection.execute(
                    "INSERT INTO remedies (id, time, data) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data",
                    (remedy.id, remedy.time, _text(remedy)),
                )

    def end_open(self, ended: str, but: Collection[str] = ()) -> list[Incident]:
        """Close what the last process left open, at the time at which it was last heard of. ``but``: ids of those that are open now."""
        left = self._connection.execute(
            "SELECT updated, data FROM incidents WHERE state = ?", (IncidentState.OPEN.value,)
        ).fetchall()
        closed = []
        for updated, data in left:
            incident = _record(data, Incident)
            if incident is not None and incident.id not in but:
                over = max(updated, incident.opened)
                change = {"state": IncidentState.CLOSED, "closed": over, "ended": ended}
                closed.append(msgspec.structs.replace(incident, **change))
        with self._transaction():
            for incident in closed:
                self._put(incident, incident.closed or incident.opened)
        return closed

    def prune(self, keep: int, days: float, now: float) -> None:
        """Forget what is too old or too many, and give its room back. What is open stays."""
        run = self._connection.execute
        with self._transaction():
            run(
                "DELETE FROM incidents WHERE state != ? AND (opened < ? OR id NOT IN "
                "(SELECT id FROM incidents ORDER BY opened DESC LIMIT ?))",
                (IncidentState.OPEN.value, now - days * _DAY_S, keep),
            )
            run("DELETE FROM chunks WHERE incident NOT IN (SELECT id FROM incidents)")
            run(
                "DELETE FROM changes WHERE time < ? OR number <= (SELECT MAX(number) FROM changes) - ?",
                (now - days * _DAY_S, _CHANGES_KEPT),
            )
            run(
                "DELETE FROM remedies WHERE time < ? OR id NOT IN (SELECT id FROM remedies ORDER BY time DESC LIMIT ?)",
                (now - days * _DAY_S, keep),
            )
        self._connection.executescript("PRAGMA incremental_vacuum")  # ``execute`` would give back a single page

    def _put(self, incident: Incident, now: float) -> None:
        self._connection.execute(
            "INSERT INTO incidents (id, opened, state, updated, data) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
            "SET state = excluded.state, updated = excluded.updated, data = excluded.data",
            (incident.id, incident.opened, incident.state.value, now, _text(incident)),
        )

    def _thin(self, thin: Thin) -> None:
        which = "FROM chunks WHERE incident = ? AND thinned = 0 AND since >= ? AND until <= ?"
        rows = self._connection.execute(
            f"SELECT number, data {which}", (thin.incident, thin.since_s, thin.until_s)
        ).fetchall()
        for number, data in rows:
            left = frames.thinned(data, thin.apart_s)
            if left is None:
                self._connection.execute("DELETE FROM chunks WHERE number = ?", (number,))
            else:
                self._connection.execute("UPDATE chunks SET thinned = 1, data = ? WHERE number = ?", (left, number))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
                self._connection.execute("ROLLBACK")
            raise

    # ---- read

    def incidents(self, limit: int, state: str | None = None) -> list[Incident]:
        """Newest first."""
        where, values = ("WHERE state = ?", [state]) if state else ("", [])
        rows = self._connection.execute(
            f"SELECT data FROM incidents {where} ORDER BY opened DESC, id DESC LIMIT ?", [*values, limit]
        )
        return [one for (data,) in rows if (one := _record(data, Incident)) is not None]

    def incident(self, id: str) -> Incident | None:
        row = self._connection.execute("SELECT data FROM incidents WHERE id = ?", (id,)).fetchone()
        return None if row is None else _record(row[0], Incident)

    def ids(self) -> set[str]:
        return {id for (id,) in self._connection.execute("SELECT id FROM incidents")}

    def changes(self, since: float) -> list[Change]:
        """Oldest first."""
        rows = self._connection.execute("SELECT data FROM changes WHERE time >= ? ORDER BY number", (since,))
        return [one for (data,) in rows if (one := _record(data, Change)) is not None]

    def between(self, since: float, until: float, limit: int) -> tuple[list[Change], list[Incident]]:
        """The newest of each, oldest first; of incidents those that were open at some time of it."""
        run = self._connection.execute
        changes = run(
            "SELECT data FROM changes WHERE time >= ? AND time < ? ORDER BY number DESC LIMIT ?", (since, until, limit)
        )
        found = [change for (data,) in changes if (change := _record(data, Change)) is not None]
        incidents = run("SELECT data FROM incidents WHERE opened < ? ORDER BY opened DESC LIMIT ?", (until, limit))
        spells = [spell for (data,) in incidents if (spell := _record(data, Incident)) is not None]
        return found[::-1], [spell for spell in spells[::-1] if spell.closed is None or spell.closed >= since]

    def last_change(self, kind: str) -> Change | None:
        row = self._connection.execute(
            "SELECT data FROM changes WHERE kind = ? ORDER BY number DESC LIMIT 1", (kind,)
        ).fetchone()
        return None if row is None else _record(row[0], Change)

    def remedies(self) -> list[Remedy]:
        """Oldest first."""
        rows = self._connection.execute("SELECT data FROM remedies ORDER BY time, id")
        return [one for (data,) in rows if (one := _record(data, Remedy)) is not None]

    def chunks(self, id: str) -> list[bytes]:
        """What was seen around it, in the order in which it was seen."""
        rows = self._connection.execute("SELECT data FROM chunks WHERE incident = ? ORDER BY since, number", (id,))
        return [data for (data,) in rows]

    def chunk(self, id: str, uptime_s: float) -> bytes | None:
        """The one with what was seen then, or last before; the first one if that was before all of them."""
        for where, order in (("since <= ?", "since DESC, number DESC"), ("since > ?", "since, number")):
            row = self._connection.execute(
                f"SELECT data FROM chunks WHERE incident = ? AND {where} ORDER BY {order} LIMIT 1", (id, uptime_s)
            ).fetchone()
            if row is not None:
                return bytes(row[0])
        return None


def open_to_write(directory: Path) -> Database:
    """Make it if need be. Raises ``IncidentError``, ``OSError``, ``sqlite3.Error``; see ``statefile.open_to_write``."""
    return Database(*statefile.open_to_write(directory, KIND))


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[Database]:
    """What is there, whether or not a node writes to it. Raises ``IncidentError``."""
    found = _open_to_read(directory)
    try:
        yield found
    except sqlite3.Error as error:
        raise IncidentError(f"{directory / FILE} can't be read: {error}") from error
    finally:
        found.close()


def _open_to_read(directory: Path) -> Database:
    path = directory / FILE
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))  # SQLite does not say why it can't
    except FileNotFoundError:
        raise IncidentError(
            f"no incidents are kept in {directory}: name a node's state directory with --state-dir"
        ) from None
    except OSError as error:
        raise IncidentError(f"{path} can't be read: {error.strerror}; ask as the appliance's user") from error
    address = f"{path.resolve().as_uri()}?mode=ro"
    try:
        try:
            return _readable(address, path)
        except sqlite3.OperationalError as error:
            if statefile.code(error) not in _CANT_SHARE:
                raise
            return _readable(f"{address}&immutable=1", path)
    except sqlite3.Error as error:
        raise IncidentError(f"{path} can't be read: {error}") from error


def _readable(address: str, path: Path) -> Database:
    connection = sqlite3.connect(address, uri=True, timeout=statefile.BUSY_S)
    try:
        if not statefile.checked(connection, path, KIND):
            raise IncidentError(f"{path} has no incidents")
        return Database(connection)
    except BaseException:
        connection.close()
        raise


def _text(record: msgspec.Struct) -> str:
    return msgspec.json.encode(record).decode()


def _record(data: str, kind: type[T]) -> T | None:
    """None, and a word in the log, for what an older or a newer version has written in a way that this one can't read."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        _log.warning("a record of incidents can't be read and is passed over: %s", error)
        return None


def newest(some: Sequence[Incident], limit: int) -> list[Incident]:
    """As ``Database.incidents`` orders them."""
    return sorted(some, key=lambda one: (one.opened, one.id), reverse=True)[:limit]
