"""The fork server: imports vLLM once, and forks engines that begin where an import of their own would have ended.

    python -m appliance.engine.forkserver --parent PID

Orders come on its standard input, a socket. It has one thread and runs none of torch's operations, so that a fork of it is as good as
new; it never serves. An engine is forked twice: the process in between ends at once, the supervisor adopts the engine
(``PR_SET_CHILD_SUBREAPER``), and the fork server can be killed and replaced without harm to any engine.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import socket
import tempfile
import time
from typing import Final

from appliance.channel import Forked, ForkOrder, Frames, Imported, encode
from appliance.engine import main, spare
from appliance.engine.life import die_with, die_with_spawner, entitle

if __name__ == "__mp_main__":  # a spawned child of an engine: see main.py
    die_with_spawner()

_MODULES: Final = (
    "appliance.engine.recorder",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.model_executor.models.llama",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.engine.async_llm",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)
_ADOPTED_S: Final = 10.0
_MAX_DESCRIPTORS: Final = 4


def serve() -> None:
    """Fork until the supervisor closes the socket; in an engine, become it."""
    parser = argparse.ArgumentParser(prog="appliance.engine.forkserver")
    parser.add_argument("--parent", type=int, required=True)
    parent = parser.parse_args().parent
    die_with(parent)
    entitle("fork server")
    control = socket.socket(fileno=0)
    for name in _MODULES:
        importlib.import_module(name)
    from appliance.engine import mends  # it imports vLLM, which is to begin after the supervisor is known to live

    mends.keep_tqdm_in_one_process()
    mends.share_one_group_where_alone()
    mends.override_kernels_here()
    gc.collect()
    gc.freeze()  # what is imported stays: no collection shall touch, and so copy, the pages that engines share
    control.sendall(encode(Imported()))
    order = _serve(control)
    if order is not None:
        _become(order, parent)


def _serve(control: socket.socket) -> ForkOrder | None:
    """Answer orders. Returns the order in the engine that it asked for; None once the supervisor wants no more."""
    frames: Frames[ForkOrder] = Frames(ForkOrder)
    descriptors: list[int] = []
    while True:
        data, more, _, _ = socket.recv_fds(control, 1 << 16, _MAX_DESCRIPTORS)
        if not data:
            return None
        descriptors += more
        for order in frames.feed(data):
            pid = _fork()
            if pid == 0:
                control.close()
                _take_standard(descriptors)
                return order
            control.sendall(encode(Forked(pid=pid)))
            while descriptors:
                os.close(descriptors.pop())


def _fork() -> int:
    """The pid of a grandchild, for whoever adopts it; 0 in the grandchild."""
    tasks = os.listdir("/proc/self/task")
    if len(tasks) != 1:
        raise RuntimeError(f"the fork server has {len(tasks)} threads: what it forked could hang on their locks")
    reader, writer = os.pipe()
    between = os.fork()
    if between:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            pid = int(pipe.read())
        os.waitpid(between, 0)
        return pid
    engine = os.fork()
    if engine:
        os.write(writer, str(engine).encode())
        os._exit(0)
    os.close(reader)
    os.close(writer)
    return 0


def _take_standard(descriptors: list[int]) -> None:
    """Nothing to read, and the first descriptor of the order to write to."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (descriptors[0], 1), (descriptors[0], 2)):
        os.dup2(descriptor, standard)
    for descriptor in {nothing, *descriptors} - {0, 1, 2}:
        os.close(descriptor)


def _become(order: ForkOrder, parent: int) -> None:
    """Be an engine from now on, in a session of its own, the supervisor's child."""
    os.setsid()
    _wait_for(parent)
    os.environ.clear()
    os.environ.update(order.environment)
    tempfile.tempdir = None  # chosen at an import, from the fork server's TMPDIR
    options, vllm_arguments = main.parse(order.arguments)
    main.bind(options)
    ranks = main.ranks(vllm_arguments)
    spare.keep(ranks if ranks > 1 else 0)  # the only rank of an engine is EngineCore itself
    main.serve(options, vllm_arguments)


def _wait_for(parent: int) -> None:
    """Until the supervisor has adopted this process; if it is gone, so is this."""
    deadline = time.monotonic() + _ADOPTED_S
    while os.getppid() != parent and time.monotonic() < deadline:
        time.sleep(0.001)
    die_with(parent)


if __name__ == "__main__":
    serve()
