"""Bytes of streams: cut after whole events, and looked at for what says that they are no answer."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from appliance.router import wire

ABORT = b'data: {"choices":[{"index":0,"text":"","finish_reason":"abort"}]}\n\n'


def event(text: str) -> bytes:
    return b"data: " + text.encode() + b"\n\n"


def test_whole_events_pass_untouched_and_a_half_one_waits() -> None:
    events, data = wire.Events(), event("a") + event("b")
    assert events.take(data) is data
    assert events.take(data[:5]) == b""
    assert events.take(data[5:] + data[:7]) == data
    assert events.take(data[7:]) == data


@given(st.lists(st.text("ab", max_size=9), max_size=20), st.lists(st.integers(0, 200), max_size=9))
def test_however_the_bytes_come_the_events_are_the_same(texts: list[str], cuts: list[int]) -> None:
    data = b"".join(map(event, texts))
    places = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    events = wire.Events()
    parts = [events.take(data[a:b]) for a, b in pairwise(places)]
    assert b"".join(parts) == data
    assert all(part.endswith(wire.EVENT_END) for part in parts if part)


def test_an_answer_that_was_ended_for_another_reason_than_its_own() -> None:
    assert wire.aborted(event("a") + ABORT)
    assert wire.before_abort(event("a") + event("b") + ABORT + wire.DONE) == event("a") + event("b")
    assert wire.before_abort(ABORT) == b""
    quoted = rb'data: {"choices":[{"text":"\"finish_reason\":\"abort\"","finish_reason":"stop"}]}' + b"\n\n"
    assert not wire.aborted(quoted)


def test_an_error_in_a_stream() -> None:
    error = wire.stream_error(event("a") + event('{"error":{"message":"no","code":503}}') + wire.DONE)
    assert (error.before, error.answer.status) == (event("a"), 503)
    assert wire.error_message(error.answer.body) == "no"
