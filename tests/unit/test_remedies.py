"""Orders: in words, their ways back, and what is said of what they brought."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from appliance.config import Config
from appliance.errors import ActionError
from appliance.records import (
    Action,
    Better,
    Condition,
    EngineState,
    EngineView,
    Lately,
    Moved,
    NodeSnapshot,
    Order,
    OrderKind,
    QueueSnapshot,
    Remedy,
    RemedyState,
    RequestCounts,
    Role,
    Verdict,
)
from appliance.remedies import catalogue, trial
from appliance.remedies.apply import Remedies, present
from appliance.supervisor import lifecycle
from appliance.supervisor.acquaintance import Acquaintances
from appliance.supervisor.engine import Engine
from appliance.supervisor.lifecycle import Life
from appliance.supervisor.specs import resolve_model, specs
from appliance.supervisor.topology import parse
from appliance.telemetry.engines import engine_snapshot

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

replace = msgspec.structs.replace
HALF = Order(kind=OrderKind.WEIGHT, engine="e0", weight=0.5)


def node(
    at_s: float,
    *,
    late: float = 0.0,
    depth: int = 0,
    state: EngineState = EngineState.READY,
    epoch: int = 1,
    asked_s: float = 7.0,
    **more: object,
) -> NodeSnapshot:
    """Two engines; first tokens are late, and a queue. ``state`` and ``epoch`` are e0's."""
    rate = 900.0 if asked_s else 0.0
    engines = (
        made.engine("e0", state=state, epoch=epoch, itl_late=None, output_tokens_s=0.0),
        made.engine("e1", Role.DECODE, itl_late=0.01, output_tokens_s=rate),
    )
    lately = Lately(first_tokens=round(3 * asked_s), ttft_late=late, ttft_s=1.0)
    requests = RequestCounts(total=round(asked_s * at_s))
    queue = QueueSnapshot(depth=depth, capacity=100)
    snapshot = made.node(engines, 0, queue=queue, lately=lately, topology="1p1d", requests=requests, uptime_s=at_s)
    return replace(snapshot, **{"time": 1_700_000_000 + at_s, "verdict": None, **more})  # type: ignore[arg-type]


class Scene:
    """Remedies over a node that is as it is told to be."""

    def __init__(self) -> None:
        self.hands = made.FakeNode("busy")
        self.now = node(0.0)
        self.told: list[str] = []
        self.kept: dict[str, Remedy] = {}
        self.remedies = Remedies(self.hands, lambda: self.now, self.told.append, self._keep)

    def _keep(self, remedy: Remedy) -> None:
        self.kept[remedy.id] = remedy

    def of(self, id: str) -> Remedy:
        return next(one for one in self.remedies.remedies() if one.id == id)

    def live(self, from_s: float, to_s: float, **how: object) -> None:
        """A snapshot each second."""
        for second in range(int(from_s), int(to_s)):
            self.now = node(float(second), **how)  # type: ignore[arg-type]
            self.remedies.fold(self.now)


@pytest.mark.parametrize(
    ("order", "call", "words"),
    [
        (HALF, 'POST /api/engines/e0/weight {"weight": 0.5}', "e0's weight in routing: 1 → 0.5"),
        (
            Order(kind=OrderKind.ROLE, engine="e1", role=Role.BOTH),
            'POST /api/engines/e1/role {"role": "both"}',
            "e1 decodes → prefills and decodes; nothing restarts",
        ),
        (
            Order(kind=OrderKind.TOPOLOGY, topology="2b"),
            'POST /api/topology {"topology": "2b"}',
            "topology: 1p1d → 2b",
        ),
        (Order(kind=OrderKind.RESTART), "POST /api/restart", "e0, e1: started again, one after the other"),
        (Order(kind=OrderKind.DRAIN, engine="e0", force=True),
         'POST /api/engines/e0/drain {"force": true}', "e0 takes no new work; what it has begun it finishes"),
        (Order(kind=OrderKind.DRAIN, engine="e0"), "POST /api/engines/e0/drain", "e0 takes no new work; what it has begun it finishes"),
    ],
)  # fmt: skip
def test_an_order_is_told_as_a_call_and_in_words(order: Order, call: str, words: str) -> None:
    assert (catalogue.call(order), catalogue.words(order, node(0))) == (call, words)
    assert catalogue.advise("Do it.", order) == Action(sentence="Do it.", order=order, call=call)


def test_the_way_back_is_how_it_was() -> None:
    now = node(0)
    role = Order(kind=OrderKind.ROLE, engine="e1", role=Role.BOTH)
    assert catalogue.undo(role, now) == replace(role, role=Role.DECODE)
    assert catalogue.undo(HALF, now) == replace(HALF, weight=1.0)
    drain = Order(kind=OrderKind.DRAIN, engine="e0")
    assert catalogue.undo(drain, now) == Order(kind=OrderKind.RESUME, engine="e0")
    assert catalogue.undo(drain, node(0, state=EngineState.SUSPECT)) == Order(kind=OrderKind.RESUME, engine="e0")
    assert catalogue.undo(replace(drain, kind=OrderKind.RESUME), node(0, state=EngineState.DRAINING)) == drain


def test_the_way_back_of_one_that_was_to_be_started_again_is_that_it_is() -> None:
    now, order = node(0, state=EngineState.DRAINING), Order(kind=OrderKind.RESUME, engine="e0")
    waits = replace(now, engines=(replace(now.engines[0], restarting=True), now.engines[1]))
    assert catalogue.undo(order, waits) == replace(order, kind=OrderKind.RESTART)
    assert catalogue.words(order, waits) == "e0 takes work again instead of being started again"
    assert catalogue.words(order, now) == "e0 takes work again"


@pytest.mark.parametrize(
    ("told", "state", "back"),
    [
        ((lifecycle.Drain(),), EngineState.DRAINING, OrderKind.DRAIN),
        ((lifecycle.Restart(),), EngineState.DRAINING, OrderKind.RESTART),
        ((lifecycle.Drain(), lifecycle.Restart()), EngineState.DRAINING, OrderKind.RESTART),
        ((lifecycle.Restart(), lifecycle.Resume(), lifecycle.Drain()), EngineState.DRAINING, OrderKind.DRAIN),
        ((lifecycle.Restart(), lifecycle.Resume()), EngineState.READY, None),
    ],
)
def test_it_is_known_whether_an_engine_that_drains_is_to_be_started_again(
    told: Sequence[lifecycle.Event], state: EngineState, back: OrderKind | None
) -> None:
    engine = Engine(specs(Config(), parse("1b"), resolve_model(Config()), [0])[0])
    engine.life = Life(state=EngineState.READY, epoch=1)
    for event in told:
        engine.life, _ = lifecycle.step(engine.life, event, 1)
    view = engine.view("", Acquaintances())
    seen = engine_snapshot(view, None, 2, in_flight=0, outstanding=0, memory_bytes=None)
    assert seen.restarting == view.restarting
    now = present(node(0), [view], "1b")
    assert now.engines[0].state is state
    way = catalogue.undo(Order(kind=OrderKind.RESUME, engine="e0"), now)
    assert (way and way.kind) == back


def test_the_way_back_from_a_topology_is_each_engine_s_own_role_whatever_that_is_called() -> None:
    mixed = replace(node(0), topology="1p1b", engines=(made.engine("e0"), made.engine("e1", Role.BOTH)))
    order = Order(kind=OrderKind.TOPOLOGY, topology="2b")
    back = catalogue.undo(order, mixed)
    assert back == replace(order, topology="1p1b", roles={"e0": Role.PREFILL, "e1": Role.BOTH})
    assert catalogue.call(back) == 'POST /api/topology {"topology": "1p1b", "roles": {"e0": "prefill", "e1": "both"}}'


@pytest.mark.parametrize("order", [replace(HALF, weight=1.0), Order(kind=OrderKind.RESTART, engine="e0")])
def test_what_changes_nothing_or_can_not_be_taken_back_has_no_way_back(order: Order) -> None:
    assert catalogue.undo(order, node(0)) is None
    scene = Scene()
    with pytest.raises(ActionError, match="can't be taken back"):
        scene.remedies.undo(scene.remedies.apply(order, "api").id, "api")


def test_what_it_brought_is_said_once_it_has_settled() -> None:
    scene = Scene()
    scene.live(0, 20, late=0.5, depth=30)
    given = scene.remedies.apply(HALF, "cli")
    assert (given.state, given.before and given.before.ttft_late) == (RemedyState.SETTLING, 0.5)
    scene.live(20, 19 + int(trial.SETTLES_S + trial.AFTER_S), late=0.0)
    assert scene.of(given.id).state is RemedyState.SETTLING, "not before it has settled and was looked at"
    scene.live(49, 55, late=0.0)
    [found] = scene.remedies.remedies()
    assert found.state is RemedyState.SETTLED
    assert found.brought == "first tokens later than 2 s: 50% → 0%; requests in the queue: 30 → 0"
    assert scene.told == [
        f"{given.id} (by cli): e0's weight in routing: 1 → 0.5",
        f"{given.id} (e0's weight in routing: 1 → 0.5) brought: {found.brought}",
    ]
    assert scene.kept == {given.id: found}


def test_it_is_called_after_the_minute() -> None:
    scene = Scene()
    ids = [scene.remedies.apply(replace(HALF, weight=weight), "api").id for weight in (0.5, 0.6)]
    assert ids == ["r231114-2213", "r231114-2213b"]


def test_what_it_starts_again_has_to_end_and_be_back_first() -> None:
    scene = Scene()
    scene.live(0, 20)
    id = scene.remedies.apply(Order(kind=OrderKind.RESTART, engine="e0"), "api").id
    scene.live(20, 60)
    assert scene.of(id).state is RemedyState.SETTLING, "it is ready, and still what it was"
    scene.live(60, 200, state=EngineState.STARTING, epoch=2)
    assert scene.of(id).state is RemedyState.SETTLING
    scene.live(200, 200 + int(trial.SETTLES_S + trial.AFTER_S), epoch=2)
    assert scene.of(id).state is RemedyState.SETTLING
    scene.live(230, 232, epoch=2)
    assert scene.of(id).state is RemedyState.SETTLED
    assert scene.of(id).beside == (), "that it was gone is the order's own doing"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"state": EngineState.STARTING, "epoch": 2}, "not known: e0 did not become ready"),
        ({}, "not known: e0 was not started"),
    ],
)
def test_an_engine_that_never_comes_back_is_said(how: dict[str, object], said: str) -> None:
    scene = Scene()
    scene.live(0, 20)
    id = scene.remedies.apply(Order(kind=OrderKind.RESTART, engine="e0"), "api").id
    scene.live(20, 20 + int(trial.GIVEN_UP_S) + 5, **how)
    assert (scene.of(id).state, scene.of(id).brought) == (RemedyState.UNKNOWN, said)


def test_a_change_of_engines_is_done_when_all_that_come_are_there_and_all_that_go_are_gone() -> None:
    scene = Scene()
    scene.live(0, 20)
    scene.hands.moved = Moved(("e0",), ("e1",))
    given = scene.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="1b"), "cli")
    assert given.sentence == "topology: 1p1d → 1b; e0 starts, e1 ends"
    assert (given.restarts, given.ends) == (("e0",), ("e1",))
    scene.live(20, 60, epoch=2)
    assert scene.of(given.id).state is RemedyState.SETTLING, "e1 is still there"
    scene.live(60, 95, engines=(made.engine("e0", Role.BOTH, epoch=2, output_tokens_s=900.0),))
    assert (scene.of(given.id).state, scene.of(given.id).beside) == (RemedyState.SETTLED, ())


def test_one_that_comes_and_is_given_up_is_known_at_once() -> None:
    scene = Scene()
    scene.live(0, 20)
    scene.hands.moved = Moved(("e0",), ("e1",))
    id = scene.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="1b"), "cli").id
    scene.live(20, 22, state=EngineState.FAILED, epoch=2)
    assert scene.of(id).brought == "not known: e0 did not become ready; e1 did not end"


def test_what_is_new_in_an_engine_s_place_has_no_weight_that_was_given_before() -> None:
    scene = Scene()
    weighted = [scene.remedies.apply(replace(HALF, engine=name), "api").id for name in ("e0", "e1")]
    scene.hands.moved = Moved(("e0",), ())
    change = scene.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="1b@tp2"), "cli").id
    assert [scene.of(id).over for id in weighted] == [f"{change} changed the same", None]


@pytest.mark.parametrize(
    "order",
    [HALF, Order(kind=OrderKind.DRAIN, engine="e0"), Order(kind=OrderKind.RESTART, engine="e0"), Order(kind=OrderKind.RESTART)],
)  # fmt: skip
def test_what_engines_of_a_new_layout_are_told_leaves_its_way_back(order: Order) -> None:
    scene = Scene()
    scene.hands.moved = Moved(("e0",), ("e1",))
    change = scene.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="1b@tp2"), "cli").id
    scene.remedies.apply(order, "api")
    assert scene.of(change).over is None
    assert scene.remedies.undo(change, "api").order.topology == "1p1d"


@pytest.mark.parametrize(
    ("before_s", "after_s", "said"),
    [
        (0.0, 0.0, "nothing to compare: nobody asked for anything afterwards"),
        (0.0, 7.0, "nothing to compare with: nobody had asked for anything before"),
        (7.0, 0.0, "nothing to compare: nobody asked for anything afterwards"),
        (7.0, 7.0, "no difference that is larger than what comes and goes by itself"),
    ],
)
def test_without_anybody_there_is_nothing_to_compare(before_s: float, after_s: float, said: str) -> None:
    scene = Scene()
    scene.live(0, 20, asked_s=before_s)
    scene.remedies.apply(HALF, "api")
    scene.live(20, 60, asked_s=after_s)
    assert scene.remedies.remedies()[0].brought == said


def test_of_a_node_that_has_just_begun_nothing_is_known() -> None:
    scene = Scene()
    assert scene.remedies.apply(HALF, "api").before is None
    scene.live(0, 40)
    assert (scene.remedies.remedies()[0].brought or "").startswith("nothing to compare with: the appliance had only")


def condition(**more: object) -> Condition:
    return Condition(**{"seconds": 10.0, "requests": 70, "first_tokens": 70, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (condition(ttft_late=0.5), condition(ttft_late=0.1), "first tokens later than 2 s: 50% → 10%"),
        (condition(ttft_late=0.5), condition(ttft_late=0.45), "no difference"),
        (condition(ttft_late=0.4, first_tokens=5), condition(ttft_late=0.0, first_tokens=5), "no difference"),
        (condition(ttft_s=1.9), condition(ttft_s=0.3), "time to first token, mean: 1.9 s → 0.3 s"),
        (condition(ttft_s=1.9, first_tokens=4), condition(ttft_s=0.3), "no difference"),
        (condition(failed=50), condition(failed=5), "requests that failed: 50 → 5"),
        (condition(itl_late=0.2), condition(itl_late=0.0), "tokens later than 50 ms: 20% → 0%"),
    ],
)
def test_what_is_a_difference_depends_on_how_many_there_were(before: Condition, after: Condition, said: str) -> None:
    assert trial.brought(before, after, 2.0, 0.05).startswith(said)


def test_moments_with_many_requests_weigh_more_and_refusals_are_no_failures() -> None:
    many, few = node(1.0, late=0.0, asked_s=10.0), node(2.0, late=1.0, asked_s=1 / 3)
    few = replace(few, requests=RequestCounts(total=many.requests.total + 3, failed=2, refused=1))
    found = trial.condition([many, few])
    assert found is not None
    assert found.ttft_late == pytest.approx(1 / 31)
    assert (found.requests, found.failed) == (3, 1)


def test_what_else_happened_meanwhile_is_said_beside_it() -> None:
    scene = Scene()
    scene.live(0, 20)
    first = scene.remedies.apply(HALF, "api").id
    scene.live(20, 30)
    other = scene.remedies.apply(Order(kind=OrderKind.WEIGHT, engine="e1", weight=2.0), "api").id
    scene.live(30, 35, state=EngineState.BACKOFF)
    slow = Verdict(state="bottleneck", summary="e1 is slow.", since=0.0, engine="e1", cause="decode_straggler_gpu")
    scene.live(35, 70, epoch=2, verdict=slow, asked_s=70.0)
    gone, said = "e0 was gone for a while", "afterwards it was said: e1 is slow."
    assert scene.of(first).beside[:2] == (f"{other} was given meanwhile", gone)
    assert scene.of(first).beside[2] == said
    assert "times as many requests came afterwards" in scene.of(first).beside[3]
    assert scene.of(other).beside[:3] == (f"{first} had not settled yet", gone, said)
    assert f"(but {other} was given meanwhile; {gone}" in scene.told[-2]


def test_a_clock_that_is_set_changes_nothing() -> None:
    scene = Scene()
    scene.live(0, 20, late=0.5)
    id = scene.remedies.apply(HALF, "api").id
    scene.live(20, 45, time=1.0)
    assert scene.of(id).state is RemedyState.SETTLING
    scene.live(45, 55, time=9e9)
    assert scene.of(id).brought == "first tokens later than 2 s: 50% → 0%"


def test_a_later_order_of_the_same_thing_takes_its_place() -> None:
    scene = Scene()
    first = scene.remedies.apply(Order(kind=OrderKind.ROLE, engine="e1", role=Role.BOTH), "api")
    other = scene.remedies.apply(HALF, "api")
    another = scene.remedies.apply(Order(kind=OrderKind.ROLE, engine="e0", role=Role.BOTH), "api")
    assert scene.of(first.id).over is None, "another engine's role is another thing"
    last = scene.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="2b"), "api")
    over = f"{last.id} changed the same"
    assert [scene.of(one.id).over for one in (first, other, another)] == [over, None, over]
    assert scene.of(first.id).state is RemedyState.UNKNOWN
    assert scene.of(first.id).brought == f"not known: {last.id} changed the same before it had settled"
    with pytest.raises(ActionError, match=f"does not hold any more: {over}"):
        scene.remedies.undo(first.id, "api")


def test_what_is_taken_back_can_be_given_again() -> None:
    scene = Scene()
    first = scene.remedies.apply(HALF, "api").id
    scene.now = replace(scene.now, engines=(made.engine("e0", weight=0.5), scene.now.engines[1]))
    back = scene.remedies.undo(first, "cli")
    assert (back.order, scene.of(first).over) == (replace(HALF, weight=1.0), f"it was taken back by {back.id}")
    scene.now = node(0.0)
    again = scene.remedies.undo(back.id, "cli")
    assert (again.order, scene.of(back.id).over) == (HALF, f"it was taken back by {again.id}")


def test_an_order_that_changes_nothing_leaves_the_way_back_of_the_one_that_did() -> None:
    scene = Scene()
    first = scene.remedies.apply(HALF, "api").id
    scene.now = replace(scene.now, engines=(made.engine("e0", weight=0.5), scene.now.engines[1]))
    again = scene.remedies.apply(HALF, "api")
    assert (again.state, again.brought) == (RemedyState.SETTLED, "nothing: it was so before")
    assert scene.of(first).over is None
    assert scene.remedies.undo(first, "api").order.weight == 1.0


@pytest.mark.parametrize("layout", ["1p1d", " 1P1D "])
def test_a_layout_that_there_is_changes_nothing(layout: str) -> None:
    order = Order(kind=OrderKind.TOPOLOGY, topology=layout)
    assert not catalogue.changes(order, node(0))
    assert catalogue.changes(replace(order, roles={"e0": Role.DECODE, "e1": Role.PREFILL}), node(0)), (
        "the other way round"
    )


def test_a_restart_ends_a_drain_and_what_is_begun_on_it_meanwhile_ends_the_restart() -> None:
    scene = Scene()
    drained = scene.remedies.apply(Order(kind=OrderKind.DRAIN, engine="e0"), "api").id
    scene.now = node(0.0, state=EngineState.DRAINING)
    restarted = scene.remedies.apply(Order(kind=OrderKind.RESTART, engine="e0"), "api").id
    assert scene.of(drained).over == f"{restarted} changed the same"
    resumed = scene.remedies.apply(Order(kind=OrderKind.RESUME, engine="e0"), "api").id
    assert scene.of(restarted).state is RemedyState.UNKNOWN
    assert scene.of(restarted).over == f"{resumed} changed the same"


GIVEN_UP = (EngineState.FAILED, EngineState.BACKOFF, EngineState.STOPPED)


@pytest.mark.parametrize("state", GIVEN_UP)
def test_an_engine_that_was_given_up_and_is_resumed_is_waited_for_and_what_it_brought_is_said(
    state: EngineState,
) -> None:
    scene = Scene()
    scene.live(0, 20, late=0.5, state=state)
    given = scene.remedies.apply(Order(kind=OrderKind.RESUME, engine="e0"), "cli")
    assert (given.sentence, given.restarts, given.undo) == ("e0 is tried again", ("e0",), None)
    scene.live(20, 40, late=0.5, state=EngineState.STARTING, epoch=2)
    assert scene.of(given.id).state is RemedyState.SETTLING, "it is not back yet"
    scene.live(40, 42 + int(trial.SETTLES_S + trial.AFTER_S), epoch=2)
    assert scene.of(given.id).state is RemedyState.SETTLED
    assert scene.of(given.id).brought == "first tokens later than 2 s: 50% → 0%"


@pytest.mark.parametrize("state", GIVEN_UP)
def test_a_drain_is_over_when_its_engine_has_died_and_is_resumed(state: EngineState) -> None:
    scene = Scene()
    drained = scene.remedies.apply(Order(kind=OrderKind.DRAIN, engine="e0"), "api").id
    scene.now = node(0.0, state=state)
    resumed = scene.remedies.apply(Order(kind=OrderKind.RESUME, engine="e0"), "api").id
    assert scene.of(drained).over == f"{resumed} changed the same"


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.READY, *GIVEN_UP])
def test_a_start_of_the_appliance_undoes_no_resume_however_far_the_engine_is(state: EngineState) -> None:
    before, after = Scene(), Scene()
    before.now = node(0.0, state=EngineState.DRAINING)
    resumed = before.remedies.apply(Order(kind=OrderKind.RESUME, engine="e0"), "api").id
    after.now = node(86_400.0, state=state)
    after.remedies.recall(left(before))
    assert after.of(resumed).over is None, "all engines take work then"


def test_what_the_verdict_advises_is_given_with_what_it_should_bring() -> None:
    scene = Scene()
    advised = catalogue.advise("Give e0 less.", HALF)
    verdict = Verdict(state="bottleneck", summary="e0 is slow.", since=0.0, action=advised, expected_gain=0.4)
    scene.live(0, 2, verdict=verdict)
    given = scene.remedies.apply(HALF, "page")
    assert (given.verdict, given.expected) == ("e0 is slow.", "what is late gets 40% shorter (estimated)")
    other = scene.remedies.apply(replace(HALF, weight=0.7), "page")
    assert (other.verdict, other.expected) == ("e0 is slow.", None)


def test_a_layout_that_the_planner_knows_is_given_with_what_it_predicts() -> None:
    scene = Scene()
    better = Better(layout="2b", load_falls=0.3, good_rises=0.12, rate_grows=None, aggregated=True)
    scene.now = replace(scene.now, better=better)
    given = scene.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="2b"), "cli")
    assert given.expected == "12% more of the requests within both targets, and 30% less load (predicted)"


async def test_a_fault_in_looking_on_does_not_end_the_node(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.remedies.apply(HALF, "api")

    async def snapshots() -> AsyncIterator[NodeSnapshot]:
        yield replace(node(1.0), engines=None)  # type: ignore[arg-type]
        for second in range(2, 50):
            yield node(float(second))

    await scene.remedies.run(snapshots())
    assert "this snapshot's part in remedies is lost" in caplog.text
    assert scene.remedies.remedies()[0].state is RemedyState.SETTLED


def left(scene: Scene) -> list[Remedy]:
    """What is on disk when the appliance has ended."""
    return list(scene.kept.values())


def test_what_an_earlier_run_has_left_is_still_told_and_what_the_configuration_has_reset_is_not_taken_back() -> None:
    before = Scene()
    before.live(0, 20)
    weighted = before.remedies.apply(HALF, "api").id
    before.live(20, 55)
    topology = before.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="2b"), "api").id
    restarted = before.remedies.apply(Order(kind=OrderKind.RESTART, engine="e0"), "api").id
    drained = before.remedies.apply(Order(kind=OrderKind.DRAIN, engine="e1"), "api").id
    after = Scene()
    after.now = replace(node(86_400.0), topology="2b")  # somebody has written that into the configuration
    fresh = after.remedies.apply(Order(kind=OrderKind.WEIGHT, engine="e1", weight=2.0), "api").id
    after.remedies.recall(left(before))
    found = {one.id: one for one in after.remedies.remedies()}
    assert next(iter(found)) == fresh and set(found) >= {weighted, topology, restarted, drained}
    assert (found[weighted].state, found[weighted].brought) == (RemedyState.SETTLED, before.of(weighted).brought)
    for id in (topology, restarted, drained):
        assert (found[id].state, found[id].brought) == (
            RemedyState.UNKNOWN,
            "not known: the appliance ended before it had settled",
        )
    with pytest.raises(ActionError, match="the appliance was started again, and since then all weights are 1"):
        after.remedies.undo(weighted, "api")
    with pytest.raises(ActionError, match="all engines take work"):
        after.remedies.undo(drained, "api")
    with pytest.raises(ActionError, match="can't be taken back"):
        after.remedies.undo(restarted, "api")
    assert after.remedies.undo(topology, "api").order.topology == "1p1d", "that still holds"
    assert after.kept[weighted].over is not None, "and that is kept, too"


def test_an_order_before_it_is_known_which_there_were_has_no_id_of_theirs() -> None:
    before, after = Scene(), Scene()
    earlier = before.remedies.apply(HALF, "api").id
    after.remedies = Remedies(after.hands, lambda: after.now, run="kqxz")
    mine = after.remedies.apply(Order(kind=OrderKind.DRAIN, engine="e0"), "api").id
    assert mine == f"{earlier}-kqxz"
    after.remedies.recall(left(before))
    assert {one.id for one in after.remedies.remedies()} == {earlier, mine}
    assert after.remedies.apply(Order(kind=OrderKind.DRAIN, engine="e1"), "api").id == f"{earlier}b"


def test_a_second_order_at_once_sees_what_the_first_one_did() -> None:
    views = [
        EngineView(name="e0", role=Role.PREFILL, state=EngineState.READY, epoch=1, socket="", weight=0.5),
        EngineView(name="e1", role=Role.BOTH, state=EngineState.DRAINING, epoch=1, socket=""),
        EngineView(name="e9", role=Role.BOTH, state=EngineState.STARTING, epoch=1, socket=""),
    ]
    now = present(node(0), views, "1p1b")
    assert [(engine.name, engine.role, engine.state, engine.weight) for engine in now.engines] == [
        ("e0", Role.PREFILL, EngineState.READY, 0.5),
        ("e1", Role.BOTH, EngineState.DRAINING, 1.0),
    ], "one that was not seen yet has nothing to be told of"
    assert catalogue.undo(replace(HALF, weight=0.25), now) == HALF


def test_who_has_forced_an_order_has_forced_its_way_back() -> None:
    for order in (
        Order(kind=OrderKind.TOPOLOGY, topology="1b@tp2", force=True),
        Order(kind=OrderKind.ROLE, engine="e1", role=Role.PREFILL, force=True),
        Order(kind=OrderKind.DRAIN, engine="e1", force=True),
    ):
        back = catalogue.undo(order, node(0))
        assert back is not None
        assert back.force == (order.kind is not OrderKind.DRAIN)
        catalogue.check(back)


def test_no_order_is_taken_while_the_appliance_is_stopped() -> None:
    scene = Scene()
    scene.remedies.close()
    with pytest.raises(ActionError, match="is being stopped"):
        scene.remedies.apply(HALF, "api")
    assert scene.hands.asked == []


def test_an_order_that_is_refused_leaves_nothing() -> None:
    scene = Scene()
    with pytest.raises(ActionError):
        scene.remedies.apply(replace(HALF, engine="e9"), "api")
    assert scene.remedies.remedies() == ()
