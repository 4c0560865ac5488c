"""A simulated engine that goes wrong as it was told by ``SCRIPT``; told nothing, it is as good as any.

``SCRIPT`` is a comma-separated list. Before it serves: ``crash`` (says an error and exits 1 at once), ``bad-argument`` (is given one),
``silent`` (never says anything), ``child`` (forks a child that sleeps), ``semaphore`` (has a named one, and named memory), ``slow``
(takes two seconds more to load). While it serves: ``refuse`` (maps no peer), ``busy`` (can map none at first), ``brief`` (ends soon
after the supervisor has hung up). And from half a second after it began to serve: ``dies`` (exits 1), ``gibberish`` (breaks the channel's
protocol), ``deaf`` (closes the channel), ``mute`` (its core does and says nothing more), ``spins`` (nor does it sleep), ``speechless``
(its server answers no more).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import sys
import threading
import time
from argparse import Namespace
from multiprocessing.shared_memory import SharedMemory

from starlette.applications import Starlette

from appliance.channel import Fault, Progress
from appliance.engine import link as channel
from appliance.engine.kv.handshake import Manifest, ask
from appliance.engine.link import Link, process_link
from appliance.errors import HandoffError
from appliance.simulator import links, server

SCRIPT = set(os.environ.get("SCRIPT", "").split(","))
AFTER_S = 0.5
EVER_S = 600.0

_serve = server.serve


def main() -> None:
    if "bad-argument" in SCRIPT:
        sys.argv.append("--no-such")
    if "refuse" in SCRIPT:
        links.refusal = refused  # type: ignore[attr-defined]
    if "busy" in SCRIPT:
        links.ask = asked_in_vain  # type: ignore[attr-defined]
    if "brief" in SCRIPT:
        channel._FORSAKEN_S = 0.1  # type: ignore[misc]
    server.serve = serve
    server.main()


async def serve(options: Namespace, more: Namespace) -> None:
    """In place of the simulated engine's own, which it comes to."""
    begin_badly()
    lock = multiprocessing.get_context("spawn").Lock() if "semaphore" in SCRIPT else None
    memory = SharedMemory(create=True, size=4096) if "semaphore" in SCRIPT else None
    link = process_link(options.channel, options.engine, options.epoch, "core")  # the simulated engine gets the same
    if "slow" in SCRIPT:
        load_slowly(link)
    asyncio.get_running_loop().call_later(AFTER_S, go_wrong, link)
    await _serve(options, more)
    del lock, memory


def begin_badly() -> None:
    if "crash" in SCRIPT:
        sys.exit("SomethingError: it was told to")
    if "child" in SCRIPT and os.fork() == 0:
        time.sleep(EVER_S)
    if "silent" in SCRIPT:
        time.sleep(EVER_S)


def load_slowly(link: Link) -> None:
    for part in range(20):
        time.sleep(0.1)
        link.send(Progress(stage="pretending", fraction=part / 40))


def go_wrong(link: Link) -> None:
    """It serves by now."""
    if "dies" in SCRIPT:
        sys.exit("SomethingError: of old age")
    if "gibberish" in SCRIPT:
        link._socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    if "deaf" in SCRIPT:
        link._socket.shutdown(socket.SHUT_RDWR)
    if SCRIPT & {"mute", "spins"}:
        link._dispatch(Fault(kind="hang", severity=1.0))
    if "spins" in SCRIPT:
        threading.Thread(target=spin, daemon=True).start()
    if "speechless" in SCRIPT:
        Starlette.__call__ = never_answer  # type: ignore[assignment,method-assign]


def spin() -> None:
    while True:
        pass


async def never_answer(*_: object) -> None:
    await asyncio.sleep(EVER_S)


def refused(ours: Manifest, theirs: Manifest) -> str:
    """In place of ``links.refusal``."""
    return f"can't use the KV of {theirs.engine}: told so"


def asked_in_vain(path: str, peer: str) -> tuple[Manifest, list[int]]:
    """In place of ``links.ask``, once."""
    links.ask = ask  # type: ignore[attr-defined]
    raise HandoffError(f"can't use the KV of {peer}: told so")


if __name__ == "__main__":
    main()
