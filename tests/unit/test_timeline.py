"""Timelines: stages that always sum to TTFT, whatever is known and in whatever order it came."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.channel import FirstToken, HandoffEnded, Heartbeat, LeaseGranted, Scheduled
from appliance.records import STAGES, Lease, LedgerSnapshot
from appliance.telemetry.marks import Marks, stages
from appliance.telemetry.timeline import Timelines, Trace, percentile

MS = 1_000_000


def begun(timelines: Timelines | None = None, now_ms: int = 0, **fields: Any) -> tuple[Timelines, Trace]:
    timelines = timelines or Timelines(8)
    return timelines, timelines.begin(fields.get("id", "r"), "/v1/completions", fields.get("stream", True), now_ms * MS)


def split(timelines: Timelines, trace: Trace, key: str = "k") -> None:
    """Every mark of a request that goes well, 10 ms apart."""
    trace.next_attempt()
    trace.dispatched("prefill", "e0", key, 10 * MS)
    timelines.fold("e0", Scheduled(request=key, phase="prefill", at_ns=20 * MS, prompt_tokens=99))
    timelines.fold("e0", LeaseGranted(lease=key, blocks=4, tokens=99, consumers=1, ttl_s=60, at_ns=30 * MS))
    trace.leg_ended("prefill", "e0", "ok", 33 * MS, status=200)
    trace.dispatched("decode", "e1", key, 35 * MS)
    timelines.fold("e1", handoff(key))
    timelines.fold("e1", Scheduled(request=key, phase="decode", at_ns=60 * MS, prompt_tokens=99))
    trace.first_byte(70 * MS)


def handoff(key: str, **fields: Any) -> HandoffEnded:
    known = {
        "producer": "e0",
        "ok": True,
        "bytes": 1000,
        "copies": 3,
        "tokens": 99,
        "start_ns": 40 * MS,
        "end_ns": 50 * MS,
    }
    return HandoffEnded(lease=key, **{**known, **fields})


def test_a_request_that_goes_well() -> None:
    timelines, trace = begun()
    split(timelines, trace)
    trace.leg_ended("decode", "e1", "ok", 90 * MS)
    trace.finish("ok", 200, 90 * MS)
    [timeline] = timelines.recent(5)
    assert [(stage.name, round(stage.duration_s * 1e3)) for stage in timeline.stages] == [(name, 10) for name in STAGES]
    assert timeline.ttft_s == pytest.approx(0.07)
    assert timeline.total_s == pytest.approx(0.09)
    assert (timeline.prefill_engine, timeline.decode_engine, timeline.split) == ("e0", "e1", True)
    assert (timeline.prompt_tokens, timeline.transfer_bytes, timeline.outcome) == (99, 1000, "ok")
    assert [(leg.kind, leg.engine, leg.outcome) for leg in timeline.legs] == [
        ("prefill", "e0", "ok"),
        ("decode", "e1", "ok"),
    ]
    assert timeline.legs[0].duration_s == pytest.approx(0.023)


def test_what_comes_after_the_end_is_told_too() -> None:
    """Engines' messages and the end of a leg may come later than the answer."""
    timelines, trace = begun()
    split(timelines, trace)
    trace.finish("ok", 200, 90 * MS)
    told = trace.timeline(0)
    assert trace.timeline(0) is told
    timelines.fold("e1", handoff("k", bytes=500))
    assert (told.transfer_bytes, trace.timeline(0).transfer_bytes) == (1000, 1500)
    trace.leg_ended("decode", "e1", "ok", 95 * MS)
    assert [leg.kind for leg in trace.timeline(0).legs] == ["prefill", "decode"]


def test_server_timing() -> None:
    timelines, trace = begun()
    split(timelines, trace)
    assert trace.server_timing() == ", ".join(f"{name};dur=10.000" for name in STAGES)


def test_an_unsplit_request_has_no_hand_off() -> None:
    timelines, trace = begun()
    trace.next_attempt()
    trace.unsplit("echo")
    trace.dispatched("whole", "e0", "k", 5 * MS)
    timelines.fold("e0", Scheduled(request="k", phase="prefill", at_ns=7 * MS, prompt_tokens=3))
    trace.first_byte(20 * MS)
    timeline = trace.timeline(0)
    assert [(stage.name, round(stage.duration_s * 1e3)) for stage in timeline.stages] == [
        ("queue", 5),
        ("prefill_wait", 2),
        ("prefill_compute", 13),
    ]
    assert (timeline.prefill_engine, timeline.decode_engine, timeline.unsplit_reason) == ("e0", "e0", "echo")


def test_an_answer_in_one_piece_has_its_first_token_when_the_engine_made_it() -> None:
    timelines, trace = begun(stream=False)
    trace.dispatched("whole", "e0", "k", 5 * MS)
    timelines.fold("e0", Scheduled(request="k", phase="prefill", at_ns=7 * MS, prompt_tokens=3))
    timelines.fold("e0", FirstToken(request="k", at_ns=20 * MS))
    timelines.fold("e0", FirstToken(request="k", at_ns=30 * MS))  # n = 2
    assert trace.timeline(50 * MS).ttft_s == pytest.approx(0.02)
    trace.first_byte(120 * MS)
    assert (
        trace.server_timing()
        == "queue;dur=5.000, prefill_wait;dur=2.000, prefill_compute;dur=13.000, decode;dur=100.000"
    )
    trace.finish("ok", 200, 121 * MS)
    timeline = trace.timeline(0)
    assert (timeline.ttft_s, timeline.total_s) == pytest.approx((0.02, 0.121))


def test_a_stream_has_its_first_token_when_it_leaves() -> None:
    timelines, trace = begun()
    trace.dispatched("whole", "e0", "k", 5 * MS)
    timelines.fold("e0", FirstToken(request="k", at_ns=20 * MS))
    trace.first_byte(22 * MS)
    assert trace.timeline(0).ttft_s == pytest.approx(0.022)


def test_a_running_request_shows_the_stages_it_has_reached() -> None:
    timelines, trace = begun()
    assert [stage.name for stage in trace.timeline(4 * MS).stages] == ["queue"]
    trace.next_attempt()
    trace.dispatched("prefill", "e0", "k", 10 * MS)
    timelines.fold("e0", Scheduled(request="k", phase="prefill", at_ns=20 * MS, prompt_tokens=99))
    [timeline] = timelines.recent(1, now_ns=50 * MS)
    assert [(stage.name, round(stage.duration_s * 1e3)) for stage in timeline.stages] == [
        ("queue", 10),
        ("prefill_wait", 10),
        ("prefill_compute", 30),
    ]
    assert (timeline.outcome, timeline.status, timeline.ttft_s) == ("running", None, None)


def test_a_second_attempt_that_is_split_has_no_reason_not_to_be() -> None:
    _, trace = begun()
    trace.unsplit("only e0 is ready")
    trace.dispatched("whole", "e0", "k.1", 5 * MS)
    trace.dispatched("prefill", "e1", "k.2", 6 * MS)
    assert (trace.unsplit_reason, trace.split, trace.decode_engine) == (None, False, None)
    trace.dispatched("decode", "e0", "k.2", 7 * MS)
    assert (trace.unsplit_reason, trace.split, trace.decode_engine) == (None, True, "e0")


def test_a_prefill_leg_alone_is_no_split() -> None:
    timelines, trace = begun()
    trace.dispatched("prefill", "e0", "k", 5 * MS)
    timelines.fold("e0", Scheduled(request="k", phase="prefill", at_ns=7 * MS, prompt_tokens=3))
    trace.finish("cancelled", None, 20 * MS)
    [timeline] = timelines.recent(1)
    assert (timeline.split, timeline.prefill_engine, timeline.decode_engine) == (False, "e0", None)
    assert [round(stage.duration_s * 1e3) for stage in timeline.stages] == [5, 2, 13]


def test_what_an_attempt_that_was_given_up_says_does_not_count() -> None:
    timelines, trace = begun()
    split(timelines, trace, "k.1")
    trace.marks.first_token = None
    trace.next_attempt()
    trace.dispatched("prefill", "e0", "k.2", 100 * MS)
    timelines.fold("e1", handoff("k.1", start_ns=101 * MS, end_ns=102 * MS))
    timelines.fold("e0", LeaseGranted(lease="k.1", blocks=4, tokens=99, consumers=1, ttl_s=60, at_ns=103 * MS))
    assert [stage.name for stage in trace.stages(110 * MS)] == ["queue", "prefill_wait"]
    assert trace.timeline(0).attempts == 2


def test_late_words_about_a_finished_request_still_count() -> None:
    timelines, trace = begun()
    trace.next_attempt()
    trace.dispatched("prefill", "e0", "k", MS)
    trace.finish("ok", 200, 90 * MS)
    timelines.fold("e1", handoff("k", ok=False))
    [timeline] = timelines.recent(1)
    assert (timeline.transfer_bytes, timeline.recomputed) == (1000, True)


def test_with_several_pulls_the_first_is_the_stage_and_bytes_add_up() -> None:
    timelines, trace = begun()
    split(timelines, trace)
    timelines.fold("e1", handoff("k", start_ns=80 * MS, end_ns=99 * MS))
    assert (trace.timeline(0).transfer_bytes, trace.timeline(0).transfer_copies) == (2000, 6)
    assert [round(stage.duration_s * 1e3) for stage in trace.stages(0)] == [10] * 7


def test_words_about_others_are_ignored() -> None:
    timelines, _ = begun()
    timelines.fold("e0", Scheduled(request="?", phase="prefill", at_ns=1, prompt_tokens=1))
    timelines.fold("e0", handoff("?"))
    timelines.fold("e0", Heartbeat(at_ns=1, running=0, waiting=0, fetching=0, kv_free=1, leased=0))


def test_the_oldest_are_forgotten_with_their_keys() -> None:
    timelines = Timelines(3)
    for number in range(10):
        _, trace = begun(timelines, number, id=f"r{number}")
        trace.next_attempt()
        trace.dispatched("prefill", "e0", f"k{number}", number * MS)
        trace.finish("ok", 200, number * MS)
    assert [timeline.id for timeline in timelines.recent(99)] == ["r9", "r8", "r7"]
    assert [timeline.id for timeline in timelines.recent(2)] == ["r9", "r8"]
    assert timelines.get("r6") is None
    assert timelines.get("r7") is not None
    assert set(timelines.keys) == {"k7", "k8", "k9"}


def test_of_one_id_the_newest_is_found() -> None:
    timelines = Timelines(2)
    for number in range(3):
        _, trace = begun(timelines, number, id="same")
        trace.finish("ok", 200 + number, number * MS)
    found = timelines.get("same")
    assert found is not None
    assert found.status == 202


def test_a_lease_is_told_with_its_request_and_its_consumer() -> None:
    timelines, trace = begun(id="mine")
    split(timelines, trace, "k")
    held = Lease(id="k", owner="e0", blocks=4, tokens=99, consumers=1, age_s=1, remaining_s=59)
    leases = (held, replace(held, id="gone"), replace(held, id="canary/e0.e3.17"))
    named = timelines.named(LedgerSnapshot(leases=leases, granted=7))
    assert [(one.request, one.consumer) for one in named.leases] == [("mine", "e1"), (None, None), (None, "e3")]
    assert replace(named, leases=()) == LedgerSnapshot(granted=7)


def test_a_request_ends_once() -> None:
    timelines, trace = begun()
    trace.finish("cancelled", None, MS)
    trace.finish("ok", 200, 2 * MS)
    assert [(timeline.outcome, timeline.total_s) for timeline in timelines.recent(9)] == [("cancelled", 0.001)]


def test_gaps_between_chunks_are_itl() -> None:
    timelines, trace = begun()
    trace.first_byte(10 * MS)
    for at in (30, 50, 90):
        trace.chunk(at * MS)
    trace.finish("ok", 200, 90 * MS)
    found = timelines.percentiles()
    assert (found.itl_p50_s, found.itl_p99_s) == (0.02, 0.04)
    assert (found.ttft_p50_s, found.ttft_p99_s) == (0.01, 0.01)
    assert timelines.recent(1)[0].output_chunks == 4


def test_pieces_of_one_step_are_one_piece() -> None:
    """A chat's first event comes right before its first token, and the usage right after its last."""
    timelines, trace = begun()
    trace.first_byte(10 * MS)
    for at_us in (10_050, 30_000, 50_000, 50_100, 50_450):
        trace.chunk(at_us * 1000)
    assert sorted(timelines.gaps) == [20 * MS, 20 * MS]
    assert trace.timeline(0).output_chunks == 6


def test_what_the_engine_answers_with_is_a_stream_or_not() -> None:
    timelines, trace = begun(stream=False)
    trace.dispatched("whole", "e0", "k", 5 * MS)
    timelines.fold("e0", FirstToken(request="k", at_ns=20 * MS))
    trace.answered(stream=True)
    trace.first_byte(22 * MS)
    assert (trace.timeline(0).stream, trace.timeline(0).ttft_s) == (True, pytest.approx(0.022))


def test_unstreamed_and_failed_requests_have_no_ttft_to_speak_of() -> None:
    timelines = Timelines(8)
    for stream, status in ((False, 200), (True, 400)):
        _, trace = begun(timelines, stream=stream)
        trace.first_byte(10 * MS)
        trace.finish("ok", status, 20 * MS)
    assert timelines.percentiles().ttft_p50_s is None
    assert timelines.percentiles().itl_p50_s is None


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentiles_are_nearest_ranks(share: float, expected: int) -> None:
    assert percentile([number * 10**9 for number in range(1, 101)], share) == expected


NS = st.integers(0, 10**10)
MARK = st.none() | NS


@given(NS, st.tuples(MARK, MARK, MARK, MARK, MARK, MARK), MARK, st.booleans(), NS)
def test_stages_sum_to_the_time_whatever_the_marks(
    arrived: int, inner: Any, first: int | None, is_split: bool, now: int
) -> None:
    names = ("dispatched", "scheduled", "kept", "pull_began", "pull_ended", "decode_scheduled", "first_token")
    marks = Marks(arrived, **dict(zip(names, (*inner, first), strict=True)))
    found = stages(marks, is_split, now)
    end = max(arrived, now if first is None else first)
    assert sum(round(stage.duration_s * 1e9) for stage in found) == end - arrived
    assert all(stage.duration_s >= 0 for stage in found)
    assert [stage.name for stage in found] == [*STAGES][: len(found)]
    if first is not None:
        assert len(found) == (7 if is_split else 3)


def test_who_waits_for_longer_than_the_target_is_overdue_until_the_first_token_comes() -> None:
    timelines, waits = begun()
    _, soon = begun(timelines, 900, id="s")
    assert timelines.overdue(1000 * MS, target_s=1.0) == 0
    assert timelines.overdue(1001 * MS, target_s=1.0) == 1
    waits.first_byte(1500 * MS)
    assert timelines.overdue(1600 * MS, target_s=1.0) == 0, "it has been answered, late"
    assert timelines.overdue(2000 * MS, target_s=1.0) == 1
    soon.finish("cancelled", None, 2000 * MS)
    assert timelines.overdue(3000 * MS, target_s=1.0) == 0


def test_when_pieces_left_is_kept_and_told_only_of_the_one_that_is_asked_for() -> None:
    timelines, trace = begun(now_ms=1000)
    trace.first_byte(1100 * MS)
    for piece in range(1, 4):
        trace.chunk((1100 + 20 * piece) * MS)
    found = timelines.get("r")
    assert found is not None
    assert found.pieces is not None
    assert (found.pieces.every, found.pieces.after_s) == (1, pytest.approx((0.1, 0.12, 0.14, 0.16)))
    assert timelines.recent(1)[0].pieces is None


def test_an_answer_that_has_not_begun_has_no_pieces() -> None:
    timelines, _ = begun()
    found = timelines.get("r")
    assert found is not None
    assert found.pieces is None


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 700, 5000, 100_000])
def test_of_many_pieces_some_times_are_kept_evenly_over_all_of_them(count: int) -> None:
    timelines, trace = begun()
    trace.first_byte(MS)
    for piece in range(2, count + 1):
        trace.chunk(piece * MS)
    found = timelines.get("r")
    assert found is not None
    pieces = found.pieces
    assert pieces is not None
    assert len(pieces.after_s) <= 256
    assert len(pieces.after_s) * pieces.every >= count  # up to the end
    assert [round(after_s * 1e3) for after_s in pieces.after_s] == [
        1 + number * pieces.every for number in range(len(pieces.after_s))
    ]
