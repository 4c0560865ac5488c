"""Token identity: split over two engines, the answers are those of one aggregated vLLM. Greedy, float32, usage numbers included."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from product import Answer, Server, aggregated, appliance

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

LENGTHS = [
    *(
        1,
        2,
        3,
        5,
        8,
        16,
        31,
        63,
        64,
        65,
        100,
        127,
        128,
        129,
        130,
        200,
        255,
        256,
        257,
        300,
        400,
        511,
        512,
        513,
        600,
        700,
    ),
    *(800, 900, 1000, 1023, 1024, 1025, 1200, 1500, 1800, 2000, 2200, 2500, 2700, 2900, 3000),
]
_random = random.Random(42)
_SHARED = [_random.randrange(256) for _ in range(400)]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": ["small", "large"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


def tokens(count: int) -> list[int]:
    return [_random.randrange(256) for _ in range(count)]


def completion(prompt: Any, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, **fields}


def chat(text: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return "/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 12, "temperature": 0, **fields}


PROMPTS = [completion(tokens(length)) for length in LENGTHS]
FEATURES = {
    "shared prefix 1": completion(_SHARED + tokens(50)),
    "shared prefix 2": completion(_SHARED + tokens(300)),
    "text prompt": completion("Once upon a time there was a block of memory."),
    "n=2 seeded": completion(tokens(200), n=2, temperature=0.9, seed=11),
    "n=3 unequal lengths": completion(tokens(150), n=3, temperature=1.1, seed=4, stop=["a"], max_tokens=30),
    "seeded": completion(tokens(350), temperature=1.0, seed=5, top_p=0.9, top_k=50),
    "penalties": completion(tokens(90), frequency_penalty=0.5, presence_penalty=0.3, repetition_penalty=1.2),
    "stop string": completion("abc abc abc", max_tokens=40, stop=["\u00e9", "a", "e"]),
    "stop tokens": completion(tokens(20), max_tokens=40, stop_token_ids=list(range(40))),
    "include stop": completion("zzz", max_tokens=40, stop=["a", "e", "o"], include_stop_str_in_output=True),
    "min_tokens": completion(tokens(140), min_tokens=9, max_tokens=10, stop=["a"]),
    "logprobs": completion(tokens(260), logprobs=3),
    "one token": completion(tokens(130), max_tokens=1),
    "logit bias": completion(tokens(30), logit_bias={"65": 30.0}),
    "return token ids": completion(tokens(33), return_token_ids=True),
    "chat": chat("What is prefill?"),
    "chat long": chat("word " * 500),
    "chat logprobs": chat("Say it.", logprobs=True, top_logprobs=2),
    "chat max_completion_tokens": chat("Say it twice.", max_tokens=None, max_completion_tokens=7),
    "chat n=2": chat("Choose.", n=2, seed=3, temperature=0.8),
    "chat json schema": chat(
        "Answer in JSON.",
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}},
    ),
    "chat tool required": chat("Weather in Oslo?", max_tokens=80, tools=[WEATHER], tool_choice="required"),
    "chat tool named": chat(
        "Weather?", max_tokens=80, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}
    ),
    "chat tool auto": chat("Weather?", tools=[WEATHER], tool_choice="auto"),
}


class Sides:
    """The product, the reference, and the reference's answers so far."""

    def __init__(self, split: Server, whole: Server) -> None:
        self.split = split
        self.whole = whole


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sides(random_model: Path) -> AsyncIterator[Sides]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with AsyncExitStack() as both:
            split, whole = await asyncio.gather(
                both.enter_async_context(appliance(Path(name), random_model)),
                both.enter_async_context(aggregated(Path(name), random_model)),
            )
            yield Sides(split, whole)


def essence(answer: Answer, stream: bool) -> dict[str, Any]:
    """What must be equal: everything but ids and times. Of a stream, the pieces put together."""
    assert answer.status == 200, answer.body
    if not stream:
        return {"choices": _without_ids(answer.json["choices"]), "usage": answer.json["usage"]}
    events = answer.events
    usages = [event["usage"] for event in events if event.get("usage")]
    return {"choices": _joined(events), "usage": usages[-1] if usages else None}


def _joined(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for piece in event["choices"]:
            _add(choices.setdefault(piece["index"], {}), piece)
    return choices


def _add(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for key, value in {**piece, **(piece.get("delta") or {})}.items():
        if value is None or key in ("delta", "index"):
            continue
        if key == "tool_calls":
            for call in value:
                function = call.get("function") or {}
                for field in ("name", "arguments"):
                    name = f"tool{call['index']}.{field}"
                    whole[name] = whole.get(name, "") + (function.get(field) or "")
        elif key == "logprobs":
            for field, items in value.items():
                if isinstance(items, list):
                    whole[f"logprobs.{field}"] = whole.get(f"logprobs.{field}", []) + items
        elif isinstance(value, str) and key not in ("finish_reason", "role"):
            whole[key] = whole.get(key, "") + value
        elif isinstance(value, list):
            whole[key] = whole.get(key, []) + value
        else:
            whole[key] = value


def _without_ids(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for choice in choices:
        for call in (choice.get("message") or {}).get("tool_calls") or ():
            call.pop("id", None)
    return choices


async def ask(server: Server, case: tuple[str, dict[str, Any]], *, stream: bool) -> Answer:
    path, body = case
    if stream:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    return await server.post(path, body)


async def ask_all(
    server: Server, cases: list[tuple[str, dict[str, Any]]], *, stream: bool, at_once: int
) -> list[Answer]:
    gate = asyncio.Semaphore(at_once)

    async def one(case: tuple[str, dict[str, Any]]) -> Answer:
        async with gate:
            return await ask(server, case, stream=stream)

    return list(await asyncio.gather(*(one(case) for case in cases)))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("at_once", [1, 16])
async def test_prompts_of_every_length(sides: Sides, at_once: int, stream: bool) -> None:
    before = (await sides.split.node())["handoffs"]
    split = await ask_all(sides.split, PROMPTS, stream=stream, at_once=at_once)
    whole = await ask_all(sides.whole, PROMPTS, stream=stream, at_once=4)
    different = [
        length
        for length, ours, theirs in zip(LENGTHS, split, whole, strict=True)
        if essence(ours, stream) != essence(theirs, stream)
    ]
    assert different == []
    for answer in split:
        assert (answer.headers["x-prefill-engine"], answer.headers["x-decode-engine"]) == ("e0", "e1"), (
            answer.headers.get("x-unsplit-reason")
        )
    await sides.split.until_idle()
    after = (await sides.split.node())["handoffs"]
    assert after["count"] - before["count"] == len(PROMPTS)
    assert after["failed"] == before["failed"], after["last_error"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", FEATURES)
async def test_features(sides: Sides, name: str, stream: bool) -> None:
    split = await ask(sides.split, FEATURES[name], stream=stream)
    whole = await ask(sides.whole, FEATURES[name], stream=stream)
    assert essence(split, stream) == essence(whole, stream)
    assert (split.headers["x-prefill-engine"], split.headers["x-decode-engine"]) == ("e0", "e1"), split.headers.get(
        "x-unsplit-reason"
    )


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (completion(tokens(30), echo=True), "echo"),
        (completion(tokens(30), prompt_logprobs=1), "prompt_logprobs"),
        (completion([tokens(10), tokens(20)]), "prompt"),
        (completion(["one", "two"]), "prompt"),
    ],
)
async def test_what_cannot_be_split_runs_whole_and_says_so(
    sides: Sides, case: tuple[str, dict[str, Any]], reason: str
) -> None:
    split = await ask(sides.split, case, stream=False)
    whole = await ask(sides.whole, case, stream=False)
    assert essence(split, False) == essence(whole, False)
    assert split.headers["x-prefill-engine"] == split.headers["x-decode-engine"]
    assert reason in split.headers["x-unsplit-reason"]


async def test_the_decode_engine_got_its_prompts_by_hand_off(sides: Sides) -> None:
    """By vLLM's own metrics of the decode engine."""
    await ask(sides.split, completion(tokens(512)), stream=False)
    node = await sides.split.until_idle()
    decode = next(engine for engine in node["engines"] if engine["role"] == "decode")
    assert node["handoffs"]["count"] > 0 and node["handoffs"]["bytes"] > 0
    timeline = (await sides.split.get("/api/requests?limit=1")).body
    assert b'"transfer"' in timeline
    assert decode["prompt_tokens_s"] is not None
