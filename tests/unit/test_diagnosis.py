"""What holds a node back: of simulated nodes that something is done to, and how it is said."""

from __future__ import annotations

import pytest
from diagnosed import made, replace
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cli.diagnose import Look, text
from appliance.diagnosis.verdicts import Diagnoser
from appliance.records import (
    EngineSnapshot,
    EngineState,
    QueueSnapshot,
    Verdict,
)
from bench.diagnosis.cases import cases, healthy
from bench.diagnosis.play import play
from bench.diagnosis.score import score, wilson
from web import causes, contexts


@pytest.mark.parametrize("kind", ["crash", "cpu"])
def test_what_is_done_to_a_simulated_node_is_named(kind: str) -> None:
    case = next(case for case in cases(range(3)) if case.node == "llama 3p1d@tp2" and case.name == kind)
    found = score(play(case), play(case, injected=False))
    assert found.impactful
    assert (found.engine_right, found.cause_right) == (True, True)
    assert found.from_impact_s is not None
    assert found.from_impact_s < 10


def test_nothing_is_said_of_a_node_that_nothing_is_done_to() -> None:
    case = next(case for case in healthy(range(1)) if case.node == "llama 3p1d@tp2")
    assert {said.state for said in play(case, duration_s=60).said} == {"ok"}


def test_the_same_seed_makes_the_same_cases() -> None:
    assert cases(range(2)) == cases(range(2))
    assert cases(range(1)) != cases(range(1, 2))


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
    parts = made.sections(made.bottleneck(0))
    assert "Bottleneck: slow GPU on e1" in parts["headline"]
    assert parts["flow"].count("held-mark") == 1
    assert "Bottleneck: slow GPU on e1." in parts["announcement"]
    assert made.sections(made.busy(0))["diagnosis"] == ""


def test_a_link_is_named_by_its_ends_and_the_unknown_as_such() -> None:
    link = Verdict(state="bottleneck", summary="Slow.", since=0, link=("e0", "e1"), cause="handoff_link_slow")
    assert causes.words(link) == "slow link from e0 to e1"
    crashed = replace(link, link=None, engine="e1", cause="engine_crashed")
    assert causes.words(crashed) == "e1 has ended"
    unknown = Verdict(state="unknown", summary="Nothing tells.", since=0)
    assert contexts.headline(replace(made.busy(0), verdict=unknown)).sentence.startswith("Something holds it back")


def test_the_terminal_says_the_same() -> None:
    said = text(Look(made.bottleneck(0).verdict, b"", None))
    assert said.startswith("BOTTLENECK e1: prefill_straggler_gpu (since ")
    assert ", 95% sure)" in said
    assert "What to do: Give e1 less of the work" in said


def test_an_interval_holds_its_share() -> None:
    low, high = wilson(86, 95)
    assert 0.82 < low < 86 / 95 < high < 0.96
