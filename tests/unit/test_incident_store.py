"""Incidents on disk, and what becomes of them where the disk can't: nothing is lost that memory can hold, and nothing waits."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from incident_scenes import snapshot
from msgspec.structs import replace

from appliance import statefile
from appliance.config import IncidentsConfig
from appliance.errors import IncidentError
from appliance.incidents import database, store
from appliance.incidents.database import FILE, Batch, open_to_write, reading
from appliance.incidents.frames import Chunk, Frame, Thin, packed, snapshots
from appliance.incidents.store import Store
from appliance.records import Change, ChangeKind, Incident, IncidentState, Order, OrderKind, Remedy, Role

NOW = time.time()


def incident(number: int, *, age_s: float = 1000.0, closed: bool = True, **more: object) -> Incident:
    opened = NOW - age_s + number
    state = {"state": IncidentState.CLOSED, "closed": opened + 5, "ended": "well"} if closed else {}
    return Incident(id=f"i{number:04}", opened=opened, summary=f"number {number}", **{**state, **more})  # type: ignore[arg-type]


def chunk(id: str, from_s: float, count: int = 20) -> Chunk:
    frames = tuple(Frame(from_s + n / 2, packed(snapshot(from_s + n / 2), b"s" * 16)) for n in range(count))
    return Chunk(incident=id, since_s=from_s, until_s=frames[-1].uptime_s, frames=frames)


def change(at_s: float = 0.0, kind: ChangeKind = ChangeKind.ROLE) -> Change:
    return Change(time=NOW + at_s, kind=kind, sentence=f"at {at_s}", after="now")


@asynccontextmanager
async def kept(directory: Path, **settings: object) -> AsyncIterator[Store]:
    made = Store(directory, IncidentsConfig(**settings), "ended")  # type: ignore[arg-type]
    await made.open(NOW - 600)
    try:
        yield made
    finally:
        await made.close(2.0)


async def ids(of: Store, state: str | None = None) -> list[str]:
    return [one.id for one in await of.incidents(100, state)]


async def test_what_is_put_is_there_at_once_and_after_a_restart(tmp_path: Path) -> None:
    one, other = incident(1), incident(2, closed=False)
    async with kept(tmp_path) as now:
        now.put(one)
        now.put(other)
        now.put_changes([change(-700), change(-20), change(-10, ChangeKind.STARTED)])
        now.put_frames([chunk("i0001", 0), chunk("i0001", 10)], [])
        assert await ids(now) == ["i0002", "i0001"], "before it is written"
        assert await now.flush()
        assert await ids(now) == ["i0002", "i0001"]
        assert await ids(now, "open") == ["i0002"]
        assert (await now.incident("i0001"), await now.incident("i9")) == (one, None)
    later = Store(tmp_path, IncidentsConfig(), "open when the appliance ended")
    await later.open(NOW - 600)
    found = later.found()
    assert found is not None and later.found() is None, "told once"
    assert found.ids == {"i0001", "i0002"}
    assert [one.sentence for one in found.changes] == ["at -20", "at -10"]
    assert found.last_start is not None and found.last_start.sentence == "at -10"
    [closed] = found.closed
    assert (closed.id, closed.state, closed.ended) == ("i0002", IncidentState.CLOSED, "open when the appliance ended")
    assert closed.closed is not None and closed.closed >= closed.opened
    assert await ids(later, "open") == []
    uptimes = [one["uptime_s"] for data in await later.chunks("i0001") for one in snapshots(data)]
    assert uptimes == [number / 2 for number in range(40)]
    await later.close(1.0)


def remedy(number: int, *, age_s: float = 1000.0, **more: object) -> Remedy:
    order = Order(kind=OrderKind.WEIGHT, engine="e0", weight=0.5)
    told = {"by": "api", "order": order, "sentence": f"number {number}", **more}
    return Remedy(id=f"r{number:04}", time=NOW - age_s + number, **told)  # type: ignore[arg-type]


async def test_remedies_are_kept_as_they_were_last_put_and_as_long_as_incidents(tmp_path: Path) -> None:
    async with kept(tmp_path, keep=3, keep_days=1.0) as now:
        for number in range(5):
            now.put_remedy(remedy(number))
        now.put_remedy(remedy(9, age_s=2 * 86_400))
        await now.flush()
        now.put_remedy(remedy(4, brought="much", undo=Order(kind=OrderKind.TOPOLOGY, roles={"e0": Role.BOTH})))
        await now.flush()
    later = Store(tmp_path, IncidentsConfig(), "ended")
    await later.open(NOW)
    told = later.found()
    assert told is not None
    found = told.remedies
    assert [one.id for one in found] == ["r0002", "r0003", "r0004"]
    assert (found[-1].brought, found[-1].undo and found[-1].undo.roles) == ("much", {"e0": Role.BOTH})
    await later.close(1.0)


async def test_a_file_of_the_first_format_is_read_and_brought_up(tmp_path: Path) -> None:
    made = sqlite3.connect(tmp_path / FILE)
    made.executescript(
        f"{database.KIND.steps[0]} PRAGMA user_version = 1; PRAGMA application_id = {database.KIND.application_id}"
    )
    row = ("i0001", NOW, "closed", NOW, json_of(incident(1)))
    made.execute("INSERT INTO incidents VALUES (?, ?, ?, ?, ?)", row)
    made.commit()
    made.close()
    with reading(tmp_path) as old:
        assert [one.id for one in old.incidents(5)] == ["i0001"], "as it is"
    async with kept(tmp_path) as now:
        now.put_remedy(remedy(1))
        assert await now.flush()
        assert await ids(now) == ["i0001"]
    with sqlite3.connect(tmp_path / FILE) as after:
        assert after.execute("PRAGMA user_version").fetchone()[0] == database.KIND.schema == 2
        assert after.execute("SELECT COUNT(*) FROM remedies").fetchone()[0] == 1
    after.close()


def json_of(one: Incident) -> str:
    return msgspec.json.encode(one).decode()


async def test_the_newest_shape_wins_wherever_it_is(tmp_path: Path) -> None:
    async with kept(tmp_path) as now:
        now.put(incident(1, closed=False))
        await now.flush()
        now.put(incident(1))
        assert (await ids(now, "open"), await ids(now, "closed")) == ([], ["i0001"]), "though it is open on disk"
        await now.flush()
        assert (await ids(now, "open"), await ids(now, "closed")) == ([], ["i0001"])


async def test_the_middle_is_thinned_on_disk(tmp_path: Path) -> None:
    async with kept(tmp_path) as now:
        now.put(incident(1))
        now.put_frames([chunk("i0001", 10.0 * n) for n in range(10)], [])
        await now.flush()
        thin = Thin(incident="i0001", since_s=20, until_s=60, apart_s=5.0)
        for _ in range(2):  # the second time there is nothing left to do
            now.put_frames([chunk("i0001", 100.0)], [thin])
            await now.flush()
        counts = [len(snapshots(data)) for data in await now.chunks("i0001")]
        assert counts[:10] == [20, 20, 2, 2, 2, 2, 20, 20, 20, 20]


async def test_what_is_too_old_or_too_many_is_forgotten_and_its_room_given_back(tmp_path: Path) -> None:
    async with kept(tmp_path, keep=3, keep_days=1.0) as now:
        now.put(incident(0, age_s=2 * 86_400))
        now.put(incident(9, age_s=3 * 86_400, closed=False))
        now.put_changes([change(-2 * 86_400), change(-5)])
        for number in range(1, 6):
            now.put(incident(number))
            now.put_frames([chunk(f"i{number:04}", 10.0 * n, 60) for n in range(20)], [])
        await now.flush()
        assert await ids(now) == ["i0005", "i0004", "i0003", "i0009"], "what is open stays"
        assert await now.chunks("i0002") == []
        assert len(await now.chunks("i0003")) == 20
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("PRAGMA freelist_count").fetchone()[0] < 5
        assert connection.execute("SELECT COUNT(*) FROM changes").fetchone()[0] == 1


async def test_it_is_for_nobody_else_to_read(tmp_path: Path) -> None:
    async with kept(tmp_path) as now:
        now.put(incident(1))
        await now.flush()
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
        assert modes == dict.fromkeys((FILE, f"{FILE}-wal", f"{FILE}-shm", "incidents.lock"), "0o600")


# ---- disks that can't


async def expect_memory(now: Store, caplog: pytest.LogCaptureFixture, *says: str) -> None:
    """It goes on in memory, and says why and what would help, once."""
    now.put(incident(1))
    now.put_frames([chunk("i0001", 0)], [])
    for _ in range(3):
        assert await now.flush() is False
    assert await ids(now) == ["i0001"]
    assert len(await now.chunks("i0001")) == 1
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1, told
    assert "kept in memory only" in told[0]
    assert all(word in told[0] for word in says), told[0]


async def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite itself says so: its file may not grow."""
    async with kept(tmp_path) as now:
        assert now._database is not None
        run = now._database._connection.execute
        pages = run("PRAGMA page_count").fetchone()[0]
        run(f"PRAGMA max_page_count = {pages}").fetchall()
        now.put_frames([chunk("i0001", 0, 400)], [])
        await expect_memory_full(now, caplog)
        run("PRAGMA max_page_count = 1000000").fetchall()
        assert await now.flush()
        assert "again" in caplog.records[-1].getMessage()
        assert len(await now.chunks("i0001")) == 1, "nothing was lost"


async def expect_memory_full(now: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert await now.flush() is False
    assert "make room on that disk" in caplog.records[-1].getMessage()


async def test_a_file_that_another_program_has_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefile, "BUSY_S", 0.05)
    async with kept(tmp_path) as now:
        with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            await expect_memory(now, caplog, "locked", "another program")
            other.execute("ROLLBACK")
        other.close()
        assert await now.flush()
    with reading(tmp_path) as found:
        assert [one.id for one in found.incidents(5)] == ["i0001"]


async def test_a_lock_that_lasts_never_holds_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statefile, "BUSY_S", 0.6)
    async with kept(tmp_path) as now:
        with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            now.put(incident(1))
            writing, turns = asyncio.create_task(now.flush()), 0
            while not writing.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 10, "it has turned while the thread waited for the lock"
            assert await writing is False
            other.execute("ROLLBACK")
        other.close()


async def test_what_was_left_open_is_closed_when_a_lock_at_the_start_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefile, "BUSY_S", 0.05)
    async with kept(tmp_path) as now:
        now.put(incident(1, closed=False))
        now.put_changes([change(-20)])
        await now.flush()
    later = Store(tmp_path, IncidentsConfig(), "ended")
    with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        await later.open(NOW - 600)
        assert later.found() is None
        other.execute("ROLLBACK")
    other.close()
    later.put(incident(2, closed=False))
    assert await later.flush()
    found = later.found()
    assert found is not None
    assert ([one.id for one in found.closed], found.ids) == (["i0001"], {"i0001"})
    assert [one.sentence for one in found.changes] == ["at -20"]
    assert await ids(later, "open") == ["i0002"]
    await later.close(1.0)


async def test_what_is_open_now_is_not_closed_when_the_file_is_opened_again(tmp_path: Path) -> None:
    async with kept(tmp_path) as now:
        now.put(incident(1, closed=False))
        await now.flush()
        now._shut()  # as after an error that looked like a ruined file
        now.put_changes([change()])
        await now.flush()
        assert await ids(now, "open") == ["i0001"]


class Hung:
    """A disk that does not answer until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        really = open_to_write

        def opened(directory: Path) -> database.Database:
            self.answers.wait()
            return really(directory)

        monkeypatch.setattr(database, "open_to_write", opened)
        monkeypatch.setattr(store, "_READ_S", 0.2)


class Slow:
    """A disk whose writes wait until they are told to go on; the first ``failing`` of them fail then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int = 0) -> None:
        self.answers, self._under_way = threading.Event(), threading.Event()
        self._failing = failing
        really = database.Database.write

        def write(of: database.Database, batch: Batch, now: float) -> None:
            self._under_way.set()
            self.answers.wait()
            if self._failing:
                self._failing -= 1
                raise sqlite3.OperationalError("disk I/O error")
            really(of, batch, now)

        monkeypatch.setattr(database.Database, "write", write)

    async def under_way(self) -> None:
        """Until a write is."""
        assert await asyncio.to_thread(self._under_way.wait, 5)


def changes_in(directory: Path) -> list[str]:
    with reading(directory) as found:
        return [one.sentence for one in found.changes(0)]


async def test_what_is_being_written_is_not_written_again_by_who_asks_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Slow(monkeypatch)
    async with kept(tmp_path) as now:
        now.put_changes([change(-20)])
        writing = asyncio.create_task(now.flush())
        await disk.under_way()
        now.put_changes([change(-10)])
        settling = asyncio.create_task(now.settle(5.0))
        await asyncio.sleep(0)
        disk.answers.set()
        await settling
        assert await writing
        assert changes_in(tmp_path) == ["at -20", "at -10"], "the later one as well"
    assert changes_in(tmp_path) == ["at -20", "at -10"]


async def test_what_is_being_written_when_the_time_for_it_is_up_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Slow(monkeypatch)
    async with kept(tmp_path) as now:
        now.put_changes([change()])
        await now.settle(0.05)
        await disk.under_way()
        disk.answers.set()
        for thread in threading.enumerate():
            if thread.name == "statefile":
                await asyncio.to_thread(thread.join, 5)
        await now.settle(5.0)
    assert changes_in(tmp_path) == ["at 0.0"]


async def test_what_a_write_under_way_fails_to_keep_is_kept_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Slow(monkeypatch, failing=1)
    async with kept(tmp_path) as now:
        now.put_changes([change()])
        first, second = asyncio.create_task(now.flush()), asyncio.create_task(now.flush())
        await disk.under_way()
        disk.answers.set()
        assert (await first, await second) == (False, True)
    assert changes_in(tmp_path) == ["at 0.0"]


async def test_what_is_written_is_not_written_again_because_what_is_old_could_not_be_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(database.Database, "prune", refuse)
    async with kept(tmp_path) as now:
        now.put(incident(1))
        now.put_changes([change(-20)])
        assert await now.flush()
        now.put_changes([change(-10)])
        assert await now.flush()
    assert changes_in(tmp_path) == ["at -20", "at -10"]
    assert "disk I/O error" in caplog.text


async def test_the_end_has_one_limit_whoever_writes_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Slow(monkeypatch)
    now = Store(tmp_path, IncidentsConfig(), "ended")
    await now.open(0)
    now.put_changes([change()])
    writing = asyncio.create_task(now.flush())
    await disk.under_way()
    try:
        async with asyncio.timeout(1.8):
            await now.close(1.0)
    finally:
        disk.answers.set()
    assert await writing
    assert changes_in(tmp_path) == ["at 0.0"]


async def test_a_disk_that_never_answers_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Hung(monkeypatch)
    now = Store(tmp_path, IncidentsConfig(), "ended")
    async with asyncio.timeout(5):
        await now.open(0, 0.2)
        now.put(incident(1))
        for _ in range(20):
            assert await ids(now) == ["i0001"], "from memory"
        assert await now.flush() is False
    waiting = [thread for thread in threading.enumerate() if thread.name == "statefile"]
    assert [thread.daemon for thread in waiting] == [True], "one, that the process's end does not wait for"
    assert "the disk has not answered" in caplog.text
    disk.answers.set()
    waiting[0].join(5)
    assert await now.flush(), "nothing was lost"
    assert now.found() is not None
    await now.close(1.0)
    with reading(tmp_path) as found:
        assert [one.id for one in found.incidents(5)] == ["i0001"]


async def test_the_end_does_not_wait_for_a_disk_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Hung(monkeypatch)
    now = Store(tmp_path, IncidentsConfig(), "ended")
    now.put(incident(1))
    async with asyncio.timeout(5):
        await now.close(0.2)
    disk.answers.set()


async def test_a_clock_that_is_set_forward_makes_nothing_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept(tmp_path, keep_days=1.0) as now:
        now.put(incident(1))
        await now.flush()
        monkeypatch.setattr("appliance.incidents.store.time.time", lambda: NOW + 4e9)
        now.put(incident(2))
        await now.flush()
        assert await ids(now) == ["i0002", "i0001"]


async def test_what_can_not_be_written_for_long_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_HELD_INCIDENTS", 5)
    now = Store(tmp_path / "missing", IncidentsConfig(), "ended")
    for number in range(50):
        now.put(incident(number))
        thin = Thin(incident="i0001", since_s=130.0, until_s=200.0 + number, apart_s=5.0)
        now.put_frames([chunk("i0001", 10.0 * number, 1)], [thin])
    assert await ids(now) == [f"i{number:04}" for number in range(49, 44, -1)]
    assert [thin.until_s for thin in now._waiting().thins] == [249.0]
    await now.close(0.5)


@pytest.mark.parametrize("place", ["/proc", "missing"])
async def test_a_directory_that_can_not_be_written_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """Not even root writes to /proc."""
    now = Store(tmp_path / place, IncidentsConfig(), "ended")
    await now.open(0)
    assert now.found() is None
    assert await now.flush(), "there is nothing to write"
    await expect_memory(now, caplog)
    await now.close(1.0)
    assert await now.incident("i0001") is not None


async def test_a_directory_that_is_taken_away_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    away = tmp_path / "state"
    now = Store(away, IncidentsConfig(), "ended")
    await now.open(0)
    await expect_memory(now, caplog)
    away.mkdir()
    assert await now.flush()
    await now.close(1.0)
    with reading(away) as found:
        assert [one.id for one in found.incidents(5)] == ["i0001"]


@pytest.mark.parametrize("ruin", ["text", "zeros", "torn", "foreign"])
async def test_an_unreadable_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, ruin: str) -> None:
    path = tmp_path / FILE
    async with kept(tmp_path) as now:
        for number in range(50):
            now.put(incident(number))
        now.put_frames([chunk("i0001", 10.0 * n, 60) for n in range(20)], [])
        await now.flush()
    whole = path.read_bytes()
    match ruin:
        case "text":
            path.write_bytes(b"not a database " * 1000)
        case "zeros":
            path.write_bytes(whole[:100] + bytes(len(whole) - 100))
        case "torn":
            path.write_bytes(whole[: len(whole) // 2])
        case _:
            path.unlink()
            with sqlite3.connect(path) as other:
                other.execute("CREATE TABLE somebody_elses (a)")
            other.close()
    before = path.read_bytes()
    async with kept(tmp_path) as now:
        [aside] = tmp_path.glob(f"{FILE}.unreadable-*")
        assert aside.read_bytes() == before
        assert "it is kept as" in caplog.text
        assert await ids(now) == []
        now.put(incident(60))
        assert await now.flush()
        assert await ids(now) == ["i0060"]


async def test_a_file_that_is_ruined_while_it_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kept(tmp_path) as now:
        for number in range(50):
            now.put(incident(number))
        await now.flush()
        for ending in ("", "-wal", "-shm"):
            (tmp_path / (FILE + ending)).write_bytes(b"\xff" * 100_000)
        now.put(incident(60))
        tries = [await now.flush() for _ in range(3)]
        assert tries[-1] is True, "a new one is begun"
        assert await ids(now) == ["i0060"]


async def test_a_newer_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kept(tmp_path):
        pass
    with sqlite3.connect(tmp_path / FILE) as newer:
        newer.execute("PRAGMA user_version = 7")
    newer.close()
    before = (tmp_path / FILE).read_bytes()
    now = Store(tmp_path, IncidentsConfig(), "ended")
    await now.open(0)
    await expect_memory_newer(now, caplog)
    await now.close(1.0)
    assert (tmp_path / FILE).read_bytes() == before
    with pytest.raises(IncidentError, match="newer pd-appliance"), reading(tmp_path):
        pass


async def expect_memory_newer(now: Store, caplog: pytest.LogCaptureFixture) -> None:
    now.put(incident(1))
    assert await now.flush() is False
    assert "format 7, and this one knows 2" in caplog.records[-1].getMessage()
    assert await ids(now) == ["i0001"]


async def test_two_nodes_with_one_state_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kept(tmp_path) as first:
        first.put(incident(1, closed=False))
        await first.flush()
        async with kept(tmp_path) as second:
            second.put(incident(2))
            assert await second.flush() is False
            assert "another node keeps its incidents" in caplog.text
            assert "server.state_dir" in caplog.text
            assert await ids(second) == ["i0002"]
        assert await ids(first, "open") == ["i0001"], "nobody has closed it"
        second = Store(tmp_path, IncidentsConfig(), "ended")
        second.put(incident(3))
    assert await second.flush(), "it takes over when the first one is gone"
    assert await ids(second, "closed") == ["i0003", "i0001"]
    await second.close(1.0)


async def test_memory_is_bounded_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_HELD_BYTES", 100_000)
    now = Store(tmp_path / "missing", IncidentsConfig(), "ended")
    for number in range(300):
        now.put_frames([chunk("i0001", 10.0 * number)], [])
    held = [snapshots(data)[0]["uptime_s"] for data in await now.chunks("i0001")]
    assert 0 < len(held) < 300
    assert held[-1] == 2990.0, "the newest are kept"
    await now.close(0.5)


async def test_a_fault_of_ours_is_told_and_not_tried_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kept(tmp_path) as now:
        now.put_frames([Chunk(incident="i0001", since_s=0, until_s=1, frames=(Frame(0.0, b"no such thing"),))], [])
        assert await now.flush()
        assert "what was to be kept of incidents is lost" in caplog.text
        now.put(incident(1))
        assert await now.flush()
    with reading(tmp_path) as found:
        assert [one.id for one in found.incidents(5)] == ["i0001"]


async def test_what_another_version_has_written_into_a_row_is_passed_over(tmp_path: Path) -> None:
    async with kept(tmp_path) as now:
        now.put(incident(1))
        now.put(incident(2))
        await now.flush()
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("UPDATE incidents SET data = '{\"id\": 7}' WHERE id = 'i0002'")
    other.close()
    async with kept(tmp_path) as now:
        assert await ids(now) == ["i0001"]


# ---- reading beside


async def test_a_running_nodes_directory_can_be_read(tmp_path: Path) -> None:
    async with kept(tmp_path) as now:
        now.put(replace(incident(1), failed=3))
        now.put_frames([chunk("i0001", 0)], [])
        await now.flush()
        with reading(tmp_path) as found:
            assert found.incident("i0001") == await now.incident("i0001")
            assert len(found.chunks("i0001")) == 1


async def test_a_directory_that_can_only_be_read(tmp_path: Path) -> None:
    """As it is after a clean end, on a medium that can't be written to."""
    async with kept(tmp_path) as now:
        now.put(incident(1))
        await now.flush()
    assert not (tmp_path / f"{FILE}-wal").exists()
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / FILE, copy)
    os.chmod(copy, 0o500)
    with reading(copy) as found:
        assert [one.id for one in found.incidents(5)] == ["i0001"]


def test_what_is_not_there_to_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(IncidentError, match="no incidents are kept in"), reading(tmp_path):
        pass
    with (
        pytest.raises(IncidentError, match=r"incidents\.db can't be read: Not a directory"),
        reading(Path("/dev/null")),
    ):
        pass
    (tmp_path / FILE).write_bytes(b"nonsense" * 1000)
    with pytest.raises(IncidentError, match="can't be read"), reading(tmp_path):
        pass


def test_a_batch_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    made = open_to_write(tmp_path)
    bad = Chunk(incident="i0001", since_s=0, until_s=1, frames=(Frame(0.0, b"no such thing"),))
    with pytest.raises(Exception, match="incorrect header"):
        made.write(Batch(incidents=(incident(1),), chunks=(bad,)), NOW)
    assert made.incidents(5) == []
    made.write(Batch(incidents=(incident(1),)), NOW)
    assert len(made.incidents(5)) == 1
    made.close()
    made.close()


async def test_what_happened_between_two_times_is_told_wherever_it_is(tmp_path: Path) -> None:
    async with kept(tmp_path) as now:
        for one in (incident(1, age_s=900), incident(2, age_s=500), incident(3, age_s=100, closed=False)):
            now.put(one)
        now.put_changes([change(-800), change(-450)])
        await now.flush()
        now.put(incident(4, age_s=50, closed=False))
        now.put_changes([change(-40)])
        changes, incidents = await now.between(NOW - 600, NOW, 10)
        assert [one.sentence for one in changes] == ["at -450", "at -40"]
        assert [one.id for one in incidents] == ["i0002", "i0003", "i0004"], "oldest first, whoever is on disk"
        changes, incidents = await now.between(NOW - 1000, NOW - 460, 10)
        assert ([one.sentence for one in changes], [one.id for one in incidents]) == (["at -800"], ["i0001", "i0002"])
        changes, incidents = await now.between(NOW - 1000, NOW, 2)
        assert [one.sentence for one in changes] == ["at -450", "at -40"], "the newest, where there are too many"
        assert [one.id for one in incidents] == ["i0003", "i0004"]
