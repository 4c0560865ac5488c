"""What the node keeps of one engine, and what it shows of it."""

from __future__ import annotations

from collections import deque

from appliance.channel import CoreReady
from appliance.records import EngineView
from appliance.supervisor.acquaintance import Acquaintances, Key
from appliance.supervisor.channel_server import Connection
from appliance.supervisor.lifecycle import Life
from appliance.supervisor.process import LOG_LINES, Session
from appliance.supervisor.specs import EngineSpec
from appliance.supervisor.topology import Place
from appliance.supervisor.vitals import Vitals


class Engine:
    """One engine, through all of its lives. Only the node writes here."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.life = Life()
        self.spawning = False  # its process is on the way
        self.process: Session | None = None
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.connections: dict[tuple[str, int], Connection] = {}
        self.core: CoreReady | None = None
        self.stopped_ticks = 0  # for which a process of it has been stopped while it starts
        self.moved_bytes = 0  # by its processes, when last looked at
        self.vitals: Vitals | None = None  # once it has served
        self.cpu_s = 0.0  # used by its processes, when last looked at
        self.weight = 1.0  # in routing
        self.role = spec.role  # in routing, too: nothing in its processes depends on it

    @property
    def key(self) -> Key:
        return Key(self.spec.name, self.life.epoch)

    @property
    def place(self) -> Place:
        return Place(self.spec.name, self.role, self.spec.tensor_parallel)

    @property
    def lives(self) -> bool:
        """False between the end of a life and the next one's start: what is still said then means nothing."""
        return self.spawning or self.process is not None

    @property
    def core_connection(self) -> Connection | None:
        return self.connections.get(("core", 0))

    def ranks(self) -> dict[int, Connection]:
        """The processes that hold KV memory: the workers, or EngineCore where its only worker is inside it."""
        workers = {rank: connection for (kind, rank), connection in self.connections.items() if kind == "worker"}
        return workers or ({0: self.core_connection} if self.core_connection else {})

    def begin_log(self) -> None:
        self.log.append(self._mark())

    def last_words(self) -> list[str]:
        """What this life has said. (An earlier one's errors are no reason for its end.)"""
        lines = list(self.log)
        return lines[lines.index(self._mark()) + 1 :] if self._mark() in lines else lines

    def _mark(self) -> str:
        return f"--- life {self.life.epoch} of {self.spec.name} ---"

    def forget_life(self) -> None:
        """It is over."""
        self.process = None
        self.core = None
        self.vitals = None
        self.cpu_s = 0.0
        self.stopped_ticks = 0
        self.connections.clear()

    def view(self, socket: str, acquaintances: Acquaintances) -> EngineView:
        """``socket``: where its OpenAI server listens."""
        life, core, spec = self.life, self.core, self.spec
        return EngineView(
            name=spec.name,
            role=self.role,
            state=life.state,
            epoch=life.epoch,
            socket=socket,
            pid=life.pid,
            gpus=spec.gpus,
            cores=spec.cores,
            stage=life.stage,
            progress=life.progress,
            since_ns=life.since_ns,
            restarts=life.restarts,
            cause=life.cause,
            restarting=life.restarting,
            peers=acquaintances.peers(self.key),
            peer_errors=acquaintances.errors(self.key),
            weight=self.weight,
            core_pid=self.core_connection.hello.pid if self.core_connection else None,
            worker_pids=tuple(
                connection.hello.pid for (kind, _), connection in self.connections.items() if kind == "worker"
            ),
            max_batched_tokens=core.max_batched_tokens if core else 2048,
            max_running=core.max_running if core else 256,
            max_model_len=core.max_model_len if core else 0,
            block_tokens=core.block_tokens if core else None,
            kv_blocks=core.kv_blocks if core else None,
        )
