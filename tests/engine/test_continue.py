"""A decode engine is killed in mid-stream: the stream goes on on the other engine, and the client has what it would have had."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import psutil
import pytest
from product import Server
from test_identity import SCHEMA, WEATHER

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]
COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = [(7 * number) % 256 for number in range(300)]


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"model": "m", "prompt": PROMPT, "max_tokens": 120, "temperature": 0, "ignore_eos": True, "stream": True}
    return COMPLETION, {**body, "stream_options": {"include_usage": True}, **fields}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": "Say something about the weather in Oslo, at length."}]
    return CHAT, {"model": "m", "messages": messages, "max_tokens": 120, "temperature": 0, "stream": True, **fields}


CASES = {
    "greedy": completion(),
    "seeded": completion(temperature=1.0, seed=7, top_p=0.95, top_k=40),
    "penalties": completion(frequency_penalty=0.4, presence_penalty=0.3, repetition_penalty=1.1),
    "logprobs": completion(logprobs=2, return_token_ids=True),
    "stop string": completion(stop=["\u00ff\u00fe", "zz"], min_tokens=60, include_stop_str_in_output=True),
    "n=2 seeded": completion(n=2, temperature=0.9, seed=3),
    "whole": completion(echo=True, prompt="Once upon a time there was an engine."),
    "chat": chat(ignore_eos=True, stream_options={"include_usage": True}),
    "chat logprobs": chat(ignore_eos=True, logprobs=True, top_logprobs=1),
    "json schema": chat(
        max_tokens=200, response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    ),
    "tool required": chat(max_tokens=200, tools=[WEATHER], tool_choice="required"),
    "tool named": chat(
        max_tokens=200, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}
    ),
}


def assembled(events: list[dict[str, Any]]) -> dict[Any, Any]:
    """What a client makes of a stream: all strings and lists put together, by choice; ids of tool calls are made up."""
    found: dict[Any, Any] = {}

    def add(path: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add((*path, name), inner)
        elif isinstance(value, list) and value and all(isinstance(one, dict) and "index" in one for one in value):
            for one in value:
                add((*path, one["index"]), one)
        elif isinstance(value, str | list) and path[-1] != "id":
            found[path] = found[path] + value if path in found and path[-1] != "finish_reason" else value

    for event in events:
        for choice in event["choices"]:
            add((choice["index"],), choice)
        if event.get("usage"):
            found["usage"] = event["usage"]
    return {path: value for path, value in found.items() if value not in ("", [])}


async def whole(server: Server) -> None:
    async with asyncio.timeout(90):
        while not all(e["state"] == "ready" and e["peers"] for e in (await server.node())["engines"]):
            await asyncio.sleep(0.1)


async def kill(server: Server, name: str, kind: str, number: signal.Signals = signal.SIGKILL) -> None:
    leader = next(engine["pid"] for engine in (await server.node())["engines"] if engine["name"] == name)
    family = [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]
    os.kill(next(p.pid for p in family if kind in " ".join(p.cmdline())), number)


class Stream:
    """One request under way."""

    def __init__(self) -> None:
        self.got = b""
        self.headers: dict[str, str] = {}

    async def run(self, server: Server, path: str, body: dict[str, Any]) -> None:
        async with server.session.post(server.url + path, json=body) as answer:
            assert answer.status == 200
            self.headers = {name.lower(): value for name, value in answer.headers.items()}
            while chunk := await answer.content.readany():
                self.got += chunk

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.got.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""], lines[-3:]
        return [json.loads(line[6:]) for line in lines[:-2]]


@pytest.mark.parametrize(
    ("kind", "number"), [("EngineCore", signal.SIGKILL), ("API", signal.SIGKILL), ("API", signal.SIGTERM)]
)
async def test_every_client_gets_what_it_would_have_got(server: Server, kind: str, number: signal.Signals) -> None:
    await whole(server)
    expected = {name: assembled((await server.post(path, body)).events) for name, (path, body) in CASES.items()}
    streams = {name: Stream() for name in CASES}
    async with asyncio.TaskGroup() as group:
        for name, stream in streams.items():
            group.create_task(stream.run(server, *CASES[name]))
        async with asyncio.timeout(60):
            while not all(stream.got.count(b"\n\n") >= 4 for stream in streams.values()):
                await asyncio.sleep(0.005)
        await kill(server, "e1", kind, number)
    continued = 0
    for name, stream in streams.items():
        assert assembled(stream.events) == expected[name], name
        assert len({event["id"] for event in stream.events}) == 1
        timeline = (await server.get(f"/api/requests/{stream.headers['x-request-id']}")).json
        assert timeline["outcome"] == "ok"
        assert timeline["attempts"] == 1 + timeline["continued"]
        assert sum(stage["duration_s"] for stage in timeline["stages"]) == pytest.approx(timeline["ttft_s"], abs=1e-9)
        continued += timeline["continued"]
    assert continued >= len(CASES) - 4, "the others had ended, or were not on that engine"


async def test_an_unseeded_stream_keeps_what_it_has_said_and_goes_on_freely(server: Server) -> None:
    await whole(server)
    path, body = completion(temperature=1.3)
    stream = Stream()
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.run(server, path, body))
        async with asyncio.timeout(60):
            while stream.got.count(b"\n\n") < 8:
                await asyncio.sleep(0.005)
        await kill(server, "e1", "EngineCore")
    [usage] = [event["usage"] for event in stream.events if event.get("usage")]
    assert usage["completion_tokens"] == 120


async def test_afterwards_nothing_is_held(server: Server) -> None:
    await whole(server)
    node = await server.until_idle()
    assert node["requests"]["failed"] == 0
