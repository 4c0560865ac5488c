"""The two servers that are compared, as processes: started, waited for, and ended with everything they have started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from bench.load import Plan, Target, bodies
from bench.records import AGGREGATED, APPLIANCE, StartUp

ROOT: Final = Path(__file__).parents[1]
MODEL_NAME: Final = "bench"
START_S, STOP_S, POLL_S, PROBE_S = 180.0, 60.0, 0.05, 10.0
_FOLLOW_S: Final = 5.0  # until all that a process had started has ended after it
KV_CACHE_BYTES: Final = 512 << 20  # per engine: 16 requests of 2,080 tokens, twice
ENGINE_ARGUMENTS: Final = ("--dtype", "bfloat16", "--max-model-len", "4096")
Check = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How both servers serve. ``settings``: what else the appliance's configuration has, by section. ``tree``: its sources."""

    layout: str = "1p1d"
    arguments: tuple[str, ...] = ENGINE_ARGUMENTS
    kv_cache_bytes: int = KV_CACHE_BYTES
    settings: Mapping[str, str] = field(default_factory=dict)
    start_s: float = START_S  # until it must be ready
    tree: Path = ROOT


BENCH: Final = Serving()


class ServerError(Exception):
    """A server ended, or did not become ready in time; the message has the end of its log."""


class Server:
    """One running server. ``target`` is open while it lives."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, target: Target, log: Path) -> None:
        self.name = name
        self.start_s = START_S
        self.target = target
        self.pid = process.pid
        self.began = time.perf_counter()
        self._process = process
        self._log = log

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def json(self, path: str) -> Any:
        async with self.target.session.get(self.target.url(path)) as answer:
            return await answer.json()

    async def read(self, path: str) -> bytes:
        async with self.target.session.get(self.target.url(path)) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def answers(self, path: str) -> bool:
        """True for a 200."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(PROBE_S)
            async with self.target.session.get(self.target.url(path), timeout=timeout) as answer:
                return answer.status == 200
        return False

    async def until(self, check: Check) -> float:
        """Seconds from the start until ``check`` is true. Raises ``ServerError``."""
        while not await _true(check):
            if self._process.returncode is not None:
                raise ServerError(f"{self.name} ended with {self._process.returncode}:\n{self._tail()}")
            if time.perf_counter() - self.began > self.start_s:
                raise ServerError(f"{self.name} was not ready after {self.start_s:.0f} s:\n{self._tail()}")
            await asyncio.sleep(POLL_S)
        return time.perf_counter() - self.began

    async def first_token(self) -> float:
        """Seconds from the start until the first token of the first request."""
        plan = Plan(model=MODEL_NAME, requests=1, prompt_tokens=16, output_tokens=2)
        sent = time.perf_counter() - self.began
        one = await self.target.complete(bodies(plan)[0])
        if one.ttft_s is None:
            raise ServerError(f"the first request to {self.name} failed: {one.error}\n{self._tail()}")
        return sent + one.ttft_s

    def _tail(self) -> str:
        return self.log[-3000:]


@asynccontextmanager
async def appliance(
    directory: Path, model: Path, repetition: int, serving: Serving = BENCH
) -> AsyncIterator[tuple[Server, StartUp]]:
    """By ``appliance serve``, ready and with its engines introduced to each other."""
    port = free_port()
    config = directory / f"appliance-{repetition}.toml"
    config.write_text(_config(port, directory, model, serving))
    command = ["-m", "appliance", "serve", "--config", str(config)]
    environment = {"PYTHONPATH": str(serving.tree), "RUNTIME_DIRECTORY": str(directory / f"run-{repetition}")}
    target, log = Target(f"http://127.0.0.1:{port}"), directory / f"appliance-{repetition}.log"
    async with process(APPLIANCE, command, environment, target, log, tree=serving.tree) as server:
        server.start_s = serving.start_s
        yield server, await _appliance_start(server, repetition)


def vllm_command(path: Path, model: Path, serving: Serving = BENCH) -> list[str]:
    """Plain vLLM on a Unix socket."""
    return [
        *("-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", MODEL_NAME),
        *("--uds", str(path), "--enforce-eager", "--kv-cache-memory-bytes", str(serving.kv_cache_bytes)),
        *("--disable-uvicorn-access-log", *serving.arguments),
    ]


def vllm_environment(threads: int) -> dict[str, str]:
    """Threads compute where the kernel puts them."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",  # what clients and proxies keep is not closed just when they use it
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


@asynccontextmanager
async def aggregated(
    directory: Path, model: Path, repetition: int, serving: Serving = BENCH
) -> AsyncIterator[tuple[Server, StartUp]]:
    """Plain vLLM on all cores, none of our code in it."""
    path = directory / f"aggregated-{repetition}.sock"
    command, log = vllm_command(path, model, serving), directory / f"aggregated-{repetition}.log"
    environment = vllm_environment(len(os.sched_getaffinity(0)))
    async with process(AGGREGATED, command, environment, Target("http://engine", path), log) as server:
        ready_s = await server.until(lambda: server.answers("/health"))
        engines = {"engine": ready_s}
        first_s = await server.first_token()
        start = StartUp(
            server=AGGREGATED, repetition=repetition, page_s=None, engines_ready_s=engines, first_token_s=first_s
        )
        yield server, start


async def _appliance_start(server: Server, repetition: int) -> StartUp:
    page_s = await server.until(lambda: server.answers("/"))
    engines: dict[str, float] = {}

    async def all_ready() -> bool:
        node = await server.json("/api/node")
        for engine in node["engines"]:
            if engine["state"] == "ready":
                engines.setdefault(engine["name"], time.perf_counter() - server.began)
        return len(engines) == len(node["engines"]) > 0

    await server.until(all_ready)
    await server.until(lambda: server.answers("/ready"))
    first_s = await server.first_token()
    await server.until(lambda: introduced(server))
    return StartUp(
        server=APPLIANCE, repetition=repetition, page_s=page_s, engines_ready_s=engines, first_token_s=first_s
    )


async def introduced(server: Server) -> bool:
    """Every engine has mapped every other's KV memory, so that requests are split from now on."""
    engines = (await server.json("/api/node"))["engines"]
    return all(len(engine["peers"]) == len(engines) - 1 for engine in engines)


@asynccontextmanager
async def process(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    target: Target,
    log: Path,
    python: str | Path = sys.executable,
    tree: Path | None = None,
) -> AsyncIterator[Server]:
    """In a session of its own, so that an interrupt reaches us first and the end is always in order. ``tree``: where it runs: ``-m``
    finds that one's modules.
    """
    with log.open("wb") as output:
        began = time.perf_counter()
        started = await asyncio.create_subprocess_exec(
            python,
            *command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=tree,
        )
    try:
        async with target:
            server = Server(name, started, target, log)
            server.began = began
            yield server
    finally:
        await _end(started)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, time to obey, then SIGKILL, and the same to whatever is left of the session's process group: Python's resource tracker
    is in it, and has to give the dead ones' shared memory back.
    """
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_S):
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FOLLOW_S):
                while _members(process.pid):
                    await asyncio.sleep(0.1)
    finally:  # if nobody has the patience, too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _members(group: int) -> list[int]:
    """Of a process group those that run."""
    found = []
    for one in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(one.pid) == group and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found


async def _true(check: Check) -> bool:
    """A server that can't be reached is not there yet, or no more: its process tells which."""
    try:
        return await check()
    except (aiohttp.ClientError, TimeoutError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _config(port: int, directory: Path, model: Path, serving: Serving) -> str:
    sections = {
        "server": f"port = {port}\nstate_dir = {json.dumps(str(directory / 'state'))}",
        "model": f'path = {json.dumps(str(model))}\nname = "{MODEL_NAME}"',
        "topology": f'layout = "{serving.layout}"',
        "telemetry": "recent_requests = 1000",
        "engine": f"kv_cache_bytes = {serving.kv_cache_bytes}\nargs = {json.dumps(serving.arguments)}",
    }
    names = dict.fromkeys([*sections, *serving.settings])
    return "".join(f"[{name}]\n{sections.get(name, '')}\n{serving.settings.get(name, '')}\n\n" for name in names)
