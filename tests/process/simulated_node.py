"""``pd-appliance serve`` as a process, and its other commands: for tests of what comes of a whole node over simulated engines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "unit" / "configs" / "llama-3.1-8b"


class Node:
    """One life of it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def url(self) -> str:
        return re.findall(r" on (http://\S+)", self._log.read_text())[-1]

    def until(self, condition: Callable[[], Any], timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.process.poll() is None and time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.25)
        return found

    def ready(self) -> bool:
        """Each of its engines has been."""
        said = self._log.read_text()
        engines = set(re.findall(r"^(e\d) .* starting", said, re.MULTILINE))
        return bool(engines) and engines == set(re.findall(r"^(e\d) .* ready$", said, re.MULTILINE))

    def incidents(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(command("incidents", "--url", self.url, "--json").stdout)
        return found


SERVE = ("-m", "appliance")
MISBEHAVING = (str(ROOT / "tests" / "process" / "scripted_appliance.py"),)


@contextmanager
def node(
    directory: Path, *arguments: str, program: Sequence[str] = SERVE, script: str = "", end: int = signal.SIGTERM
) -> Iterator[Node]:
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0", "--state-dir", str(directory / "state"), *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RUNTIME_DIRECTORY": str(directory / "run"), "SCRIPT": script},
        )
    found = Node(process, log)
    try:
        found.until(found.ready, 60)
        yield found
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(end)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        assert process.returncode == (0 if end == signal.SIGTERM else -end), log.read_text()[-3000:]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
