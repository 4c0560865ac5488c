"""A load client that costs little: it shares the cores with what it loads. Each prompt is new; pieces of answers are counted, not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import aiohttp

from bench.diagnosis.goodput import Answer
from bench.diagnosis.real.cases import Stream
from bench.servers import MODEL_NAME

_VOCABULARY: Final = (0, 256)  # tokens without a meaning to anybody
_PATIENCE_S: Final = 40.0
_CONTEXT: Final = 4000
_EVENT: Final = b"data: "
_DONE: Final = b"data: [DONE]"
Heard = Callable[[Answer], None]
Came = Callable[[float], None]


def arrivals(stream: Stream, rate: float, chance: random.Random) -> Iterator[tuple[float, int, int]]:
    """For ever: seconds from the beginning, prompt tokens, output tokens."""
    now_s = 0.0
    while True:
        swing = 1 + stream.swing * (1 if (now_s // (stream.period_s / 2)) % 2 else -1)
        now_s += chance.gammavariate(1 / stream.burstiness, stream.burstiness) / (rate * swing)
        prompt, output = (
            max(2, round(median * chance.lognormvariate(0, stream.sigma)))
            for median in (stream.prompt_tokens, stream.output_tokens)
        )
        yield now_s, min(prompt, _CONTEXT - output), output


class Traffic:
    """Clients of one node. ``async with`` it; what has been begun in it ends with it."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/completions"
        self._session: aiohttp.ClientSession | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Traffic:
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(_PATIENCE_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    @property
    def open(self) -> int:
        """Requests under way."""
        return len(self._under_way)

    async def run(self, stream: Stream, rate: float, seed: str, began_s: float, came: Came, heard: Heard) -> None:
        """Ask until cancelled. Times are of ``time.monotonic``, from ``began_s``; a request's begins when it is due."""
        chance, first_s = random.Random(seed), time.monotonic()
        for after_s, prompt, output in arrivals(stream, rate, chance):
            due_s = first_s + after_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            came(due_s - began_s)
            body = _body([chance.randrange(*_VOCABULARY) for _ in range(prompt)], output)
            task = asyncio.create_task(self._ask(body, due_s, began_s, heard))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _ask(self, body: bytes, due_s: float, began_s: float, heard: Heard) -> None:
        heard(await self.ask(body, due_s, began_s))

    async def ask(self, body: bytes, due_s: float, began_s: float = 0.0) -> Answer:
        """One request, read to its end. Never raises."""
        first_s = last_s = None
        pieces, whole = 0, False
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._client.post(self._url, data=body, headers=_JSON) as answer:
                async for chunk in answer.content.iter_any():
                    last_s = time.monotonic()
                    first_s = first_s or last_s
                    pieces += chunk.count(_EVENT)
                    whole = whole or _DONE in chunk
                whole = whole and answer.status == 200
        ended_s = time.monotonic() - began_s
        if not whole or first_s is None or last_s is None:
            return Answer(arrived_s=due_s - began_s, ended_s=ended_s, ok=False)
        return Answer(
            arrived_s=due_s - began_s,
            ended_s=ended_s,
            ttft_s=first_s - due_s,
            pace_s=(last_s - first_s) / (pieces - 2) if pieces > 2 else None,  # the last one says that it is done
        )

    @property
    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Traffic is used outside its context")
        return self._session


_JSON: Final = {"content-type": "application/json"}


def _body(prompt: list[int], output_tokens: int) -> bytes:
    fields = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True, "stream": True}
    return json.dumps({**fields, "temperature": 0.0}).encode()


def body(chance: random.Random, prompt_tokens: int, output_tokens: int) -> bytes:
    """Of a request whose prompt nobody has asked before."""
    return _body([chance.randrange(*_VOCABULARY) for _ in range(prompt_tokens)], output_tokens)
