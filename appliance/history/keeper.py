"""Follows the node, keeps what it was like without ever waiting for the disk, and answers what it was."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from appliance import statefile
from appliance.config import TelemetryConfig
from appliance.errors import HistoryError, RequestError
from appliance.history import database
from appliance.history.database import Database, Series
from appliance.history.resolutions import TICK, TICKS_S, Grid, Kept, grid
from appliance.history.samples import Sample, Seen, lately, sample
from appliance.history.selection import select
from appliance.records import History as Answer
from appliance.records import NodeSnapshot

T = TypeVar("T")
_FLUSH_S: Final = 60.0
_PRUNE_S: Final = 3600.0
_ANSWER_S: Final = 10.0
_CLOSE_S: Final = 3.0
_MEMORY_DAYS: Final = 2.0  # where there is no file
_SAY_AGAIN_S: Final = 600.0  # the same failure
_log = logging.getLogger("pd-appliance.history")


class History:
    """Implements ``web.ports.HistoryView``. ``run`` follows the node until cancelled, then ``close`` writes the rest."""

    def __init__(
        self, config: TelemetryConfig, directory: Path | None, unix_s: Callable[[], float] = time.time
    ) -> None:
        """``directory``: where it is kept; None for memory only."""
        self._tick_s = config.tick_s
        self._days = config.history_days
        self._directory = directory if config.history_days else None
        self._unix_s = unix_s
        self._database: Database | None = None
        self._turn = asyncio.Lock()  # who asks next; the mutex is for a thread that nobody waits for any more
        self._mutex = threading.Lock()
        self._waiting: deque[Sample] = deque(maxlen=round(TICKS_S / config.tick_s) + 1)
        self._last: NodeSnapshot | None = None
        self._ticks_since = unix_s()
        self._pruned_s = -_PRUNE_S  # monotonic
        self._began = (unix_s(), time.monotonic())
        self._said: tuple[str, float] = ("", 0.0)
        self._closed = False

    # ---- followed

    async def run(self, snapshots: AsyncIterator[NodeSnapshot]) -> None:
        """A fault in here must not end the node."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._flush_now_and_then())
            async for snapshot in snapshots:
                try:
                    self.fold(snapshot)
                except Exception:
                    _log.exception("this snapshot's part in the history is lost")

    def fold(self, snapshot: NodeSnapshot) -> None:
        """Take a snapshot."""
        if self._last is None or snapshot.time != self._last.time:
            self._waiting.append(sample(Seen(snapshot, self._last)))
            self._last = snapshot

    async def close(self) -> None:
        """Write what is left, if that can be done in time."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_S):
                await self._in_thread(self._flush)
        self._closed = True
        if self._mutex.acquire(
            blocking=False
        ):  # else a thread still waits for the disk, and the process's end closes it
            if self._database is not None:
                self._database.close()
            self._mutex.release()

    async def _flush_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await self._in_thread(self._flush)
            except HistoryError as error:
                self._complain(error)
            except Exception:
                _log.exception("a minute of history could not be written")

    # ---- asked

    def sample(self, snapshot: NodeSnapshot) -> dict[str, float | None]:
        """What the page's charts are told with every snapshot."""
        return lately(snapshot)

    async def read(self, since: float, until: float, points: int, series: Sequence[str]) -> Answer:
        """See ``web.ports.HistoryView``."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._in_thread(lambda: self._answer(since, until, points, series))
        except (TimeoutError, OSError, sqlite3.Error, HistoryError) as error:
            why = str(error) or "the disk takes too long"
            raise RequestError(
                503, f"The history can't be read now: {why}.", code="history", retry_after_s=10
            ) from error

    def _answer(self, since: float, until: float, points: int, series: Sequence[str]) -> Answer:
        kept = self._flush()
        lasting = Kept(tick_s=self._tick_s, ticks_since=self._ticks_since, days=self._days)
        on = grid(since, until, points, lasting, self._unix_s())
        names = functools.cache(lambda table: kept.names(on, table))
        found = kept.read(on, select(series, names, self._present(), on.count))
        return _told(since, until, on, found, self._tick_s)

    def _present(self) -> frozenset[str] | None:
        """The engines and GPUs that there were last; None as long as nothing has been heard of any."""
        if (last := self._last) is None:
            return None
        return frozenset((*(engine.name for engine in last.engines), *(f"gpu{gpu.index}" for gpu in last.gpus)))

    # ---- in threads

    async def _in_thread(self, what: Callable[[], T]) -> T:
        """One after the other."""
        async with self._turn:
            if self._closed:
                raise HistoryError("the appliance ends")
            return await statefile.beside(lambda: self._alone(what))

    def _alone(self, what: Callable[[], T]) -> T:
        if not self._mutex.acquire(timeout=_ANSWER_S):  # another thread hangs, for which nobody waits any more
            raise HistoryError("the disk does not answer; look at it (dmesg)")
        try:
            return what()
        finally:
            self._mutex.release()

    def _flush(self) -> Database:
        """Whatever waits is in the database then; on disk, too, if the disk can."""
        kept = self._opened()
        samples = [self._waiting.popleft() for _ in range(len(self._waiting))]
        kept.add(samples)
        try:
            self._settle(kept)
        except sqlite3.Error as error:  # snapshots of ten minutes are held, and their slots made at the next try
            self._complain(error)
            if statefile.is_ruined(error):
                return self._begun_anew(kept, error, samples)
        return kept

    def _settle(self, kept: Database) -> None:
        kept.roll_up()
        if time.monotonic() - self._pruned_s > _PRUNE_S:
            began, began_s = self._began
            lasted = began + time.monotonic() - began_s
            kept.prune(self._days, min(self._unix_s(), lasted))  # a clock that is set forward makes nothing older
            self._pruned_s = time.monotonic()

    def _opened(self) -> Database:
        if self._database is None:
            self._database = self._on_disk()
        if self._database is None:
            self._database, self._days = database.in_memory(), _MEMORY_DAYS
        return self._database

    def _on_disk(self) -> Database | None:
        """None, and a word in the log, where it can't be had: then all is in memory until the next start."""
        if self._directory is None:
            return None
        try:
            return database.open_to_write(self._directory)
        except (HistoryError, OSError, sqlite3.Error) as error:
            _log.error("history is kept in memory only, until the next start: %s", _remedy(error))
            return None

    def _begun_anew(self, ruined: Database, error: sqlite3.Error, samples: Sequence[Sample]) -> Database:
        """The file is set aside; what was about to be written to it is written to the next one."""
        ruined.close()
        if self._directory is not None:
            statefile.set_aside(self._directory / database.KIND.file, str(error))
        self._database = None
        self._ticks_since = samples[0].time if samples else self._unix_s()
        kept = self._opened()
        kept.add(samples)
        return kept

    def _complain(self, error: Exception) -> None:
        """Once, and again after a while: with what to do."""
        now = time.monotonic()
        if str(error) != self._said[0] or now - self._said[1] > _SAY_AGAIN_S:
            self._said = (str(error), now)
            _log.error("history can't be written to %s: %s; it is tried again", self._directory, _remedy(error))


def _remedy(error: Exception) -> str:
    return str(error) if isinstance(error, HistoryError) else statefile.remedy(error)


def _told(since: float, until: float, on: Grid, found: Series, tick_s: float) -> Answer:
    return Answer(
        since=since,
        until=until,
        step_s=on.step_s,
        resolution_s=tick_s if on.resolution == TICK else on.resolution,
        time=tuple(on.begin + step * on.step_s for step in range(on.count)),
        series=found.means,
        highest=found.highest,
        lowest=found.lowest,
    )
