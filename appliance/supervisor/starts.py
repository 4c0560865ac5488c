"""How a life of an engine gets its process: forked from the fork server, or in an interpreter of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

from appliance.config import Config
from appliance.supervisor import specs
from appliance.supervisor.acquaintance import Key
from appliance.supervisor.engine import Engine
from appliance.supervisor.forkserver import ForkServer
from appliance.supervisor.lifecycle import Progressed, Stirred
from appliance.supervisor.process import Session, launch
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import EngineSpec

_IMPORTING: Final = 0.05  # of a start, when it begins to import

Post = Callable[[Engine, Progressed | Stirred, int | None], None]


class Starts:
    """One for the node."""

    def __init__(self, config: Config, runtime: Runtime, any_engine: EngineSpec, post: Post) -> None:
        """``any_engine``: what its environment has is what all have in common. ``post`` tells the node how a start gets on."""
        self._config = config
        self._runtime = runtime
        self._post = post
        environment = specs.environment(any_engine, runtime.directory, os.environ)
        self._forks = ForkServer(environment, config.engine.stall_s)

    async def session(self, engine: Engine, key: Key) -> Session:
        """A new process. Raises ``ForkError``, or ``OSError`` or ``ValueError`` for a command line that can't be."""
        engine.begin_log()
        self._runtime.prepare(key.engine, key.epoch)
        reader, writer = os.pipe()
        pid = 0
        try:
            pid = await self._begin(engine, key, writer)
            return Session(pid, reader, engine.log, lambda _: self._post(engine, Stirred(), key.epoch))
        except BaseException:
            os.close(reader)
            if pid:
                os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(writer)

    async def _begin(self, engine: Engine, key: Key, output: int) -> int:
        arguments = specs.arguments(engine.spec, self._runtime, self._config, key.epoch, os.getpid())
        environment = specs.environment(engine.spec, self._runtime.temporary(key.engine, key.epoch), os.environ)
        if not engine.spec.forked:
            return launch(specs.command(engine.spec, arguments), environment, output)
        if not self._forks.imported:
            self._post(engine, Progressed("importing vLLM", _IMPORTING), key.epoch)
        return await self._forks.fork(arguments, environment, output)

    async def close(self) -> None:
        """No engine is started any more."""
        await self._forks.close()
