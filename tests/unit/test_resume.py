"""What is new to a client of another engine's answer to the same request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.channel import OutputTokens
from appliance.router import resume
from appliance.router.journal import Journal
from appliance.router.resume import Diverged, Passage

DONE = b"data: [DONE]\n\n"


def raw(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def read(data: bytes) -> list[dict[str, Any]]:
    assert not data or data.endswith(b"\n\n")
    return [json.loads(line[6:]) for line in data.decode().split("\n\n") if line and line != "data: [DONE]"]


def text_event(text: str, index: int = 0, finish: str | None = None, id: str = "a", **more: Any) -> dict[str, Any]:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None, **more}
    return {"id": id, "created": 1 if id == "a" else 2, "object": "text_completion", "model": "m", "choices": [choice]}


def chat_event(delta: dict[str, Any], finish: str | None = None, id: str = "a", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return {"id": id, "created": 1 if id == "a" else 2, "object": "chat.completion.chunk", "choices": [choice]}


def continued(first: bytes, second: bytes) -> bytes:
    """What a client has in the end, if the first engine is lost after ``first``."""
    passage = Passage()
    got = passage.take(first)
    passage.begin_again()
    return got + passage.take(second)


def texts(data: bytes) -> str:
    return "".join(choice["text"] for event in read(data) for choice in event["choices"])


def test_bytes_of_whole_events_pass_untouched() -> None:
    data = raw(text_event("a"), text_event("b"))
    assert Passage().take(data) is data


def test_text_goes_on_where_it_broke_off_however_it_is_cut() -> None:
    first = raw(text_event("Once"), text_event(" upon a"))
    second = (
        raw(text_event("On", id="b"), text_event("ce upon a ti", id="b"), text_event("me", id="b", finish="stop"))
        + DONE
    )
    got = continued(first, second)
    assert texts(got) == "Once upon a time"
    assert {(event["id"], event["created"]) for event in read(got)} == {("a", 1)}
    assert got.endswith(DONE)
    assert [event["choices"][0]["finish_reason"] for event in read(got)] == [None, None, None, "stop"]


@given(st.text(min_size=1, max_size=40), st.data())
def test_whatever_the_cuts_nothing_is_lost_or_said_twice(whole: str, data: st.DataObject) -> None:
    def pieces(text: str) -> list[str]:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    had = data.draw(st.integers(0, len(whole)))
    first = raw(*(text_event(piece) for piece in pieces(whole[:had])))
    second = (
        raw(*(text_event(piece, id="b") for piece in pieces(whole)), text_event("", id="b", finish="length")) + DONE
    )
    passage = Passage()
    got = passage.take(first)
    passage.begin_again()
    events = second.split(b"\n\n")
    middle = data.draw(st.integers(0, len(events) - 1))  # the second engine's events come in two parts
    for part in (events[:middle], events[middle:-1]):
        got += passage.take(b"".join(event + b"\n\n" for event in part))
    assert texts(got) == whole
    assert got.endswith(DONE)


def test_a_chat_keeps_its_role_its_reasoning_and_its_text() -> None:
    start = {"role": "assistant", "content": ""}
    first = raw(chat_event(start), chat_event({"reasoning": "hm"}), chat_event({"content": "Hel"}))
    second = raw(
        chat_event(start, id="b"),
        chat_event({"reasoning": "hm"}, id="b"),
        chat_event({"content": "Hello"}, id="b"),
        chat_event({}, id="b", finish="stop"),
    )
    deltas = [event["choices"][0]["delta"] for event in read(continued(first, second))]
    assert deltas == [start, {"reasoning": "hm"}, {"content": "Hel"}, {"content": "lo"}, {}]


def test_a_tool_call_goes_on_under_the_id_that_the_client_knows() -> None:
    def call(id: str | None, arguments: str) -> dict[str, Any]:
        named = {"id": id, "type": "function"} if id else {}
        name = {"name": "weather"} if id else {}
        return {"tool_calls": [{"index": 0, **named, "function": {**name, "arguments": arguments}}]}

    first = raw(chat_event(call("call-1", "")), chat_event(call(None, '{"city": "Os')))
    second = raw(
        chat_event(call("call-9", '{"city"'), id="b"), chat_event(call(None, ': "Oslo"}'), id="b", finish="tool_calls")
    )
    events = read(continued(first, second))
    calls = [call for event in events for call in event["choices"][0]["delta"]["tool_calls"]]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"city": "Oslo"}'
    assert [call["id"] for call in calls if "id" in call] == ["call-1"]
    assert [call["function"]["name"] for call in calls if "name" in call["function"]] == ["weather"]


def test_of_a_tool_call_nothing_is_heard_until_something_is_new() -> None:
    def call(arguments: str) -> dict[str, Any]:
        return {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}

    first = raw(chat_event(call("ab")), chat_event(call("cd")))
    second = raw(*({**chat_event(call(piece), id="b"), "usage": {"total_tokens": 3}} for piece in "abcde"))
    calls = [event["choices"][0]["delta"]["tool_calls"] for event in read(continued(first, second))]
    assert [one["function"]["arguments"] for [one] in calls] == ["ab", "cd", "e"]


def test_lists_go_on_entry_by_entry() -> None:
    def logprobs(*numbers: int) -> dict[str, Any]:
        return {
            "tokens": [f"t{n}" for n in numbers],
            "token_logprobs": [-n for n in numbers],
            "top_logprobs": [{} for _ in numbers],
        }

    first = raw(text_event("ab", logprobs=logprobs(0, 1), token_ids=[5, 6]))
    second = raw(text_event("abc", id="b", logprobs=logprobs(0, 1, 2), token_ids=[5, 6, 7], finish="length"))
    choice = read(continued(first, second))[-1]["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("c", [7])
    assert choice["logprobs"] == logprobs(2)


def test_several_choices_go_on_each_for_itself() -> None:
    first = raw(text_event("aa"), text_event("b", index=1), text_event("", finish="stop"))
    second = raw(
        *(text_event(text, index=index, id="b") for text, index in (("bb", 1), ("a", 0), ("a", 0), ("b", 1))),
        text_event("", id="b", finish="stop"),
        text_event("", index=1, id="b", finish="length"),
    )
    choices = [event["choices"][0] for event in read(continued(first, second))]
    assert "".join(c["text"] for c in choices if c["index"] == 0) == "aa"
    assert "".join(c["text"] for c in choices if c["index"] == 1) == "bbb"
    assert [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"]] == [(0, "stop"), (1, "length")]


def test_fields_that_are_promised_stay_where_nothing_of_them_is_new() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{}]}
    first = raw(text_event("abc", logprobs=logprobs))
    [*_, last] = read(continued(first, raw(text_event("abc", id="b", logprobs=logprobs, finish="stop"))))
    assert last["choices"] == [{"index": 0, "finish_reason": "stop", "stop_reason": None, "text": "", "logprobs": None}]
    chat = continued(raw(chat_event({"content": "abc"})), raw(chat_event({"content": "abc"}, id="b", finish="stop")))
    assert read(chat)[-1]["choices"] == [{"index": 0, "finish_reason": "stop", "delta": {}}]


def test_usage_comes_once() -> None:
    usage = {"id": "b", "created": 2, "choices": [], "usage": {"total_tokens": 3}}
    events = read(
        continued(raw(text_event("a")), raw(text_event("a", id="b"), text_event("", id="b", finish="stop"), usage))
    )
    assert [event["usage"] for event in events if not event["choices"]] == [{"total_tokens": 3}]
    twice = continued(
        raw(text_event("a", finish="stop"), {**usage, "id": "a"}), raw(text_event("a", id="b", finish="stop"), usage)
    )
    assert sum(not event["choices"] for event in read(twice)) == 1


@pytest.mark.parametrize(
    "second",
    [
        raw(text_event("Once in", id="b")),
        raw(text_event("Once", id="b", finish="stop")) + DONE,
    ],
    ids=["another text", "a shorter one"],
)
def test_another_answer_is_never_gone_on_with(second: bytes) -> None:
    with pytest.raises(Diverged):
        continued(raw(text_event("Once upon")), second)


def test_a_stream_is_continued_more_than_once() -> None:
    passage = Passage()
    got = passage.take(raw(text_event("ab")))
    for id, text in (("b", "abcd"), ("c", "abcdef")):
        passage.begin_again()
        got += passage.take(raw(text_event(text, id=id)))
    assert texts(got) == "abcdef"


def test_what_is_too_long_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_KEPT_BYTES", 1000)
    passage = Passage()
    for _ in range(20):
        passage.take(raw(text_event("a" * 50)))
    assert not passage.resumable
    assert not passage._kept


def test_the_journal_keeps_what_it_was_asked_to() -> None:
    journal = Journal()
    journal.open("k", 2)
    for items in ((("k", 0, (1, 2)), ("other", 0, (9,))), (("k", 1, (3,)), ("k", 0, (4,)), ("k", 7, (5,)))):
        journal.fold(OutputTokens(items=items))
    assert journal.close("k") == [[1, 2, 4], [3]]
    assert journal.close("k") == []
    journal.fold(OutputTokens(items=(("k", 0, (6,)),)))
    assert len(journal) == 0
