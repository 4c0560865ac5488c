"""The whole product as a user runs it, and one plain aggregated vLLM to hold its answers against."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from pair import ENVIRONMENT, ROOT

READY_S, ANSWER_S = 150.0, 120.0
ENGINE_ARGUMENTS = [
    *("--dtype", "float32", "--max-model-len", "4096", "--max-num-batched-tokens", "512"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Answer:
    """An HTTP answer, read to its end. ``data`` has the events of a stream, or the one JSON object."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        assert lines and lines[-1] == "[DONE]", self.body[-300:]
        return [json.loads(line) for line in lines[:-1]]


class Server:
    """Something that answers HTTP."""

    def __init__(self, url: str, session: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
        self.url = url
        self.session = session
        self.process = process
        self.runtime = Path()  # the appliance's directory for sockets, and for what engines would leave in /tmp

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(
            self.url + path, data=data, headers={"content-type": "application/json", **(headers or {})}
        ) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def get(self, path: str) -> Answer:
        async with self.session.get(self.url + path) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def node(self) -> dict[str, Any]:
        return (await self.get("/api/node")).json

    async def until_idle(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """The node once nothing runs, waits or is held."""
        async with asyncio.timeout(timeout_s):
            while not _idle(node := await self.node()):
                await asyncio.sleep(0.25)
        return node


def _whole(node: dict[str, Any]) -> bool:
    """Every engine is ready and knows every other."""
    return all(e["state"] == "ready" and len(e["peers"]) == len(node["engines"]) - 1 for e in node["engines"])


def _idle(node: dict[str, Any]) -> bool:
    engines_idle = all(
        (e["running"], e["waiting"], e["fetching"], e["in_flight"]) == (0, 0, 0, 0)
        and e["kv_blocks_free"] == e["kv_blocks_total"]
        for e in node["engines"]
    )
    return engines_idle and not node["ledger"]["leases"] and node["queue"]["depth"] == node["queue"]["in_flight"] == 0


@asynccontextmanager
async def appliance(
    directory: Path,
    model: Path,
    *,
    layout: str = "1p1d",
    extra: str = "",
    environment: dict[str, str] | None = None,
    kind: str = "auto",
) -> AsyncIterator[Server]:
    """``pd-appliance serve`` on a free port, ready. Ended by SIGTERM; its exit code must be 0."""
    port = free_port()
    config = directory / f"{layout}-{port}.toml"
    config.write_text(_config(port, directory, model, layout) + extra)
    own = {"PYTHONPATH": str(ROOT), "RUNTIME_DIRECTORY": str(directory / f"run-{port}")}
    log = directory / f"appliance-{port}.log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance", "serve", "--config", str(config), "--engine", kind),
            env={**os.environ, **own, **(environment or {})},
            stdout=output,
            stderr=output,
        )
    async with _serving(f"http://127.0.0.1:{port}", "/ready", None, process, log) as server:
        async with asyncio.timeout(READY_S):
            while not _whole(await server.node()):
                await asyncio.sleep(0.2)
        [runtime] = (directory / f"run-{port}").iterdir()
        server.runtime = runtime
        yield server
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await process.wait() == 0, log.read_text()[-3000:]


@asynccontextmanager
async def aggregated(directory: Path, model: Path) -> AsyncIterator[Server]:
    """Plain vLLM, none of our code in it."""
    path = directory / "aggregated.sock"
    arguments = ["--model", str(model), "--served-model-name", "m", "--uds", str(path), "--enforce-eager"]
    arguments += ["--kv-cache-memory-bytes", "128M", "--distributed-executor-backend", "uni", *ENGINE_ARGUMENTS]
    log = directory / "aggregated.log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments),
            env={**os.environ, **ENVIRONMENT},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        async with _serving("http://engine", "/health", str(path), process, log) as server:
            yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@asynccontextmanager
async def _serving(
    url: str, probe: str, uds: str | None, process: asyncio.subprocess.Process, log: Path
) -> AsyncIterator[Server]:
    kept: dict[str, Any] = {
        "limit": 0,
        "keepalive_timeout": 2.0,
    }  # they go within twice that; vLLM closes them after 5 s
    connector = aiohttp.UnixConnector(uds, **kept) if uds else aiohttp.TCPConnector(**kept)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(ANSWER_S)) as session:
        server = Server(url, session, process)
        try:
            async with asyncio.timeout(READY_S):
                while not await _answers(server, probe):
                    assert process.returncode is None, log.read_text()[-4000:]
                    await asyncio.sleep(0.2)
            yield server
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _answers(server: Server, path: str) -> bool:
    try:
        return (await server.get(path)).status == 200
    except aiohttp.ClientError:
        return False


def _config(port: int, directory: Path, model: Path, layout: str) -> str:
    return f"""
[server]
port = {port}
state_dir = "{directory / "state"}"
grace_s = 10.0

[model]
path = "{model}"
name = "m"

[topology]
layout = "{layout}"

[engine]
kv_cache_bytes = {128 << 20}
args = {json.dumps(ENGINE_ARGUMENTS)}
"""
