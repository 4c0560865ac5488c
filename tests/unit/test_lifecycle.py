"""An engine's life: what follows from what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.records import EngineState
from appliance.supervisor.exits import Exit
from appliance.supervisor.lifecycle import (
    BACKOFF_S,
    BUSY_PATIENCE_S,
    FAILED_STARTS,
    FLAPS,
    STABLE_NS,
    STACKS_S,
    TERMINATION_S,
    Action,
    Answers,
    Clock,
    Deaf,
    Drain,
    Drained,
    Ended,
    Event,
    Introduce,
    Kill,
    Life,
    Lively,
    Progressed,
    Quiet,
    Restart,
    Resume,
    Retire,
    Spawn,
    Spawned,
    Start,
    StartIn,
    Stirred,
    Stop,
    TellStacks,
    Terminate,
    step,
)
from appliance.supervisor.vitals import Condition

S = 1_000_000_000
CRASH = Ended(Exit("killed"))


def run(*events: tuple[int, Event], life: Life | None = None) -> tuple[Life, list[Action]]:
    """Feed events at their times (seconds)."""
    life, actions = life or Life(), []
    for at_s, event in events:
        life, more = step(life, event, at_s * S)
        actions += more
    return life, actions


def ready(at_s: int = 10) -> Life:
    return run((0, Start()), (0, Spawned(7)), (at_s, Answers()))[0]


def test_a_start_goes_through_stages_to_ready() -> None:
    life, actions = run((0, Start()), (0, Spawned(7)), (3, Progressed("importing vLLM", 0.05)))
    assert (life.state, life.epoch, life.pid, life.stage, life.progress) == (
        EngineState.STARTING,
        1,
        7,
        "importing vLLM",
        0.05,
    )
    assert actions == [Spawn()]
    life, actions = run((10, Answers()), life=life)
    assert (life.state, life.stage, life.progress, life.since_ns) == (EngineState.READY, None, None, 10 * S)
    assert actions == [Introduce()]


def test_a_crash_backs_off_longer_each_time() -> None:
    life, delays = ready(), []
    for number in range(8):
        life, actions = step(life, CRASH, (20 + number) * S)
        assert life.state is EngineState.BACKOFF
        assert life.pid is None
        delays += [action.delay_s for action in actions if isinstance(action, StartIn)]
        life, _ = run((20 + number, Start()), (20 + number, Spawned(8)), (20 + number, Answers()), life=life)
    assert delays == [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]
    assert life.restarts == 8
    assert life.epoch == 9


def test_one_that_dies_again_and_again_is_given_up_and_says_so() -> None:
    life = ready()
    for number in range(FLAPS):
        assert life.state is EngineState.READY
        life, actions = step(life, CRASH, (20 + number) * S)
        if number < FLAPS - 1:
            life, _ = run((20 + number, Start()), (20 + number, Answers()), life=life)
    assert (life.state, actions) == (EngineState.FAILED, ())
    assert (
        life.cause
        == f"it ended {FLAPS} times and was never ready for 60 s in between, the last time: {CRASH.exit.cause}"
    )
    life, _ = step(life, Resume(), 40 * S)
    assert (life.state, life.deaths) == (EngineState.BACKOFF, 0), "its owner may try it once more"


def test_a_stable_engine_has_a_clean_record() -> None:
    life, _ = run(
        (11, CRASH), (12, Start()), (13, Answers()), (14, CRASH), (16, Start()), (20, Answers()), life=ready()
    )
    assert life.deaths == 2
    _, actions = step(life, CRASH, 20 * S + STABLE_NS)
    assert actions == (StartIn(BACKOFF_S[0]),)


def test_a_terminal_cause_at_the_start_is_final() -> None:
    life, actions = run((0, Start()), (1, Ended(Exit("correct [engine] args", terminal=True))))
    assert (life.state, life.cause) == (EngineState.FAILED, "correct [engine] args")
    assert actions == [Spawn()]


def test_a_terminal_cause_of_an_engine_that_was_ready_is_tried_again() -> None:
    """It did start once: out of memory under load is no reason to give up."""
    life, _ = step(ready(), Ended(Exit("CUDA out of memory", terminal=True)), 20 * S)
    assert life.state is EngineState.BACKOFF


def test_one_that_has_served_is_started_again_whatever_keeps_it_from_starting_now() -> None:
    """No memory, no descriptors, no room on the disk: that passes."""
    life, _ = run((20, CRASH), (21, Start()), life=ready())
    for number in range(FAILED_STARTS + 1):
        life, actions = step(life, Ended(Exit("no room on the disk", terminal=True)), (22 + number) * S)
        assert (life.state, len(actions)) == (EngineState.BACKOFF, 1)
        life, _ = step(life, Start(), (22 + number) * S)


def test_failed_starts_in_a_row_are_given_up() -> None:
    life = Life()
    for number in range(FAILED_STARTS):
        assert life.state is not EngineState.FAILED
        life, _ = run((number, Start()), (number, CRASH), life=life)
    assert life.state is EngineState.FAILED


def test_a_start_that_stalls_is_killed_and_says_where() -> None:
    life, _ = run((0, Start()), (0, Spawned(7)), (5, Progressed("importing vLLM", 0.05)))
    assert run((14, Clock(10.0)), life=life)[0].state is EngineState.STARTING
    stirred, _ = run((14, Stirred()), (20, Clock(10.0)), life=life)
    assert stirred.state is EngineState.STARTING, "a log line is a sign of life"
    hung, actions = run((16, Clock(10.0)), life=life)
    assert (hung.state, actions) == (EngineState.HUNG, [TellStacks(), Kill(STACKS_S)])
    dead, _ = run((17, CRASH), life=hung)
    assert "no progress for 10 s while importing vLLM" in (dead.cause or "")


def test_stopping_kills_what_runs_and_nothing_starts_again() -> None:
    life, actions = step(ready(), Stop(), 20 * S)
    assert (life.state, actions) == (EngineState.STOPPED, (Kill(),))
    life, actions = step(life, CRASH, 21 * S)
    assert (life.state, actions) == (EngineState.STOPPED, ())


def test_retiring_asks_first_and_is_no_death() -> None:
    life, actions = step(ready(), Retire(), 20 * S)
    assert (life.state, life.cause, actions) == (EngineState.STOPPED, None, (Terminate(),))
    life, actions = step(life, Stop(), 25 * S)
    assert actions == (Kill(),), "it took too long"
    life, actions = step(life, CRASH, 26 * S)
    assert (life.state, life.cause, life.pid, actions) == (EngineState.STOPPED, None, None, ())


def quiet(quiet_s: float, condition: Condition, patience_s: float = 2.0) -> Quiet:
    return Quiet("EngineCore", quiet_s, patience_s, condition)


def test_an_engine_whose_core_has_ended_is_not_hung_however_long_it_takes_to_follow() -> None:
    life, actions = step(ready(), quiet(4.0, Condition.GONE), 20 * S)
    assert (life.state, actions) == (EngineState.SUSPECT, ())
    assert "EngineCore has ended" in (life.cause or ""), "the diagnosis tells it by this"
    dead, _ = step(life, CRASH, 22 * S)
    assert dead.cause == CRASH.exit.cause


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (quiet(1.6, Condition.STILL), EngineState.SUSPECT),
        (quiet(2.1, Condition.STILL), EngineState.HUNG),
        (quiet(2.1, Condition.STILL, patience_s=20.0), EngineState.SUSPECT),
        (quiet(2.1, Condition.STOPPED, patience_s=20.0), EngineState.HUNG),
        (quiet(30.0, Condition.BUSY), EngineState.SUSPECT),
        (quiet(BUSY_PATIENCE_S + 1, Condition.BUSY), EngineState.HUNG),
        (quiet(BUSY_PATIENCE_S + 1, Condition.BUSY, patience_s=100.0), EngineState.SUSPECT),
    ],
)
def test_an_engine_without_a_sign_of_life_is_suspect_then_hung(event: Quiet, state: EngineState) -> None:
    life, actions = step(ready(), event, 20 * S)
    assert life.state is state
    if state is EngineState.SUSPECT:
        assert actions == ()
        assert step(life, Lively(), 21 * S)[0].state is EngineState.READY
        return
    assert actions == (TellStacks(), Kill(STACKS_S))
    assert "its EngineCore gave no sign of life" in (life.cause or "")
    assert f"({event.condition})" in (life.cause or "")
    dead, _ = step(life, CRASH, 23 * S)
    assert (dead.state, dead.cause, dead.failed_starts) == (EngineState.BACKOFF, life.cause, 0)


def test_loading_is_not_hanging() -> None:
    starting, _ = run((0, Start()), (0, Spawned(7)))
    assert step(starting, quiet(99.0, Condition.STILL), 99 * S) == (starting, ())


def test_one_that_still_loads_has_nothing_to_finish() -> None:
    _, actions = run((0, Start()), (0, Spawned(7)), (1, Retire()))
    assert actions == [Spawn(), Kill()]


def test_draining_and_taking_work_again() -> None:
    life, actions = step(ready(), Drain(), 20 * S)
    assert (life.state, actions) == (EngineState.DRAINING, ())
    assert step(life, Drained(), 21 * S) == (life, ()), "nobody asked for a restart"
    life, _ = step(life, Resume(), 22 * S)
    assert life.state is EngineState.READY


READY = ((0, Start()), (0, Spawned(1)), (1, Answers()))


def test_one_that_is_to_rest_still_rests_in_its_next_life() -> None:
    again = (*READY, (2, Drain()), (3, CRASH), (4, Start()), (4, Spawned(2)), (5, Answers()))
    life, actions = run(*again)
    assert (life.state, life.epoch, actions[-1]) == (EngineState.DRAINING, 2, Introduce())
    assert run((6, Resume()), life=life)[0].state is EngineState.READY


@pytest.mark.parametrize("event", [Resume(), Restart()])
def test_until_its_owner_says_otherwise(event: Event) -> None:
    life, _ = run(*READY, (2, Drain()), (3, event), (4, CRASH), (5, Start()), (5, Spawned(2)), (6, Answers()))
    assert life.state is EngineState.READY


def test_a_restart_ends_it_when_it_is_drained_and_is_no_death() -> None:
    life, actions = step(ready(), Restart(), 20 * S)
    assert (life.state, actions) == (EngineState.DRAINING, ())
    life, actions = step(life, Drained(), 21 * S)
    assert actions == (Terminate(), Kill(TERMINATION_S))
    life, actions = step(life, CRASH, 22 * S)
    assert (life.state, life.cause, life.deaths, actions) == (EngineState.BACKOFF, None, 0, (StartIn(0.0),))
    life, actions = step(life, Start(), 22 * S)
    assert (life.state, life.restarting, life.epoch, actions) == (EngineState.STARTING, False, 2, (Spawn(),))


def test_what_is_left_when_a_restart_can_wait_no_longer_is_gone_on_with_elsewhere() -> None:
    life, actions = run((20, Restart()), (51, Drained(left=True)), life=ready())
    assert actions == [Kill()], "vLLM, asked to end, would end it as if it were complete"
    assert step(life, Resume(), 52 * S) == (life, ()), "it is on its way out"


def test_a_restart_that_is_thought_better_of() -> None:
    life, _ = run((20, Restart()), (21, Resume()), life=ready())
    assert (life.state, life.restarting) == (EngineState.READY, False)
    assert step(life, Drained(), 22 * S) == (life, ())


@pytest.mark.parametrize("event", [Restart(), Resume()])
def test_one_that_was_given_up_is_tried_again_with_a_clean_record(event: Event) -> None:
    life, _ = run((0, Start()), (1, Ended(Exit("bad", terminal=True))))
    life, actions = step(life, event, 2 * S)
    assert (life.state, life.failed_starts, actions) == (EngineState.BACKOFF, 0, (StartIn(0.0),))
    assert step(life, Start(), 2 * S)[0].state is EngineState.STARTING


def test_a_deaf_engine_is_replaced_and_says_why() -> None:
    life, actions = step(ready(), Deaf("it does not listen"), 20 * S)
    assert (life.state, actions) == (EngineState.HUNG, (TellStacks(), Kill(STACKS_S)))
    life, actions = step(life, CRASH, 21 * S)
    assert (life.state, life.cause, life.failed_starts) == (EngineState.BACKOFF, "it does not listen", 0)
    assert step(life, Deaf("late"), 22 * S) == (life, ())


def test_what_is_spawned_too_late_is_killed() -> None:
    life, _ = run((0, Start()), (0, Stop()))
    assert life.state is EngineState.STOPPED
    life, actions = step(life, Spawned(7), 0)
    assert (life.state, life.pid, actions) == (EngineState.STOPPED, 7, (Kill(),))


EVENTS = st.sampled_from(
    [
        *(
            Start(),
            Spawned(9),
            Progressed("x", 0.5),
            Stirred(),
            Answers(),
            Clock(1.0),
            CRASH,
            Deaf("x"),
            Drain(),
            Resume(),
            Restart(),
            Drained(),
            Drained(left=True),
            Lively(),
            Quiet("EngineCore", 1.6, 2.0, Condition.STILL),
            Quiet("EngineCore", 99.0, 2.0, Condition.STILL),
            Retire(),
            Stop(),
        ),
        Ended(Exit("bad", terminal=True)),
    ]
)


@given(st.lists(st.tuples(EVENTS, st.integers(0, 90)), max_size=60))
def test_whatever_happens_the_life_makes_sense(events: list[tuple[Event, int]]) -> None:
    life, now_ns = Life(), 0
    for event, seconds in events:
        now_ns += seconds * S
        before, (life, actions) = life, step(life, event, now_ns)
        assert life.epoch == before.epoch + actions.count(Spawn())
        if Spawn() in actions:
            assert before.state in (EngineState.STOPPED, EngineState.BACKOFF)
        if before.state is EngineState.FAILED and not isinstance(event, Stop | Retire | Resume | Restart):
            assert life.state is EngineState.FAILED, "only its owner can help a failed engine"
        if life.state is EngineState.READY:
            assert life.stage is None
            assert life.progress is None
        if isinstance(event, Ended):
            assert life.pid is None


@pytest.mark.parametrize("event", [Progressed("late", 0.9), Answers(), Clock(0.0), Stirred()])
def test_events_out_of_place_change_nothing(event: Event) -> None:
    life = Life(state=EngineState.BACKOFF, epoch=3)
    assert step(life, event, 99 * S) == (life, ())
