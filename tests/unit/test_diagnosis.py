"""What holds a node back: of simulated nodes that something is done to, and of snapshots made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cli.diagnose import text
from appliance.diagnosis.judge import judge
from appliance.diagnosis.verdicts import Diagnoser
from appliance.records import Action, EngineSnapshot, EngineState, NodeSnapshot, QueueSnapshot, Verdict
from bench.diagnosis.cases import cases, healthy
from bench.diagnosis.play import play
from bench.diagnosis.score import score, wilson
from web import diagnosis, pages

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

replace = msgspec.structs.replace


@pytest.mark.parametrize("kind", ["crash", "ecc"])
def test_what_is_done_to_a_simulated_node_is_named(kind: str) -> None:
    case = next(case for case in cases(range(3)) if case.node == "llama 3p1d@tp2" and case.name == kind)
    found = score(play(case), play(case, injected=False))
    assert found.impactful
    assert (found.engine_right, found.cause_right) == (True, True)
    assert found.diagnosed_s is not None
    assert found.diagnosed_s < 10


def test_nothing_is_said_of_a_node_that_nothing_is_done_to() -> None:
    case = next(case for case in healthy(range(1)) if case.node == "llama 3p1d@tp2")
    assert {said.state for said in play(case, duration_s=60).said} == {"ok"}


def test_the_same_seed_makes_the_same_cases() -> None:
    assert cases(range(2)) == cases(range(2))
    assert cases(range(1)) != cases(range(1, 2))


def late(at_s: float, depth: int = 40, slowdown: float = 1.0) -> NodeSnapshot:
    """Two engines that are busy all of the time, and a queue that is too long."""
    prefill = made.engine("e0", busy=1.0, slowdown=slowdown, waiting=3, max_running=64, token_budget=8192)
    decode = made.engine("e1", made.Role.DECODE, busy=0.9, slowdown=1.0, running=30, max_running=64)
    queue = QueueSnapshot(depth=depth, capacity=1024, oldest_s=5.0 if depth else None)
    return replace(made.node((prefill, decode), 0, queue=queue), time=at_s)


def test_what_was_seen_once_is_no_verdict_and_what_is_over_is_gone() -> None:
    diagnose = Diagnoser(0.95)
    assert diagnose(late(100.0)).state == "ok"
    assert diagnose(late(100.5)).state == "ok"
    said = diagnose(late(101.5))
    assert (said.state, said.cause, said.engine) == ("bottleneck", "prefill_saturated", "e0")
    assert diagnose(late(102.0, depth=0)).state == "bottleneck"
    assert diagnose(late(106.0, depth=0)).state == "bottleneck"
    assert diagnose(late(107.5, depth=0)).state == "ok"


def test_a_slow_engine_is_named_before_saturation_and_the_gpu_that_slows_it_is_evidence() -> None:
    hot = made.large(0).gpus[2]
    window = [replace(late(100 + n / 2, slowdown=1.5), gpus=(replace(hot, engine="e0"),)) for n in range(5)]
    finding = judge(window, 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("prefill_straggler_gpu", ("e0",))
    assert any("990 of 1,980 MHz" in one.sentence for one in finding.evidence)
    assert (finding.action.order, "no other engine can take" in finding.action.sentence) == (None, True)


def test_an_engine_gets_less_of_the_work_where_others_can_take_it_and_has_it_not_already() -> None:
    slow, like = made.engine("e0", busy=1.0, slowdown=2.0, waiting=3), made.engine("e2", busy=0.9, slowdown=1.0)
    decode = made.engine("e1", made.Role.DECODE, busy=0.9, slowdown=1.0, running=30)

    def action(weight: float) -> Action | None:
        queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0)
        engines = (replace(slow, weight=weight), decode, like)
        finding = judge([replace(made.node(engines, 0, queue=queue), time=100.0)], 0.95).finding
        return finding.action if finding is not None else None

    assert (found := action(1.0)) is not None
    assert (found.call, found.order and found.order.weight) == ('POST /api/engines/e0/weight {"weight": 0.5}', 0.5)
    assert (again := action(0.5)) is not None
    assert (again.order, "less of the work already" in again.sentence) == (None, True)


def test_only_an_engine_that_can_be_spared_gets_another_role() -> None:
    def action(running: int) -> Action | None:
        others = [
            made.engine(f"e{n}", made.Role.DECODE, busy=0.9, slowdown=1.0, running=running, max_running=64)
            for n in (1, 2)
        ]
        others = [replace(one, kv_usage=0.1, waiting=0, fetching=0) for one in others]
        prefill = made.engine("e0", busy=1.0, slowdown=1.0, waiting=3, token_budget=8192)
        queue = QueueSnapshot(depth=40, capacity=1024, oldest_s=5.0)
        finding = judge([replace(made.node((prefill, *others), 0, queue=queue), time=100.0)], 0.95).finding
        return finding.action if finding is not None else None

    assert (found := action(4)) is not None
    assert found.call == 'POST /api/engines/e1/role {"role": "prefill"}'
    assert (busy := action(40)) is not None
    assert (busy.order, "Send fewer requests" in busy.sentence) == (None, True)


def test_a_clock_that_is_set_back_makes_no_failures() -> None:
    diagnose = Diagnoser(0.95)
    diagnose(late(1000.0, depth=0))
    failed = replace(late(100.0, depth=0), requests=made.RequestCounts(total=9, failed=9))
    assert [diagnose(replace(failed, time=100 + n / 2)).state for n in range(12)] == ["ok"] * 12


def test_an_engine_that_is_gone_is_told_of_though_nobody_is_hurt() -> None:
    gone = made.engine("e1", state=EngineState.BACKOFF, cause="ended by SIGSEGV")
    finding = judge([made.node((made.engine("e0"), gone), 0)], 0.95).finding
    assert finding is not None
    assert (finding.cause, finding.engines) == ("engine_crashed", ("e1",))


def test_whoever_is_hurt_for_no_known_reason_is_told_that_nothing_tells() -> None:
    idle = replace(made.node((made.engine("e0"),), 0), queue=QueueSnapshot(depth=3, oldest_s=9.0))
    diagnose = Diagnoser(0.95)
    said = [diagnose(replace(idle, time=100 + n / 2)) for n in range(20)]
    assert said[2].state == "ok"
    assert (said[-1].state, said[-1].cause, said[-1].engine) == ("unknown", None, None)


FIGURE = st.none() | st.floats(0, 1e6)
ENGINES = st.lists(
    st.builds(
        EngineSnapshot,
        name=st.sampled_from(["e0", "e1", "e2"]),
        role=st.sampled_from(list(made.Role)),
        state=st.sampled_from(list(EngineState)),
        epoch=st.just(1),
        kv_usage=FIGURE,
        running=st.none() | st.integers(0, 1000),
        waiting=st.none() | st.integers(0, 1000),
        max_running=st.none() | st.integers(0, 512),
        busy=FIGURE,
        slowdown=FIGURE,
        itl_s=FIGURE,
        itl_late=FIGURE,
        output_tokens_s=FIGURE,
        prefix_hit_rate=FIGURE,
    ),
    max_size=3,
    unique_by=lambda engine: engine.name,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ENGINES, st.integers(0, 100), FIGURE), min_size=1, max_size=6))
def test_whatever_a_node_reads_there_is_a_verdict(window: list[tuple[list[EngineSnapshot], int, float | None]]) -> None:
    diagnose = Diagnoser(0.95)
    for number, (engines, depth, oldest_s) in enumerate(window):
        queue = QueueSnapshot(depth=depth, oldest_s=oldest_s)
        verdict = diagnose(replace(made.node(tuple(engines), 0, queue=queue), time=100.0 + 2 * number))
        assert verdict.state in ("ok", "bottleneck", "unknown")
        assert verdict.engine is None or verdict.engine in verdict.engines


def test_the_page_says_what_holds_it_back_and_marks_the_engine() -> None:
    parts = pages.sections(made.bottleneck(0))
    assert "Bottleneck: slow GPU on e1" in parts["diagnosis"]
    assert parts["flow"].count("held-mark") == 1
    assert "Bottleneck: prefill straggler gpu on e1." in parts["announcement"]
    assert pages.sections(made.busy(0))["diagnosis"] == ""


def test_a_link_is_named_by_its_ends_and_the_unknown_as_such() -> None:
    link = Verdict(state="bottleneck", summary="Slow.", since=0, link=("e0", "e1"), cause="handoff_link_slow")
    assert diagnosis.diagnosis(replace(made.busy(0), verdict=link)).cause == "slow link on e0 to e1"
    unknown = Verdict(state="unknown", summary="Nothing tells.", since=0)
    assert diagnosis.diagnosis(replace(made.busy(0), verdict=unknown)).cause is None


def test_the_terminal_says_the_same() -> None:
    said = text(msgspec.to_builtins(made.bottleneck(0).verdict))
    assert said.startswith("BOTTLENECK e1: prefill_straggler_gpu (95% sure)")
    assert "What to do: Give e1 less of the work" in said


def test_an_interval_holds_its_share() -> None:
    low, high = wilson(86, 95)
    assert 0.82 < low < 86 / 95 < high < 0.96
