"""Samples in SQLite: each snapshot's in memory, and slots of 10 s, 1 min and 10 min in a file. Everything here blocks.

A slot is made of the resolution before it by SQLite itself, and so is every answer: what lies in between is not carried through Python,
and the interpreter is free for the event loop meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliance import statefile
from appliance.errors import HistoryError
from appliance.history.resolutions import DAY_S, FINEST_DAYS, SLOTS, TICK, TICKS_S, Grid
from appliance.history.samples import TABLES, Column, Sample

Cells = dict[str, list[float | None]]
_MEMORY: Final = "lately"  # the schema of snapshots' samples


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """What a question is answered with: a value for each step of its grid, by the series' names."""

    means: Cells = {}
    highest: Cells = {}
    lowest: Cells = {}


class Database:
    """Open. Used by one thread at a time; all may raise ``sqlite3.Error``."""

    def __init__(self, connection: sqlite3.Connection, lock: int = -1) -> None:
        self._connection = connection
        self._lock = lock
        self._due_s = math.inf  # the oldest snapshot of which no slots were made
        connection.execute(f"ATTACH ':memory:' AS {_MEMORY}")
        connection.executescript(_tables(f"{_MEMORY}."))

    def close(self) -> None:
        """Harmless a second time."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- written

    def add(self, samples: Sequence[Sample]) -> None:
        """To memory, where what is too old is forgotten."""
        if not samples:
            return
        with self._transaction():
            for table, rows in _rows(samples).items():
                marks = ", ".join("?" * (3 + len(TABLES[table])))
                names = ", ".join(("level", "time", "name", *(column.name for column in TABLES[table])))
                self._connection.executemany(
                    f"INSERT OR REPLACE INTO {_MEMORY}.{table} ({names}) VALUES ({marks})", rows
                )
                oldest = samples[-1].time - TICKS_S
                self._connection.execute(f"DELETE FROM {_MEMORY}.{table} WHERE level = ? AND time < ?", (TICK, oldest))
        self._due_s = min(self._due_s, *(sample.time for sample in samples))

    def roll_up(self) -> None:
        """Make the slots that the newest samples belong to, or make them again: all of them, or none."""
        if self._due_s == math.inf:
            return
        with self._transaction():
            for slot_s, source in zip(SLOTS, (TICK, *SLOTS), strict=False):
                for table in TABLES:
                    since = self._due_s // slot_s * slot_s
                    self._connection.execute(_rolled(table, slot_s, source), (source, since))
        self._due_s = math.inf

    def prune(self, days: float, now: float) -> None:
        """Forget what is too old, and give its room back."""
        with self._transaction():
            for slot_s in SLOTS:
                oldest = now - DAY_S * (min(FINEST_DAYS, days) if slot_s == SLOTS[0] else days)
                for table in TABLES:
                    self._connection.execute(f"DELETE FROM {table} WHERE level = ? AND time < ?", (slot_s, oldest))
        self._connection.executescript("PRAGMA incremental_vacuum")  # ``execute`` would give back a single page

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
                self._connection.execute("ROLLBACK")
            raise

    # ---- read

    def names(self, grid: Grid, table: str) -> list[str]:
        """The engines or GPUs of which there is anything on the grid."""
        rows = self._connection.execute(
            f"SELECT DISTINCT name FROM {_where(table, grid.resolution)} WHERE level = ? AND time >= ? AND time < ?",
            (grid.resolution, grid.begin, grid.end),
        )
        return sorted((name for (name,) in rows), key=lambda name: (len(name), name))  # e2 before e10

    def read(self, grid: Grid, wanted: Mapping[str, Mapping[str, Sequence[Column]]]) -> Series:
        """``wanted``: table → name (empty for the node) → columns."""
        found = Series()
        for table, by_name in wanted.items():
            for columns in {tuple(columns): None for columns in by_name.values()}:
                names = [name for name in by_name if tuple(by_name[name]) == columns]
                self._read(grid, table, names, columns, found)
        return found

    def _read(self, grid: Grid, table: str, names: Sequence[str], columns: Sequence[Column], found: Series) -> None:
        cells = {name: _cells(name, columns, grid.count, found) for name in names}
        which = ", ".join("?" * len(names))
        where = _where(table, grid.resolution)
        rows = self._connection.execute(
            f"SELECT name, CAST((time - ?) / ? AS INTEGER) AS step, {', '.join(_aggregates(columns, scaled=True))} FROM {where} "
            f"WHERE level = ? AND time >= ? AND time < ? AND name IN ({which}) GROUP BY name, step",
            (grid.begin, grid.step_s, grid.resolution, grid.begin, grid.end, *names),
        )
        for name, step, *values in rows:
            for cell, value in zip(cells[name], values, strict=True):
                cell[step] = value


def _cells(name: str, columns: Sequence[Column], count: int, found: Series) -> list[list[float | None]]:
    """In the order of ``_aggregates``."""
    made = []
    for column in columns:
        key = f"{name}.{column.name}" if name else column.name
        made.append(found.means.setdefault(key, [None] * count))
        if column.extreme:
            of = found.highest if column.extreme == "MAX" else found.lowest
            made.append(of.setdefault(key, [None] * count))
    return made


# ---- SQL


def _tables(schema: str = "") -> str:
    """Rows lie in the order in which they are asked for. A snapshot's rows have the level 0."""
    made = []
    for table, columns in TABLES.items():
        fields = [f"{name} INTEGER" for column in columns for name in _fields(column)]
        made.append(
            f"CREATE TABLE {schema}{table} (level INTEGER NOT NULL, time NUMERIC NOT NULL, name TEXT NOT NULL, {', '.join(fields)}, "
            "PRIMARY KEY (level, time, name)) WITHOUT ROWID;"
        )
    return "\n".join(made)


def _fields(column: Column) -> tuple[str, ...]:
    return (column.name, _extreme(column)) if column.extreme else (column.name,)


def _extreme(column: Column) -> str:
    return f"{column.name}_{(column.extreme or '').lower()}"


def _where(table: str, resolution: int) -> str:
    return f"{_MEMORY}.{table}" if resolution == TICK else table


def _rolled(table: str, slot_s: int, source: int) -> str:
    """The slots of one resolution, from the one before it."""
    columns = TABLES[table]
    fields = ", ".join(name for column in columns for name in _fields(column))
    return (
        f"INSERT OR REPLACE INTO {table} (level, time, name, {fields}) "
        f"SELECT {slot_s}, CAST(time / {slot_s} AS INTEGER) * {slot_s} AS slot, name, {', '.join(_aggregates(columns))} "
        f"FROM {_where(table, source)} WHERE level = ? AND time >= ? GROUP BY slot, name"
    )


def _aggregates(columns: Sequence[Column], scaled: bool = False) -> list[str]:
    """What becomes of several rows. ``scaled``: in units, and not as they are kept."""
    made = []
    for column in columns:
        found = [_mean(column)]
        if column.extreme:  # a snapshot has none of its own
            found.append(f"{column.extreme}(COALESCE({_extreme(column)}, {column.name}))")
        made += [f"({one}) / {float(column.scale)!r}" if scaled else f"CAST({one} AS INTEGER)" for one in found]
    return made


def _mean(column: Column) -> str:
    """Means of means go by the weight; else slots count alike, whose lengths are."""
    name, weight = column.name, column.weight
    if weight is None:
        return f"ROUND(AVG({name}))"
    over = weight if column.part else f"CASE WHEN {name} IS NULL THEN NULL ELSE {weight} END"
    return f"ROUND(SUM({name} * {weight}) * 1.0 / SUM({over}))"


def _rows(samples: Sequence[Sample]) -> dict[str, list[tuple[int | float | str | None, ...]]]:
    return {
        "node": [(TICK, one.time, "", *one.node) for one in samples],
        "engine": [(TICK, one.time, name, *values) for one in samples for name, values in one.engines.items()],
        "gpu": [(TICK, one.time, name, *values) for one in samples for name, values in one.gpus.items()],
    }


KIND: Final = statefile.Kind(
    file="history.db",
    lock="history.lock",
    what="history",
    application_id=0x50444148,  # PDAH
    steps=(_tables(),),
    error=HistoryError,
)


def open_to_write(directory: Path) -> Database:
    """Make it if need be. Raises ``HistoryError``, ``OSError``, ``sqlite3.Error``; see ``statefile.open_to_write``."""
    return Database(*statefile.open_to_write(directory, KIND))


def in_memory() -> Database:
    """The same without a file: it ends with the process."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.executescript(_tables())
    return Database(connection)
