"""What a service manager is told, and how."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.herald import Herald, Moment, fields, words
from appliance.config import Config
from appliance.records import EngineState, EngineView, Role
from appliance.router.policy import none_ready
from appliance.supervisor import node as node_module
from appliance.supervisor import watch as watch_module
from appliance.supervisor.node import Node
from appliance.supervisor.notify import Notifier, complain, feeding_s, message
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.specs import environment, resolve_model, specs
from appliance.supervisor.topology import parse


def view(name: str, state: EngineState = EngineState.READY, **more: object) -> EngineView:
    return EngineView(name=name, role=Role.BOTH, state=state, epoch=1, socket="", **more)  # type: ignore[arg-type]


def moment(*views: EngineView, **more: object) -> Moment:
    return Moment(node="m as 1p1d", views=views, not_ready=none_ready(views), **more)  # type: ignore[arg-type]


# ---- words


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (moment(view("e0"), view("e1")), "serving m as 1p1d: 2 of 2 engines are ready"),
        (
            moment(view("e0"), view("e1", EngineState.BACKOFF, cause="killed by SIGKILL")),
            "serving m as 1p1d: 1 of 2 engines is ready; e1 has died and is started again: killed by SIGKILL",
        ),
        (
            moment(
                view("e0", EngineState.STARTING, stage="loading weights", progress=0.6),
                view("e1", EngineState.STARTING),
            ),
            "starting m as 1p1d: e0 is starting (loading weights, 60 %); e1 is starting (its process)",
        ),
        (
            moment(view("e0", EngineState.FAILED, cause="out of memory"), served=True),
            "not serving m as 1p1d: e0 has failed: out of memory",
        ),
        (moment(view("e0"), stopping=True, unfinished=3), "stopping: 3 answers are under way"),
        (moment(view("e0"), stopping=True, unfinished=1), "stopping: 1 answer is under way"),
        (moment(view("e0"), stopping=True), "stopping: no answer is under way, and the engines end"),
    ],
)
def test_words(now: Moment, says: str) -> None:
    assert words(now) == says


def test_ready_is_said_once_it_can_serve_and_stopping_once_it_ends() -> None:
    starting = moment(view("e0", EngineState.STARTING))
    assert set(fields(starting)) == {"STATUS"}
    assert fields(moment(view("e0")))["READY"] == "1"
    assert "READY" not in fields(Moment(node="m", views=[], not_ready="it ends", stopping=True)), (
        "stopped while it loads"
    )
    assert fields(moment(view("e0"), served=True, stopping=True))["STOPPING"] == "1"


# ---- the protocol


@pytest.fixture
def listener(short: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(short / "notify"))
        bound.settimeout(5)
        yield bound


def test_a_datagram_is_lines_and_a_value_is_one_line() -> None:
    assert (
        message({"READY": "1", "STATUS": "an error\nWATCHDOG=1\n  at é"})
        == "READY=1\nSTATUS=an error WATCHDOG=1 at é".encode()
    )
    long = message({"STATUS": "é" * 5000})
    assert len(long) < 4096
    assert long.decode().endswith("é"), "no character is cut in two"


@pytest.mark.parametrize("name", ["/nowhere/notify", "@pd-nobody-listens", "vsock:2:1234", "", "/\0", "/" + "x" * 200])
def test_nobody_listening_is_no_error(name: str) -> None:
    assert Notifier({"NOTIFY_SOCKET": name}).tell({"READY": "1"}) is False


def test_a_full_queue_neither_waits_nor_raises(short: Path, listener: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(short / "notify")})
    told = [notifier.tell({"WATCHDOG": "1"}) for _ in range(5000)]
    assert told[0] and not told[-1]
    notifier.close()
    notifier.close()
    assert notifier.tell({"READY": "1"}) is False


def test_an_abstract_name() -> None:
    name = f"pd-appliance-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + name)
        with contextlib.closing(Notifier({"NOTIFY_SOCKET": "@" + name})) as notifier:
            assert notifier.tell({"READY": "1"})
        assert bound.recv(100) == b"READY=1"


def test_the_cause_of_an_end_can_be_read(short: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short / "notify"))
    complain("server.port: too high")
    assert listener.recv(100) == b"STATUS=server.port: too high"


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "3", "WATCHDOG_PID": "me"}, None),
        ({}, None),
    ],
)
def test_how_often_the_watchdog_is_fed(variables: dict[str, str], seconds: float | None) -> None:
    assert feeding_s(variables, 7) == seconds


# ---- over a node


@pytest.fixture
def idle(short: Path) -> Node:
    """Its engines are never started."""
    config = Config()
    return Node(config, specs(config, parse("1p1d"), resolve_model(config), [0]), Runtime(short))


def heard(listener: socket.socket) -> list[bytes]:
    listener.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(listener.recv(4096))
    return found


@pytest.mark.parametrize("which", ["loop", "clock", "watch"])
async def test_the_watchdog_goes_hungry_when_something_that_supervises_hangs(
    short: Path, listener: socket.socket, idle: Node, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """While the event loop, the herald and everything else go on."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(short / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "60000")
    monkeypatch.setattr(node_module, "_CLOCK_S", 0.02)
    monkeypatch.setattr(node_module, "_TURN_S", 0.01)
    monkeypatch.setattr(watch_module, "TICK_S", 0.02)
    parts = {"loop": idle._run(), "clock": idle._tick(), "watch": idle._watch.run()}
    running = {name: asyncio.create_task(part) for name, part in parts.items()}
    herald = asyncio.create_task(Herald(Config(), "m", idle, lambda: "it loads", lambda: 0).run())
    await asyncio.sleep(0.5)
    fed = heard(listener).count(b"WATCHDOG=1")
    assert fed >= 3
    running[which].cancel()
    await asyncio.sleep(0.1)
    heard(listener)
    await asyncio.sleep(0.5)
    assert b"WATCHDOG=1" not in heard(listener)
    for task in (herald, *running.values()):
        task.cancel()
    await asyncio.gather(herald, *running.values(), return_exceptions=True)


async def test_what_was_not_taken_is_told_again(
    short: Path, listener: socket.socket, idle: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short / "later"))
    herald = asyncio.create_task(Herald(Config(), "m", idle, lambda: None, lambda: 0).run())
    await asyncio.sleep(0.05)
    (short / "notify").rename(short / "later")
    said = await asyncio.get_running_loop().run_in_executor(None, listener.recv, 4096)
    assert b"READY=1" in said.split(b"\n")
    herald.cancel()
    await asyncio.gather(herald, return_exceptions=True)


async def test_the_layout_that_is_told_is_that_of_now(
    short: Path, listener: socket.socket, idle: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short / "notify"))
    herald = asyncio.create_task(Herald(Config(), "m", idle, lambda: "it loads", lambda: 0).run())
    await asyncio.sleep(0.05)
    assert b"m as 1p1d" in b"".join(heard(listener))
    idle.actions.relabel("2b")
    await asyncio.sleep(0.4)
    assert b"m as 2b" in b"".join(heard(listener))
    herald.cancel()
    await asyncio.gather(herald, return_exceptions=True)


async def test_a_fault_in_the_words_ends_nothing(
    short: Path, listener: socket.socket, idle: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short / "notify"))

    def broken() -> str | None:
        raise ValueError("a fault")

    herald = asyncio.create_task(Herald(Config(), "m", idle, broken, lambda: 0).run())
    await asyncio.sleep(0.05)
    assert not herald.done()
    herald.cancel()
    await asyncio.gather(herald, return_exceptions=True)


async def test_without_a_service_manager_nothing_is_done(idle: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with asyncio.timeout(1):
        await Herald(Config(), "m", idle, lambda: None, lambda: 0).run()


def test_engines_inherit_none_of_it(short: Path) -> None:
    config = Config()
    [spec] = specs(config, parse("1b"), resolve_model(config), [0])
    given = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    assert {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "PATH"} & set(environment(spec, short, given)) == {"PATH"}
