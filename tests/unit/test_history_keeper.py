"""History in SQLite: what is written is there after a restart, and a disk that can't costs nothing but its history."""

from __future__ import annotations

import logging
import sqlite3
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from appliance.config import TelemetryConfig
from appliance.errors import HistoryError, RequestError
from appliance.history import database, keeper
from appliance.history.keeper import History
from appliance.history.resolutions import DAY_S
from appliance.history.samples import Seen, sample
from appliance.records import Lately, NodeSnapshot, QueueSnapshot, Stage

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

BASE = made.large(0)
BEGIN = 1_800_000_000.0  # a whole hour


def node(after_s: float, depth: int = 0, **more: object) -> NodeSnapshot:
    settled = {"time": BEGIN + after_s, "queue": QueueSnapshot(depth=depth), **more}
    return replace(BASE, **settled)  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.after_s = 0.0

    def __call__(self) -> float:
        return BEGIN + self.after_s


def kept(directory: Path | None, clock: Clock, **config: float) -> History:
    return History(TelemetryConfig(**config), directory, unix_s=clock)  # type: ignore[arg-type]


async def lived(history: History, clock: Clock, until_s: float, depth: int = 0) -> None:
    """A snapshot a second, up to then."""
    while clock.after_s < until_s:
        history.fold(node(clock.after_s, depth))
        clock.after_s += 1
        if clock.after_s % 300 == 0:
            await asked(history, clock, 10)
    await asked(history, clock, 10)


async def asked(
    history: History, clock: Clock, back_s: float, *series: str, points: int = 60
) -> dict[str, list[float | None]]:
    found = await history.read(clock() - back_s, clock(), points, series or ("queue_depth",))
    return found.series


async def test_what_was_is_there_after_a_restart_and_the_time_between_is_a_gap(tmp_path: Path) -> None:
    clock = Clock()
    before = kept(tmp_path, clock)
    await lived(before, clock, 600, depth=3)
    await before.close()
    clock.after_s = 900
    after = kept(tmp_path, clock)
    await lived(after, clock, 1200, depth=5)
    found = await after.read(BEGIN, BEGIN + 1200, 20, ["queue_depth", "*.kv_usage"])
    assert (found.step_s, found.resolution_s) == (60, 60)
    assert found.series["queue_depth"] == [3.0] * 10 + [None] * 5 + [5.0] * 5
    assert found.series["e3.kv_usage"] == [0.97] * 10 + [None] * 5 + [0.97] * 5
    assert found.time[1] - found.time[0] == 60
    await after.close()


async def test_each_resolution_says_the_same_and_peaks_stay(tmp_path: Path) -> None:
    clock = Clock()
    history = kept(tmp_path, clock)
    await lived(history, clock, 300, depth=2)
    history.fold(node(300, depth=99))
    clock.after_s = 301
    await lived(history, clock, 600, depth=2)
    for until_s, points, step_s in ((600, 600, 1), (600, 60, 10), (600, 10, 60), (1200, 2, 600)):
        found = await history.read(BEGIN, BEGIN + until_s, points, ["queue_depth"])
        assert found.step_s == step_s
        known = [value for value in found.series["queue_depth"] if value is not None]
        assert sum(known) / len(known) == pytest.approx(2 + 97 / 600, abs=0.1)
        assert max(value for value in found.highest["queue_depth"] if value is not None) == 99
    await history.close()


async def test_means_go_by_first_tokens_and_stages_still_sum() -> None:
    """A second with a hundred requests weighs more than a minute with one each; who had no hand-off spent no time on it."""
    clock = Clock()
    history = kept(None, clock)
    few = Lately(first_tokens=3, ttft_s=0.1, stages=(Stage("queue", 0.1),))
    many = Lately(first_tokens=300, ttft_s=2.0, stages=(Stage("queue", 1.5), Stage("transfer", 0.5)))
    for second in range(60):
        history.fold(node(second, lately=many if second == 7 else few))
    clock.after_s = 60
    found = await history.read(
        BEGIN, BEGIN + 60, 2, ["ttft_s", "ttft_queue_s", "ttft_transfer_s", "ttft_handoff_wait_s"]
    )
    [ttft_s], [queue_s], [transfer_s] = (
        [value for value in found.series[name] if value is not None][:1]
        for name in ("ttft_s", "ttft_queue_s", "ttft_transfer_s")
    )
    assert ttft_s == pytest.approx((2.0 * 300 + 0.1 * 3 * 59) / (300 + 3 * 59), rel=0.6)
    assert queue_s + transfer_s == pytest.approx(ttft_s, abs=1e-4)
    assert set(found.series["ttft_handoff_wait_s"]) == {None}, "no request had it"
    await history.close()


def test_rolled_up_means_are_those_of_the_requests(tmp_path: Path) -> None:
    kept = database.open_to_write(tmp_path)
    few = Lately(first_tokens=3, ttft_s=0.1, stages=(Stage("queue", 0.1),))
    many = Lately(first_tokens=300, ttft_s=2.0, stages=(Stage("queue", 2.0),))
    kept.add([sample(Seen(node(second, lately=many if second == 7 else few))) for second in range(60)])
    kept.roll_up()
    [(mean,)] = kept._connection.execute("SELECT ttft_s / 1e5 FROM node WHERE level = 60").fetchall()
    assert mean == pytest.approx((2.0 * 300 + 0.1 * 3 * 59) / (300 + 3 * 59), rel=1e-3)
    kept.close()


def test_what_is_old_is_forgotten_by_resolution(tmp_path: Path) -> None:
    kept = database.open_to_write(tmp_path)
    for day in (0, 20, 29, 31):
        kept.add([sample(Seen(node(day * DAY_S)))])
        kept.roll_up()
    kept.prune(30, BEGIN + 31 * DAY_S)
    left = kept._connection.execute("SELECT level, COUNT(*) FROM node GROUP BY level").fetchall()
    assert left == [(10, 2), (60, 3), (600, 3)]
    kept.close()


async def test_a_ruined_file_is_set_aside_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "history.db").write_bytes(b"this is no database" * 1000)
    clock = Clock()
    history = kept(tmp_path, clock)
    with caplog.at_level(logging.WARNING):
        await lived(history, clock, 30, depth=4)
    await history.close()
    assert len([record for record in caplog.records if "can't be read" in record.message]) == 1
    assert [path.read_bytes()[:19] for path in tmp_path.glob("history.db.unreadable-*")] == [b"this is no database"]
    again = kept(tmp_path, clock)
    assert 4.0 in (await asked(again, clock, 60))["queue_depth"]
    await again.close()


async def test_a_file_that_is_ruined_meanwhile_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    history = kept(tmp_path, clock)
    await lived(history, clock, 10, depth=1)

    def torn() -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    assert history._database is not None
    history._database.roll_up = torn  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        await lived(history, clock, 60, depth=6)
    assert list(tmp_path.glob("history.db.unreadable-*"))
    assert "malformed" in caplog.text
    assert 6.0 in (await asked(history, clock, 30))["queue_depth"]
    await history.close()


@pytest.mark.parametrize("trouble", ["newer", "second", "nowhere"])
async def test_where_there_can_be_no_file_it_is_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    clock, directory = Clock(), tmp_path
    if trouble == "nowhere":
        directory = tmp_path / "missing"
    first = database.open_to_write(tmp_path)
    if trouble == "newer":
        first._connection.execute("PRAGMA user_version = 99")
    if trouble != "second":
        first.close()
    history = kept(directory, clock)
    with caplog.at_level(logging.ERROR):
        await lived(history, clock, 700, depth=2)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "in memory only" in caplog.text
    assert 2.0 in (await asked(history, clock, 3600))["queue_depth"]
    await history.close()
    first.close()


async def test_a_disk_that_fails_is_tried_again_and_loses_nothing_of_ten_minutes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    history = kept(tmp_path, clock)
    await lived(history, clock, 60, depth=1)
    kept_now = history._database
    assert kept_now is not None
    well = kept_now.roll_up

    def full() -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    kept_now.roll_up = full  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        await lived(history, clock, 400, depth=8)
        await asked(history, clock, 30)
    assert caplog.text.count("make room on that disk") == 1
    kept_now.roll_up = well  # type: ignore[method-assign]
    await asked(history, clock, 30)
    await history.close()
    again = kept(tmp_path, clock)
    found = await again.read(BEGIN, BEGIN + 400, 40, ["queue_depth"])
    assert found.series["queue_depth"] == [1.0] * 6 + [8.0] * 34
    await again.close()


async def test_days_of_zero_write_nothing(tmp_path: Path) -> None:
    clock = Clock()
    history = kept(tmp_path, clock, history_days=0)
    await lived(history, clock, 30, depth=4)
    assert 4.0 in (await asked(history, clock, 30))["queue_depth"]
    await history.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_fault_of_the_database_is_an_answer_and_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    history = kept(tmp_path, clock)
    monkeypatch.setattr(keeper, "_ANSWER_S", 0.05)
    held = history._mutex.acquire()
    with pytest.raises(RequestError) as told:
        await asked(history, clock, 60)
    assert (held, told.value.status) == (True, 503)
    history._mutex.release()
    await history.close()
    with pytest.raises(RequestError):
        await asked(history, clock, 60)


def test_of_two_nodes_with_one_directory_the_second_is_told(tmp_path: Path) -> None:
    first = database.open_to_write(tmp_path)
    with pytest.raises(HistoryError, match="give each a server"):
        database.open_to_write(tmp_path)
    first.close()
    database.open_to_write(tmp_path).close()
