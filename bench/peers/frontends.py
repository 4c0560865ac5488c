"""What stands between clients and engines, over engines that are not there: what it takes per streamed token, and adds to the first one.

All engines give each of their streams a token every 8 milliseconds or so, each in an event of its own, to as many streams at once. A
frontend that is given many tokens at once would send them at once, and look cheaper than it is.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from bench import servers, streams
from bench.figures import percentile
from bench.load import Plan, Target, bodies, drive
from bench.peers.contestants import DYNAMO, RELAY, SUPERVISOR, Contestant
from bench.peers.environments import RECIPES, Environment
from bench.peers.loads import PACE_MS, Scale
from bench.peers.records import Streamed

FIRST_RATE: Final = (
    40.0  # requests/s for the time to first token: with answers of so many tokens, some 16 are under way
)
FIRST_TOKENS: Final = 48
_TURNS: Final = 3  # through it and past it
_SCENARIO: Final = """
layout = "1b"
[hardware]
gpu = "h100"
[model]
config = "llama-3.1-8b"
name = "bench"
[engine]
both = { max_running = 512, max_batched_tokens = 8192 }
[traffic]
rate = 0
"""
"""A step of this one takes 6.7 ms with one stream and 8.2 ms with 64 (``docs/costs.md``)."""
_ANSWER_TOKENS: Final = 400
_PROMPT_TOKENS: Final = 200
_VOCABULARY: Final = 1000  # prompts' ids are below, and so within any model's
_READY_S: Final = 180.0
_DYNAMO_VOCABULARY: Final = 4096  # its mocker's ids go beyond the model's; those without text make no events


@dataclass(frozen=True, kw_only=True)
class Front:
    """One that runs. ``process`` is the frontend's own; ``direct`` leads past it to the engine."""

    port: int
    process: psutil.Process
    direct: Target | None = None


async def measure(
    contestant: Contestant, scale: Scale, directory: Path, model: Path, repetition: int, number: int
) -> Streamed:
    """Start it, load it, end it. ``number`` is one of its own for each start. Raises ``ServerError`` if it doesn't start."""
    start = {RELAY.key: _relay, SUPERVISOR.key: supervisor, DYNAMO.key: _dynamo}[contestant.key]
    async with start(directory, model, number) as front:
        return await loaded(front, contestant.key, scale, repetition)


async def loaded(front: Front, key: str, scale: Scale, repetition: int) -> Streamed:
    """Of one that runs. Raises ``ServerError`` if it doesn't answer."""
    async with Target(f"http://127.0.0.1:{front.port}") as through:
        per_token = await _events_per_token(through)
        targets = [target for target in (through, front.direct) if target is not None]
        ttfts = await _ttfts_s(targets, scale, repetition)
        async with streams.load(front.port, scale.streams, _ANSWER_TOKENS, _VOCABULARY) as clients:
            await asyncio.sleep(scale.settle_s)
            before, seen, began = front.process.cpu_times(), sum(one.events for one in clients), time.perf_counter()
            await asyncio.sleep(scale.stream_s)
            after, elapsed_s = front.process.cpu_times(), time.perf_counter() - began
            events = sum(one.events for one in clients) - seen
            memory_bytes = front.process.memory_full_info().pss
        used_s = after.user + after.system - before.user - before.system
        return Streamed(
            contestant=key,
            repetition=repetition,
            streams=scale.streams,
            events=events,
            events_per_token=per_token,
            pace_ms=elapsed_s * scale.streams / max(1, events) * 1e3,
            cpu_us_per_event=used_s / max(1, events) * 1e6,
            memory_bytes=memory_bytes,
            errors=sum(one.errors for one in clients),
            ttft_through_s=ttfts[0],
            ttft_direct_s=ttfts[1] if len(ttfts) > 1 else (),
        )


async def _events_per_token(target: Target) -> float | None:
    """Below 1 where tokens share events."""
    plan = Plan(model="bench", requests=1, prompt_tokens=_PROMPT_TOKENS, output_tokens=64, vocabulary=_VOCABULARY)
    one = await target.complete(bodies(plan)[0])
    if not one.ok:
        raise servers.ServerError(f"the first request failed: {one.error}")
    return (len(one.gaps_s) + 1) / one.tokens


async def _ttfts_s(targets: Sequence[Target], scale: Scale, repetition: int) -> list[tuple[float, ...]]:
    """p50 and p99 of each, whose turns alternate; nothing if a request failed. No prompt comes twice.

    Requests come by chance, at the same times to all: those of clients that ask again when they have been answered would come at an
    engine's own pace, and what is added would hide between two of its steps.
    """
    found: list[list[float]] = [[] for _ in targets]
    failed = [False for _ in targets]
    for turn in range(1 + _TURNS):  # the first one is for warming
        for place, target in enumerate(targets):
            plan = Plan(
                model="bench",
                requests=scale.first_requests,
                prompt_tokens=_PROMPT_TOKENS,
                output_tokens=FIRST_TOKENS,
                rate=FIRST_RATE,
                vocabulary=_VOCABULARY,
                seed=turn * len(targets) + place + 1,
                arrivals=repetition * (1 + _TURNS) + turn,
            )
            summary, results = await drive(target, plan)
            if not turn:
                continue
            found[place] += [one.ttft_s for one in results if one.ttft_s is not None]
            failed[place] |= summary.errors > 0
    return [
        ()
        if failed[place]
        else tuple(value for share in (0.5, 0.99) if (value := percentile(ttfts, share)) is not None)
        for place, ttfts in enumerate(found)
    ]


@asynccontextmanager
async def supervisor(
    directory: Path, model: Path | None, number: int, tree: Path = servers.ROOT
) -> AsyncIterator[Front]:
    """Of these sources."""
    place = directory / f"n{number}"
    place.mkdir()
    async with streams.Node(place, _SCENARIO, tree) as node:
        async with asyncio.timeout(_READY_S), Target(node.url) as target:
            while not await _answers(target, "/ready"):
                await asyncio.sleep(0.1)
        [path] = node.runtime.glob("*/e0.sock")
        async with Target("http://engine", path) as direct:
            yield Front(port=node.port, process=psutil.Process(node.process.pid), direct=direct)


async def _answers(target: Target, path: str) -> bool:
    async with target.session.get(target.url(path)) as answer:
        return answer.status == 200


@asynccontextmanager
async def _relay(directory: Path, model: Path, number: int) -> AsyncIterator[Front]:
    """In front of an engine's place-holder."""
    path, port = directory / f"pacer-{number}.sock", servers.free_port()
    environment = {"PYTHONPATH": str(servers.ROOT)}
    pacer = ["-m", "bench.peers.pacer", "--uds", str(path), "--pace-ms", str(PACE_MS)]
    relay = ["-m", "bench.peers.relay", "--port", str(port), "--to", str(path)]
    async with AsyncExitStack() as stack:
        for name, command, target in (
            ("the pacer", pacer, Target("http://pacer", path)),
            ("the relay", relay, Target(f"http://127.0.0.1:{port}")),
        ):
            log = directory / f"{name.split()[1]}-{number}.log"
            server = await stack.enter_async_context(servers.process(name, command, environment, target, log))
            await server.until(lambda server=server: _speaks(server))  # type: ignore[misc]
        yield Front(port=port, process=psutil.Process(server.pid), direct=None)


async def _speaks(server: servers.Server) -> bool:
    plan = Plan(model="bench", requests=1, prompt_tokens=1, output_tokens=1)
    return (await server.target.complete(bodies(plan)[0])).ok


@asynccontextmanager
async def _dynamo(directory: Path, model: Path, number: int) -> AsyncIterator[Front]:
    """With its mocker as the engine, on files and sockets of this machine alone."""
    environment = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(directory / f"dynamo-{number}"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
    }
    port, python = servers.free_port(), Environment(RECIPES[DYNAMO.requires]).python
    timing = directory / f"timing-{number}.npz"
    write_timing(timing)
    described = write_description(model, directory / f"described-{number}")
    mocker = ["-m", "dynamo.mocker", "--model-path", str(described), "--model-name", "bench"]
    mocker += ["--planner-profile-data", str(timing), "--max-num-seqs", "512"]
    frontend = ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
    unheard = Target("http://127.0.0.1:9")  # the mocker has no door of its own
    through = Target(f"http://127.0.0.1:{port}")
    logs = [directory / f"{name}-{number}.log" for name in ("mocker", "frontend")]
    async with (
        servers.process("Dynamo's mocker", mocker, environment, unheard, logs[0], python) as engine,
        servers.process("Dynamo's frontend", frontend, environment, through, logs[1], python) as server,
    ):
        await server.until(lambda: _lists_model(server, engine))
        yield Front(port=port, process=psutil.Process(server.pid))


async def _lists_model(server: servers.Server, engine: servers.Server) -> bool:
    """Raises ``ServerError`` if the engine has ended."""
    if engine.returncode is not None:
        raise servers.ServerError(f"{engine.name} ended with {engine.returncode}:\n{engine.log[-3000:]}")
    return any(one.get("id") == "bench" for one in (await server.json("/v1/models")).get("data", []))


def write_description(model: Path, place: Path) -> Path:
    """The model for Dynamo: with a chat template, without which its frontend serves none, and text for each token of its mocker."""
    place.mkdir()
    shutil.copy(model / "generation_config.json", place)
    config, tokenizer, of_tokenizer = (
        json.loads((model / name).read_text()) for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    )
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"<|{number}|>": number for number in range(len(vocabulary), _DYNAMO_VOCABULARY)}
    config["vocab_size"] = _DYNAMO_VOCABULARY
    of_tokenizer["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for name, value in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", of_tokenizer)):
        (place / f"{name}.json").write_text(json.dumps(value))
    return place


def write_timing(path: Path, pace_ms: float = PACE_MS) -> None:
    """For the mocker: a step that decodes takes as long whatever is in it; prompts are as quick as tokens."""
    tokens = np.array([1, 1 << 20], dtype=np.float64)
    np.savez(
        path,
        prefill_isl=tokens,
        prefill_ttft_ms=np.full(2, pace_ms),
        decode_active_kv_tokens=tokens,
        decode_context_length=tokens,
        decode_itl=np.full((2, 2), pace_ms),
    )
