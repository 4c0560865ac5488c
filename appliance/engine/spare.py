"""A spare process, forked while the engine has one thread and nothing but imports behind it, that becomes EngineCore.

vLLM's API process spawns EngineCore: a new interpreter, which imports everything again. By then the API process has threads and can't be
forked safely. So it forks a child *before* it becomes anything, and multiprocessing's first spawn is served by that child.
"""

from __future__ import annotations

import io
import multiprocessing.context
import os
import pickle
import socket
from multiprocessing import popen_fork, process, reduction, util
from typing import Any, Final

import torch

from appliance.engine.life import bind_children, die_with

context: Any = multiprocessing.context

_spawn: Final = context.SpawnProcess._Popen


def keep() -> None:
    """Fork the spare, and have multiprocessing use it. Returns in this process only."""
    engine = os.getpid()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        die_with(engine)
        _wait(theirs)
    theirs.close()
    spares = [(pid, ours)]

    def popen(target: Any) -> Any:
        return _Popen(target, *spares.pop()) if spares else _spawn(target)

    context.SpawnProcess._Popen = staticmethod(popen)


class _Popen(popen_fork.Popen):
    """What a ``Process`` of multiprocessing keeps of its child; here the child was there before."""

    method = "spare"

    def __init__(self, target: Any, pid: int, spare: socket.socket) -> None:
        self.pid = pid
        self._spare = spare
        super().__init__(target)

    def _launch(self, target: Any) -> None:
        buffer = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump((dict(os.environ), target), buffer)
        finally:
            context.set_spawning_popen(None)
        with self._spare:
            self._spare.sendall(buffer.getbuffer())
        self.sentinel = os.pidfd_open(self.pid)
        self.finalizer = util.Finalize(self, os.close, (self.sentinel,))

    def duplicate_for_child(self, descriptor: int) -> int:
        raise RuntimeError("the spare process takes no file descriptors")


def _wait(source: socket.socket) -> None:
    """Until something is to be run; never returns."""
    with source, source.makefile("rb") as stream:
        received = stream.read()
    code = 0
    try:
        code = _run(received) if received else 0
    finally:
        os._exit(code)


def _run(received: bytes) -> int:
    current = process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        environment, target = pickle.loads(received)
    finally:
        del current._inheriting  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))  # OpenMP read the fork server's long ago
    bind_children()
    return int(target._bootstrap())
