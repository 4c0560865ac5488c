"""``pd-appliance top`` and ``why`` over a real simulated node, in a real terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

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
        self._log = directory / "log"
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--state-dir", str(self._directory / "state")]
        own = environment(RUNTIME_DIRECTORY=str(self._directory))
        with self._log.open("w") as log:
            self._process = subprocess.Popen([*SERVE, *arguments], env=own, stdout=log, stderr=log)
        wait(lambda: self._process.poll() is not None or self._serves(), "the node did not start", 60)
        assert self._process.poll() is None, self._log.read_text()

    def _serves(self) -> bool:
        found = re.search(r"http://\S+:(\d+)", self._log.read_text())
        if found is None:
            return False
        self.port = int(found[1])
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="pd-", dir="/tmp") as directory:
        made = Node(Path(directory))
        made.start()
        yield made
        made.stop()


def wait(until: Callable[[], bool], otherwise: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, **more: str) -> None:
        self._master, slave = pty.openpty()
        self.said = b""
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(**more),
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), start_new_session=True,
        )  # fmt: skip
        self._slave = slave

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read(self, seconds: float = 0.05) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            self.said += os.read(self._master, 65536)

    def until(self, text: str, seconds: float = 30.0) -> None:
        """Something drawn from now on."""
        seen = len(self.said)

        def drawn() -> bool:
            self.read()
            return text in plain(self.said[seen:])

        wait(drawn, f"{text!r} did not come", seconds)

    def ends(self) -> int:
        """Its exit code."""

        def ended() -> bool:
            self.read()
            return self.process.poll() is not None

        wait(ended, "it did not end")
        self.read(0.2)
        return int(self.process.returncode)

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    @property
    def stopped(self) -> bool:
        """By a signal."""
        self.read()
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @property
    def restored(self) -> bool:
        """Screen, cursor and modes are as they were."""
        screen = self.said.rfind(NORMAL) > self.said.rfind(ALTERNATE) and self.said.count(ALTERNATE) == self.said.count(
            NORMAL
        )
        return screen and self.said.rfind(CURSOR) >= 0 and self.modes == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@contextlib.contextmanager
def terminal(*arguments: str, **more: Any) -> Iterator[Terminal]:
    made = Terminal(*arguments, **more)
    try:
        yield made
    finally:
        made.close()


def plain(said: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))


@pytest.mark.parametrize("keys", [b"q", b"\x03", b"\x1b"], ids=["q", "Ctrl-C", "Escape"])
def test_a_key_ends_it_with_the_terminal_as_it_was(node: Node, keys: bytes) -> None:
    with terminal("top", "--url", node.url) as screen:
        screen.until("OK No bottleneck")
        assert "SIMULATED" in plain(screen.said)
        assert b"\x1b[1;32m" in screen.said, "in colour"
        assert screen.modes != screen.before, "keys come one by one"
        screen.type(b"\x1b[Ax")  # an arrow is no Escape
        screen.until("OK No bottleneck")
        screen.type(keys)
        assert screen.ends() == 0
        assert screen.restored


def test_no_colour_another_size_and_the_end_by_a_signal(node: Node) -> None:
    with terminal("top", "--url", node.url, columns=150, rows=40, NO_COLOR="1") as screen:
        screen.until("prompt tok/s")
        assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", screen.said)
        screen.resize(60, 12)
        screen.until("KV out/s")
        screen.process.send_signal(signal.SIGTERM)
        assert screen.ends() == 0
        assert screen.restored


def test_a_terminal_that_can_not_be_drawn_on_gets_it_once(node: Node) -> None:
    with terminal("top", "--url", node.url, TERM="dumb") as screen:
        assert screen.ends() == 0
        assert b"\x1b" not in screen.said
        assert "OK No bottleneck" in plain(screen.said)


def test_suspended_it_gives_the_terminal_back_and_it_goes_on_where_it_was(node: Node) -> None:
    with terminal("top", "--url", node.url) as screen:
        screen.until("OK No bottleneck")
        screen.process.send_signal(signal.SIGTSTP)
        wait(lambda: screen.stopped, "it did not stop")
        screen.read(0.2)  # what it had written before
        assert screen.restored
        screen.process.send_signal(signal.SIGCONT)
        screen.until("OK No bottleneck")
        assert screen.modes != screen.before
        screen.type(b"q")
        assert screen.ends() == 0
        assert screen.restored


def test_a_node_that_goes_away_is_told_and_comes_back_by_itself(node: Node) -> None:
    with terminal("top", "--url", node.url, "--interval", "0.3", rows=30) as screen:
        screen.until("OK No bottleneck")
        node.stop()
        screen.until("NO ANSWER from")
        screen.until("as of ")
        node.start()
        screen.until("OK No bottleneck")
        screen.type(b"q")
        assert screen.ends() == 0
        assert screen.restored


def test_what_is_piped_is_one_frame(node: Node) -> None:
    said = run("top", "--url", node.url)
    assert said.startswith("● OK No bottleneck")
    assert "\x1b" not in said


def test_why_knows_a_real_request(node: Node) -> None:
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 8}).encode()
    headers = {"x-request-id": "asked-by-a-test", "content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{node.url}/v1/completions", body, headers), timeout=30).close()
    said = run("why", "asked-by", "--url", node.url)
    assert said.startswith("SIMULATED\nasked-by-a-test · /v1/completions · in one piece · ok")
    assert all(stage in said for stage in ("queue", "prefill", "transfer", "first step", "first token"))
    assert "e0 → e1" in said
    explained = json.loads(run("why", "--slowest", "--json", "--url", node.url))
    assert explained["timeline"]["id"] == "asked-by-a-test"
    assert sum(part["duration_s"] for part in explained["parts"]) == pytest.approx(explained["first_s"])


def run(*arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [("top", "--once"), ("why", "--slowest")])
def test_no_node_is_one_line_with_the_remedy(arguments: tuple[str, ...]) -> None:
    command = [*COMMAND, *arguments, "--url", "http://127.0.0.1:1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"pd-appliance: no node answers at .*--url\n", done.stderr)
