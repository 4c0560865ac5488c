"""The supervisor's end of the fork server, over scripts that play its part."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.supervisor import forkserver, process
from appliance.supervisor.forkserver import ForkError, ForkServer

OBLIGING = """
import socket, sys
from appliance.channel import Forked, ForkOrder, Frames, Imported, encode
control = socket.socket(fileno=0)
control.sendall(encode(Imported()))
frames = Frames(ForkOrder)
while data := socket.recv_fds(control, 65536, 4)[0]:
    for order in frames.feed(data):
        control.sendall(encode(Forked(pid=int(order.arguments[0]))))
"""


@asynccontextmanager
async def scripted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, import_s: float = 10.0
) -> AsyncIterator[ForkServer]:
    (tmp_path / "scripted_fork_server.py").write_text(script)
    monkeypatch.setattr(forkserver, "_MODULE", "scripted_fork_server")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    server = ForkServer({**os.environ, "PYTHONPATH": path}, import_s)
    try:
        yield server
    finally:
        await server.close()


async def refusal(server: ForkServer) -> ForkError:
    with pytest.raises(ForkError) as caught:
        await server.fork(["1"], {}, 2)
    return caught.value


async def test_orders_are_answered_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with scripted(monkeypatch, tmp_path, OBLIGING) as server:
        assert not server.imported
        assert await asyncio.gather(*(server.fork([str(n)], {}, 2) for n in range(5))) == [0, 1, 2, 3, 4]
        assert server.imported


async def test_what_it_said_before_it_ended_is_the_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with scripted(monkeypatch, tmp_path, "import no_such_package") as server:
        error = await refusal(server)
        assert "No module named 'no_such_package'" in error.exit.cause
        assert error.exit.terminal


async def test_a_silent_one_is_given_up_and_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with scripted(monkeypatch, tmp_path, "import time; time.sleep(60)", import_s=0.3) as server:
        error = await refusal(server)
        assert "does not answer" in error.exit.cause
        assert not error.exit.terminal
        (tmp_path / "scripted_fork_server.py").write_text(OBLIGING)
        server._import_s = 10.0
        assert await server.fork(["7"], {}, 2) == 7


async def test_gibberish_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "import os, time; os.write(0, b'HTTP/1.1 200 OK and more'); time.sleep(60)"
    async with scripted(monkeypatch, tmp_path, script) as server:
        assert "not an engine channel" in (await refusal(server)).exit.cause


async def test_closing_ends_it_and_an_order_that_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with scripted(monkeypatch, tmp_path, "import time; time.sleep(60)") as server:
        waiting = asyncio.create_task(refusal(server))
        await asyncio.sleep(0.2)
        running = server._running
        assert running is not None
        await server.close()
        async with asyncio.timeout(5):
            await waiting
        assert running.ended


async def test_once_closed_it_is_not_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with scripted(monkeypatch, tmp_path, "import time; time.sleep(60)") as server:
        waiting = [asyncio.create_task(refusal(server)) for _ in range(2)]
        await asyncio.sleep(0.2)
        running = server._running
        await server.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)
        assert server._running is running


async def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        process.launch(["/no/such/program"], {}, 2)
