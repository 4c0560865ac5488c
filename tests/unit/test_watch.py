"""What is looked at while an engine gives no sign of life: one that is stopped is not waited for, one that gets on is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.channel import Step
from appliance.records import EngineState, Role
from appliance.supervisor.engine import Engine
from appliance.supervisor.lifecycle import Lively, Quiet
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import EngineSpec
from appliance.supervisor.vitals import Condition, Vitals
from appliance.supervisor.watch import Watch

S = 1_000_000_000


class Session:
    """Of one process. ``used_s`` is its CPU time, ``stops`` whether it is stopped whenever somebody looks."""

    def __init__(self) -> None:
        self.used_s = 5.0
        self.stops = True

    def cpu_s(self) -> float:
        return self.used_s

    def thread_states(self) -> set[str]:
        return {"T"} if self.stops else {"S"}

    def stopped(self) -> dict[int, float]:
        return {77: self.used_s} if self.stops else {}


@pytest.fixture
def engine() -> Engine:
    """It made a step of 1.5 s, so that it may be quiet for fifteen; its API process answers."""
    spec = EngineSpec(name="e0", role=Role.BOTH, cores=(0,), tensor_parallel=1, arguments=(), environment={})
    found = Engine(spec)
    found.process = Session()  # type: ignore[assignment]
    found.connections[("core", 0)] = object()  # type: ignore[assignment]
    found.vitals = Vitals(0)
    step = {"running": 0, "waiting": 0, "fetching": 0, "kv_free": 9, "leased": 0, "preemptions": 0}
    counts = {"prompt_tokens": 9, "decode_tokens": 0, "context_tokens": 9, "prefix_queries": 0, "prefix_hits": 0}
    found.vitals.fold(Step(start_ns=0, end_ns=3 * S // 2, dropped=0, **step, **counts), 0)
    return found


def looks(engine: Engine, *at_s: float, used_s: float = 0.0) -> list[Quiet | Lively]:
    """Looked at then; that much CPU time is used from one look to the next."""
    posted: list[Quiet | Lively] = []
    watch = Watch([engine], Runtime(Path("/nowhere")), lambda _, event: posted.append(event), lambda *_: None)
    session: Any = engine.process
    for at in at_s:
        assert engine.vitals is not None
        engine.vitals.answered(round(at * S))
        watch._look(engine, engine.vitals, round(at * S))
        session.used_s += used_s
    return posted


def test_one_that_is_stopped_is_told_of_long_before_its_patience_is_over(engine: Engine) -> None:
    posted = looks(engine, 1.0, 1.6, 2.1)
    assert [(one.quiet_s, one.condition) for one in posted if isinstance(one, Quiet)] == [(2.1, Condition.STOPPED)]


def test_one_that_is_let_go_now_and_then_gets_on(engine: Engine) -> None:
    assert looks(engine, 1.6, 2.1, 2.6, used_s=0.05) == []
    late = looks(engine, 14.0, 14.5, used_s=0.05)
    assert {one.condition for one in late if isinstance(one, Quiet)} == {Condition.BUSY}


def test_one_that_is_quiet_for_no_reason_is_given_its_patience(engine: Engine) -> None:
    session: Any = engine.process
    session.stops = False
    assert looks(engine, 2.1, 2.6) == []
    assert [type(one) for one in looks(engine, 14.0)] == [Quiet]


def test_one_that_was_stopped_for_a_moment_lives(engine: Engine) -> None:
    session: Any = engine.process
    session.stops = False
    engine.life = engine.life.__class__(state=EngineState.SUSPECT)
    assert [type(one) for one in looks(engine, 2.1)] == [Lively]


def test_one_whose_engine_core_has_closed_its_channel_has_ended_and_does_not_hang(engine: Engine) -> None:
    engine.connections.clear()
    posted = looks(engine, 1.6, 2.1)
    assert {one.condition for one in posted if isinstance(one, Quiet)} == {Condition.GONE}
