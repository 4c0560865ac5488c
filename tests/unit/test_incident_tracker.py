"""When an incident opens, what it is said to be, and when it is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from incident_scenes import NOON, OK, UNKNOWN, Life, bottleneck, made, snapshot, told
from msgspec.structs import replace

from appliance.incidents.impact import late_shares
from appliance.incidents.tracker import OTHER_S, STOPPED, EventKind, Tracker
from appliance.records import (
    Action,
    Change,
    ChangeKind,
    EngineState,
    Evidence,
    IncidentState,
    QueueSnapshot,
    Verdict,
    new_id,
    new_run,
)

HOT, FULL = bottleneck(), bottleneck("decode_kv_full", "e1")


def test_a_bottleneck_opens_one_and_ten_seconds_of_well_being_close_it_as_of_their_beginning() -> None:
    life = Life().live(20).live(30, HOT, late=0.4).live(30)
    assert told(life.events) == [("opened", "231114-2213"), ("closed", "231114-2213")]
    one = life.last
    assert (one.state, one.engine, one.cause, one.stage) == (
        IncidentState.CLOSED,
        "e0",
        "prefill_straggler_gpu",
        "prefill",
    )
    assert (one.opened, one.closed) == (NOON + 20, NOON + 50)
    assert (one.severity, one.slo_share, one.slo_ttft_s, one.topology) == (0.4, 0.95, 2.0, "1p1d")
    assert [(said.state, said.time) for said in one.verdicts] == [("bottleneck", NOON + 20), ("ok", NOON + 50)]
    assert one.late == pytest.approx(30 / 3 * 0.4 * 30, abs=4), "ten first tokens a second, 40 % of them late"


def test_what_is_well_for_a_moment_only_is_not_over() -> None:
    life = Life().live(5, HOT).live(8).live(5, HOT).live(8).live(5, HOT)
    assert told(life.events) == [("opened", life.last.id)]
    assert [said.state for said in life.tracker.open.verdicts] == ["bottleneck", "ok"] * 2 + ["bottleneck"]  # type: ignore[union-attr]


def test_the_same_thing_so_soon_again_is_the_same_incident() -> None:
    life = Life().live(10, HOT).live(40).live(10, HOT).live(20)
    id = life.last.id
    assert told(life.events) == [("opened", id), ("closed", id), ("opened", id), ("closed", id)]
    assert (life.last.reopened, life.last.closed) == (1, NOON + 60)


def test_the_same_thing_long_after_or_another_one_soon_after_is_another_incident() -> None:
    life = Life().live(10, HOT).live(90).live(10, HOT).live(20)
    assert len({id for _, id in told(life.events)}) == 2
    life = Life().live(10, HOT).live(20).live(10, FULL).live(20)
    assert len({id for _, id in told(life.events)}) == 2


def test_another_thing_within_the_ten_seconds_closes_the_one_and_opens_the_other() -> None:
    life = Life().live(10, HOT).live(5).live(10, FULL)
    first, second = life.events[0].incident.id, life.last.id
    assert told(life.events) == [("opened", first), ("closed", first), ("opened", second)]
    closed = next(one.incident for one in life.events if one.kind is EventKind.CLOSED)
    assert (closed.closed, closed.ended) == (NOON + 10, "something else holds the node back")


def test_the_unknown_is_one_only_after_a_while() -> None:
    assert Life().live(9, UNKNOWN).live(20).events == []
    life = Life().live(12, UNKNOWN, late=0.3)
    assert (life.kinds, life.last.cause, life.last.summary) == (["opened"], None, "Nothing tells.")
    life.live(2, HOT, late=0.3)
    assert (life.kinds, life.last.cause) == (["opened", "updated"], "prefill_straggler_gpu"), "what is known is told"


def test_it_is_said_to_be_the_first_of_what_stood_long() -> None:
    """What comes of it may outlast it."""
    life = Life().live(3, UNKNOWN).live(2, FULL).live(20, HOT).live(30, bottleneck("routing_skew", "e0")).live(20)
    assert life.last.cause == "prefill_straggler_gpu"


def test_what_stood_for_a_moment_is_not_it() -> None:
    life = Life().live(3, FULL, late=0.9).live(30, HOT, late=0.2).live(4, FULL, late=0.3).live(20)
    assert (life.last.cause, life.last.engine) == ("prefill_straggler_gpu", "e0")
    assert [said.cause for said in life.last.verdicts if said.cause] == [FULL.cause, HOT.cause, FULL.cause]
    assert life.last.severity == 0.9, "of the whole"


def test_an_engine_that_was_gone_explains_what_followed() -> None:
    crash = bottleneck("engine_crashed", "e1")
    saturated = bottleneck("prefill_saturated", "e0")
    life = Life().live(6, crash).live(60, saturated).live(20)
    assert (life.last.cause, life.last.engine) == ("engine_crashed", "e1")


def test_another_thing_that_stands_for_long_is_an_incident_of_its_own() -> None:
    """With no moment of well-being in between."""
    crash = bottleneck("engine_crashed", "e7")
    life = Life().live(5).live(60, crash, late=0.8).live(3600, HOT, late=0.2, total=40, failed=4).live(3600, FULL)
    life.live(20)
    one, two, three = (event.incident for event in life.events if event.kind is EventKind.CLOSED)
    assert told(life.events) == [(kind, each.id) for each in (one, two, three) for kind in ("opened", "closed")]
    assert [(each.cause, each.engine) for each in (one, two, three)] == [
        ("engine_crashed", "e7"),
        ("prefill_straggler_gpu", "e0"),
        ("decode_kv_full", "e1"),
    ]
    assert (one.opened, one.closed, one.ended) == (NOON + 5, NOON + 65, "something else holds the node back")
    assert (two.opened, two.closed, three.opened) == (NOON + 65, NOON + 3665, NOON + 3665), (
        "none is open beside another"
    )
    assert [said.cause for said in one.verdicts] == ["engine_crashed"], "as it was until then"
    assert (one.severity, two.severity) == (0.8, 0.2)


def test_failures_belong_to_the_incident_in_which_they_were() -> None:
    life = Life().live(5, total=100).live(30, HOT, total=100).live(1, HOT, total=120, failed=10)
    life.live(30, FULL, total=120, failed=10).live(40, FULL, total=150, failed=13).live(20, total=150, failed=13)
    one, two = (event.incident for event in life.events if event.kind is EventKind.CLOSED)
    assert [(each.cause, each.failed) for each in (one, two)] == [("prefill_straggler_gpu", 10), ("decode_kv_full", 3)]


def test_what_its_owner_was_told_counts_and_not_what_it_has_come_to_be_called() -> None:
    """A first cause may stand for seconds only, and the next for hours: of that nobody had been told."""
    life = Life().live(5, HOT).live(61, FULL)
    assert [(event.kind.value, event.incident.cause) for event in life.events[-2:]] == [
        ("closed", "prefill_straggler_gpu"),
        ("opened", "decode_kv_full"),
    ]


def test_another_thing_for_less_than_a_minute_is_part_of_it() -> None:
    life = Life().live(60, HOT)
    for _ in range(20):
        life.live(OTHER_S - 5, FULL).live(5, HOT)
    assert told(life.events) == [("opened", life.last.id)]
    assert len({event.incident.id for event in life.live(20).events}) == 1


def test_what_takes_turns_with_others_is_told_too_once_the_first_is_gone() -> None:
    skew = bottleneck("routing_skew", "e2")
    life = Life().live(60, HOT)
    for _ in range(3):
        life.live(25, FULL).live(5, UNKNOWN).live(25, skew).live(5)
    assert [kind for kind, _ in told(life.events)] == ["opened", "closed", "opened"]
    assert (life.tracker.open.cause, life.tracker.open.opened) == ("decode_kv_full", NOON + 60)  # type: ignore[union-attr]


def test_what_is_not_known_and_what_explains_it_are_one() -> None:
    life = Life().live(200, UNKNOWN, late=0.2).live(200, HOT, late=0.2).live(200, UNKNOWN, late=0.2)
    assert [kind for kind, _ in told(life.events)] == ["opened"]
    life.live(90, FULL)
    assert [kind for kind, _ in told(life.events)] == ["opened", "closed", "opened"]


def test_which_engine_has_most_of_what_all_of_a_role_have_is_no_other_thing() -> None:
    life = Life()
    for engine in ("e0", "e1", "e0"):
        life.live(200, bottleneck("prefill_budget_small", engine))
    assert told(life.events) == [("opened", life.last.id)]


def test_what_is_over_before_it_has_stood_for_long_is_over_with_the_first() -> None:
    life = Life().live(20, HOT).live(50, FULL).live(30).live(50, FULL)
    id = life.events[0].incident.id
    assert told(life.events) == [("opened", id), ("closed", id), ("opened", id)], "and both may be back"
    life.live(600, FULL)
    assert len(told(life.events)) == 3, "its owner was told of it when it was opened again"


def test_changes_while_something_else_takes_its_place_are_of_that() -> None:
    gone = (made.engine("e0", state=EngineState.DRAINING), made.engine("e1", made.Role.DECODE))
    life = Life().live(20, HOT).live(30, FULL).live(40, FULL, engines=gone)
    closed = next(event.incident for event in life.events if event.kind is EventKind.CLOSED)
    assert ChangeKind.DRAINED not in [one.kind for one in closed.changes]
    assert ChangeKind.DRAINED in [one.kind for one in life.tracker.open.changes]  # type: ignore[union-attr]


def test_words_and_evidence_are_of_the_worst_moment_and_advice_of_the_last() -> None:
    def verdict(number: int) -> Verdict:
        evidence = (Evidence(measured=number, expected=1.0, unit="times", sentence=f"{number} times"),)
        action = Action(sentence=f"Do {number}.")
        return bottleneck(summary=f"It takes {number} times as long.", evidence=evidence, action=action)

    life = Life().live(5, verdict(2), late=0.2).live(5, verdict(4), late=0.6).live(5, verdict(3), late=0.4).live(20)
    one = life.last
    assert one.summary == "It takes 4 times as long."
    assert (one.evidence[0].measured, one.action) == (4, Action(sentence="Do 3."))
    assert len([said for said in one.verdicts if said.state == "bottleneck"]) == 1, (
        "words that change are no new verdict"
    )


def test_updates_are_told_when_it_is_another_thing_or_much_worse() -> None:
    assert Life().live(20, HOT, late=0.2).kinds == ["opened"]
    assert Life().live(5, HOT, late=0.2).live(5, HOT, late=0.25).kinds == ["opened"]
    assert Life().live(5, HOT, late=0.2).live(5, HOT, late=0.5).kinds == ["opened", "updated"]


def test_who_else_has_little_to_do_is_no_other_thing() -> None:
    saturated = bottleneck("prefill_saturated", "e0")
    imbalance = replace(bottleneck("pool_imbalance", "e2"), stage="prefill")
    assert told(Life().live(10, saturated).live(20).live(10, imbalance).events)[-1] == ("opened", "231114-2213")


def test_failures_are_counted_from_before_it_was_said() -> None:
    life = Life().live(10, total=100)
    for number in range(20):  # failing for two seconds, until the verdict
        verdict = bottleneck() if number > 4 else OK
        one = snapshot(life.now_s, verdict, total=100 + number, failed=number)
        since = NOON + 10  # as the diagnoser says
        life.see(replace(one, verdict=replace(verdict, since=since if number > 4 else NOON)))
        life.now_s += 0.5
    life.live(20, total=120, failed=19)
    assert (life.last.opened, life.last.failed, life.last.severity) == (NOON + 10, 19, 1.0)


def test_what_clients_ask_wrongly_makes_no_incident_worse() -> None:
    """One client that asks for what can't be, again and again, while first tokens of others are a little late."""
    life = Life()
    for number in range(40):
        verdict = HOT if number >= 10 else OK
        failed, refused = 50 * number, 48 * number
        life.see(snapshot(life.now_s, verdict, late=0.06, total=100 * number, failed=failed, refused=refused))
        life.now_s += 0.5
    one = life.tracker.open
    assert one is not None
    assert one.severity == 0.06, "and of the 52 in a tick that could be answered, two failed"
    assert one.failed == 2 * 29, "since it began"


def test_what_changed_in_the_ten_minutes_before_and_since_stands_on_it() -> None:
    old = Change(time=NOON - 700, kind=ChangeKind.ROLE, sentence="Long ago.")
    kept = Change(time=NOON - 100, kind=ChangeKind.STARTED, sentence="Before the last restart.")
    life = Life(changes=[old, kept]).live(5)
    engines = (made.engine("e0", weight=0.5), made.engine("e1", made.Role.DECODE))
    life.live(10, engines=engines).live(10, HOT, engines=engines).live(5, HOT)
    changes = life.tracker.open.changes  # type: ignore[union-attr]
    assert [one.kind for one in changes] == [
        ChangeKind.STARTED, ChangeKind.STARTED, ChangeKind.WEIGHT, ChangeKind.WEIGHT,
    ]  # fmt: skip
    assert [one.after for one in changes[2:]] == ["0.5", "1"]


def test_what_changed_while_it_seemed_over_is_not_lost() -> None:
    gone = (made.engine("e0", state=EngineState.DRAINING), made.engine("e1", made.Role.DECODE))
    life = Life().live(10, HOT).live(20).live(5, engines=gone).live(10, HOT, engines=gone)
    assert ChangeKind.DRAINED in [one.kind for one in life.last.changes]


def test_the_end_of_the_appliance_closes_it() -> None:
    life = Life().live(10, HOT)
    [event] = life.tracker.end(snapshot(life.now_s, HOT))
    assert (event.kind, event.incident.ended, event.incident.closed) == (EventKind.CLOSED, STOPPED, NOON + 10)
    assert life.tracker.end(snapshot(life.now_s, HOT)) == []


def test_a_clock_that_is_set_back_ends_nothing_too_early_or_too_late() -> None:
    life = Life().live(10, HOT)
    for _ in range(24):
        life.see(snapshot(life.now_s, OK, clock_s=life.now_s - 3600))
        life.now_s += 0.5
    assert told(life.events)[-1][0] == "closed"
    assert life.last.closed is not None and life.last.closed >= life.last.opened


def test_nothing_is_made_of_snapshots_without_a_verdict() -> None:
    tracker = Tracker(0.95)
    assert tracker.fold(snapshot(0.0, None)) == []
    assert tracker.end(snapshot(0.5, None)) == []


def test_ids_are_short_in_order_and_never_the_same() -> None:
    taken: list[str] = []
    for _ in range(40):
        taken.append(new_id(NOON, taken))
    assert taken[:3] == ["231114-2213", "231114-2213b", "231114-2213c"]
    assert len(set(taken)) == 40
    assert sorted(taken[:26]) == taken[:26]
    assert new_id(NOON + 60, taken) > taken[0]


def test_ids_say_of_which_run_they_are_until_it_is_known_which_there_are() -> None:
    assert new_id(NOON, [], run="kqxz") == "231114-2213-kqxz"
    assert new_id(NOON, ["231114-2213-kqxz"], run="kqxz") == "231114-2213b-kqxz"
    assert len({new_run() for _ in range(20)}) > 15


def test_severity_is_of_whom_it_hurts_most() -> None:
    decode = made.engine("e1", itl_late=0.5, output_tokens_s=900.0)
    other = made.engine("e2", itl_late=0.0, output_tokens_s=100.0)
    assert late_shares(snapshot(0, late=0.1, engines=(decode, other))) == pytest.approx([0.1, 0.45])
    waits = QueueSnapshot(depth=9, oldest_s=6.0)
    assert late_shares(snapshot(0, queue=waits)) == [1.0], "nobody gets a first token"
    assert late_shares(snapshot(0)) == [], "nobody asks"


VERDICTS = st.sampled_from([OK, UNKNOWN, HOT, FULL, bottleneck("engine_crashed", "e1")])


@given(st.lists(st.tuples(VERDICTS, st.floats(0.5, 40)), max_size=12))
def test_whatever_is_said_each_is_opened_and_closed_in_turn(told_of: list[tuple[Verdict, float]]) -> None:
    life = Life()
    for verdict, seconds in told_of:
        life.live(seconds, verdict, late=0.2)
    life.live(15)
    says = told(life.events)
    assert [kind for kind, _ in says] == ["opened", "closed"] * (len(says) // 2)
    assert all(one[1] == other[1] for one, other in zip(says[::2], says[1::2], strict=True))
    for event in life.events:
        one = event.incident
        assert (one.closed is None) == (one.state is IncidentState.OPEN)
        assert one.closed is None or one.closed >= one.opened
        assert list(one.verdicts) == sorted(one.verdicts, key=lambda said: said.time)
