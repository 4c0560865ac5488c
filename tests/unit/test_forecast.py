"""Plans of a running node are kept up to date."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.cli import forecast as module
from appliance.cli.forecast import Forecast
from appliance.costs.fitted import CopyModel, StepModel
from appliance.records import Better, Demand, NodeSnapshot, Plan, Plans, RequestCounts

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made


class Source:
    """Says these snapshots and no more; by each, somebody has come."""

    def __init__(self, *times: float) -> None:
        node = made.node((made.engine("e0"), made.engine("e1")), 0)
        self._snapshots = [
            msgspec.structs.replace(node, time=5.0, uptime_s=time, requests=RequestCounts(total=number))
            for number, time in enumerate(times)
        ]

    async def updates(self) -> AsyncIterator[NodeSnapshot]:
        for snapshot in self._snapshots:
            yield snapshot

    def learnt(self, engine: str) -> tuple[StepModel, CopyModel]:
        return StepModel(), CopyModel()


async def test_plans_are_made_every_ten_seconds_of_a_minutes_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[list[float]] = []

    def noted(window: Any, *rest: Any) -> None:
        windows.append([snapshot.uptime_s for snapshot in window])

    monkeypatch.setattr(module, "measured", noted)
    await Forecast(Source(*(100 + second / 2 for second in range(200))), 0.95).run()
    assert [window[-1] for window in windows] == [100 + 10 * turn for turn in range(10)]
    assert windows[-1] == [140, 150, 160, 170, 180, 190]


async def test_plans_that_take_long_are_made_less_often_but_for_another_topology_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fiftieth of a core at the most."""
    planned: list[float] = []

    def slow(window: Any, *rest: Any) -> Plans:
        planned.append(window[-1].uptime_s)
        time.sleep(0.3)
        return Plans(time=5.0, now=window[-1].topology)

    monkeypatch.setattr(module, "measured", slow)
    source = Source(*(100.0 + 10 * turn for turn in range(5)))
    source._snapshots[-1] = msgspec.structs.replace(source._snapshots[-1], topology="2b")
    await Forecast(source, 0.95).run()
    assert planned == [100, 120, 140]
    source._snapshots[3] = msgspec.structs.replace(source._snapshots[3], topology="2b")
    planned.clear()
    await Forecast(source, 0.95).run()
    assert planned == [100, 120, 130]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Uptimes at which plans are made."""
    found: list[float] = []

    def noted(window: Any, *rest: Any) -> Plans:
        found.append(window[-1].uptime_s)
        return Plans(time=5.0, now=window[-1].topology)

    monkeypatch.setattr(module, "measured", noted)
    return found


async def test_while_nobody_comes_nothing_is_planned_until_what_was_asked_is_long_ago(planned: list[float]) -> None:
    source = Source(*(100.0 + 10 * turn for turn in range(8)))
    some = Demand(rate_s=1.0, prompt_tokens=(9,), output_tokens=(9,))
    source._snapshots = [
        msgspec.structs.replace(one, requests=RequestCounts(total=min(number, 2)), demand=some if number < 6 else None)
        for number, one in enumerate(source._snapshots)
    ]
    await Forecast(source, 0.95).run()
    assert planned == [100, 110, 120, 160]


async def test_engines_that_have_become_ready_make_other_plans_though_nobody_came(planned: list[float]) -> None:
    source = Source(100.0, 110.0, 120.0, 130.0)
    starting = tuple(msgspec.structs.replace(one, kv_blocks_total=None) for one in source._snapshots[0].engines)
    source._snapshots = [
        msgspec.structs.replace(one, requests=RequestCounts(), **({"engines": starting} if number < 2 else {}))
        for number, one in enumerate(source._snapshots)
    ]
    await Forecast(source, 0.95).run()
    assert planned == [100, 120]


async def test_before_anything_is_asked_the_reason_is_told() -> None:
    forecast = Forecast(Source(100.0), 0.95)
    assert forecast.plans() is None
    await forecast.run()
    plans = forecast.plans()
    assert plans is not None
    assert "too little is asked" in (plans.reason or "")


async def test_of_a_layout_that_was_changed_since_nothing_better_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    better = Better(layout="2b", load_falls=0.3, good_rises=0.1, rate_grows=None, aggregated=True)
    plan = Plan(layout="1p1d", feasible=True)
    monkeypatch.setattr(module, "measured", lambda *_: Plans(time=5.0, now="1p1d", layouts=(plan,)))
    monkeypatch.setattr(module, "advice", lambda *_: better)
    source = Source(100.0, 101.0)
    forecast = Forecast(source, 0.95)
    await forecast.run()
    assert forecast.better() == better
    source._snapshots = [msgspec.structs.replace(source._snapshots[0], topology="2b", uptime_s=102.0)]
    await forecast.run()
    assert forecast.better() is None


async def test_a_fault_in_planning_is_logged_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("of no matter")

    monkeypatch.setattr(module, "measured", broken)
    with caplog.at_level(logging.ERROR):
        await asyncio.wait_for(Forecast(Source(100.0, 200.0), 0.95).run(), 5)
    assert len([record for record in caplog.records if "plans" in record.message]) == 2
