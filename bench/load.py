"""A load client for servers that speak OpenAI's completions: closed loop, or open loop with Poisson arrivals.

``python -m bench.load --url http://127.0.0.1:8000 --model m --concurrency 4 --requests 40 --prompt-tokens 256 --output-tokens 32``

Every prompt is new, so that no prefix cache answers in an engine's place. In open loop a request's time begins when it was due, not
when the client came round to sending it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.figures import Result, Summary, result, summarise

REQUEST_TIMEOUT_S: Final = 300.0
_NS: Final = 1e-9
_LINE_BYTES_MAX: Final = 1 << 20
Done = Callable[[Result], None]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent. With ``rate`` (requests per second) arrivals are Poisson and ``concurrency`` is not used."""

    model: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int = 1
    rate: float | None = None
    vocabulary: int = 256  # prompts are of ids below this
    seed: int = 0
    arrivals: int | None = None  # a seed of their own, for the same arrivals with other prompts


class Completes(Protocol):
    """Something to load."""

    async def complete(self, body: dict[str, Any], due_ns: int | None = None) -> Result: ...


class Turns:
    """Several servers as one: each request goes to the next of them, by the client itself, so that no proxy costs anything."""

    def __init__(self, targets: Sequence[Completes]) -> None:
        self._next = itertools.cycle(targets)

    async def complete(self, body: dict[str, Any], due_ns: int | None = None) -> Result:
        return await next(self._next).complete(body, due_ns)


class Target:
    """A server to load: a TCP URL, or a Unix socket with any URL.

    Use as an asynchronous context manager. Each request may take ``REQUEST_TIMEOUT_S``.
    """

    def __init__(self, url: str, uds: Path | None = None) -> None:
        self._url = url.rstrip("/")
        self._uds = uds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Target:
        connector = aiohttp.UnixConnector(str(self._uds), limit=0) if self._uds else aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(REQUEST_TIMEOUT_S)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=_LINE_BYTES_MAX)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Target is used outside its context")
        return self._session

    def url(self, path: str) -> str:
        return self._url + path

    async def complete(self, body: dict[str, Any], due_ns: int | None = None) -> Result:
        """Send one streamed completion and read it to its end. Never raises: what went wrong is in the result."""
        began_ns = time.perf_counter_ns() if due_ns is None else due_ns
        arrivals_ns: list[int] = []
        try:
            tokens = await self._stream(body, arrivals_ns)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Result(error=f"{type(error).__name__}: {error}"[:300])
        return result(began_ns, arrivals_ns, time.perf_counter_ns(), tokens, body["max_tokens"])

    async def _stream(self, body: dict[str, Any], arrivals_ns: list[int]) -> int:
        """Tokens by the server's count; times of the events with a token go to ``arrivals_ns``."""
        async with self.session.post(self.url("/v1/completions"), json=body) as response:
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}: {(await response.text())[:200]}")
            counted: int | None = None
            async for event in _events(response.content):
                if event.get("error"):
                    raise ValueError(f"error in the stream: {event['error']}")
                counted = (event.get("usage") or {}).get("completion_tokens", counted)
                if event.get("choices"):
                    arrivals_ns.append(time.perf_counter_ns())
        return len(arrivals_ns) if counted is None else counted


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Events up to ``[DONE]``, without which an answer is not whole. Raises ``ValueError``.

    Read on to the end of the body: leaving before it closes the connection, which a server takes for a client that has left.
    """
    done = False
    async for line in content:
        if line.startswith(b"data: [DONE]"):
            done = True
        elif line.startswith(b"data: "):
            yield json.loads(line[6:])
    if not done:
        raise ValueError("the stream ended without [DONE]")


def bodies(plan: Plan) -> list[dict[str, Any]]:
    """The requests' bodies, each prompt of its own; the same for the same seed."""
    rng = random.Random(f"prompts {plan.seed} {plan.prompt_tokens} {plan.requests}")
    return [body(plan, rng.choices(range(plan.vocabulary), k=plan.prompt_tokens)) for _ in range(plan.requests)]


def body(plan: Plan, prompt: list[int]) -> dict[str, Any]:
    return {
        "model": plan.model,
        "prompt": prompt,
        "max_tokens": plan.output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def due_times_s(plan: Plan) -> list[float]:
    """Seconds from the start at which each request of an open loop is due.

    Poisson, given that the last one comes when it does on the average: of so few requests as a bench can wait for, chance alone would
    offer a third more or less than what was asked for.
    """
    if plan.rate is None or plan.rate <= 0:
        raise ValueError(f"rate must be above 0 requests per second, not {plan.rate}")
    rng = random.Random(f"arrivals {plan.seed if plan.arrivals is None else plan.arrivals}")
    found = list(itertools.accumulate(rng.expovariate(1.0) for _ in range(plan.requests)))
    return [one * plan.requests / plan.rate / found[-1] for one in found]


async def drive(target: Completes, plan: Plan, on_done: Done | None = None) -> tuple[Summary, list[Result]]:
    """Run a plan to its end."""
    queue, results = bodies(plan), list[Result]()

    def done(one: Result) -> None:
        results.append(one)
        if on_done is not None:
            on_done(one)

    began = time.perf_counter()
    await (_closed(target, plan, queue, done) if plan.rate is None else _open(target, plan, queue, done))
    return summarise(results, time.perf_counter() - began), results


async def _closed(target: Completes, plan: Plan, queue: list[dict[str, Any]], done: Done) -> None:
    waiting = iter(queue)

    async def client() -> None:
        for one in waiting:  # one iterator for all clients
            done(await target.complete(one))

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.concurrency):
            group.create_task(client())


async def _open(target: Completes, plan: Plan, queue: list[dict[str, Any]], done: Done) -> None:
    began_ns = time.perf_counter_ns()

    async def arrival(one: dict[str, Any], due_s: float) -> None:
        due_ns = began_ns + round(due_s / _NS)
        await asyncio.sleep(max(0.0, (due_ns - time.perf_counter_ns()) * _NS))
        done(await target.complete(one, due_ns))

    async with asyncio.TaskGroup() as group:
        for one, due_s in zip(queue, due_times_s(plan), strict=True):
            group.create_task(arrival(one, due_s))


def table(plan: Plan, summary: Summary) -> str:
    """A Markdown table; times in milliseconds, absent ones a dash."""
    how = f"{plan.rate:g} req/s" if plan.rate is not None else f"c{plan.concurrency}"
    head: list[str] = ["load", "prompt", "output", "n", "errors", "req/s"]
    counts = (plan.prompt_tokens, plan.output_tokens, summary.n, summary.errors)
    row = [how, *map(str, counts), f"{summary.requests_s:.2f}"]
    for name in ("ttft", "tpot", "itl"):
        for share in ("p50", "p99"):
            head.append(f"{name.upper()} {share} ms")
            row.append(milliseconds(getattr(summary, f"{name}_{share}_s")))
    lines = [head, ["---"] * len(head), row]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def milliseconds(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds * 1e3:.1f}"


def progress_bar() -> Progress:
    """On stderr, so that stdout stays a document."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--uds", type=Path, help="a Unix socket to send to instead")
    parser.add_argument("--model", required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--rate", type=float, help="requests per second, Poisson; without it the loop is closed")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=256)
    default_seed = random.SystemRandom().getrandbits(32)  # a server may still have the last run's prompts in its cache
    parser.add_argument(
        "--seed", type=int, default=default_seed, help="of prompts and arrivals; else a new one each time"
    )
    parser.add_argument("--json", type=Path, help="write the summary and every request here")
    return parser.parse_args(arguments)


async def _run(options: argparse.Namespace) -> Summary:
    fields = {name: value for name, value in vars(options).items() if name in Plan.__struct_fields__}
    plan = msgspec.convert(fields, Plan)
    async with Target(options.url, options.uds) as target:
        with progress_bar() as progress:
            task = progress.add_task("requests", total=plan.requests)
            summary, results = await drive(target, plan, lambda _: progress.advance(task))
    if options.json is not None:
        document = {"plan": plan, "summary": summary, "requests": results}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    sys.stdout.write(table(plan, summary))
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if any request failed."""
    summary = asyncio.run(_run(_options(arguments)))
    if summary.first_error is not None:
        sys.stderr.write(f"bench.load: {summary.errors} of {summary.n} requests failed, first: {summary.first_error}\n")
    return 1 if summary.errors else 0


if __name__ == "__main__":
    sys.exit(main())
