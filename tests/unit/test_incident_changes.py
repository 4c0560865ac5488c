"""What is not as it was, from one snapshot to the next."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from incident_scenes import NOON, made, snapshot

from appliance.incidents.changes import Changes, changed
from appliance.incidents.traffic import Traffic, material
from appliance.records import Change, ChangeKind, EngineState, Lately, NodeSnapshot, Role


def of(**e0: Any) -> NodeSnapshot:
    return snapshot(10.0, engines=(made.engine("e0", **e0), made.engine("e1", Role.DECODE)))


@pytest.mark.parametrize(
    ("before", "after", "kinds", "says"),
    [
        ({}, {"role": Role.BOTH}, ["role"], "e0 got another role: prefill → both."),
        ({}, {"weight": 0.5}, ["weight"], "e0 got another weight in routing: 1 → 0.5."),
        ({}, {"state": EngineState.DRAINING}, ["drained"], "e0 was drained: it takes no new work."),
        ({"state": EngineState.DRAINING}, {}, ["resumed"], "e0 takes work again."),
        ({}, {"state": EngineState.BACKOFF, "cause": "killed (SIGKILL)"}, ["ended"], "e0 ended: killed (SIGKILL)."),
        ({"state": EngineState.BACKOFF}, {"state": EngineState.FAILED}, ["ended"], "e0 was given up."),
        ({"state": EngineState.DRAINING}, {"state": EngineState.STOPPED}, ["ended"], "e0 was stopped."),
        (
            {"state": EngineState.BACKOFF},
            {"state": EngineState.STARTING, "epoch": 2, "cause": "killed"},
            ["restarted"],
            "e0 was started again (life 2).",
        ),
        ({"state": EngineState.STARTING}, {}, ["ready"], "e0 is ready (life 1)."),
        ({"state": EngineState.STARTING, "epoch": 0}, {"epoch": 1}, ["ready"], "e0 is ready (life 1)."),
        ({}, {"epoch": 3, "cause": "killed"}, ["restarted", "ready"], "e0 was started again: killed (life 3)."),
    ],
)
def test_what_has_changed_of_an_engine_is_said_once(
    before: dict[str, Any], after: dict[str, Any], kinds: list[str], says: str
) -> None:
    found = changed(of(**before), of(**after))
    assert [one.kind.value for one in found] == kinds
    assert (found[0].sentence, found[0].engine, found[0].time) == (says, "e0", NOON + 10)
    assert changed(of(**after), of(**after)) == ()


def test_values_stand_beside_the_sentence() -> None:
    [change] = changed(of(), of(weight=0.25))
    assert (change.before, change.after) == ("1", "0.25")
    [change] = changed(snapshot(1, topology="1p1d"), snapshot(2, topology="2b"))
    assert (change.kind, change.engine, change.before, change.after) == (ChangeKind.TOPOLOGY, None, "1p1d", "2b")


def test_what_an_engine_does_all_day_is_no_change() -> None:
    busy = of(running=9, waiting=3, kv_usage=0.7, in_flight=8, busy=1.0, slowdown=2.0)
    assert changed(of(), busy) == ()


def test_the_first_snapshot_is_the_start() -> None:
    [change] = changed(None, snapshot(0.0))
    assert (change.kind, change.after) == (ChangeKind.STARTED, "tiny-stories as 1p1d, version 0.1.0")
    changes = Changes()
    assert [one.kind for one in changes.fold(snapshot(0.0))] == [ChangeKind.STARTED]
    assert changes.fold(snapshot(0.5)) == ()


def test_an_engine_that_was_not_there_before_has_not_changed() -> None:
    assert changed(snapshot(1, engines=(made.engine("e0"),)), of()) == ()


# ---- traffic


def watched(rate: Callable[[float], float], prompt: Callable[[float], float], seconds: int, seed: int) -> list[Change]:
    """What is said of arrivals as random as those of independent people, with prompts of very different lengths."""
    dice, traffic, total, found = random.Random(seed), Traffic(), 0, []
    for tick in range(2 * seconds):
        at_s = tick / 2
        arrived = sum(dice.random() < rate(at_s) / 100 for _ in range(50))
        total += arrived
        lengths = [dice.lognormvariate(0, 0.8) * prompt(at_s) for _ in range(arrived)]
        lately = Lately(first_tokens=arrived, prompt_tokens=sum(lengths) / arrived if arrived else None)
        found += traffic.fold(snapshot(at_s, total=total, lately=lately))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_traffic_that_shifts_is_noticed_within_a_minute_and_said_once(seed: int) -> None:
    found = watched(lambda s: 20 if s >= 200 else 8, lambda _: 1000, 300, seed)
    assert [one.kind for one in found] == [ChangeKind.TRAFFIC]
    assert found[0].sentence.startswith("Requests come at ")
    assert 200 < found[0].time - NOON <= 262


def test_prompts_that_get_longer_are_noticed_and_so_is_traffic_that_ends() -> None:
    [change] = watched(lambda _: 15, lambda s: 3000 if s >= 200 else 1000, 280, 1)
    assert change.sentence.startswith("Prompts have ")
    assert change.after and change.after.endswith(" tokens")
    [change] = watched(lambda s: 0 if s >= 200 else 8, lambda _: 1000, 280, 1)
    assert change.sentence.startswith("Requests come at ")


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_and_goes_by_itself_is_no_shift(seed: int) -> None:
    assert watched(lambda s: 4 if s % 40 < 20 else 6, lambda _: 1000, 1200, seed) == []
    assert watched(lambda _: 0.1, lambda _: 1000, 600, seed) == [], "too few to say anything"


def test_material_is_what_is_large_and_sure() -> None:
    assert material([10.0] * 12, [16.0] * 12)
    assert not material([10.0] * 12, [14.0] * 12), "sure, and not large"
    assert not material([1.0, 40.0] * 6, [50.0, 1.0, 12.0] * 4), "large, and not sure"
    assert not material([0.0] * 12, [0.0] * 12)
    assert material([0.0] * 12, [1.0] * 12)
