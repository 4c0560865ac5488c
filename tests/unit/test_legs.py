"""A client's body and the legs made of it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import RequestError
from appliance.router import legs
from appliance.router.routes import TRANSFER_KEYS, Route, find

CHAT = find("POST", "/v1/chat/completions")
COMPLETIONS = find("POST", "/v1/completions")
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def plan(body: object, route: Route = COMPLETIONS) -> legs.Plan:
    return legs.plan(route, body if isinstance(body, bytes) else json.dumps(body).encode())


def reason(body: dict[str, Any], route: Route = COMPLETIONS) -> str | None:
    return plan({**(HELLO if route is CHAT else {"prompt": "x"}), **body}, route).unsplit_reason


# ---- what can't be read


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1} x',
        b"[1]",
        b"null",
        b'{"a": NaN}',
        b'{"a": 01}',
        b"\xef\xbb\xbf{}",
        b'{"\xff": 1}',
        b"\x00",
    ],
)
def test_what_is_not_a_json_object_is_400(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        plan(data)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_a_body_nested_without_end_is_400() -> None:
    with pytest.raises(RequestError, match="nested too deeply"):
        plan(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


# ---- what only the appliance may say


@pytest.mark.parametrize(
    "route", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"]
)
@pytest.mark.parametrize("key", ["kv_transfer_params", "ec_transfer_params", "kv_hints"])
@pytest.mark.parametrize("value", [b"{}", b"1", b'"x"', b"[]", b"false"])
def test_transfer_parameters_are_refused_everywhere(route: str, key: str, value: bytes) -> None:
    for body, where in (
        (b'{"%s": %s}' % (key.encode(), value), key),
        (b'{"vllm_xargs": {"%s": %s}}' % (key.encode(), value), f"vllm_xargs.{key}"),
    ):
        with pytest.raises(RequestError) as caught:
            legs.plan(find("POST", route), body)
        assert (caught.value.status, caught.value.param) == (400, where)


def test_escaped_and_doubled_keys_are_the_same_keys() -> None:
    for body in (
        rb'{"\u006bv_transfer_params": {"a": 1}}',
        b'{"kv_transfer_params": null, "kv_transfer_params": {"a": 1}}',
        rb'{"vllm_xargs": {"kv_transfer\u005fparams": "x"}}',
        rb'{"vllm_xarg\u0073": {"kv_hints": "x"}}',
    ):
        with pytest.raises(RequestError, match="not accepted"):
            plan(body)


def test_of_doubled_keys_the_one_that_was_looked_at_is_sent() -> None:
    body = legs.whole_body(plan(b'{"kv_transfer_params": {"a": 1}, "kv_transfer_params": null, "n": 7, "n": 1}'), "k")
    assert body.count(b"kv_transfer_params") == 1
    assert json.loads(body) == {"n": 1, "kv_transfer_params": {"request": "k"}}


def test_null_parameters_are_as_good_as_none() -> None:
    assert json.loads(legs.whole_body(plan({"kv_hints": None}), "k")) == {"kv_transfer_params": {"request": "k"}}


def test_other_xargs_go_through() -> None:
    body = {"prompt": "x", "vllm_xargs": {"mine": [1, 2.5]}}
    assert json.loads(legs.whole_body(plan(body), "k"))["vllm_xargs"] == {"mine": [1, 2.5]}


@pytest.mark.parametrize("xargs", [b'{"a": 1e999}', b'{"a": "\xff"}', b"[" * 3000 + b"]" * 3000])
def test_xargs_that_cannot_be_looked_into_are_400(xargs: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        plan(b'{"vllm_xargs": ' + xargs + b"}")
    assert caught.value.status == 400


# ---- split or whole


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": [1, 2, 3]},
        {"prompt": ["one"]},
        {"prompt": [[1, 2]]},
        {"echo": False},
        {"echo": None},
        {"prompt_logprobs": None},
        {"use_beam_search": False},
        {"n": 4},
        {"n": None},
        {"max_tokens": 1},
        {"max_tokens": "8"},  # vLLM reads it as 8
        {"max_tokens": 8.0},
        {"max_tokens": None},
        {"logprobs": 5},
        {"stop": ["x"], "seed": 1, "min_tokens": 3},
        {"response_format": {"type": "json_object"}},
        {"routed_experts_prompt_start": None},
        {"n": 16_384},
        {"no_such_field": {"a": 1}},
    ],
)
def test_completions_that_are_split(body: dict[str, Any]) -> None:
    assert reason(body) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ["one", "two"]}, "several prompts"),
        ({"prompt": [[1], [2]]}, "several prompts"),
        ({"prompt": []}, "several prompts"),
        ({"prompt": None}, "several prompts"),
        ({"prompt": {"a": 1}}, "several prompts"),
        ({"echo": True}, "echo"),
        ({"echo": "true"}, "echo"),  # vLLM reads it as true
        ({"echo": 1}, "echo"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"use_beam_search": True}, "beam search"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"truncate_prompt_tokens": -1}, "truncation"),
        ({"routed_experts_prompt_start": 0}, "experts"),
        ({"routed_experts_prompt_start": 1}, "experts"),
        ({"n": 16_385}, "n is not"),
        ({"n": 10**30}, "n is not"),
        ({"n": "2"}, "n is not"),  # vLLM reads it as 2
        ({"n": 0}, "n is not"),
        ({"n": 1.5}, "n is not"),
        ({"n": True}, "n is not"),
        ({"max_tokens": 0}, "max_tokens is not"),
        ({"max_tokens": -4}, "max_tokens is not"),
        ({"max_tokens": -(10**30)}, "max_tokens is not"),
        ({"max_tokens": 8.5}, "max_tokens is not"),
        ({"max_tokens": "many"}, "max_tokens is not"),
        ({"max_tokens": True}, "max_tokens is not"),
        ({"max_tokens": [8]}, "max_tokens is not"),
    ],
)
def test_completions_that_are_not(body: dict[str, Any], said: str) -> None:
    assert (reason(body) or "").startswith(said) or said in (reason(body) or "")


@pytest.mark.parametrize(
    "content",
    [
        "text",
        None,
        [{"type": "text", "text": "a"}],
        [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}],
        [{"type": "thinking", "thinking": "hm"}, {"type": "input_text", "text": None}],
        ["a"],
    ],
)
def test_text_is_split(content: object) -> None:
    assert reason({"messages": [{"role": "user", "content": content}]}, CHAT) is None


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "input_audio"}]}],
        [{"role": "user", "content": [{"image_url": "x"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": "x"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": None, "uuid": "seen before"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "uuid": "u"}]}],
        [{"role": "user", "content": 5}],
        "hello",
        None,
    ],
)
def test_what_is_not_text_or_unknown_is_not(messages: object) -> None:
    assert reason({"messages": messages}, CHAT) == "images, audio and video are not handed over yet"


def test_an_n_without_end_is_left_to_vllm() -> None:
    made = plan(b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}")
    assert (made.consumers, made.unsplit_reason) == (1, "n is not a whole number from 1 to 16,384")
    assert legs.whole_body(made, "k").count(b"9") == 5000


def test_tools_and_schemas_are_split() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert reason({"tools": tools, "tool_choice": "required", "logprobs": True, "top_logprobs": 3}, CHAT) is None


def test_echo_and_beam_search_forbid_it_for_chats_too() -> None:
    assert reason({"echo": True}, CHAT)
    assert reason({"use_beam_search": True}, CHAT)
    assert reason({"prompt_logprobs": 1}, CHAT)


def test_limits_that_are_none_are_left_to_vllm_before_anything_is_computed() -> None:
    assert reason({"max_completion_tokens": 8, "max_tokens": 8}, CHAT) is None
    assert reason({"max_completion_tokens": -1}, CHAT) == "max_completion_tokens is not a whole number above 0"
    assert reason({"max_completion_tokens": 8, "max_tokens": 0}, CHAT) == "max_tokens is not a whole number above 0"


# ---- the legs' bodies


def test_the_prefill_leg_of_a_chat() -> None:
    body = {
        **HELLO,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "min_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "logprob_token_ids": [1],
        "return_token_ids": True,
        "temperature": 0,
        "tools": [{"a": 1}],
    }
    made = plan(body, CHAT)
    assert made.stream
    assert json.loads(legs.prefill_body(made, "k", 12.5)) == {
        **HELLO,
        "n": 1,
        "temperature": 0,
        "tools": [{"a": 1}],
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "kv_transfer_params": {"do_remote_decode": True, "request": "k", "consumers": 2, "ttl_s": 12.5},
    }


def test_completions_know_only_max_tokens() -> None:
    made = json.loads(legs.prefill_body(plan({"prompt": "x", "max_tokens": 50}), "k", 60))
    assert made["max_tokens"] == 1
    assert "max_completion_tokens" not in made
    assert "n" not in made


def test_the_engines_parameters_reach_the_decode_leg_as_they_were_written() -> None:
    written = b'{"do_remote_prefill":true,  "big":123456789012345678901234567890,"f":1.10}'
    kept = legs.kept(b'{"id":"x","kv_transfer_params":' + written + b',"usage":{"prompt_tokens":3}}')
    assert kept.any
    assert b'"kv_transfer_params":' + written in legs.decode_body(plan({"prompt": "x"}), kept)


def test_a_streams_tokens_are_wanted_and_those_it_had_are_forced() -> None:
    kept = legs.kept(b'{"kv_transfer_params":{"do_remote_prefill":true,"big":123456789012345678901234567890}}')
    made = plan({"prompt": "x", "stream": True, "n": 2})
    sent = json.loads(legs.decode_body(made, kept))["kv_transfer_params"]
    assert sent == {"do_remote_prefill": True, "big": 123456789012345678901234567890, "tee": 2}
    forced = json.loads(legs.decode_body(made, kept, [[1, 2], []]))["kv_transfer_params"]
    assert forced == {**sent, "forced": [[1, 2], []]}
    assert json.loads(legs.whole_body(made, "k", [[], []]))["kv_transfer_params"] == {"request": "k", "tee": 2}
    assert "tee" not in json.loads(legs.whole_body(plan({"prompt": "x"}), "k"))["kv_transfer_params"]


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]]])
def test_a_stream_of_several_prompts_is_not_gone_on_with(prompt: list[Any]) -> None:
    made = plan({"prompt": prompt, "stream": True})
    assert not made.resumable
    assert "tee" not in json.loads(legs.whole_body(made, "k"))["kv_transfer_params"]
    assert plan({"prompt": prompt[:1], "stream": True}).resumable


@pytest.mark.parametrize("answer", [b"{}", b'{"kv_transfer_params":null}', b"", b"[]", b"<html>", b"[" * 3000])
def test_an_answer_without_parameters_kept_nothing(answer: bytes) -> None:
    assert not legs.kept(answer).any


def test_routes_without_the_parameter_are_sent_none() -> None:
    made = legs.plan(find("POST", "/v1/embeddings"), b'{"input": "x"}')
    assert made.unsplit_reason
    assert json.loads(legs.whole_body(made, "k")) == {"input": "x"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["prompt", "n", "echo", "stop", "vllm_xargs"]), JSON))
def test_the_decode_leg_is_the_clients_body_and_nothing_else(body: dict[str, Any]) -> None:
    """Whatever the body: value by value the same, and whatever is in it, only RequestError is raised."""
    try:
        made = plan(body)
    except RequestError:
        return
    kept = legs.Kept(msgspec.Raw(b'{"a":1}'))
    expected = {name: value for name, value in body.items() if name not in TRANSFER_KEYS}
    assert json.loads(legs.decode_body(made, kept)) == {**expected, "kv_transfer_params": {"a": 1}}


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_request_error(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        plan(data)
