"""``pd-appliance top`` and ``why`` over a real simulated node, in a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest

ROOT: Final = Path(__file__).parents[2]
MODEL: Final = ROOT / "tests" / "unit" / "configs" / "llama-3.1-8b"
COMMAND: Final = [sys.executable, "-m", "appliance"]
SERVE: Final = [*COMMAND, "serve", "--engine", "sim", "--model", str(MODEL)]
ALTERNATE, NORMAL = b"\x1b[?1049h", b"\x1b[?1049l"
CURSOR: Final = b"\x1b[?25h"


def environment(**more: str) -> dict[str, str]:
    cleared = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**cleared, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


class Node:
    """A simulated node as a process; can be ended, and started again where it was."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = 0
        self.url = ""

    async def start(self) -> None:
        arguments = ["--port", str(self.port), "--state-dir", str(self._directory / "state")]
        runtime = {"RUNTIME_DIRECTORY": str(self._directory)}
        self._process = await asyncio.create_subprocess_exec(
            *SERVE, *arguments, env=environment(**runtime), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        found = re.search(r"http://\S+:(\d+)", line)
        assert found is not None, line
        self.url, self.port = found[0], int(found[1])
        self._reading = asyncio.create_task(self._process.stdout.read())
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self.url}/ready") as answer:
                    if answer.status == 200:
                        return
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()
        self._reading.cancel()


@contextlib.asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Node]:
    node = Node(directory)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, **more: str) -> None:
        self._master, slave = pty.openpty()
        self.said = b""
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)
        self._process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(**more),
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), start_new_session=True,
        )  # fmt: skip
        self._slave = slave

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            self.said += os.read(self._master, 65536)

    async def until(self, text: str, seconds: float = 30.0) -> None:
        """Something drawn from now on."""
        began, seen = time.monotonic(), len(self.said)
        while text not in plain(self.said[seen:]):
            assert time.monotonic() - began < seconds, f"{text!r} did not come: {plain(self.said)[-3000:]}"
            self.read(0.05)
            await asyncio.sleep(0)

    async def ended(self, seconds: float = 15.0) -> int:
        """Its exit code."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            assert time.monotonic() < deadline, "it did not end"
            self.read(0.05)
            await asyncio.sleep(0)
        self.read(0.1)
        return self._process.returncode

    @property
    def restored(self) -> bool:
        """Screen, cursor and modes are as they were."""
        screen = self.said.rfind(NORMAL) > self.said.rfind(ALTERNATE) and self.said.count(ALTERNATE) == self.said.count(
            NORMAL
        )
        return screen and self.said.rfind(CURSOR) >= 0 and termios.tcgetattr(self._slave) == self.before

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)
        os.close(self._slave)


@contextlib.contextmanager
def terminal(*arguments: str, **more: object) -> AsyncIterator[Terminal]:  # type: ignore[misc]
    made = Terminal(*arguments, **more)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def plain(said: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))


async def test_top_lives_and_a_key_or_a_signal_ends_it_with_the_terminal_as_it_was(short: Path) -> None:
    """One node for all of it: it takes long to start."""
    async with served(short) as node:
        for keys in (b"q", b"\x03", b"\x1b"):
            with terminal("top", "--url", node.url) as screen:
                await screen.until("OK No bottleneck")
                assert "SIMULATED" in plain(screen.said)
                assert "\x1b[1;32m" in screen.said.decode(), "in colour"
                assert termios.tcgetattr(screen._slave) != screen.before, "keys come one by one"
                screen.type(b"\x1b[A")  # an arrow is no Escape
                screen.type(b"x")
                await screen.until("OK No bottleneck")
                screen.type(keys)
                assert await screen.ended() == 0, plain(screen.said)
                assert screen.restored
        with terminal("top", "--url", node.url, columns=150, rows=40, NO_COLOR="1") as screen:
            await screen.until("prompt tok/s")
            assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", screen.said), "no colour"
            screen.resize(60, 12)
            await screen.until("KV out/s")
            screen._process.send_signal(signal.SIGTERM)
            assert await screen.ended() == 0
            assert screen.restored
        with terminal("top", "--url", node.url, TERM="dumb") as screen:
            assert await screen.ended() == 0, "a terminal that can't be drawn on gets it once"
            assert b"\x1b" not in screen.said
            assert "OK No bottleneck" in plain(screen.said)
        await _suspended(node)
        await _lost_and_found(node)


async def _suspended(node: Node) -> None:
    """Ctrl-Z gives the screen back, and it goes on where it was."""
    with terminal("top", "--url", node.url) as screen:
        await screen.until("OK No bottleneck")
        screen._process.send_signal(signal.SIGTSTP)
        deadline = time.monotonic() + 10
        while not screen.said.endswith(NORMAL):
            assert time.monotonic() < deadline, screen.said[-200:]
            screen.read(0.1)
        while Path(f"/proc/{screen._process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert termios.tcgetattr(screen._slave) == screen.before
        screen._process.send_signal(signal.SIGCONT)
        await screen.until("OK No bottleneck")
        screen.type(b"q")
        assert await screen.ended() == 0
        assert screen.restored


async def _lost_and_found(node: Node) -> None:
    with terminal("top", "--url", node.url, "--interval", "0.3", rows=30) as screen:
        await screen.until("OK No bottleneck")
        await node.stop()
        await screen.until("NO ANSWER from")
        await screen.until("as of ")
        await node.start()
        await screen.until("OK No bottleneck")
        screen.type(b"q")
        assert await screen.ended() == 0
        assert screen.restored


async def test_what_is_piped_is_one_frame_and_why_knows_a_real_request(short: Path) -> None:
    async with served(short) as node:
        done = await _run("top", "--url", node.url)
        assert done.startswith("● OK No bottleneck")
        assert "\x1b" not in done
        async with aiohttp.ClientSession() as session:
            body = {"prompt": "Once upon a time", "max_tokens": 8}
            headers = {"x-request-id": "asked-by-a-test"}
            async with session.post(f"{node.url}/v1/completions", json=body, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
        said = await _run("why", "asked-by", "--url", node.url)
        assert "its first token came after" in " ".join(said.split()) or "It waited" in said or "took" in said
        assert "asked-by-a-test · /v1/completions · in one piece · ok" in said
        assert all(stage in said for stage in ("queue", "prefill", "transfer", "first step", "first token"))


async def _run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.parametrize("arguments", [("top", "--once"), ("why", "--slowest")])
async def test_no_node_is_one_line_with_the_remedy(arguments: tuple[str, ...]) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, "--url", "http://127.0.0.1:1", env=environment(), stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(r"pd-appliance: no node answers at .*--url\n", errors.decode())
