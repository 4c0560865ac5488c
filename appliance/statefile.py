"""SQLite files in the state directory: opened, checked, brought up to date, and set aside where they are no longer whole.

Everything here blocks but for ``beside``, which runs the like of it in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")
BUSY_S: Final = 2.0  # a lock of somebody else's is waited for
_RUINED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_log = logging.getLogger("pd-appliance")


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is for. ``error`` is raised where another node has it, or a newer version has written it."""

    file: str
    lock: str  # file that is held for as long as the other one is open
    what: str  # that is kept in it, in words
    application_id: int
    steps: tuple[str, ...]  # SQL from each format of the file to the next; a new file takes all of them
    error: type[Exception]

    @property
    def schema(self) -> int:
        """The format of today."""
        return len(self.steps)


def open_to_write(directory: Path, kind: Kind) -> tuple[sqlite3.Connection, int]:
    """The connection, and the descriptor that holds the lock. Made if need be; an unreadable one is set aside.

    Raises ``kind.error``; ``OSError`` and ``sqlite3.Error`` where the disk can't.
    """
    lock = _locked(directory, kind)
    path = directory / kind.file
    try:
        try:
            return _opened(path, kind), lock
        except sqlite3.DatabaseError as error:
            if not is_ruined(error):
                raise
            set_aside(path, str(error))
            return _opened(path, kind), lock
    except BaseException:
        os.close(lock)
        raise


def set_aside(path: Path, why: str) -> None:
    """What can't be read stays there under another name, for whoever wants to try."""
    aside = f"{path.name}.unreadable-{time.strftime('%y%m%d-%H%M%S', time.gmtime())}"
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(path.with_name(aside + ending))
    _log.error("%s can't be read (%s): it is kept as %s, and a new one is begun", path, why, aside)


def is_ruined(error: Exception) -> bool:
    """Whether it is the file that is wrong, and not the disk or the moment."""
    return code(error) in _RUINED


def code(error: Exception) -> int:
    """SQLite's primary one."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


async def beside(what: Callable[[], T]) -> T:
    """Its result, from a thread that does not keep the process alive: a disk may never answer, and asyncio's threads are waited for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def told(how: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if done.done() else how())

    def run() -> None:
        try:
            found = what()
        except Exception as error:
            failure = error
            told(lambda: done.set_exception(failure))
        else:
            told(lambda: done.set_result(found))

    threading.Thread(target=run, name="statefile", daemon=True).start()
    return await done


def remedy(error: Exception) -> str:
    """What is wrong, and what would help."""
    helps = {
        sqlite3.SQLITE_FULL: "make room on that disk, or name a server.state_dir on another one",
        sqlite3.SQLITE_BUSY: "another program has the file open and writes to it; end that",
        sqlite3.SQLITE_READONLY: "let the appliance's user write to it",
        sqlite3.SQLITE_CANTOPEN: "let the appliance's user write to that directory",
        sqlite3.SQLITE_IOERR: "look at the disk (dmesg), or name a server.state_dir on another one",
    }
    return f"{error}; {helps.get(code(error), 'name another server.state_dir, if that lasts')}"


def _locked(directory: Path, kind: Kind) -> int:
    """Two nodes with one state directory would write over each other."""
    descriptor = os.open(directory / kind.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise kind.error(
            f"another node keeps its {kind.what} in {directory}: give each a server.state_dir of its own"
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _opened(path: Path, kind: Kind) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # for nobody else to read
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _bring_up(connection, kind, checked(connection, path, kind))
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection
    except BaseException:
        connection.close()
        raise


def checked(connection: sqlite3.Connection, path: Path, kind: Kind) -> int:
    """Its version. Raises ``kind.error`` for a newer one, ``sqlite3.DatabaseError`` for one that is no longer whole, or not ours."""
    version = _number(connection, "user_version")
    if version > kind.schema:
        raise kind.error(
            f"{path} was written by a newer pd-appliance (format {version}, and this one knows {kind.schema}): "
            "update, or move that file away"
        )
    said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    foreign = _number(connection, "application_id") not in (0, kind.application_id)
    if said != "ok" or foreign or (version == 0 and _has_tables(connection)):
        error = sqlite3.DatabaseError(said if said != "ok" else "it is somebody else's")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    return version


def _bring_up(connection: sqlite3.Connection, kind: Kind, version: int) -> None:
    """To the format of today, from nothing or from an older one."""
    if version == kind.schema:
        return
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.executescript(
        f"BEGIN IMMEDIATE; {''.join(kind.steps[version:])} PRAGMA application_id = {kind.application_id}; "
        f"PRAGMA user_version = {kind.schema}; COMMIT;"
    )


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
