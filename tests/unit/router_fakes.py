"""Engines on Unix sockets that do as they are told, and a client and a ledger that keep what they got."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from appliance.config import RouterConfig
from appliance.records import EngineState, EngineView, Role, Timeline
from appliance.router import Router
from appliance.telemetry.timeline import Timelines
from web.ports import InferenceRequest

Script = Callable[["Engine", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
TRANSFER = {"do_remote_prefill": True, "request": "k", "blocks": [[1, 2]], "big": 123456789012345678901234567890}
ASK: dict[str, Any] = {"model": "demo", "prompt": "to be", "max_tokens": 9}
STREAM = {**ASK, "stream": True}
EVENTS = [b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"]


class Engine:
    """One fake engine. ``script`` answers POSTs, whose bodies ``seen`` has; ``aborted`` counts those cut short."""

    def __init__(self, name: str, socket: str, role: Role, peers: tuple[str, ...]) -> None:
        self.script: Script = obliging
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.targets: list[str] = []
        self.connections: list[object] = []  # the one that each request came on
        self.aborted = 0
        self.hold = asyncio.Event()  # scripts may wait for it
        self.reached = asyncio.Event()  # set when a script has begun
        self.view = EngineView(
            name=name, role=role, state=EngineState.READY, epoch=1, socket=socket, peers=peers, max_batched_tokens=2048
        )
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01, access_log=None)
        await self._runner.setup()
        await web.UnixSite(self._runner, self.view.socket).start()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.targets.append(request.path_qs)
        self.connections.append(request.transport)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if request.method == "GET":
            return web.json_response({"data": [{"id": "demo"}], "of": self.view.name})
        body = json.loads(await request.read())
        self.seen.append(body)
        self.reached.set()
        try:
            return await self.script(self, request, body)
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    def break_connections(self) -> None:
        assert self._runner is not None
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def stop(self) -> None:
        if self._runner is not None:
            self.break_connections()
            await self._runner.cleanup()
            self._runner = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.view.socket)


async def obliging(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A prefill leg gets a ticket, anything else an answer, streamed if it asks for that."""
    params = body.get("kv_transfer_params") or {}
    if params.get("do_remote_decode"):
        return web.json_response({"id": "p", "kv_transfer_params": TRANSFER, "usage": {"prompt_tokens": 7}})
    if body.get("stream"):
        return await stream(engine, request, EVENTS)
    return web.json_response({"id": "d", "by": engine.view.name})


async def stream(engine: Engine, request: web.Request, events: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for event in events:
        await response.write(event)
    return response


def holding(then: Script = obliging) -> Script:
    """Waits until the test lets it go."""

    async def script(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await engine.hold.wait()
        return await then(engine, request, body)

    return script


def failing(status: int, message: str = "no") -> Script:
    async def script(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": message, "code": status}}, status=status)

    return script


class Client:
    """A ``Reply`` that keeps everything."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.fields: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.ended = False
        self.first = asyncio.Event()

    @property
    def started(self) -> bool:
        return self.status is not None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self.started
        self.status = status
        self.fields = {name.decode(): value.decode() for name, value in headers}

    async def send(self, chunk: bytes) -> None:
        self._have(chunk)

    def send_now(self, chunk: bytes) -> bool:
        self._have(chunk)
        return True

    def _have(self, chunk: bytes) -> None:
        assert self.started
        assert not self.ended
        self.chunks.append(chunk)
        self.first.set()

    async def end(self) -> None:
        assert not self.ended
        self.ended = True


class Ledger:
    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def cancel(self, key: str) -> None:
        self.cancelled.append(key)


class House:
    """A router over fake engines."""

    def __init__(self, engines: list[Engine], config: RouterConfig, calibrate_s: float = 0.0) -> None:
        self.engines = {engine.view.name: engine for engine in engines}
        self.ledger = Ledger()
        self.timelines = Timelines(64)
        self.router = Router(config, self.views, self.ledger, self.timelines, "demo", calibrate_s=calibrate_s)

    def __getitem__(self, name: str) -> Engine:
        return self.engines[name]

    def views(self) -> tuple[EngineView, ...]:
        return tuple(engine.view for engine in self.engines.values())

    async def ask(self, body: dict[str, Any] | bytes, **request: Any) -> Client:
        client = Client()
        await self.router.serve(asked(body, **request), client)
        return client

    def asking(self, body: dict[str, Any], **request: Any) -> tuple[asyncio.Task[None], Client]:
        client = Client()
        return asyncio.create_task(self.router.serve(asked(body, **request), client)), client

    def idle(self) -> bool:
        """Nothing is open, nothing waits, and no lease has been forgotten."""
        offered = {
            body["kv_transfer_params"]["request"]
            for engine in self.engines.values()
            for body in engine.seen
            if (body.get("kv_transfer_params") or {}).get("do_remote_decode")
        }
        open_legs = sum(self.router.in_flight(name) for name in self.engines)
        tokens = sum(self.router.outstanding_prompt_tokens(name) for name in self.engines)
        snapshot = self.router.queue_snapshot(time.monotonic_ns())
        return open_legs == tokens == snapshot.depth == snapshot.in_flight == 0 and offered <= set(
            self.ledger.cancelled
        )


def asked(body: dict[str, Any] | bytes, **request: Any) -> InferenceRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **request.pop("headers", {})}
    fields = {"id": "made", "method": "POST", "path": "/v1/completions", "query": b"", **request}
    return InferenceRequest(body=data, headers=headers, **fields)


@contextlib.asynccontextmanager
async def house(directory: Path, layout: str = "pd", calibrate_s: float = 0.0, **config: Any) -> AsyncIterator[House]:
    """``layout`` has a letter per engine: p, d, or b for both."""
    roles = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
    names = [f"e{number}" for number in range(len(layout))]
    engines = [
        Engine(name, str(directory / name), roles[letter], tuple(peer for peer in names if peer != name))
        for name, letter in zip(names, layout, strict=True)
    ]
    for engine in engines:
        await engine.start()
    built = House(engines, RouterConfig(**{"canary_s": 0.0, **config}), calibrate_s)
    await built.router.start()
    try:
        yield built
    finally:
        await built.router.close()
        for engine in engines:
            engine.hold.set()
            await engine.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def last(built: House) -> Timeline:
    return built.timelines.recent(1)[0]


def legs(built: House) -> list[tuple[str, str, str]]:
    return [(leg.kind, leg.engine, leg.outcome) for leg in last(built).legs]


def fails(*pieces: bytes) -> Script:
    """A stream in pieces, each of which is read before the next one is sent."""

    async def script(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(engine, request, [])
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.05)
        return response

    return script


DEAD = b'data: {"error": {"message": "EngineDead", "type": "x", "code": 500}}\n\n'
BAD = b'data: {"error": {"message": "too long", "code": 400}}\n\n'
DONE = b"data: [DONE]\n\n"


def breaking(*sent: bytes) -> Script:
    """Sends that much of a stream, waits until the test lets it go, and ends in the middle."""

    async def script(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(engine, request, list(sent))
        await engine.hold.wait()
        engine.break_connections()
        return response

    return script


async def endless(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Begins a stream, and then waits until the test lets it go."""
    response = await stream(engine, request, EVENTS[:1])
    await engine.hold.wait()
    return response


def queued(built: House, depth: int = 1) -> bool:
    return built.router.queue_snapshot(time.monotonic_ns()).depth == depth


async def one_of_two_waits(built: House) -> tuple[asyncio.Task[None], asyncio.Task[None]]:
    """Two requests to an engine with room for one: that one is being prefilled, and the other is in the queue."""
    built["e0"].view = msgspec.structs.replace(built["e0"].view, max_batched_tokens=1)
    built["e0"].script = holding()
    first, _ = built.asking(ASK)
    await built["e0"].reached.wait()
    second, _ = built.asking(ASK)
    await until(lambda: queued(built))
    return first, second
