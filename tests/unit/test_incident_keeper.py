"""All of it together, over made-up snapshots and a real file: what is kept, what is told, and what a restart finds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from incident_scenes import OK, TICK_S, bottleneck, crowded, diagnosed, made, snapshot
from msgspec.structs import replace

from appliance.config import Config, IncidentsConfig, SloConfig
from appliance.incidents import bundle, keeper, store
from appliance.incidents.hooks import Hooks
from appliance.incidents.keeper import Incidents
from appliance.incidents.replay import replay
from appliance.incidents.tracker import STOPPED, EventKind
from appliance.records import ChangeKind, Incident, NodeSnapshot, Verdict

HOT = bottleneck()


class Scene:
    """Incidents of a node that lives as it is told, and what the owner was told."""

    def __init__(self, incidents: Incidents) -> None:
        self.incidents = incidents
        self.told: list[tuple[str, str]] = []
        self.snapshots: asyncio.Queue[NodeSnapshot] = asyncio.Queue()
        self.now_s = 0.0
        self.began = time.time()

    async def updates(self) -> AsyncIterator[NodeSnapshot]:
        while True:
            yield await self.snapshots.get()
            self.snapshots.task_done()

    async def live(self, seconds: float, verdict: Verdict = OK, **more: object) -> None:
        count = round(seconds / TICK_S)
        await self.see([snapshot(self.now_s + n * TICK_S, verdict, **more) for n in range(count)])  # type: ignore[arg-type]

    async def see(self, row: Sequence[NodeSnapshot]) -> None:
        """As if it had been now."""
        for one in row:
            verdict = one.verdict and replace(one.verdict, since=self.began + one.uptime_s)
            self.snapshots.put_nowait(replace(one, time=self.began + one.uptime_s, verdict=verdict))
        self.now_s = row[-1].uptime_s + TICK_S
        await self.snapshots.join()
        await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, killed: bool = False, **settings: object
) -> AsyncIterator[Scene]:
    incidents = Incidents(Config(slo=SloConfig(share=0.95), incidents=IncidentsConfig(**settings)), directory)  # type: ignore[arg-type]
    found = Scene(incidents)

    def tell(self: Hooks, event: EventKind, incident: Incident) -> None:
        found.told.append((event.value, incident.id))

    monkeypatch.setattr(Hooks, "tell", tell)
    running = asyncio.create_task(incidents.run(found.updates()))
    try:
        yield found
        assert not running.done(), running
    finally:
        running.cancel()
        if killed:  # what was written is written, and nobody says good-bye
            await asyncio.wait({running})
            await incidents._store.close(1.0)
        else:
            await incidents.close(1.0, asyncio.Event())


async def one(incidents: Incidents) -> Incident:
    [found] = await incidents.incidents(10, None)
    return found


async def test_an_incident_from_its_beginning_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = diagnosed([crowded(n * TICK_S, depth=40 if 260 <= n < 320 else 0) for n in range(440)])
    async with scene(tmp_path, monkeypatch) as now:
        await now.see(life)
        incident = await one(now.incidents)
        assert (incident.cause, incident.engine, incident.state.value) == ("prefill_saturated", "e0", "closed")
        assert now.told == [("opened", incident.id), ("closed", incident.id)]
        assert await now.incidents.incident(incident.id) == incident
        assert [change.kind for change in incident.changes] == [ChangeKind.STARTED]
        data = await now.incidents.bundle(incident.id)
        assert data is not None
        assert await now.incidents.bundle("no such") is None
        totals = now.incidents.totals()
        assert (totals.open, totals.opened, totals.closed) == (False, 1, {"prefill_saturated": 1})
        assert totals.kept
        assert await now.incidents.moments("no such", 9) is None
        moments = await now.incidents.moments(incident.id, 50)
        assert moments is not None and 30 <= len(moments) <= 50
        assert {"ok", "bottleneck"} <= {moment.state for moment in moments}
        worst = max(moments, key=lambda moment: moment.queue)
        frame = await now.incidents.frame(incident.id, worst.uptime_s)
        assert frame is not None and (frame.uptime_s, frame.queue.depth) == (worst.uptime_s, worst.queue)
        assert await now.incidents.frame("no such", 1.0) is None
    (tmp_path / "a.pdi").write_bytes(data)
    read = bundle.read(tmp_path / "a.pdi")
    assert read.incident == incident
    assert read.snapshots[0].uptime_s == 0.0
    assert read.snapshots[-1].uptime_s >= (incident.closed or 0) - now.began + 30
    assert replay(read).agrees is True


async def test_one_that_is_open_when_the_appliance_stops_is_closed_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as now:
        await now.live(20)
        await now.live(20, HOT, late=0.4)
    [opened, closed] = now.told
    assert (opened[0], closed[0]) == ("opened", "closed")
    async with scene(tmp_path, monkeypatch) as later:
        await later.live(2)
        incident = await one(later.incidents)
        assert (incident.ended, incident.state.value) == (STOPPED, "closed")
        data = await later.incidents.bundle(incident.id)
        assert data and later.told == []
    (tmp_path / "a.pdi").write_bytes(data)
    assert bundle.read(tmp_path / "a.pdi").snapshots[-1].uptime_s == 39.5, "to the last one"


async def test_one_that_was_open_when_the_appliance_died_is_closed_and_told_of_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path, monkeypatch, killed=True) as now:
        await now.live(20)
        await now.live(35, HOT, late=0.4)
        id = (await one(now.incidents)).id
    async with scene(tmp_path, monkeypatch) as later:
        await later.live(2)
        incident = await one(later.incidents)
        assert (incident.id, incident.state.value, incident.ended) == (id, "closed", STOPPED)
        assert later.told == [("closed", id)]
        assert "open when the appliance ended" in caplog.text
        await later.live(20, HOT)
        assert [kind for kind, _ in later.told] == ["closed", "opened"]
        second = await later.incidents.incident(later.told[-1][1])
        assert second is not None and second.id != id, "though it may be of the same minute"
        starts = [change for change in second.changes if change.kind is ChangeKind.STARTED]
        assert len(starts) == 2, "that the appliance was started again is what changed"


async def test_a_start_with_other_settings_says_what_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as now:
        await now.live(2)
    async with scene(tmp_path, monkeypatch) as later:
        await later.live(2, topology="2b")
        await later.live(2, HOT, topology="2b")
        start = (await one(later.incidents)).changes[-1]
        assert start.before == "tiny-stories as 1p1d, version 0.1.0"
        assert "Before, it was tiny-stories as 1p1d" in start.sentence


async def test_a_fault_in_here_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path, monkeypatch) as now:
        await now.live(2)
        with monkeypatch.context() as broken:
            broken.setattr(now.incidents._recorder, "fold", lambda _: 1 / 0)
            await now.live(2, HOT)
        assert "this snapshot's part in incidents is lost" in caplog.text
        await now.live(2, HOT)
        assert (await one(now.incidents)).cause == HOT.cause


async def test_without_a_disk_all_but_the_restart_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path / "missing", monkeypatch) as now:
        await now.live(160)
        await now.live(20, HOT, late=0.3)
        await now.live(50)
        incident = await one(now.incidents)
        assert [kind for kind, _ in now.told] == ["opened", "closed"]
        data = await now.incidents.bundle(incident.id)
        assert data is not None
        assert not now.incidents.totals().kept
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    (tmp_path / "a.pdi").write_bytes(data)
    assert len(bundle.read(tmp_path / "a.pdi").snapshots) == 2 * (160 + 20 + 10 + 30) + 1, (
        "until 30 s after it was closed"
    )


async def test_what_is_opened_while_the_disk_is_away_takes_no_place_of_what_is_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_AGAIN_S", 0.01)
    disk, away = tmp_path / "disk", tmp_path / "away"
    disk.mkdir()
    async with scene(disk, monkeypatch) as now:
        began = now.began
        await now.live(20, HOT, late=0.4)
        await now.live(20)
        earlier = await one(now.incidents)
    disk.rename(away)
    async with scene(disk, monkeypatch) as later:
        later.began = began  # the same minute again
        await later.live(2, HOT, late=0.1)
        await later.live(20)
        mine = (await one(later.incidents)).id
        assert mine.startswith(f"{earlier.id}-")
        away.rename(disk)
        await later.until(lambda: later.incidents.totals().kept)
        await later.live(2)
        kept = await later.incidents.incidents(10, None)
        assert {incident.id for incident in kept} == {earlier.id, mine}
        assert next(incident for incident in kept if incident.id == earlier.id).severity == earlier.severity
        await later.live(70)  # else it would be the same again
        await later.live(2, HOT)
        assert later.told[-1][0] == "opened"
        assert later.told[-1][1].count("-") == 1, "what there is on it is known by now"


async def test_what_is_open_is_written_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_SAVED_S", 5.0)
    async with scene(tmp_path, monkeypatch) as now:
        await now.live(10, HOT, late=0.5)
        early = (await one(now.incidents)).late
        await now.live(30, HOT, late=0.5, engines=(made.engine("e0"),))
        assert (await one(now.incidents)).late > early + 100
