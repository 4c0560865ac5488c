"""The OpenAI surface of a simulated engine, over a core that says everything at once, one token per turn of the loop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from appliance.simulator import text
from appliance.simulator.api import Api
from appliance.simulator.stream import Stream


class Core:
    """Implements ``api.Core``."""

    model = "m"
    max_model_len = 1000

    def __init__(self) -> None:
        self.left: list[Stream] = []
        self.streams: list[Stream] = []

    def submit(self, stream: Stream) -> None:
        self.streams.append(stream)
        self._task = asyncio.get_running_loop().create_task(self._say(stream))

    async def _say(self, stream: Stream) -> None:
        for number, answer in enumerate(stream.answers):
            for _ in answer:
                await asyncio.sleep(0)
                stream.made[number] += 1
                stream.tell()
            stream.open -= 1
        stream.tell()

    def leave(self, stream: Stream) -> None:
        self.left.append(stream)


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def client(core: Core) -> TestClient:
    return TestClient(Api(core).app())


def ask(client: TestClient, path: str = "/v1/completions", **body: Any) -> Any:
    return client.post(path, json={"model": "m", **body})


def events(answer: Any) -> list[dict[str, Any]]:
    *found, last = answer.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in found]


def test_a_completion_has_as_many_tokens_as_were_asked_for(client: TestClient, core: Core) -> None:
    answer = ask(client, prompt=[1, 2, 3], max_tokens=5, ignore_eos=True).json()
    [choice] = answer["choices"]
    assert len(choice["text"].split()) == 5
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert core.left == core.streams


def test_a_stream_says_what_the_answer_in_one_piece_says(client: TestClient) -> None:
    whole = ask(client, prompt=[1, 2, 3], max_tokens=9, ignore_eos=True).json()
    streamed = events(
        ask(
            client, prompt=[1, 2, 3], max_tokens=9, ignore_eos=True, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(event["choices"][0]["text"] for event in streamed[:-1]) == whole["choices"][0]["text"]
    assert streamed[-1]["usage"] == whole["usage"]
    assert [event["choices"][0]["finish_reason"] for event in streamed[:-1]] == [None] * 8 + ["length"]
    assert len({event["id"] for event in streamed}) == 1


def test_a_chat_ends_by_itself_and_begins_with_a_role(client: TestClient) -> None:
    messages = [{"role": "user", "content": "Tell me a story."}]
    whole = ask(client, "/v1/chat/completions", messages=messages).json()
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["finish_reason"] == "stop"
    streamed = events(ask(client, "/v1/chat/completions", messages=messages, stream=True))
    assert streamed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(event["choices"][0]["delta"]["content"] for event in streamed)
    assert said == whole["choices"][0]["message"]["content"]


def test_several_sequences_differ_and_each_is_complete(client: TestClient) -> None:
    streamed = events(ask(client, prompt="Once", max_tokens=4, ignore_eos=True, n=2, stream=True))
    texts = ["".join(e["choices"][0]["text"] for e in streamed if e["choices"][0]["index"] == n) for n in (0, 1)]
    assert texts[0] != texts[1]
    assert [len(one.split()) for one in texts] == [4, 4]


def test_what_does_not_fit_any_more_is_cut_off(client: TestClient) -> None:
    answer = ask(client, prompt=[1] * 990, max_tokens=20, ignore_eos=True).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (10, "length")


def test_a_stop_string_ends_an_answer(client: TestClient) -> None:
    free = ask(client, prompt=[7], max_tokens=20, ignore_eos=True).json()["choices"][0]["text"]
    stop = free.split()[4]
    stopped = ask(client, prompt=[7], max_tokens=20, ignore_eos=True, stop=stop).json()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert free.startswith(stopped["text"])
    assert len(stopped["text"].split()) <= 5


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": [1], "model": "other"}, 404, "The model `other` does not exist."),
        ({"prompt": []}, 400, "not empty"),
        ({}, 400, "prompt must be one text or one list of token ids"),
        ({"prompt": ["a", "b"]}, 400, "one text or one list"),
        ({"prompt": [1], "max_tokens": 0}, 400, "max_tokens must be at least 1"),
        ({"prompt": [1] * 1000}, 400, "maximum context length is 1000 tokens"),
        ({"prompt": [1], "n": 0}, 400, "n must be from 1 to 128"),
        ({"prompt": [1], "n": 1000}, 400, "n must be from 1 to 128"),
        ({"prompt": [1], "logprobs": 2}, 400, "logprobs is not simulated"),
        ({"prompt": [1], "tools": [{"type": "function"}]}, 400, "tools is not simulated"),
        ({"prompt": [1], "max_tokens": "many"}, 400, "the body can't be read"),
    ],
)
def test_what_can_not_be_answered_is_refused_in_openai_shape(
    client: TestClient, body: dict[str, Any], status: int, words: str
) -> None:
    answer = ask(client, **body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000])
def test_a_body_that_is_none_is_a_400(client: TestClient, body: bytes) -> None:
    assert client.post("/v1/completions", content=body).status_code == 400


def test_what_makes_no_difference_may_be_said(client: TestClient) -> None:
    fields = {"temperature": 0.7, "seed": 3, "top_p": 0.9, "logprobs": None, "tools": [], "tool_choice": "none"}
    assert ask(client, prompt="a", max_tokens=3, **fields).status_code == 200


def test_tokens_are_about_four_bytes_and_the_same_everywhere() -> None:
    assert len(text.tokens_of("x" * 4000)) == 1000
    assert text.tokens_of("déjà vu") == text.tokens_of("déjà vu")
    assert text.answer([1, 2, 3], 0, 3) == text.answer([1, 2, 3], 0, 9)[:3]
    assert all(0 <= token < text.VOCABULARY for token in text.answer([5], 1, 100))


def test_digests_are_of_all_that_comes_before() -> None:
    first, second = text.block_digests([1] * 40, 16), text.block_digests([2, *[1] * 39], 16)
    assert len(first) == 2
    assert not set(first) & set(second)
    assert text.block_digests([1] * 32, 16) == first
