"""Two engines with the test as their supervisor: it says what they are told and when, so that it can also say it wrongly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec

from appliance.channel import ClosePeer, CoreReady, Heartbeat, LeaseEnded, OpenPeer, PeerClosed, PeerOpened, Up
from appliance.costs import huggingface
from appliance.records import Role
from appliance.simulator.leg import Settings
from appliance.simulator.plan import EnginePlan
from appliance.supervisor.channel_server import ChannelServer, Connection
from appliance.supervisor.specs import cpu_environment

ROOT = Path(__file__).parents[2]
START_S, ANSWER_S = 120.0, 60.0
M = TypeVar("M")

ENVIRONMENT = {**cpu_environment(cores=1), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


class Process(Protocol):
    """What a pair needs of an engine's process."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...


class Engine:
    """One engine process and all that it has said."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.socket = directory / f"{name}.sock"
        self.log = directory / f"{name}.log"
        self.process: Process | None = None
        self.core: Connection | None = None
        self.workers: dict[int, Connection] = {}  # by rank, where they are processes of their own
        self.messages: list[Up] = []
        self.session: aiohttp.ClientSession | None = None

    @property
    def ready(self) -> CoreReady | None:
        return next((message for message in self.messages if isinstance(message, CoreReady)), None)

    @property
    def ranks(self) -> list[Connection]:
        """The processes that hold KV memory."""
        assert self.core is not None
        return list(self.workers.values()) or [self.core]

    def heard(self, kind: type[M]) -> list[M]:
        return [message for message in self.messages if isinstance(message, kind)]

    async def until(self, kind: type[M], count: int = 1, timeout_s: float = 10.0, **fields: object) -> M:
        """The ``count``-th message of a kind whose fields are those given."""
        async with asyncio.timeout(timeout_s):
            while True:
                found = [m for m in self.heard(kind) if all(getattr(m, k) == v for k, v in fields.items())]
                if len(found) >= count:
                    return found[count - 1]
                await asyncio.sleep(0.01)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert self.session is not None
        async with self.session.post(f"http://engine{path}", json=body) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 200, answer
            return answer

    async def idle_free_blocks(self) -> int:
        """Free KV blocks by the next heartbeat, which only an idle main loop sends."""
        beats = len(self.heard(Heartbeat))
        return (await self.until(Heartbeat, beats + 1)).kv_free


class Pair:
    """``e0`` and ``e1``, peers only once ``introduce`` has been called."""

    module = "appliance.engine.main"

    def __init__(self, directory: Path, model: Path, **options: object) -> None:
        self._directory = directory
        self._model = model
        self._options = options
        self.engines = {name: Engine(name, directory) for name in ("e0", "e1")}
        self._server = ChannelServer(
            directory / "channel",
            on_open=self._opened,
            on_message=lambda connection, message: self.engines[connection.hello.engine].messages.append(message),
            on_close=lambda _: None,
            on_error=lambda hello, error: sys.stderr.write(f"{hello}: {error}\n"),
        )

    @property
    def e0(self) -> Engine:
        return self.engines["e0"]

    @property
    def e1(self) -> Engine:
        return self.engines["e1"]

    async def start(self) -> None:
        await self._server.start()
        for number, engine in enumerate(self.engines.values()):
            await self._spawn(engine, number)
        async with asyncio.timeout(START_S):
            await asyncio.gather(*(self._serving(engine) for engine in self.engines.values()))

    async def stop(self) -> None:
        for engine in self.engines.values():
            if engine.session is not None:
                await engine.session.close()
            if engine.process is not None and engine.process.returncode is None:
                os.killpg(engine.process.pid, signal.SIGKILL)
                await engine.process.wait()
        await self._server.stop()

    async def introduce(self, consumer: Engine, producer: Engine) -> PeerOpened:
        """The answer: that of a rank which refuses, if one does."""
        assert producer.ready is not None
        answers = len(consumer.heard(PeerOpened))
        message = OpenPeer(
            peer=producer.name, epoch=1, sockets=producer.ready.sockets, lease_table=producer.ready.lease_table
        )
        for rank in consumer.ranks:
            rank.send(message)
        await consumer.until(PeerOpened, answers + len(consumer.ranks))
        told = consumer.heard(PeerOpened)[answers:]
        return next((answer for answer in told if answer.error), told[-1])

    async def part(self, consumer: Engine, producer: Engine, ranks: Sequence[int] | None = None) -> None:
        """``ranks``: only these of the consumer's close the producer's memory."""
        answers = len(consumer.heard(PeerClosed))
        told = [rank for rank in consumer.ranks if ranks is None or rank.hello.rank in ranks]
        for rank in told:
            rank.send(ClosePeer(peer=producer.name, epoch=1))
        await consumer.until(PeerClosed, answers + len(told))

    async def prefill(
        self, key: str, body: dict[str, Any], ttl_s: float = 60.0, consumers: int = 1, on: Engine | None = None
    ) -> dict[str, Any]:
        """Prefill leg, on e0 if not told otherwise; the ticket."""
        offer = {"do_remote_decode": True, "request": key, "consumers": consumers, "ttl_s": ttl_s}
        leg = {**body, "max_tokens": 1, "n": 1, "kv_transfer_params": offer}
        answer = await (on or self.e0).post("/v1/completions", leg)
        ticket = answer["kv_transfer_params"]
        assert isinstance(ticket, dict)
        return ticket

    async def decode(self, body: dict[str, Any], ticket: dict[str, Any]) -> dict[str, Any]:
        """Decode leg on e1."""
        return await self.e1.post("/v1/completions", {**body, "kv_transfer_params": ticket})

    async def ended(self, key: str, on: Engine | None = None) -> LeaseEnded:
        return await (on or self.e0).until(LeaseEnded, lease=key)

    def _opened(self, connection: Connection) -> None:
        engine = self.engines[connection.hello.engine]
        if connection.hello.process == "core":
            engine.core = connection
        elif connection.hello.process == "worker":
            engine.workers[connection.hello.rank] = connection

    async def _spawn(self, engine: Engine, number: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        command = [sys.executable, "-m", self.module, "--engine", engine.name, "--epoch", "1"]
        command += ["--channel", str(self._directory / "channel"), "--parent", str(os.getpid())]
        command += ["--cores", str(cores[number % len(cores)]), "--", *self._arguments(engine)]
        with engine.log.open("w") as log:
            engine.process = await asyncio.create_subprocess_exec(
                *command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True
            )

    def _transfer(self, engine: Engine) -> str:
        extra = {"engine": engine.name, "epoch": 1, "directory": str(self._directory), **self._options}
        transfer = {
            "kv_connector": "ApplianceConnector",
            "kv_connector_module_path": "appliance.engine.kv.connector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {**extra, "channel": str(self._directory / "channel")},
        }
        return json.dumps(transfer)

    def _arguments(self, engine: Engine) -> list[str]:
        return [
            *("--model", str(self._model), "--served-model-name", "m", "--uds", str(engine.socket)),
            *("--dtype", "float32", "--max-model-len", "4096", "--kv-cache-memory-bytes", "64M", "--enforce-eager"),
            *("--distributed-executor-backend", "uni", "--kv-transfer-config", self._transfer(engine)),
            *("--scheduler-cls", "appliance.engine.recorder.RecordingScheduler", "--max-num-batched-tokens", "512"),
        ]

    async def _serving(self, engine: Engine) -> None:
        while engine.ready is None or not await self._healthy(engine):
            assert engine.process is not None
            assert engine.process.returncode is None, engine.log.read_text()[-4000:]
            await asyncio.sleep(0.1)

    async def _healthy(self, engine: Engine) -> bool:
        if engine.session is None:
            connector = aiohttp.UnixConnector(str(engine.socket), limit=0)
            engine.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(ANSWER_S))
        try:
            async with engine.session.get("http://engine/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


class SimulatedPair(Pair):
    """The same, simulated, on two H100s that are not there."""

    module = "appliance.simulator.server"

    def _arguments(self, engine: Engine) -> list[str]:
        number = int(engine.name[1:])
        plan = EnginePlan(
            name=engine.name,
            role=Role.BOTH,
            settings=Settings(
                max_batched_tokens=512, max_running=64, kv_blocks=256, block_tokens=16, max_model_len=4096
            ),
            shape=huggingface.read(self._model),
            gpu="h100",
            first_gpu=number,
            link_bytes_s=1e9,
        )
        return [
            *("--served-model-name", "m", "--uds", str(engine.socket), "--kv-transfer-config", self._transfer(engine)),
            *("--plan", msgspec.json.encode(plan).decode()),
        ]
