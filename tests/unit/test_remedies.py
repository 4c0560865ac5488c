"""Orders: in words, their ways back, and what is said of what they brought."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from appliance.errors import ActionError
from appliance.records import (
    Action,
    EngineState,
    Lately,
    NodeSnapshot,
    Order,
    OrderKind,
    QueueSnapshot,
    RemedyState,
    Role,
    Verdict,
)
from appliance.remedies import catalogue, trial
from appliance.remedies.apply import Remedies

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

replace = msgspec.structs.replace
HALF = Order(kind=OrderKind.WEIGHT, engine="e0", weight=0.5)


def node(at_s: float, *, late: float = 0.0, depth: int = 0, state: EngineState = EngineState.READY) -> NodeSnapshot:
    """Two engines; first tokens are late, and a queue."""
    engines = (
        made.engine("e0", state=state, itl_late=None, output_tokens_s=0.0),
        made.engine("e1", Role.DECODE, itl_late=0.01, output_tokens_s=900.0),
    )
    lately = Lately(first_tokens=20, ttft_late=late, ttft_s=1.0)
    snapshot = made.node(engines, 0, queue=QueueSnapshot(depth=depth, capacity=100), lately=lately, topology="1p1d")
    return replace(snapshot, time=at_s, verdict=None)


class Scene:
    """Remedies over a node that is as it is told to be."""

    def __init__(self) -> None:
        self.hands = made.FakeNode("busy")
        self.now = node(0.0)
        self.told: list[str] = []
        self.remedies = Remedies(self.hands, lambda: self.now, self.told.append)

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
            "topology: 1p1d → 2b; nothing restarts",
        ),
        (Order(kind=OrderKind.RESTART), "POST /api/restart", "all engines are started again, one after the other"),
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
    assert catalogue.undo(Order(kind=OrderKind.TOPOLOGY, topology="2b"), now) == Order(
        kind=OrderKind.TOPOLOGY, topology="1p1d"
    )
    drain = Order(kind=OrderKind.DRAIN, engine="e0")
    assert catalogue.undo(drain, now) == Order(kind=OrderKind.RESUME, engine="e0")
    assert catalogue.undo(replace(drain, kind=OrderKind.RESUME), node(0, state=EngineState.DRAINING)) == drain


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
    assert scene.remedies.remedies()[0].state is RemedyState.SETTLING, "not before it has settled and was looked at"
    scene.live(49, 55, late=0.0)
    [found] = scene.remedies.remedies()
    assert found.state is RemedyState.SETTLED
    assert found.brought == "first tokens later than 2 s: 50% → 0%; requests in the queue: 30 → 0"
    assert scene.told == [
        "r1 (by cli): e0's weight in routing: 1 → 0.5",
        f"r1 (e0's weight in routing: 1 → 0.5) brought: {found.brought}",
    ]


def test_what_it_starts_again_has_to_be_back_first() -> None:
    scene = Scene()
    scene.live(0, 20)
    scene.remedies.apply(Order(kind=OrderKind.RESTART, engine="e0"), "api")
    scene.live(20, 200, state=EngineState.STARTING)
    assert scene.remedies.remedies()[0].state is RemedyState.SETTLING
    scene.live(200, 240)
    assert scene.remedies.remedies()[0].state is RemedyState.SETTLED


def test_an_engine_that_never_comes_back_is_said() -> None:
    scene = Scene()
    scene.live(0, 20)
    scene.remedies.apply(Order(kind=OrderKind.RESTART, engine="e0"), "api")
    scene.live(20, 20 + int(trial.GIVEN_UP_S) + 5, state=EngineState.STARTING)
    assert scene.remedies.remedies()[0].brought == "e0 did not come back"


def test_without_anybody_there_is_nothing_to_compare() -> None:
    scene = Scene()
    given = scene.remedies.apply(HALF, "api")
    assert given.before is None
    scene.live(0, 40)
    assert (scene.remedies.remedies()[0].brought or "").startswith("nothing to compare")


def test_a_later_order_of_the_same_thing_takes_its_place() -> None:
    scene = Scene()
    first = scene.remedies.apply(Order(kind=OrderKind.ROLE, engine="e1", role=Role.BOTH), "api")
    other = scene.remedies.apply(HALF, "api")
    scene.remedies.apply(Order(kind=OrderKind.TOPOLOGY, topology="2b"), "api")
    states = {one.id: one.state for one in scene.remedies.remedies()}
    assert (states[first.id], states[other.id]) == (RemedyState.UNDONE, RemedyState.SETTLING)
    with pytest.raises(ActionError, match="does not hold any more"):
        scene.remedies.undo(first.id, "api")


def test_what_the_verdict_advises_is_given_with_its_reason_and_what_it_should_bring() -> None:
    scene = Scene()
    advised = catalogue.advise("Give e0 less.", HALF)
    verdict = Verdict(state="bottleneck", summary="e0 is slow.", since=0.0, action=advised, expected_gain=0.4)
    scene.now = replace(scene.now, verdict=verdict)
    given = scene.remedies.apply(HALF, "page")
    assert (given.reason, given.expected) == ("e0 is slow.", "40% of that time less (estimated)")
    other = scene.remedies.apply(replace(HALF, weight=0.7), "page")
    assert (other.reason, other.expected) == ("e0 is slow.", None)


def test_an_order_that_is_refused_leaves_nothing() -> None:
    scene = Scene()
    with pytest.raises(ActionError):
        scene.remedies.apply(replace(HALF, engine="e9"), "api")
    assert scene.remedies.remedies() == ()
