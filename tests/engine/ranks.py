"""Pairs of engines of which one or both have several ranks, all forked from one server: imports would take most of the tests' time."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from pair import ENVIRONMENT, Engine, Pair

from appliance.supervisor.forkserver import ForkServer
from appliance.supervisor.process import Session


class Forked:
    """Of a session, as much of a subprocess as a pair looks at. What it says goes into a file."""

    def __init__(self, pid: int, output: int, log: Path) -> None:
        """``output``: the end to read of what it says."""
        lines: deque[str] = deque(maxlen=1)
        file = log.open("w", buffering=1)
        self.pid = pid
        self._session = Session(pid, output, lines, lambda _: print(lines[-1], file=file))
        self._end = asyncio.create_task(self._session.wait())
        self._end.add_done_callback(lambda _: file.close())

    def settled(self) -> None:
        """It serves: what it has in /dev/shm is known now, and goes with it."""
        self._session.note_named()

    @property
    def returncode(self) -> int | None:
        return self._end.result() if self._end.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._end)


class RankedPair(Pair):
    """``sizes``: ranks of e0 and of e1. They know each other both ways once they have been started."""

    def __init__(
        self,
        directory: Path,
        model: Path,
        forks: ForkServer,
        sizes: tuple[int, int],
        arguments: Sequence[str] = (),
        **options: object,
    ) -> None:
        """``arguments``: of vLLM, besides."""
        super().__init__(directory, model, **options)
        self._forks = forks
        self._sizes = dict(zip(self.engines, sizes, strict=True))
        self._more = arguments

    async def start(self) -> None:
        await super().start()
        for engine in self.engines.values():
            assert isinstance(engine.process, Forked)
            engine.process.settled()
        for consumer, producer in ((self.e1, self.e0), (self.e0, self.e1)):
            assert (await self.introduce(consumer, producer)).error is None

    async def _spawn(self, engine: Engine, number: int) -> None:
        temporary = self._directory / f"{engine.name}.tmp"
        temporary.mkdir()
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        command = ["--engine", engine.name, "--epoch", "1", "--channel", str(self._directory / "channel")]
        command += ["--parent", str(os.getpid()), "--cores", cores, "--", *self._arguments(engine)]
        environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(temporary), "VLLM_RPC_BASE_PATH": str(temporary)}
        reader, writer = os.pipe()
        try:
            pid = await self._forks.fork(command, environment, writer)
        finally:
            os.close(writer)
        engine.process = Forked(pid, reader, engine.log)

    def _arguments(self, engine: Engine) -> list[str]:
        size = self._sizes[engine.name]
        executor = ["mp", "--tensor-parallel-size", str(size)] if size > 1 else ["uni"]
        return [
            *("--model", str(self._model), "--served-model-name", "m", "--uds", str(engine.socket)),
            *("--dtype", "float32", "--max-model-len", "2048", "--kv-cache-memory-bytes", "32M", "--enforce-eager"),
            *("--distributed-executor-backend", *executor, "--kv-transfer-config", self._transfer(engine)),
            *("--scheduler-cls", "appliance.engine.recorder.RecordingScheduler", *self._more),
        ]
