"""Whether anybody is hurt, and for how long something is said."""

from __future__ import annotations

from itertools import pairwise

from diagnosed import BETTER, cause, late, made, replace, wait

from appliance.diagnosis.judge import judge
from appliance.diagnosis.verdicts import Diagnoser
from appliance.records import (
    EngineState,
    Lately,
    NodeSnapshot,
    QueueSnapshot,
)


def test_what_was_seen_once_is_no_verdict_and_what_is_over_is_gone() -> None:
    diagnose = Diagnoser(0.95)
    assert diagnose(late(100.0)).state == "ok"
    assert diagnose(late(100.5)).state == "ok"
    said = diagnose(late(101.5))
    assert (said.state, said.cause, said.engine) == ("bottleneck", "prefill_saturated", "e0")
    assert diagnose(late(102.0, depth=0, busy=0.4)).state == "bottleneck"
    assert diagnose(late(103.5, depth=0, busy=0.4)).state == "bottleneck"
    assert diagnose(late(104.5, depth=0, busy=0.4)).state == "ok"


def test_what_is_still_there_is_said_for_longer_though_nobody_is_hurt_for_a_moment() -> None:
    diagnose = Diagnoser(0.95)
    for n in range(4):
        diagnose(late(100 + n / 2))
    assert diagnose(late(102.0, depth=0)).state == "bottleneck"
    assert diagnose(late(106.0, depth=0)).state == "bottleneck", "its engine is as busy as before"
    assert diagnose(late(108.5, depth=0)).state == "ok"


def test_an_engine_that_is_gone_takes_the_place_of_what_was_said_at_once() -> None:
    """Others must be seen for longer, as times go up and down."""

    def said_after_s(then: NodeSnapshot) -> float:
        diagnose = Diagnoser(0.95)
        for n in range(5):
            before = diagnose(late(100 + n / 2))
        assert before.cause == "prefill_saturated"
        for n in range(20):
            at_s = 102.5 + n / 2
            if diagnose(replace(then, time=at_s, uptime_s=at_s)).cause != "prefill_saturated":
                return at_s - 102.5
        raise AssertionError

    gone = late(0.0)
    hung = replace(gone.engines[0], state=EngineState.SUSPECT, last_step_age_s=2.0)
    assert said_after_s(replace(gone, engines=(hung, *gone.engines[1:]))) == 1.0
    ended = replace(gone.engines[0], state=EngineState.BACKOFF, cause="killed (SIGKILL)")
    assert said_after_s(replace(gone, engines=(ended, *gone.engines[1:]))) == 0.0, "it is certain"
    assert said_after_s(late(0.0, slowdown=1.6)) == 2.5


def test_a_clock_that_is_set_back_makes_no_failures() -> None:
    diagnose = Diagnoser(0.95)
    diagnose(late(1000.0, depth=0))
    failed = replace(late(100.0, depth=0), requests=made.RequestCounts(total=9, failed=9))
    assert [diagnose(replace(failed, uptime_s=100 + n / 2)).state for n in range(12)] == ["ok"] * 12


def test_whoever_is_hurt_for_no_known_reason_is_told_that_nothing_tells() -> None:
    idle = replace(made.node((made.engine("e0"),), 0), queue=QueueSnapshot(depth=3, oldest_s=9.0))
    diagnose = Diagnoser(0.95)
    said = [diagnose(replace(idle, uptime_s=100 + n / 2)) for n in range(20)]
    assert said[2].state == "ok"
    assert (said[-1].state, said[-1].cause, said[-1].engine) == ("unknown", None, None)


def test_one_late_answer_of_few_tells_nothing_and_many_do() -> None:
    assert judge([wait(100.0, 1, 1.0)], 0.95).hurt is None
    assert judge([wait(97.0, 20, 0.05), wait(100.0, 20, 0.1)], 0.95).hurt is None, "chance would have it so"
    assert judge([wait(100.0, 40, 0.25)], 0.95).hurt is not None
    few = [wait(100.0 + 3 * n, 2, 1.0) for n in range(4)]
    assert judge(few, 0.95).hurt is not None, "all of eight within some seconds"


def test_fewer_tell_where_an_engine_is_plainly_slow_but_some_there_must_be() -> None:
    few, none = wait(100.0, 10, 0.3), wait(100.0, 20, 0.05)
    assert judge([few], 0.95).hurt is None
    slow = wait(100.0, 0, 0.0, slowdown=2.5).engines
    for_long = [*(wait(97.0 + n, 0, 0.0, slowdown=2.5) for n in range(3)), replace(few, engines=slow)]
    assert (found := judge(for_long, 0.95).finding) is not None
    assert (found.cause, found.engines) == ("prefill_straggler_cpu", ("e0",))
    assert judge(for_long[2:], 0.95).hurt is None, "one slow moment is none of an engine's doing"
    assert judge([*for_long[:3], replace(none, engines=slow)], 0.95).hurt is None, "nobody minds"


def test_those_who_wait_too_long_already_are_hurt_before_anything_comes() -> None:
    assert judge([wait(100.0, 20, 0.0, overdue=0)], 0.95).hurt is None
    assert judge([wait(100.0, 20, 0.0, overdue=2)], 0.95).hurt is None, "two tell nothing"
    assert judge([wait(100.0, 20, 0.0, overdue=10)], 0.95).hurt == "33% of the first tokens come later than 2 s"
    assert judge([wait(100.0, 0, 0.0, overdue=6)], 0.95).hurt is not None, "nothing comes at all"
    assert judge([wait(100.0, 20, 0.5, overdue=100)], 0.95).hurt is not None


def mixed(at_s: float, brief: int, missed: float, itl_s: float = 0.02) -> NodeSnapshot:
    """One engine that does both, and answers that ended."""
    good = 1 - missed if brief else None
    lately = Lately(first_tokens=20, ttft_late=0.0, ended=brief, good=good, brief=brief, brief_missed=missed)
    engine = made.engine("e0", made.Role.BOTH, itl_s=itl_s, output_tokens_s=500.0, running=9, busy=0.6)
    return replace(made.node((engine,), 0, lately=lately), time=at_s, uptime_s=at_s)


def test_answers_that_miss_their_targets_hurt_though_engines_are_in_time_on_average() -> None:
    assert judge([mixed(100.0, 40, 0.05)], 0.95).hurt is None
    assert judge([mixed(100.0, 40, 0.3)], 0.95).hurt == "30% of the answers miss their targets"
    assert judge([mixed(100.0, 60, 0.13)], 0.95).hurt is None, "chance would have it so"
    several = [mixed(91.0 + 3 * n, 60, 0.13) for n in range(4)]
    assert judge(several, 0.95).hurt == "13% of the answers miss their targets"


def test_answers_may_miss_the_pace_of_a_slow_engine_that_is_in_time_on_average() -> None:
    """Each has its own."""

    def scattered(itl_s: float, ttft_late: float = 0.0) -> list[NodeSnapshot]:
        lately = Lately(first_tokens=40, ttft_late=ttft_late, ended=40, brief=40, brief_missed=0.4)
        slow = {"slowdown": 2.0, "itl_s": itl_s, "output_tokens_s": 500.0, "running": 9, "busy": 0.9}
        engines = (made.engine("e0", busy=0.5), made.engine("e1", made.Role.DECODE, **slow))
        return [replace(made.node(engines, 0, lately=lately), time=100.0, uptime_s=100.0)]

    assert cause(scattered(0.044)) == "decode_straggler_cpu"
    assert judge(scattered(0.02), 0.95).finding is None, "it is far from the target"
    assert judge(scattered(0.044, ttft_late=0.4), 0.95).finding is None, "they miss the first token"


def test_a_burst_of_seconds_in_which_nothing_is_wrong_is_not_told_of() -> None:
    """Of a few requests some are late, but over ten seconds no more than may be. Much to do is no fault; a slow engine is one."""

    def burst(ttft_late: float, slowdown: float) -> str | None:
        def told(n: int) -> NodeSnapshot:
            lately = Lately(first_tokens=40, ttft_late=ttft_late if n == 20 else 0.0, ended=40, good=1.0)
            return replace(late(100 + n / 2, depth=0, slowdown=slowdown), lately=lately, overdue=0)

        finding = judge([told(n) for n in range(21)], 0.95).finding
        return finding and finding.cause

    assert burst(0.2, 1.0) is None, "a twentieth of those of ten seconds"
    assert burst(0.5, 1.0) == "prefill_saturated"
    assert burst(0.2, 1.6) == "prefill_straggler_cpu"


def test_a_burst_that_is_over_is_not_told_of() -> None:
    """Few requests come, so that those of half a minute are looked at; the latest were in time again."""

    def told(late_until: int) -> str | None:
        def one(n: int) -> NodeSnapshot:
            lately = Lately(first_tokens=4, ttft_late=1.0 if n <= late_until else 0.0)
            return replace(late(100 + n / 2, depth=0), lately=lately, overdue=0)

        return judge([one(n) for n in range(21)], 0.95).hurt

    assert (told(20) or "").startswith("100% of the first tokens come later than")
    assert told(14) is None


def test_an_outage_in_which_thousands_fail_is_still_judged() -> None:
    """A tail of so many would be beyond what floats can say."""
    assert judge([mixed(100.0, 3000, 0.9)], 0.95).hurt == "90% of the answers miss their targets"
    assert judge([wait(100.0, 0, 0.0, overdue=2000)], 0.95).hurt is not None


def test_a_pace_that_was_slow_and_is_not_any_more_hurts_nobody() -> None:
    slow = [mixed(90.0 + n, 0, 0.0, itl_s=0.12) for n in range(5)]
    assert judge(slow, 0.95).hurt is not None
    over = [mixed(95.0 + n, 0, 0.0, itl_s=0.02) for n in range(8)]
    assert judge(slow + over, 0.95).hurt is None


def test_answers_are_on_both_sides_of_a_target_that_engines_are_at() -> None:
    def paced(itl_s: float) -> str | None:
        decode = made.engine("e1", made.Role.DECODE, itl_s=itl_s, output_tokens_s=500.0, running=9)
        return judge([made.node((made.engine("e0"), decode), 0)], 0.95).hurt

    assert paced(0.0485) is None
    assert paced(0.0495) == (
        "tokens come 49.5 ms after each other in the mean, where 50 ms is the target: about half of the answers miss it"
    )
    assert paced(0.0505) == "100% of the tokens come 50.5 ms after each other, where 50 ms is the target"


def test_what_clients_ask_wrongly_is_no_failure_of_the_node() -> None:
    before = wait(95.0, 20, 0.0, requests=made.RequestCounts(total=100, ok=100))
    wrong = wait(100.0, 20, 0.0, requests=made.RequestCounts(total=120, ok=110, failed=10, refused=10))
    assert judge([before, wrong], 0.95).hurt is None
    broken = wait(100.0, 20, 0.0, requests=made.RequestCounts(total=120, ok=110, failed=10))
    assert judge([before, broken], 0.95).hurt == "50% of the requests fail"


def test_a_trouble_that_comes_and_goes_is_said_all_the_same() -> None:
    diagnose = Diagnoser(0.95)
    said = [diagnose(late(100 + n / 2, depth=0 if n % 3 == 2 else 40)).state for n in range(24)]
    assert "bottleneck" in said
    assert "ok" not in said[said.index("bottleneck") :]


def test_two_causes_that_come_and_go_in_turn_do_not_make_verdicts_flap() -> None:
    diagnose = Diagnoser(0.95)
    slow = [False] * 20 + [True] * 6 + [n // 2 % 2 == 1 for n in range(40)]  # then each for a second
    found = [diagnose(late(100 + n / 2, slowdown=1.6 if one else 1.0)).cause for n, one in enumerate(slow)]
    assert found[25] == "prefill_straggler_cpu", "what it took the place of had been seen for long"
    assert sum(one != other for one, other in pairwise(found[25:])) <= 4


def test_what_is_predicted_of_a_layout_waits_for_a_cause_that_can_be_seen() -> None:
    diagnose = Diagnoser(0.95)
    idle = replace(late(100.0, busy=0.5), better=BETTER)
    states = [diagnose(replace(idle, time=100 + n / 2, uptime_s=100 + n / 2)).state for n in range(9)]
    assert states == ["ok"] * 8 + ["bottleneck"]
