"""How the diagnosis bench scores what was said, and the sheet that readers are given."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.supervisor.topology import parse
from bench.diagnosis.cases import _AMOUNTS, FAULT_S, ONSET_S, Case, Truth, cases
from bench.diagnosis.goodput import Answer, Clients
from bench.diagnosis.nodes import NODES
from bench.diagnosis.play import Played, Said
from bench.diagnosis.report import Report, markdown
from bench.diagnosis.score import Scored, score
from bench.diagnosis.sentences import REMEDIES, answers, marked, pick, sheet

END_S = ONSET_S + FAULT_S
CASE = Case(
    node="llama 3p1d@tp2",
    seed=1,
    name="ecc",
    truths=(Truth(causes=("decode_straggler_gpu",), engines=("e3",)),),
)


def played(*said: Said, recovered_s: float | None = END_S, good: int = 5, case: Case = CASE) -> Played:
    """Ten requests a second, of which so many were in time while the fault lasted."""
    seconds = 116
    during = range(int(ONSET_S), int(END_S))
    return Played(
        case=case,
        said=(Said(at_s=0.0, state="ok", engine=None, cause=None, summary=""), *said),
        good=tuple(good if second in during else 10 for second in range(seconds)),
        asked=(10,) * seconds,
        impact_s=ONSET_S + 2,
        recovered_s=recovered_s,
    )


def bad(at_s: float, engine: str = "e3", cause: str = "decode_straggler_gpu") -> Said:
    return Said(at_s=at_s, state="bottleneck", engine=engine, cause=cause, summary=f"{engine} is slow.")


def ok(at_s: float) -> Said:
    return Said(at_s=at_s, state="ok", engine=None, cause=None, summary="")


def test_clearing_counts_from_the_end_and_from_when_clients_were_well_again() -> None:
    found = score(played(bad(50.0), ok(END_S + 9), recovered_s=END_S + 6), played(good=10))
    assert (found.lost, found.cause_right, found.cleared_s) == (0.5, True, 9.0)
    assert (found.recovered_s, found.held_on_s) == (6.0, 3.0)


def test_what_is_over_before_clients_are_well_is_not_held_on_to() -> None:
    found = score(played(bad(50.0), ok(END_S + 3), recovered_s=END_S + 6), played(good=10))
    assert (found.cleared_s, found.held_on_s) == (3.0, 0.0)


def test_clients_who_are_not_well_when_the_play_ends_tell_nothing_of_clearing() -> None:
    found = score(played(bad(50.0), recovered_s=None), played(good=10))
    assert (found.cleared_s, found.recovered_s, found.held_on_s) == (None, None, None)


def test_chance_is_the_share_of_engines_that_are_right() -> None:
    assert score(played(bad(50.0)), played(good=10)).chance == 1 / 4
    several = Case(
        node="llama 3p1d@tp2",
        seed=1,
        name="long prompts",
        truths=(Truth(causes=("prefill_saturated",), engines=("e0", "e1", "e2")),),
    )
    found = score(played(bad(50.0, "e1", "prefill_saturated"), case=several), played(good=10))
    assert (found.chance, found.single, found.engine_right) == (3 / 4, False, True)


def test_the_report_tells_chance_and_clearing_apart() -> None:
    single = score(played(bad(50.0), ok(END_S + 9), recovered_s=END_S + 6), played(good=10))
    text = markdown(Report(seeds="1 to 1", scored=(single,), healthy_hours=0.0, alarms=()))
    assert "| chance | 25.0% | 25.0% |" in text
    assert "| the diagnoser | 100.0% | 100.0% |" in text
    assert (
        "Clear after the end: p50 9.0 s, p95 9.0 s (1 of 1); after clients' requests were in time again: p50 3.0 s"
        in text
    )
    assert "| ecc | 1 | 1 | 1 | 25% | 1 |" in text


def test_what_is_played_is_of_engines_and_nodes_that_there_are() -> None:
    assert set(_AMOUNTS) == set(NODES)
    for case in cases(range(2)):
        names = {place.name for place in parse(NODES[case.node].layout).places}
        assert {fault.engine for fault in case.faults} <= names
        assert {engine for truth in case.truths for engine in truth.engines} <= names
        assert all(0 < fault.severity <= 1 for fault in case.faults)


def row(cause: str, number: int, **more: Any) -> Scored:
    values: dict[str, Any] = {
        "node": "n", "name": cause, "seed": number, "severity": None, "lost": 0.3, "engine_right": True, "cause_right": True,
        "said": "", "cause": cause, "expected": cause, "causes": (cause,), "sentence": f"{cause} {number} of 7.", "advice": "secret",
        "evidence": ("3 of 4 ms.",), "impact_s": 1.0, "diagnosed_s": 1.0, "cleared_s": 1.0, "flaps": 0,
    }  # fmt: skip
    return Scored(**{**values, **more})


ROWS = [row(cause, n) for cause in ("engine_hung", "routing_skew", "decode_kv_full") for n in range(9)]


def test_sentences_are_picked_evenly_by_seed_and_only_of_what_hurt_and_was_said() -> None:
    picked = pick([*ROWS, row("frontend_bound", 0, lost=0.01), row("frontend_bound", 1, sentence="")], 1)
    assert sorted(sum(one.expected == cause for one in picked) for cause in {row.expected for row in ROWS}) == [6, 7, 7]
    assert {one.expected for one in picked} == {"engine_hung", "routing_skew", "decode_kv_full"}
    assert pick(ROWS, 1) == pick(ROWS, 1) != pick(ROWS, 2)


def test_a_sheet_has_sentences_and_evidence_and_neither_causes_nor_advice() -> None:
    picked = pick([row("routing_skew", 3, sentence="e1 has 2.1 times the work.")], 1)
    text, key = sheet(picked, 1)
    assert "e1 has 2.1 times the work.\n\n- 3 of 4 ms." in text
    assert "secret" not in text
    assert "routing_skew" not in text
    [number] = key.right[1]
    assert f"{number}. Set the routing weights of engines of one role equal again." in text


def test_every_cause_that_a_case_may_have_has_a_remedy() -> None:
    known = {cause for causes in REMEDIES.values() for cause in causes} | {"pool_imbalance"}
    assert {cause for case in cases(range(1)) for truth in case.truths for cause in truth.causes} <= known


def test_answers_are_marked_against_the_key() -> None:
    text, key = sheet(pick(ROWS, 1), 1)
    right = {number: of[0] for number, of in key.right.items()}
    assert marked(key, right).startswith("20 of 20 right")
    wrong = {**right, 4: right[4] % len(REMEDIES) + 1}
    del wrong[5]
    assert marked(key, wrong).startswith("18 of 20 right")
    assert f"- 4: said {wrong[4]}, right {right[4]}" in marked(key, wrong)
    assert "- 5: said nothing" in marked(key, wrong)
    assert text


def test_answers_are_read_a_line_each_and_what_is_none_is_told() -> None:
    assert answers("1: 7\n2 3\n\n 3. 11 \n") == {1: 7, 2: 3, 3: 11}
    with pytest.raises(ValueError, match="'first: 3' is no answer"):
        answers("first: 3")


def test_clients_are_well_again_when_nobody_waits_who_came_before_the_end() -> None:
    clients = Clients(1.0, 0.05, 60)
    for number in range(600):
        at_s, late = number * 0.1, 200 <= number < 250 and number % 2
        clients.come(at_s)
        ttft_s = 10.5 if late else 0.1
        clients.answered(Answer(arrived_s=at_s, ended_s=at_s + ttft_s, ttft_s=ttft_s))
    assert clients.recovered_s(25.0) == 34.0, "a few wait until 35.4 s, too few to tell"
    assert clients.recovered_s(40.0) == 40.0


def test_clients_are_not_well_while_those_who_came_before_the_end_get_their_tokens_too_slowly() -> None:
    clients = Clients(1.0, 0.05, 60)
    for number in range(600):
        at_s, slow = number * 0.1, 200 <= number < 250
        clients.come(at_s)
        pace_s, tokens = (0.2, 100) if slow else (0.03, 10)
        clients.answered(Answer(arrived_s=at_s, ended_s=at_s + 0.1 + pace_s * tokens, ttft_s=0.1, pace_s=pace_s))
    assert clients.recovered_s(30.0) == 44.0, "ten have not got their last tokens yet; at 45 s all have"
