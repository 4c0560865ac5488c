"""Requests whose answer has just begun."""

from __future__ import annotations

import pytest

from appliance.channel import FirstToken, HandoffEnded, LeaseGranted, Scheduled
from appliance.telemetry.timeline import Timelines, Trace

MS = 1_000_000
S = 1000 * MS


def answered(timelines: Timelines, number: int, ttft_ns: int, api_ns: int = 0) -> None:
    """One that came a second after the one before, streamed whole by e0."""
    arrived_ns = number * S
    trace = timelines.begin(f"r{number}", "/v1/completions", True, arrived_ns)
    trace.dispatched("whole", "e0", f"k{number}", arrived_ns + 10 * MS)
    timelines.fold("e0", FirstToken(request=f"k{number}", at_ns=arrived_ns + ttft_ns - api_ns))
    trace.first_byte(arrived_ns + ttft_ns)


def test_those_of_the_last_seconds_count_and_their_stages_sum_to_what_they_took() -> None:
    timelines = Timelines(10)
    for number, ttft_ms in enumerate((9000, 100, 300)):
        answered(timelines, number + 1, ttft_ms * MS)
    found = timelines.begun.lately(4 * S, 0.2)
    assert (found.first_tokens, found.ttft_late) == (3, pytest.approx(2 / 3))
    assert sum(stage.duration_s for stage in found.stages) == pytest.approx(found.ttft_s)
    assert timelines.begun.lately(60 * S, 0.2).first_tokens == 0
    assert timelines.begun.lately(60 * S, 0.2).ttft_late is None


def test_from_the_engines_first_token_to_its_bytes_is_the_api_process() -> None:
    timelines = Timelines(10)
    answered(timelines, 1, 500 * MS, api_ns=40 * MS)
    answered(timelines, 2, 500 * MS, api_ns=60 * MS)
    assert timelines.begun.api_delays(3 * S) == {"e0": pytest.approx(0.05)}


def test_from_a_prompts_kv_to_the_word_that_it_is_there_is_the_api_process_of_the_engine_that_prefills() -> None:
    timelines = Timelines(10)
    trace = timelines.begin("r", "/v1/completions", True, 0)
    trace.dispatched("prefill", "e0", "k", 10 * MS)
    kept = LeaseGranted(lease="k", blocks=1, tokens=9, consumers=1, ttl_s=60.0, at_ns=200 * MS)
    timelines.fold("e0", kept)
    trace.leg_ended("prefill", "e0", "ok", 280 * MS, status=200)
    trace.dispatched("decode", "e1", "k", 281 * MS)
    timelines.fold("e1", FirstToken(request="k", at_ns=300 * MS))
    trace.first_byte(310 * MS)
    assert timelines.begun.api_delays(S) == {"e0": pytest.approx(0.08), "e1": pytest.approx(0.01)}


def test_long_prompts_are_those_many_times_as_long_as_usual_that_an_engine_computes_or_just_has() -> None:
    timelines = Timelines(40)
    for number in range(20):
        trace = timelines.begin(f"r{number}", "/v1/completions", True, number * MS)
        trace.dispatched("whole", "e0", f"k{number}", number * MS)
        timelines.fold("e0", Scheduled(request=f"k{number}", phase="prefill", at_ns=number * MS, prompt_tokens=100))
        trace.first_byte(number * MS)
    timelines.begun.lately(S, 1.0)  # what is usual is known from then on
    for engine, tokens in (("e0", 700), ("e1", 900), ("e1", 2000)):
        trace = timelines.begin(f"{tokens}", "/v1/completions", True, S)
        trace.dispatched("whole", engine, f"{tokens}", S)
        timelines.fold(engine, Scheduled(request=f"{tokens}", phase="prefill", at_ns=S, prompt_tokens=tokens))
        if tokens == 2000:
            trace.first_byte(2 * S)
    assert timelines.begun.long_prompts(3 * S) == {"e1": 2000}
    assert timelines.begun.of_engines(3 * S)["e1"].long_prompt_tokens == 2000
    assert timelines.begun.long_prompts(30 * S) == {"e1": 900}, "which it still computes"


def scheduled(timelines: Timelines, number: int, tokens: int, arrived_ns: int, at_ns: int) -> Trace:
    """One that e0 begins with then."""
    trace = timelines.begin(f"r{number}", "/v1/completions", True, arrived_ns)
    trace.dispatched("whole", "e0", f"k{number}", arrived_ns)
    timelines.fold("e0", Scheduled(request=f"k{number}", phase="prefill", at_ns=at_ns, prompt_tokens=tokens))
    return trace


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("outcome", "status"), [("cancelled", 499), ("failed", 502)])
def test_a_long_prompt_that_was_given_up_is_no_longer_computed(outcome: str, status: int, again: bool) -> None:
    timelines = Timelines(40)
    for number in range(20):
        scheduled(timelines, number, 100, number * MS, number * MS).first_byte(number * MS)
    timelines.begun.lately(S, 1.0)
    long = scheduled(timelines, 20, 2000, S, S)
    assert timelines.begun.long_prompts(60 * S) == {"e0": 2000}, "it is under way"
    if again:
        long.dispatched("whole", "e0", "another", 61 * S)  # and no engine begins with that
    long.finish(outcome, status, 62 * S)
    assert timelines.begun.long_prompts(64 * S) == {"e0": 2000}, "which it just has"
    assert timelines.begun.long_prompts(90 * S) == {}
    scheduled(timelines, 21, 100, 90 * S, 93 * S).first_byte(94 * S)
    assert timelines.begun.lately(94 * S, 1.0).behind_long == 0, "nobody waits for it"


def test_who_waited_while_a_long_prompt_was_computed_until_it_was_given_up_waited_for_it_so_long() -> None:
    timelines = Timelines(40)
    for number in range(20):
        scheduled(timelines, number, 100, number * MS, number * MS).first_byte(number * MS)
    timelines.begun.lately(S, 1.0)
    scheduled(timelines, 20, 2000, S, S).finish("cancelled", 499, 60 * S)
    scheduled(timelines, 21, 100, 58 * S, 62 * S).first_byte(63 * S)
    assert timelines.begun.lately(63 * S, 1.0).behind_long == pytest.approx(0.5)


def test_until_its_engine_does_something_a_decode_leg_is_in_its_api_process() -> None:
    timelines = Timelines(10)
    trace = timelines.begin("r", "/v1/completions", True, 0)
    trace.dispatched("prefill", "e0", "k", 10 * MS)
    trace.leg_ended("prefill", "e0", "ok", 280 * MS, status=200)
    trace.dispatched("decode", "e1", "k", 281 * MS)
    pulled = HandoffEnded(
        lease="k", producer="e0", ok=True, bytes=1, copies=1, tokens=9, start_ns=581 * MS, end_ns=600 * MS
    )
    timelines.fold("e1", pulled)
    trace.first_byte(610 * MS)
    assert timelines.begun.api_intakes(S) == {"e1": pytest.approx(0.3)}
    assert timelines.begun.api_intakes(60 * S) == {}


def ended(
    timelines: Timelines, outcome: str = "ok", status: int = 200, ttft_ms: int = 100, tokens: int = 11, gap_ms: int = 10
) -> None:
    trace = timelines.begin("r", "/v1/completions", True, 0)
    if outcome == "ok":
        trace.first_byte(ttft_ms * MS)
        for number in range(1, tokens):
            trace.chunk((ttft_ms + number * gap_ms) * MS)
    trace.finish(outcome, status, (ttft_ms + (tokens - 1) * gap_ms) * MS)


def test_good_is_who_was_answered_within_both_targets() -> None:
    timelines = Timelines(10)
    for how in ({}, {"ttft_ms": 900}, {"gap_ms": 60}, {"outcome": "failed", "status": 502}, {"tokens": 1}):
        ended(timelines, **how)
    ended(timelines, outcome="failed", status=429)  # there was no room: that is the node's
    found = timelines.begun.lately(1 * S, 0.5, 0.05)
    assert (found.ended, found.good) == (6, pytest.approx(2 / 6))


def test_answers_that_took_long_tell_of_earlier_times() -> None:
    timelines = Timelines(10)
    for how in ({}, {"gap_ms": 60}, {"gap_ms": 600}, {"ttft_ms": 5500}):
        ended(timelines, **how)
    found = timelines.begun.lately(1 * S, 0.5, 0.05)
    assert (found.ended, found.brief, found.brief_missed) == (4, 2, pytest.approx(0.5))


@pytest.mark.parametrize(("outcome", "status"), [("cancelled", 200), ("failed", 400)])
def test_who_left_or_asked_for_what_there_is_not_says_nothing_of_goodput(outcome: str, status: int) -> None:
    timelines = Timelines(10)
    ended(timelines, outcome=outcome, status=status)
    found = timelines.begun.lately(1 * S, 0.5, 0.05)
    assert (found.ended, found.good) == (0, None)


def test_goodput_is_of_the_last_seconds() -> None:
    timelines = Timelines(10)
    ended(timelines)
    assert timelines.begun.lately(2 * S, 0.5, 0.05).ended == 1
    assert timelines.begun.lately(60 * S, 0.5, 0.05).ended == 0
