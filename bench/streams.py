"""``make bench-streams``: what the supervisor can carry. Eight simulated engines, many streams at once, everything else real.

    python -m bench.streams --streams 64 256 512 --seconds 30

The engines are simulated (Llama-3.3-70B in fp8 as 4p4d on eight H200) because no eight real ones fit on a small machine; supervisor,
sockets, channel and clients are real, and share the machine's cores with the simulation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from bench.servers import ROOT, ServerError, free_port

_SCENARIO: Final = """
layout = "4p4d"
[hardware]
gpu = "h200"
[model]
config = "{model}"
name = "bench"
[engine]
decode = {{ max_running = 512, max_batched_tokens = 2048 }}
[traffic]
rate = 0
"""
_MODEL: Final = ROOT / "appliance" / "presets" / "llama-3.3-70b-fp8"
_EVENT: Final = b"\n\n"
_DONE: Final = b"data: [DONE]"
_READY_S: Final = 60.0
_SETTLE_S: Final = 8.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One number of streams. Everything that engines say is simulated; the supervisor's figures are measured."""

    streams: int
    engine_tokens_s: float  # made by the engines
    client_events_s: float  # that reached clients
    supervisor_cpu: float  # of a core
    supervisor_us_per_event: float
    clients_cpu: float
    engines_cpu: float
    loop_delay_p50_ms: float
    loop_delay_p99_ms: float
    ttft_p50_s: float | None
    errors: int


class Client(asyncio.Protocol):
    """Asks, reads to the end, and asks again."""

    def __init__(self, number: int, answer_tokens: int, vocabulary: int) -> None:
        self._number = number
        self._vocabulary = vocabulary
        self._answer_tokens = answer_tokens
        self._asked = 0
        self._tail = b""
        self._closing = False
        self.events = 0
        self.answers = 0
        self.errors = 0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._asked += 1
        prompt = [(self._number * 7919 + self._asked * 104_729 + place) % self._vocabulary for place in range(200)]
        fields = {"model": "bench", "prompt": prompt, "max_tokens": self._answer_tokens}
        fields |= {"ignore_eos": True, "stream": True}
        body = json.dumps(fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        self.events += seen.count(_EVENT) - self._tail.count(_EVENT)
        if b"HTTP/1.1 " in seen and b"HTTP/1.1 200" not in seen:
            self._transport.close()
        elif _DONE in seen:
            self._tail = b""
            self.answers += 1
            self._ask()
        else:
            self._tail = seen[-len(_DONE) :]

    def connection_lost(self, error: Exception | None) -> None:
        self.errors += not self._closing
        if not self.closed.done():
            self.closed.set_result(None)

    def close(self) -> None:
        self._closing = True
        self._transport.abort()  # type: ignore[attr-defined]


class Node:
    """The appliance over simulated engines."""

    def __init__(self, directory: Path, scenario: str | None = None, tree: Path = ROOT) -> None:
        """``scenario``: another one than the bench's own. ``tree``: the sources that serve."""
        self._directory, self._tree = directory, tree
        self._scenario = scenario or _SCENARIO.format(model=_MODEL)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.runtime = directory / "run"

    async def __aenter__(self) -> Node:
        scenario = self._directory / "scenario.toml"
        scenario.write_text(self._scenario)
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance", "serve", "--scenario", str(scenario), "--port", str(self.port)),
            *("--state-dir", str(self._directory / "state")),
            env={
                **os.environ,
                "PYTHONPATH": str(self._tree),
                "PD_APPLIANCE_SERVER_GRACE_S": "0",
                "RUNTIME_DIRECTORY": str(self.runtime),
            },
            stdout=asyncio.subprocess.DEVNULL,
            cwd=self._tree,
        )
        self.session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(_READY_S):
                while not await self._whole():
                    if self.process.returncode is not None:
                        raise ServerError(f"the appliance ended with {self.process.returncode}")
                    await asyncio.sleep(0.2)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        await self.process.wait()

    async def _whole(self) -> bool:
        try:
            engines = (await self.node())["engines"]
        except aiohttp.ClientError:
            return False
        return all(len(engine["peers"]) == len(engines) - 1 for engine in engines)

    async def node(self) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/api/node") as answer:
            found: dict[str, Any] = await answer.json()
            return found


@contextlib.asynccontextmanager
async def load(
    port: int, streams: int, answer_tokens: int = 400, vocabulary: int = 9000
) -> AsyncIterator[list[Client]]:
    """So many clients at once, from their first requests to their last. Prompts are of ids below ``vocabulary``."""
    loop, clients = asyncio.get_running_loop(), []
    try:
        for number in range(streams):
            made = Client(number, answer_tokens, vocabulary)
            await loop.create_connection(lambda made=made: made, "127.0.0.1", port)  # type: ignore[misc]
            clients.append(made)
            await asyncio.sleep(0.002)
        yield clients
    finally:
        for client in clients:
            client.close()
        await asyncio.gather(*(client.closed for client in clients))


async def measure(node: Node, streams: int, seconds: float) -> Row:
    """After some seconds in which they begin."""
    async with load(node.port, streams) as clients:
        await asyncio.sleep(_SETTLE_S)
        supervisor = psutil.Process(node.process.pid)
        before, events, began = _cpu(supervisor), sum(client.events for client in clients), time.perf_counter()
        delays, tokens = [], []
        while time.perf_counter() - began < seconds:
            await asyncio.sleep(0.5)
            snapshot = await node.node()
            delays.append(snapshot["supervisor"]["loop_delay_ms"] or 0.0)
            tokens.append(sum(engine["output_tokens_s"] or 0.0 for engine in snapshot["engines"]))
        elapsed = time.perf_counter() - began
        after, told = _cpu(supervisor), sum(client.events for client in clients) - events
    await asyncio.sleep(3.0)
    used = {name: after[name] - before[name] for name in after}
    return Row(
        streams=streams,
        engine_tokens_s=statistics.mean(tokens),
        client_events_s=told / elapsed,
        supervisor_cpu=used["supervisor"] / elapsed,
        supervisor_us_per_event=used["supervisor"] / told * 1e6 if told else 0.0,
        clients_cpu=used["clients"] / elapsed,
        engines_cpu=used["engines"] / elapsed,
        loop_delay_p50_ms=statistics.median(delays),
        loop_delay_p99_ms=sorted(delays)[int(0.99 * (len(delays) - 1))],
        ttft_p50_s=snapshot["ttft_p50_s"],
        errors=sum(client.errors for client in clients),
    )


def _cpu(supervisor: psutil.Process) -> dict[str, float]:
    """Seconds of CPU so far."""
    engines = sum(sum(child.cpu_times()[:2]) for child in supervisor.children())
    clients = psutil.Process().cpu_times()
    own = supervisor.cpu_times()
    return {"supervisor": own.user + own.system, "engines": engines, "clients": clients.user + clients.system}


def table(rows: list[Row]) -> Table:
    """For people."""
    found = Table(title="The supervisor over eight SIMULATED engines (4p4d, Llama-3.3-70B fp8, H200)")
    for head in (
        "streams",
        "tokens/s made",
        "events/s got",
        "supervisor CPU",
        "µs per event",
        "clients CPU",
        "engines CPU",
    ):
        found.add_column(head, justify="right")
    for head in ("loop delay p50", "p99", "TTFT p50", "errors"):
        found.add_column(head, justify="right")
    for row in rows:
        found.add_row(
            f"{row.streams}",
            f"{row.engine_tokens_s:,.0f}",
            f"{row.client_events_s:,.0f}",
            f"{row.supervisor_cpu:.0%}",
            f"{row.supervisor_us_per_event:.0f}",
            f"{row.clients_cpu:.0%}",
            f"{row.engines_cpu:.0%}",
            f"{row.loop_delay_p50_ms:.1f} ms",
            f"{row.loop_delay_p99_ms:.1f} ms",
            "—" if row.ttft_p50_s is None else f"{row.ttft_p50_s:.2f} s",
            f"{row.errors}",
        )
    return found


async def run(streams: list[int], seconds: float) -> list[Row]:
    """Each number in turn, on one node."""
    said = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with Node(Path(name)) as node:
            rows = []
            for number in streams:
                with said.status(f"{number} streams for {seconds:.0f} s"):
                    rows.append(await measure(node, number, seconds))
            return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="What the supervisor can carry, over simulated engines.")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = asyncio.run(run(options.streams, options.seconds))
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
    else:
        Console(width=180).print(table(rows))


if __name__ == "__main__":
    main()
