"""Each fault makes worse what it should, shows where a real one would, and is gone when it ends."""

from __future__ import annotations

import pytest
from test_simulated_node import House

from appliance.channel import Fault, Step, Up
from appliance.errors import ConfigError
from appliance.records import EngineState, Role
from appliance.simulator.faults import KINDS, LASTING
from appliance.simulator.request import Asked

PREFILL = Asked(prompt_tokens=4000, output_tokens=20)
DECODE = Asked(prompt_tokens=100, output_tokens=400)


def house(*roles: Role, asked: Asked, at_once: int = 12, **more: int) -> House:
    made = House(*(roles or (Role.PREFILL, Role.DECODE)), asked=asked, at_once=at_once, **more)
    made.run(10)
    return made


def step_s(made: House, engine: str, seconds: float = 10) -> float:
    """The mean step in so many seconds from now."""
    steps: list[Step] = []

    def take(name: str, epoch: int, message: Up) -> None:
        if name == engine and isinstance(message, Step):
            steps.append(message)

    made.node.on_message = take
    made.run(seconds)
    return sum(step.end_ns - step.start_ns for step in steps) / len(steps) * 1e-9


def test_every_kind_can_be_begun_and_ended() -> None:
    made = house(Role.PREFILL, Role.PREFILL, Role.DECODE, asked=PREFILL)
    for kind in KINDS:
        made.node.fault("e0", Fault(kind=kind, severity=0.5))
        made.run(5)
        if kind in LASTING:
            made.node.fault("e0", Fault(kind=kind, severity=0.0))
        made.run(5 if kind in LASTING else 40)  # until it is back
    before = len(made.answers)
    made.run(20)
    assert len(made.answers) > before, "after all of it, it serves"
    assert all(view.weight == 1.0 for view in made.node.views())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (("e9", Fault(kind="clocks", severity=0.5)), "there is no engine 'e9': there are e0, e1"),
        (("e0", Fault(kind="rust", severity=0.5)), "fault kind 'rust' is not one: there are clocks, ecc"),
        (("e0", Fault(kind="hang", severity=0.0)), "a hang can't be ended"),
        (("e0", Fault(kind="clocks", severity=1.5)), "severity 1.5 is not from 0 to 1"),
        (("e0", Fault(kind="clocks", severity=0.5, peer="e1")), "a clocks fault has no peer"),
        (("e0", Fault(kind="link", severity=0.5, peer="e0")), "peer 'e0' is not another engine"),
    ],
)
def test_what_is_no_fault_is_refused_with_what_would_be_one(fault: tuple[str, Fault], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        house(asked=PREFILL).node.fault(*fault)


def test_clocks_slow_down_a_prefill_engine_and_hardly_one_that_decodes() -> None:
    made = house(asked=PREFILL)
    before = step_s(made, "e0")
    made.node.fault("e0", Fault(kind="clocks", severity=0.5))
    assert step_s(made, "e0") > 1.6 * before
    made.node.gpus()
    made.run(30)
    [hot, other] = made.node.gpus()
    assert (hot.clock_mhz, hot.clock_reasons) == (990.0, ("hw_thermal_slowdown",))
    assert other.clock_mhz == other.clock_max_mhz
    assert hot.temperature_c is not None
    assert other.temperature_c is not None
    assert hot.temperature_c > 80 > other.temperature_c
    [held], [free] = hot.throttled, other.throttled
    assert (held.reason, free.total_s) == ("hw_thermal_slowdown", 0.0)
    assert held.total_s == pytest.approx(40, abs=0.1), "as long as it lasts"
    made.node.fault("e0", Fault(kind="clocks", severity=0.0))
    assert step_s(made, "e0") == pytest.approx(before, rel=0.05)
    decoding = house(asked=DECODE)
    before = step_s(decoding, "e1")
    decoding.node.fault("e1", Fault(kind="clocks", severity=0.5))
    assert step_s(decoding, "e1") < 1.1 * before, "which waits for memory"


def test_memory_errors_slow_down_whoever_decodes_and_are_counted() -> None:
    made = house(asked=DECODE)
    before = step_s(made, "e1")
    made.node.fault("e1", Fault(kind="ecc", severity=0.5))
    made.node.gpus()
    assert step_s(made, "e1") > 1.3 * before
    _, bad = made.node.gpus()
    assert (bad.ecc_uncorrected, bad.xids) == (1, (94,))
    assert bad.ecc_corrected == pytest.approx(200, abs=5)


def test_a_starved_main_loop_makes_each_step_late() -> None:
    made = house(asked=DECODE)
    before = step_s(made, "e1")
    made.node.fault("e1", Fault(kind="cpu", severity=0.5))
    assert step_s(made, "e1") == pytest.approx(before + 0.004, rel=0.1)


def test_a_slow_link_makes_its_handoffs_slow_and_no_others() -> None:
    made = house(Role.PREFILL, Role.PREFILL, Role.DECODE, asked=PREFILL)
    made.node.fault("e0", Fault(kind="link", severity=0.9, peer="e2"))
    shares = made.node._fabric.shares
    assert shares.of("e0", "e2") == shares.of("e2", "e0") == pytest.approx(0.1)
    assert shares.of("e1", "e2") == 1.0
    made.node.fault("e1", Fault(kind="link", severity=0.5))
    assert shares.of("e1", "e0") == pytest.approx(0.5), "all of its links"


def test_lost_kv_is_not_free_and_an_emptied_cache_finds_nothing() -> None:
    made = house(Role.BOTH, asked=Asked(prompt_tokens=1600, output_tokens=5, digests=tuple(range(100))), at_once=1)
    engine = made.node.engine("e0")
    hits = engine._hits
    assert hits > 0
    made.node.fault("e0", Fault(kind="cache", severity=1.0))
    made.run(1)
    hits = engine._hits
    made.run(5)
    assert engine._hits == hits
    free = engine.blocks.free
    made.node.fault("e0", Fault(kind="kv", severity=0.5))
    assert engine.blocks.free == free - 10_000


def test_a_starved_api_process_is_late_with_tokens_and_the_engine_is_not() -> None:
    made = house(Role.BOTH, asked=DECODE, quiet=False)
    before, busy = step_s(made, "e0"), made.node.frontend("e0")
    made.node.fault("e0", Fault(kind="frontend", severity=0.995))
    made.run(5)
    done = len(made.answers)
    assert step_s(made, "e0", 5) <= 1.1 * before
    late = [answer.ended_ns - answer.arrived_ns for answer in made.answers[done:]]
    assert not late or min(late) > 1.5e9
    assert busy.share == pytest.approx(0.01)


def test_whoever_hangs_or_crashes_is_back_after_a_while_with_the_faults_of_its_hardware() -> None:
    for kind, noticed_s in (("crash", 0.0), ("hang", 3.0)):
        made = house(Role.BOTH, Role.BOTH, asked=DECODE)
        made.node.fault("e0", Fault(kind="ecc", severity=0.5))
        made.node.fault("e0", Fault(kind=kind, severity=1.0))
        made.run(noticed_s + 0.1)
        assert made.node.views()[0].state is EngineState.BACKOFF
        assert any(answer.error for answer in made.answers)
        made.run(31)
        assert made.node.views()[0].state is EngineState.READY
        assert made.node.views()[0].epoch == 2
        assert made.node._places["e0"].physics.speed.memory == 0.5


def test_an_engine_that_is_not_there_does_not_hang_and_comes_back_with_its_weight() -> None:
    made = house(Role.BOTH, Role.BOTH, asked=DECODE)
    made.node.fault("e0", Fault(kind="skew", severity=0.9))
    made.node.fault("e0", Fault(kind="crash", severity=1.0))
    made.run(28)
    made.node.fault("e0", Fault(kind="hang", severity=1.0))
    made.run(10)
    view = made.node.views()[0]
    assert (view.state, view.epoch, view.weight) == (EngineState.READY, 2, pytest.approx(10.0))


def test_a_preferred_engine_gets_most_of_the_work() -> None:
    made = house(Role.PREFILL, Role.PREFILL, Role.DECODE, asked=PREFILL, at_once=2)
    made.node.fault("e1", Fault(kind="skew", severity=0.9))
    assert [view.weight for view in made.node.views()] == [1.0, pytest.approx(10.0), 1.0]
    tokens = {"e0": 0, "e1": 0, "e2": 0}

    def take(name: str, epoch: int, message: Up) -> None:
        if isinstance(message, Step):
            tokens[name] += message.prompt_tokens

    made.node.on_message = take
    made.run(10)
    assert tokens["e1"] > 3 * tokens["e0"]


def test_what_waits_in_an_api_process_is_lost_with_it_at_once() -> None:
    made = house(Role.BOTH, Role.BOTH, asked=DECODE, quiet=False)
    made.node.fault("e0", Fault(kind="frontend", severity=0.995))
    made.run(20)
    there, before = made.node.in_flight("e0"), len(made.answers)
    assert there > 0
    made.node.fault("e0", Fault(kind="crash", severity=1.0))
    made.run(0)
    assert [answer.error for answer in made.answers[before:]] == ["its engine was lost"] * there


def test_an_engine_that_is_not_there_neither_drains_nor_takes_work_again() -> None:
    made = house(Role.BOTH, Role.BOTH, asked=DECODE)
    made.node.fault("e0", Fault(kind="crash", severity=1.0))
    made.node.drain("e0")
    made.node.resume("e0")
    made.node.restart("e0")
    assert made.node.views()[0].state is EngineState.BACKOFF
    before = len(made.answers)
    made.run(20)
    assert not any(answer.error for answer in made.answers[before + 12 :]), "nobody is sent there"
    made.run(11)
    assert made.node.views()[0].state is EngineState.READY
