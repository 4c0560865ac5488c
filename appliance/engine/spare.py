"""Spare processes, forked while the engine has one thread and nothing but imports behind it, that become EngineCore and its workers.

vLLM's API process spawns EngineCore, and EngineCore the worker of each tensor-parallel rank: new interpreters, which import everything
again. By then their parents have threads and can't be forked safely. So the engine forks a child *before* it becomes anything, and that
child those that will be its own; multiprocessing's first spawns are served by them.
"""

from __future__ import annotations

import io
import multiprocessing.context
import os
import pickle
import socket
from multiprocessing import popen_fork, popen_spawn_posix, process, reduction, util
from typing import Any, Final

import torch

from appliance.engine.life import bind_children, die_with

context: Any = multiprocessing.context

_spawn: Final = context.SpawnProcess._Popen
_MOST_DESCRIPTORS: Final = 32
_FIRST_DESCRIPTOR: Final = 200  # where a spare, which has hardly any open, puts those that it is sent

Spare = tuple[int, socket.socket]  # its pid, and where it waits for what it is to become


def keep(workers: int = 0) -> None:
    """Fork a spare with ``workers`` spares of its own, and have multiprocessing use it. Returns in this process only."""
    _use([_fork(workers)])


def _fork(workers: int) -> Spare:
    parent = os.getpid()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        die_with(parent)
        _use([_fork(0) for _ in range(workers)])
        _wait(theirs)
    theirs.close()
    return pid, ours


def _use(spares: list[Spare]) -> None:
    def popen(target: Any) -> Any:
        return _Popen(target, *spares.pop(0)) if spares else _spawn(target)

    context.SpawnProcess._Popen = staticmethod(popen)


class _Popen(popen_fork.Popen):
    """What a ``Process`` of multiprocessing keeps of its child; here the child was there before."""

    method = "spare"
    DupFd = popen_spawn_posix.Popen.DupFd

    def __init__(self, target: Any, pid: int, spare: socket.socket) -> None:
        self.pid = pid
        self._spare = spare
        self._descriptors: list[int] = []
        super().__init__(target)

    def _launch(self, target: Any) -> None:
        buffer = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump((dict(os.environ), target), buffer)
        finally:
            context.set_spawning_popen(None)
        with self._spare:
            socket.send_fds(self._spare, [b"!"], self._descriptors)
            self._spare.sendall(buffer.getbuffer())
            self._spare.shutdown(socket.SHUT_WR)  # spares forked later have this end, too: closing it would not tell
        self.sentinel = os.pidfd_open(self.pid)
        self.finalizer = util.Finalize(self, os.close, (self.sentinel,))

    def duplicate_for_child(self, descriptor: int) -> int:
        """The number that it will have there."""
        self._descriptors.append(descriptor)
        return _FIRST_DESCRIPTOR + len(self._descriptors) - 1


def _wait(source: socket.socket) -> None:
    """Until something is to be run; never returns."""
    with source:
        told, descriptors, _, _ = socket.recv_fds(source, 1, _MOST_DESCRIPTORS)
        with source.makefile("rb") as stream:
            received = stream.read()
    code = 0
    try:
        _place(descriptors)
        code = _run(received) if told else 0
    finally:
        os._exit(code)


def _place(descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors, _FIRST_DESCRIPTOR):
        os.dup2(descriptor, number, inheritable=False)
        os.close(descriptor)


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
