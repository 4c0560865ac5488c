"""How long an engine may give no sign of life."""

from __future__ import annotations

import pytest

from appliance.channel import Heartbeat, LeaseEnded, Step, StepBegan
from appliance.supervisor.vitals import PATIENCE_S, UNKNOWN_S, Vitals

S = 1_000_000_000


def step(duration_s: float, prompt_tokens: int = 0) -> Step:
    counts = dict.fromkeys(("running", "waiting", "fetching", "kv_free", "leased", "preemptions"), 0)
    counts |= dict.fromkeys(("decode_tokens", "context_tokens", "prefix_queries", "prefix_hits"), 0)
    return Step(start_ns=0, end_ns=int(duration_s * S), prompt_tokens=prompt_tokens, **counts)


def beat() -> Heartbeat:
    return Heartbeat(at_ns=0, running=0, waiting=0, fetching=0, kv_free=0, leased=0)


def test_steps_and_heartbeats_are_signs_and_other_messages_are_none() -> None:
    vitals = Vitals(0)
    vitals.fold(beat(), 1 * S)
    vitals.fold(LeaseEnded(lease="k", reason="released", blocks=1, at_ns=0), 2 * S)
    assert vitals.core_quiet_s(3 * S) == 2.0
    vitals.fold(step(0.1), 3 * S)
    assert vitals.core_quiet_s(3 * S) == 0.0
    assert vitals.api_quiet_s(3 * S) == 3.0
    vitals.answered(3 * S)
    assert vitals.api_quiet_s(4 * S) == 1.0


def test_patience_is_ten_of_the_slowest_step_but_never_little() -> None:
    vitals = Vitals(0)
    assert vitals.core_patience_s() == PATIENCE_S
    vitals.fold(step(0.05), S)
    assert vitals.core_patience_s() == PATIENCE_S
    vitals.fold(step(0.6), S)
    vitals.fold(step(0.1), S)
    assert vitals.core_patience_s() == pytest.approx(6.0)


def test_a_long_step_is_compared_with_long_ones_by_its_tokens() -> None:
    vitals = Vitals(0)
    vitals.fold(step(0.01), S)
    vitals.fold(StepBegan(at_ns=0, prompt_tokens=2048), S)
    assert vitals.core_patience_s() == UNKNOWN_S, "there has been none like it"
    vitals.fold(step(0.5, prompt_tokens=512), 2 * S)
    assert vitals.core_patience_s() == PATIENCE_S, "it is over, and what is done now is short"
    vitals.fold(StepBegan(at_ns=0, prompt_tokens=2048), 3 * S)
    assert vitals.core_patience_s() == pytest.approx(20.0)


def test_an_idle_loop_makes_no_long_step_any_more() -> None:
    vitals = Vitals(0)
    vitals.fold(StepBegan(at_ns=0, prompt_tokens=2048), S)
    vitals.fold(beat(), S)
    assert vitals.core_patience_s() == PATIENCE_S


def test_nobody_is_blamed_for_what_the_supervisor_could_not_hear() -> None:
    vitals = Vitals(0)
    vitals.excuse(100 * S)
    assert (vitals.core_quiet_s(100 * S), vitals.api_quiet_s(100 * S)) == (0.0, 0.0)
