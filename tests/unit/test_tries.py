"""Whether a request is tried again."""

from __future__ import annotations

from appliance.router.client import Unreachable
from appliance.router.failures import LegFailed
from appliance.router.tries import _PROOF_NS, Tries
from appliance.router.wire import Answer
from appliance.supervisor.lifecycle import BUSY_PATIENCE_S

S = 1_000_000_000


def lost(engine: str) -> LegFailed:
    failure = LegFailed(engine, "it ended")
    failure.__cause__ = Unreachable("it ended", ConnectionResetError())
    return failure


def answered(engine: str) -> LegFailed:
    return LegFailed(engine, "no", answer=Answer(500, "application/json", b"{}"))


def outcome(tries: Tries, failure: LegFailed, ready: tuple[str, ...] = ("e0", "e1"), after_s: float = 1.0) -> bool:
    tries.begin(0)
    return tries.again(failure, ready, int(after_s * S))


def test_as_often_as_is_allowed() -> None:
    tries = Tries(3)
    assert [outcome(tries, lost("e0")) for _ in range(3)] == [True, True, False]
    assert not outcome(Tries(0), lost("e0")), "once is the least"


def test_what_an_engine_answers_is_asked_of_another_one_only() -> None:
    tries = Tries(9)
    assert outcome(tries, answered("e0"))
    assert not outcome(tries, answered("e1"))
    assert not outcome(Tries(9), answered("e0"), ready=("e0",))


def test_two_engines_are_enough() -> None:
    tries = Tries(9)
    assert outcome(tries, lost("e0"))
    assert tries.deadly is None
    assert not outcome(tries, lost("e1"))
    assert tries.deadly == "e0 and e1"


def test_what_an_engine_has_long_worked_on_has_hardly_ended_it_but_not_again_and_again() -> None:
    tries = Tries(2)
    assert [outcome(tries, lost(engine), after_s=121.0) for engine in ("e0", "e1", "e0")] == [True, True, False]
    assert tries.deadly == "e1 and e0"


def test_a_hang_that_is_noticed_late_counts_as_well() -> None:
    tries = Tries(9)
    assert outcome(tries, lost("e0"), after_s=BUSY_PATIENCE_S + 5)
    assert not outcome(tries, lost("e1"), after_s=BUSY_PATIENCE_S + 5)
    assert _PROOF_NS * 1e-9 > BUSY_PATIENCE_S + 30


def test_what_is_final() -> None:
    assert not outcome(Tries(9), LegFailed("e0", "no", final=True))
