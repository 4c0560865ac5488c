"""How verdicts follow each other: none is left standing, and none makes another one come too soon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from appliance.diagnosis import verdicts
from appliance.diagnosis.finding import Finding
from appliance.diagnosis.judge import Judgement
from appliance.diagnosis.verdicts import Diagnoser
from appliance.records import Action, EngineState, Lately, NodeSnapshot, QueueSnapshot, Role
from tests.unit.diagnosed import made, replace

TICK_S = 0.5
Said = tuple[str, str | None, str | None]  # state, cause, engine


def follow(snapshots: Sequence[NodeSnapshot]) -> list[Said]:
    """What was said, one after the other."""
    diagnose, found = Diagnoser(0.95), list[Said]()
    for snapshot in snapshots:
        verdict = diagnose(snapshot)
        said = verdict.state, verdict.cause, verdict.engine
        if not found or found[-1] != said:
            found.append(said)
    return found


def node(tick: int, *, hurt: bool, given_up: bool, late: float = 0.0, slow: float = 1.6) -> NodeSnapshot:
    """A prefill engine that is slow; beside it, perhaps, an engine that was given up hours ago."""
    engines = [
        made.engine("e0", busy=1.0, slowdown=slow, waiting=3, max_running=64, token_budget=8192, gpus=("g0",)),
        made.engine("e1", Role.DECODE, busy=0.5, slowdown=1.0, running=10, max_running=64),
    ]
    if given_up:
        engines.append(made.engine("e2", Role.DECODE, EngineState.FAILED, in_state_s=7200.0, restarts=9))
    queue = QueueSnapshot(depth=5 if hurt else 1, capacity=1024, oldest_s=5.0 if hurt else 0.1)
    at_s = 100 + tick * TICK_S
    lately = Lately(first_tokens=20, ttft_late=late, ttft_s=0.5)
    return replace(made.node(tuple(engines), 0, queue=queue, lately=lately), time=at_s, uptime_s=at_s)


def test_an_engine_that_was_given_up_long_ago_is_said_again_when_nobody_is_hurt_any_more() -> None:
    found = follow([node(n, hurt=5 <= n < 40, given_up=True) for n in range(80)])
    gone, slow = ("bottleneck", "engine_crashed", "e2"), ("bottleneck", "prefill_straggler_gpu", "e0")
    assert found == [gone, slow, gone]
    back = follow([node(n, hurt=False, given_up=n < 20) for n in range(40)])
    assert back == [gone, ("ok", None, None)]


def test_a_moment_in_which_nobody_is_hurt_changes_nothing_whoever_is_missing() -> None:
    found = follow([node(n, hurt=n % 12 != 11, given_up=True) for n in range(2, 120)])
    assert found[1:] == [("bottleneck", "prefill_straggler_gpu", "e0")]


def test_an_engine_that_was_given_up_long_ago_makes_nothing_else_be_said_sooner() -> None:
    few = [node(n, hurt=False, given_up=False, late=0.1, slow=1.4) for n in range(60)]
    assert follow(few) == [("ok", None, None)]
    missing = [node(n, hurt=False, given_up=True, late=0.1, slow=1.4) for n in range(60)]
    assert follow(missing) == [("bottleneck", "engine_crashed", "e2")]


def loaded(tick: int, late: float) -> NodeSnapshot:
    """Prefill has all that it can do, and a share of two thousand first tokens comes late."""
    queue = QueueSnapshot(depth=3, capacity=1024, oldest_s=0.1)
    engines = (
        made.engine("e0", busy=1.0 if late else 0.5, slowdown=1.0, waiting=3),
        made.engine("e1", Role.DECODE, busy=0.5),
    )
    lately = Lately(first_tokens=2000, ttft_late=late, ttft_s=0.5, ended=2000, good=1 - late)
    at_s = 100 + tick * TICK_S
    return replace(made.node(engines, 0, queue=queue, lately=lately), time=at_s, uptime_s=at_s)


@pytest.mark.parametrize(("again", "ticks_long", "verdicts_said"), [(0.09, 8, 1), (0.4, 14, 2)])
def test_who_was_late_before_a_verdict_ended_is_not_told_of_twice(
    again: float, ticks_long: int, verdicts_said: int
) -> None:
    """Lateness comes back a second after: so little of it is within targets, and much of it is said five seconds later."""
    shares = [0.5] * 20 + [0.0] * 6 + [again] * ticks_long + [0.0] * 30
    found = follow([loaded(n, share) for n, share in enumerate(shares)])
    assert [state for state, *_ in found] == ["ok", "bottleneck"] * verdicts_said + ["ok"]


def finding(cause: str, engine: str, tick: int) -> Finding:
    action = Action(sentence=f"Do something about {engine}.")
    return Finding(
        cause=cause, stage="decode", sentence=f"{cause} {tick}", confidence=0.9, engines=(engine,), action=action
    )


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Finding]]:
    """What is found at each tick, to be filled."""
    coming: list[Finding] = []
    monkeypatch.setattr(verdicts, "judge", lambda *_, **__: Judgement(hurt="somebody", finding=coming.pop(0)))
    yield coming
    assert not coming


def ticks(count: int) -> list[NodeSnapshot]:
    return [replace(made.node((), 0), uptime_s=100 + n * TICK_S) for n in range(count)]


def test_what_is_not_seen_any_more_ends_though_nothing_else_is_seen_for_long(judged: list[Finding]) -> None:
    judged += [finding("decode_kv_full", "e0", n) for n in range(20)]
    others = ("routing_skew", "e1"), ("decode_straggler_gpu", "e2"), ("cache_miss_storm", "e3")
    judged += [finding(*others[n % 3], n) for n in range(120)]
    found = follow(ticks(140))
    assert found[1] == ("bottleneck", "decode_kv_full", "e0")
    assert {cause for _, cause, _ in found[2:]} <= {cause for cause, _ in others}
    assert 3 <= len(found) <= 6, "nor does it change at each tick"


def test_the_worst_engine_is_told_anew_where_others_take_turns_at_it(judged: list[Finding]) -> None:
    judged += [finding("handoff_decode_admission", "e0", n) for n in range(20)]
    judged += [finding("handoff_decode_admission", f"e{1 + n % 2}", n) for n in range(40)]
    found = follow(ticks(60))
    assert found[1] == ("bottleneck", "handoff_decode_admission", "e0")
    assert found[2][2] in ("e1", "e2")
