"""A fast stand-in for ``appliance.engine.main``: speaks the channel and answers ``/health``, as it was told by ``SCRIPT``.

``SCRIPT`` is a comma-separated list: ``crash`` (says an error and exits 3 at once), ``bad-argument``, ``silent`` (starts, then never says
anything), ``dies`` (exits 1 shortly after it was ready), ``child`` (forks a child that sleeps), ``refuse`` (maps no peer),
``busy`` (can map none at first), ``gibberish`` (breaks the channel's protocol once it is ready), ``deaf`` (closes the channel then),
``mute`` (says nothing more then), ``spins`` (nor does it sleep), ``speechless`` (its server answers no more then), ``brief`` (ends soon
after the supervisor has hung up), ``semaphore`` (has a named one).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import threading
import time

import appliance.engine.link
from appliance.channel import ClosePeer, CoreReady, Down, Heartbeat, OpenPeer, PeerClosed, PeerOpened, Progress
from appliance.engine.life import bind_children, die_with, tell_stacks
from appliance.engine.link import Link, process_link

SCRIPT = set(os.environ.get("SCRIPT", "").split(","))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def main() -> None:
    options, uds = arguments()
    if "brief" in SCRIPT:
        appliance.engine.link._FORSAKEN_S = 0.1
    die_with(options.parent)
    bind_children()
    tell_stacks()
    if "crash" in SCRIPT:
        sys.exit("SomethingError: it was told to")
    if "bad-argument" in SCRIPT:
        sys.stderr.write("vllm: error: unrecognized arguments: --no-such\n")
        sys.exit(2)
    if "child" in SCRIPT and os.fork() == 0:
        time.sleep(600)
    if "silent" in SCRIPT:
        time.sleep(600)
    lock = multiprocessing.get_context("spawn").Lock() if "semaphore" in SCRIPT else None
    link = process_link(options.channel, options.engine, options.epoch, "core")
    link.send(Progress(stage="pretending", fraction=0.5))
    link.on_message(lambda message: answer(link, message))
    if "slow" in SCRIPT:
        load_slowly(link)
    threading.Thread(target=serve, args=(uds,), daemon=True).start()
    link.send(ready(options.engine))
    live(link)
    del lock


def arguments() -> tuple[argparse.Namespace, str]:
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser()
    for name in ("--engine", "--channel", "--cores"):
        parser.add_argument(name)
    for name in ("--epoch", "--parent"):
        parser.add_argument(name, type=int)
    rest = sys.argv[split + 1 :]
    return parser.parse_args(sys.argv[1:split]), rest[rest.index("--uds") + 1]


def ready(engine: str) -> CoreReady:
    return CoreReady(
        kv_blocks=100,
        block_tokens=16,
        max_model_len=1024,
        max_batched_tokens=512,
        max_running=8,
        sockets=(f"/nowhere/{engine}.kv",),
        lease_table=f"/nowhere/{engine}.leases",
    )


def answer(link: Link, message: Down) -> None:
    if isinstance(message, OpenPeer):
        error = f"can't use the KV of {message.peer}: told so" if SCRIPT & {"refuse", "busy"} else None
        link.send(PeerOpened(peer=message.peer, epoch=message.epoch, rank=0, error=error, refused="refuse" in SCRIPT))
        SCRIPT.discard("busy")
    elif isinstance(message, ClosePeer):
        sys.stdout.write(f"closed {message.peer} {message.epoch}\n")
        sys.stdout.flush()
        link.send(PeerClosed(peer=message.peer, epoch=message.epoch, rank=0))


def load_slowly(link: Link) -> None:
    for part in range(20):
        time.sleep(0.1)
        link.send(Progress(stage="pretending", fraction=0.5 + part / 40))


def serve(uds: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(uds)
        listener.listen()
        began = time.monotonic()
        while True:
            connection, _ = listener.accept()
            if "speechless" in SCRIPT and time.monotonic() - began > 0.5:
                time.sleep(600)
            with connection:
                connection.recv(4096)
                connection.sendall(OK)


def live(link: Link) -> None:
    if "dies" in SCRIPT:
        time.sleep(0.3)
        sys.exit("SomethingError: of old age")
    if "gibberish" in SCRIPT:
        time.sleep(0.3)
        link._socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    if "deaf" in SCRIPT:
        time.sleep(0.3)
        link._socket.shutdown(socket.SHUT_RDWR)
    if SCRIPT & {"mute", "spins"}:
        time.sleep(0.5)
        while "spins" in SCRIPT:
            pass
        time.sleep(600)
    while True:
        time.sleep(0.2)
        link.send(Heartbeat(at_ns=time.monotonic_ns(), running=0, waiting=0, fetching=0, kv_free=100, leased=0))


if __name__ == "__main__":
    main()
