"""What is known of pairs of engines, and what follows from it."""

from __future__ import annotations

import msgspec
import pytest

from appliance.records import EngineState, EngineView, Role
from appliance.router.loads import Loads
from appliance.router.pairs import Pairs
from appliance.router.policy import choose, choose_decode

S = 1_000_000_000


def node(*roles: Role, epoch: int = 1) -> list[EngineView]:
    names = [f"e{number}" for number in range(len(roles))]
    return [
        EngineView(
            name=name,
            role=role,
            state=EngineState.READY,
            epoch=epoch,
            socket=name,
            peers=tuple(peer for peer in names if peer != name),
        )
        for name, role in zip(names, roles, strict=True)
    ]


P, D, B = Role.PREFILL, Role.DECODE, Role.BOTH
VIEWS = node(P, D)


def due(pairs: Pairs, views: list[EngineView], at_s: float, *, idle: bool = True) -> list[str]:
    pairs.see(views)
    return [f"{prefill.name}-{decode.name}" for prefill, decode in pairs.due(views, int(at_s * S), idle=idle)]


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (node(P, D), ["e0-e1"]),
        (node(P, P, D), ["e0-e2", "e1-e2"]),
        (node(P, D, B), ["e0-e1", "e0-e2", "e2-e1"]),
        (node(B, B), []),
        ([VIEWS[0], msgspec.structs.replace(VIEWS[1], peers=())], []),
        ([VIEWS[0], msgspec.structs.replace(VIEWS[1], state=EngineState.SUSPECT)], []),
    ],
)
def test_pairs_are_those_that_requests_are_split_over(views: list[EngineView], expected: list[str]) -> None:
    assert due(Pairs(30), views, 0) == expected


def test_a_new_pair_is_due_and_then_once_in_a_while_when_nobody_uses_it() -> None:
    pairs = Pairs(30)
    assert due(pairs, VIEWS, 0, idle=False) == []
    assert due(pairs, VIEWS, 0) == ["e0-e1"]
    pairs.passed(*VIEWS, 0.05, 1 * S)
    assert due(pairs, VIEWS, 30) == []
    assert due(pairs, VIEWS, 31, idle=False) == []
    assert due(pairs, VIEWS, 31) == ["e0-e1"]
    pairs.used("e0", "e1", None, 31 * S)
    assert due(pairs, VIEWS, 60) == []
    assert due(pairs, node(P, D, epoch=2), 60) == ["e0-e1"], "another life is another pair"


def test_never_where_the_owner_wants_none() -> None:
    pairs = Pairs(0)
    assert due(pairs, VIEWS, 1000) == []
    pairs.used("e0", "e1", "no way", 0)
    assert due(pairs, VIEWS, 2000) == []


def test_one_that_fails_twice_is_not_used_until_it_passes() -> None:
    pairs, views = Pairs(30), node(P, D, D)
    due(pairs, views, 0)
    pairs.failed(views[0], views[1], "no way", 0)
    assert pairs.without_broken(views) is views, "once may be an accident"
    assert due(pairs, views, 1, idle=False) == []
    assert due(pairs, views, 2, idle=False) == ["e0-e1"], "tested again soon, whatever else goes on"
    pairs.failed(views[0], views[1], "no way", 2 * S)
    seen = pairs.without_broken(views)
    assert [view.peers for view in seen] == [("e1", "e2"), ("e2",), ("e0", "e1")]
    decode = choose_decode(seen, Loads(), "e0")
    assert decode is not None
    assert decode.name == "e2"
    pairs.passed(views[0], views[1], 0.05, 4 * S)
    assert pairs.without_broken(views) is views


def test_where_no_pair_is_left_requests_run_whole_and_say_why() -> None:
    pairs = Pairs(30)
    due(pairs, VIEWS, 0)
    for at_s in (0, 2):
        pairs.failed(*VIEWS, "the memory can't be mapped", at_s * S)
    choice = choose(pairs.without_broken(VIEWS), Loads())
    assert choice is not None
    assert choice.unsplit_reason == "no two engines share their KV memory: e0 to e1: the memory can't be mapped"
    [pair] = pairs.snapshot(5 * S)
    assert (pair.ok, pair.in_use, pair.age_s, pair.error) == (False, False, 3.0, "the memory can't be mapped")


def test_a_hand_off_that_fails_is_a_reason_for_a_test_also_under_load() -> None:
    pairs = Pairs(30)
    due(pairs, VIEWS, 0)
    pairs.passed(*VIEWS, 0.05, 0)
    pairs.used("e0", "e1", "no way", 10 * S)
    assert due(pairs, VIEWS, 10, idle=False) == ["e0-e1"]
    pairs.passed(*VIEWS, 0.05, 10 * S)
    assert due(pairs, VIEWS, 20, idle=False) == []


def test_what_could_not_be_tested_is_as_it_was() -> None:
    pairs = Pairs(30)
    due(pairs, VIEWS, 0)
    pairs.untold(*VIEWS, "e0 answered 404", 0)
    [pair] = pairs.snapshot(0)
    assert (pair.ok, pair.in_use, pair.error) == (None, True, "e0 answered 404")
    for at_s in (1, 3):
        pairs.failed(*VIEWS, "no way", at_s * S)
    pairs.untold(*VIEWS, "e0 can't be reached", 5 * S)
    assert not pairs.snapshot(6 * S)[0].in_use
    assert due(pairs, VIEWS, 8, idle=False) == ["e0-e1"]


def test_a_test_of_a_pair_that_has_gone_meanwhile_is_forgotten() -> None:
    pairs = Pairs(30)
    due(pairs, VIEWS, 0)
    due(pairs, node(P, D, epoch=2), 1)
    pairs.failed(*VIEWS, "it has ended", 2 * S)
    assert [pair.ok for pair in pairs.snapshot(2 * S)] == [None]


@pytest.mark.parametrize("state", [EngineState.SUSPECT, EngineState.DRAINING])
def test_what_is_known_of_a_pair_survives_what_passes(state: EngineState) -> None:
    pairs = Pairs(30)
    due(pairs, VIEWS, 0)
    for at_s in (0, 2):
        pairs.failed(*VIEWS, "no way", at_s * S)
    due(pairs, [VIEWS[0], msgspec.structs.replace(VIEWS[1], state=state)], 3)
    assert not pairs.snapshot(3 * S)[0].in_use
    assert due(pairs, VIEWS, 4, idle=False) == ["e0-e1"]


def test_where_only_somebodys_hand_offs_fail_the_tests_prove_nothing() -> None:
    pairs = Pairs(30)
    due(pairs, VIEWS, 0)
    for number in range(8):
        pairs.used("e0", "e1", "too large", (1 + number) * S)
        if number < 7:
            pairs.passed(*VIEWS, 0.05, (1 + number) * S)
            assert pairs.snapshot(9 * S)[0].in_use
    [pair] = pairs.snapshot(9 * S)
    assert (pair.ok, pair.in_use, pair.error) == (False, False, "too large")
    assert due(pairs, VIEWS, 60, idle=False) == []
    assert due(pairs, VIEWS, 70, idle=False) == ["e0-e1"]
    pairs.passed(*VIEWS, 0.05, 70 * S)
    assert pairs.snapshot(70 * S)[0].in_use, "somebody's next one is the test"
    pairs.used("e0", "e1", "too large", 71 * S)
    assert not pairs.snapshot(71 * S)[0].in_use
    due(pairs, VIEWS, 140)
    pairs.passed(*VIEWS, 0.05, 140 * S)
    pairs.used("e0", "e1", None, 141 * S)
    pairs.used("e0", "e1", "once", 142 * S)
    assert pairs.snapshot(142 * S)[0].in_use, "it works, and once is an accident"
