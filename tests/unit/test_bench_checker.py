"""The checker catches what it is there to catch: answers are forged in every way that it knows, and let through only if right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.checker import Broken, Case, Ending, Heard, Kind, essence, judge, same

USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
STREAM = Case(name="s", path="/v1/completions", body={"stream": True, "stream_options": {"include_usage": True}})
WHOLE = Case(name="w", path="/v1/completions", body={})
TWO = Case(name="n", path="/v1/chat/completions", body={"n": 2, "stream": True})
ERROR = {
    "error": {
        "message": "e1 ended in the middle of its answer",
        "type": "server_error",
        "param": None,
        "code": "engine_lost",
    }
}


def piece(text: str, tokens: list[str], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    logprobs = {"tokens": tokens, "token_logprobs": [-1.5 for _ in tokens], "top_logprobs": [{t: -1.5} for t in tokens]}
    return {"id": "a", "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]}


PIECES = [
    piece("On", ["On"]),
    piece("ce", ["ce"]),
    piece("!", ["!"], "length"),
    {"id": "a", "choices": [], "usage": USAGE},
]


def sse(events: list[dict[str, Any]], *, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def heard(body: bytes, status: int = 200, ending: Ending = Ending.COMPLETE) -> Heard:
    return Heard(ending=ending, status=status, body=body)


def whole(**changes: Any) -> bytes:
    [choice] = piece("Once!", ["On", "ce", "!"], "length")["choices"]
    return json.dumps({"id": "b", "choices": [{**choice, **changes}], "usage": USAGE}).encode()


EXPECTED = essence(STREAM, heard(sse(PIECES)))


def kind(body: bytes, status: int = 200, ending: Ending = Ending.COMPLETE) -> Kind:
    return judge(STREAM, EXPECTED, heard(body, status, ending)).kind


def changed(number: int, **fields: Any) -> list[dict[str, Any]]:
    events = json.loads(json.dumps(PIECES))
    events[number]["choices"][0].update(fields)
    return list(events)


def test_the_right_answer_is_right_however_it_is_cut() -> None:
    assert kind(sse(PIECES)) is Kind.RIGHT
    joined = piece("Once!", ["On", "ce", "!"], "length")
    assert kind(b": a comment\n\n" + sse([joined, PIECES[3]])) is Kind.RIGHT


def test_probabilities_may_differ_in_their_last_digits_but_not_in_whose_they_are() -> None:
    logprobs = {"tokens": ["On"], "token_logprobs": [-1.5000001], "top_logprobs": [{"On": -1.5000001}]}
    assert kind(sse(changed(0, logprobs=logprobs))) is Kind.RIGHT
    assert kind(sse(changed(0, logprobs={**logprobs, "tokens": ["Off"]}))) is Kind.WRONG
    assert kind(sse(changed(0, logprobs={**logprobs, "top_logprobs": [{"Off": -1.5}]}))) is Kind.WRONG
    assert kind(sse(changed(0, logprobs={**logprobs, "token_logprobs": [-1.6]}))) is Kind.WRONG
    assert kind(sse(changed(0, logprobs={**logprobs, "token_logprobs": [-1.5, -1.5]}))) is Kind.WRONG
    assert kind(sse(changed(0, logprobs={**logprobs, "token_logprobs": []}))) is Kind.SHORT
    assert kind(sse(changed(0, logprobs={**logprobs, "top_logprobs": [{"On": -2.0}]}))) is Kind.WRONG


def test_two_runs_say_the_same_within_the_tolerance() -> None:
    assert same({"0.logprobs.token_logprobs": [-1.5, None]}, {"0.logprobs.token_logprobs": [-1.501, None]})
    assert not same({"0.logprobs.token_logprobs": [-1.5]}, {"0.logprobs.token_logprobs": [-1.6]})
    assert same({"0.logprobs.token_logprobs": [0]}, {"0.logprobs.token_logprobs": [-0.0001]})
    assert not same({"usage.total_tokens": 1000}, {"usage.total_tokens": 1001})


def test_a_chats_probabilities_are_compared() -> None:
    def chat(value: float) -> Heard:
        content = [{"token": "a", "logprob": value, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": value}]}]
        last = {**delta("a", 0, "stop")["choices"][0], "logprobs": {"content": content}}
        return heard(sse([{"id": "c", "choices": [last]}, delta("b", 1, "stop")]))

    expected = essence(TWO, chat(-0.25))
    assert judge(TWO, expected, chat(-0.2500001)).kind is Kind.RIGHT
    assert judge(TWO, expected, chat(-0.5)).kind is Kind.WRONG


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        pytest.param(sse(changed(1, text="ze")), Kind.WRONG, id="wrong token"),
        pytest.param(sse([PIECES[0], *PIECES[2:]]), Kind.WRONG, id="lost chunk"),
        pytest.param(sse([PIECES[0], *PIECES]), Kind.WRONG, id="duplicated text"),
        pytest.param(sse([PIECES[1], PIECES[0], *PIECES[2:]]), Kind.WRONG, id="swapped chunks"),
        pytest.param(sse(PIECES, done=False), Kind.SHORT, id="missing [DONE]"),
        pytest.param(sse(PIECES[:2], done=False), Kind.SHORT, id="ends in the middle"),
        pytest.param(sse(changed(2, finish_reason=None)), Kind.SHORT, id="missing finish_reason"),
        pytest.param(sse(changed(2, finish_reason="stop")), Kind.WRONG, id="another finish_reason"),
        pytest.param(sse(changed(2, text="", logprobs=None)), Kind.SHORT, id="the last token is missing"),
        pytest.param(sse(PIECES[:3]), Kind.SHORT, id="missing usage"),
        pytest.param(
            sse([*PIECES[:3], {**PIECES[3], "usage": {**USAGE, "completion_tokens": 4}}]), Kind.WRONG, id="usage wrong"
        ),
        pytest.param(sse([*PIECES[:3], piece("!", ["!"]), PIECES[3]]), Kind.WRONG, id="goes on after its end"),
        pytest.param(sse([{**PIECES[0], "id": "z"}, *PIECES[1:]]), Kind.WRONG, id="two answers in one"),
        pytest.param(sse([*PIECES[:2], ERROR]), Kind.WRONG, id="an error and then [DONE]"),
        pytest.param(sse([ERROR, *PIECES], done=False), Kind.WRONG, id="goes on after an error"),
        pytest.param(sse([changed(1, text="ze")[1], ERROR], done=False), Kind.WRONG, id="wrong before its error"),
        pytest.param(sse([*PIECES[:2], {"error": "oh"}], done=False), Kind.WRONG, id="an error without shape"),
        pytest.param(sse(PIECES) + sse(PIECES), Kind.WRONG, id="the answer twice"),
        pytest.param(sse(PIECES[:2], done=False) + b"data: {not json}\n\n", Kind.WRONG, id="no JSON"),
        pytest.param(b"HTTP/1.1 500\n\n", Kind.WRONG, id="no event"),
        pytest.param(b"", Kind.SHORT, id="nothing"),
        pytest.param(sse(PIECES) + b"HTTP/1.1 500", Kind.WRONG, id="bytes after the last blank line"),
        pytest.param(sse(PIECES) + b"data: {}", Kind.WRONG, id="an event begins after the end"),
        pytest.param(sse(PIECES)[:-1], Kind.SHORT, id="[DONE] without its blank line"),
        pytest.param(
            sse(PIECES[:1], done=False) + b": ping\n" + sse([piece("x", ["x"])], done=False) + sse(PIECES[1:]),
            Kind.WRONG,
            id="data hidden behind a comment",
        ),
        pytest.param(sse(PIECES).replace(b"\n\ndata", b"\ndata", 1), Kind.WRONG, id="two events in one block"),
        pytest.param(sse([*PIECES, PIECES[3]]), Kind.WRONG, id="usage twice"),
        pytest.param(sse([PIECES[3], *PIECES[:3]]), Kind.WRONG, id="usage before the text"),
        pytest.param(
            sse([{k: v for k, v in one.items() if k != "id"} for one in PIECES]), Kind.WRONG, id="no id anywhere"
        ),
        pytest.param(sse([{**one, "id": None} for one in PIECES]), Kind.WRONG, id="null for an id"),
        pytest.param(sse([{"id": "a", "choices": [{"text": "On"}]}, *PIECES]), Kind.WRONG, id="no index"),
        pytest.param(sse([{"id": "a", "choices": [None]}, *PIECES]), Kind.WRONG, id="null for a choice"),
        pytest.param(sse([{"id": "a", "choices": 7}, *PIECES]), Kind.WRONG, id="a number for choices"),
        pytest.param(sse([{"id": ["a"], "choices": []}, *PIECES]), Kind.WRONG, id="a list for an id"),
        pytest.param(sse([*PIECES[:3], {**PIECES[3], "usage": 7}]), Kind.WRONG, id="a number for usage"),
        pytest.param(sse(PIECES).replace(b'"On"', b'"\xff"', 1), Kind.WRONG, id="not UTF-8"),
    ],
)
def test_a_forged_stream_is_caught(body: bytes, verdict: Kind) -> None:
    assert kind(body) is verdict


@pytest.mark.parametrize(
    ("ending", "verdict"),
    [
        (Ending.CUT, Kind.SHORT),
        (Ending.TIMEOUT, Kind.HUNG),
        (Ending.REFUSED, Kind.REFUSED),
        (Ending.DROPPED, Kind.DROPPED),
        (Ending.GARBLED, Kind.WRONG),
        (Ending.LEFT, Kind.LEFT),
    ],
)
def test_how_the_connection_ends_counts(ending: Ending, verdict: Kind) -> None:
    assert kind(sse(PIECES[:2], done=False), ending=ending) is verdict


def test_an_answer_that_is_complete_but_for_the_connections_end_is_not_whole() -> None:
    assert kind(sse(PIECES), ending=Ending.CUT) is Kind.SHORT


def test_what_somebody_had_who_left_must_have_been_right() -> None:
    half = sse(PIECES[:2], done=False)[:-20]  # in the middle of an event
    assert kind(half, ending=Ending.LEFT) is Kind.LEFT
    assert kind(sse(changed(0, text="Of"), done=False), ending=Ending.LEFT) is Kind.WRONG
    assert kind(sse(PIECES[:2], done=False) + b"<html>", ending=Ending.LEFT) is Kind.WRONG
    finished = [PIECES[0], piece("", [], "length")]
    assert kind(sse(finished, done=False), ending=Ending.LEFT) is Kind.SHORT, "it had finished without its last tokens"


def test_what_somebody_had_whole_who_left_must_be_whole() -> None:
    assert kind(sse(PIECES), ending=Ending.LEFT) is Kind.RIGHT
    assert kind(sse([PIECES[0], *changed(2, text="", logprobs=None)[1:]]), ending=Ending.LEFT) is Kind.SHORT
    expected = essence(WHOLE, heard(whole()))
    for body, verdict in {
        whole(): Kind.RIGHT,
        whole(text="Onze!"): Kind.WRONG,
        whole()[:40]: Kind.LEFT,
        b"": Kind.LEFT,
        b"<html>": Kind.WRONG,
    }.items():
        assert judge(WHOLE, expected, heard(body, ending=Ending.LEFT)).kind is verdict, body


def test_the_status_counts_for_somebody_who_left() -> None:
    failure = json.dumps(ERROR).encode()
    assert kind(b"<html>Bad Request</html>", 400, Ending.LEFT) is Kind.WRONG
    assert kind(failure, 400, Ending.LEFT) is Kind.WRONG
    assert kind(failure, 503, Ending.LEFT) is Kind.FAILED
    assert kind(failure[:20], 503, Ending.LEFT) is Kind.LEFT
    assert kind(b'{"detail": "oops"}', 503, Ending.LEFT) is Kind.WRONG


@pytest.mark.parametrize("ending", [Ending.COMPLETE, Ending.LEFT])
def test_two_answers_in_one_are_caught_even_if_it_then_fails_or_is_left(ending: Ending) -> None:
    mixed = sse([PIECES[0], {**PIECES[1], "id": "z"}], done=False)
    assert kind(mixed + (sse([ERROR], done=False) if ending is Ending.COMPLETE else b""), ending=ending) is Kind.WRONG


def test_a_stream_that_ends_with_an_error_has_failed_clearly() -> None:
    verdict = judge(STREAM, EXPECTED, heard(sse([*PIECES[:2], ERROR], done=False)))
    assert (verdict.kind, verdict.reason) == (Kind.FAILED, "engine_lost")
    assert kind(sse([*PIECES[:2], ERROR], done=False), ending=Ending.CUT) is Kind.SHORT


@pytest.mark.parametrize("status", [503, 500, 429])
def test_an_error_status_in_openais_shape_has_failed_clearly(status: int) -> None:
    assert kind(json.dumps(ERROR).encode(), status) is Kind.FAILED


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (ERROR, 400),  # the request was valid
        (ERROR, 404),
        (ERROR, 302),
        ({"detail": "Not Found"}, 503),
        ({"error": {"message": "", "type": "server_error", "code": None}}, 500),
        ({"error": {"message": "oops", "type": "server_error", "code": None}}, 500),
        ({"error": {"message": "it was the engine's fault", "code": 500}}, 500),
        ({"error": {"message": "Traceback (most recent call last)", "type": "x", "code": 500}}, 500),
    ],
)
def test_an_error_that_says_nothing_or_the_wrong_thing_is_caught(body: Any, status: int) -> None:
    assert kind(json.dumps(body).encode(), status) is Kind.WRONG
    assert kind(b"Internal Server Error", status) is Kind.WRONG


def test_an_answer_in_one_piece() -> None:
    expected = essence(WHOLE, heard(whole()))
    assert judge(WHOLE, expected, heard(whole())).kind is Kind.RIGHT
    forged = {
        whole(text="Onze!"): Kind.WRONG,
        whole(text="Once"): Kind.SHORT,
        whole(finish_reason=None): Kind.SHORT,
        whole()[:-30]: Kind.WRONG,
        whole(index=None): Kind.WRONG,
        b'{"choices": [null]}': Kind.WRONG,
        b"\xff\xfe": Kind.WRONG,
        sse(PIECES): Kind.WRONG,
    }
    for body, verdict in forged.items():
        assert judge(WHOLE, expected, heard(body)).kind is verdict, body
    assert judge(WHOLE, expected, heard(whole(), ending=Ending.CUT)).kind is Kind.SHORT


def delta(text: str, index: int, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": index, "delta": {"content": text, **more}, "finish_reason": finish}]}


def test_choices_are_told_apart_and_each_must_end() -> None:
    events = [delta("a", 0), delta("b", 1), delta("c", 0, "stop"), delta("d", 1, "length")]
    expected = essence(TWO, heard(sse(events)))
    assert (expected["0.message.content"], expected["1.message.content"]) == ("ac", "bd")
    other_order = [events[1], events[0], events[3], events[2]]
    assert judge(TWO, expected, heard(sse(other_order))).kind is Kind.RIGHT
    mixed_up = [delta("b", 0), delta("a", 1), *events[2:]]
    assert judge(TWO, expected, heard(sse(mixed_up))).kind is Kind.WRONG
    assert judge(TWO, expected, heard(sse(events[:3]))).kind is Kind.SHORT


def test_tool_calls_are_compared_without_the_ids_that_are_made_up() -> None:
    def call(name: str, key: str, arguments: str) -> dict[str, Any]:
        return {"index": 0, "id": key, "type": "function", "function": {"name": name, "arguments": arguments}}

    def stream(*calls: dict[str, Any]) -> Heard:
        events = [delta("", 0, tool_calls=[one]) for one in calls]
        return heard(sse([*events, delta("", 0, "tool_calls"), delta("", 1, "stop")]))

    expected = essence(TWO, stream(call("weather", "x1", '{"city"'), call("", "", ': "Oslo"}')))
    assert judge(TWO, expected, stream(call("weather", "x2", '{"city": "Oslo"}'))).kind is Kind.RIGHT
    assert judge(TWO, expected, stream(call("weather", "x2", '{"city": "Lima"}'))).kind is Kind.WRONG
    assert judge(TWO, expected, stream(call("wether", "x2", '{"city": "Oslo"}'))).kind is Kind.WRONG


def test_the_fault_free_answer_itself_must_be_well_formed() -> None:
    for body in (sse(PIECES, done=False), sse(PIECES[:3]), sse([*PIECES[:2], ERROR], done=False)):
        with pytest.raises(Broken):
            essence(STREAM, heard(body))
    for answer in (heard(whole(), status=503), heard(b"\xff"), heard(b'{"choices": [null]}')):
        with pytest.raises(Broken):
            essence(WHOLE, answer)
