"""``pd-appliance simulate`` that is cut short leaves nothing behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from appliance.cli.simulate import end

SCENARIO = Path(__file__).parents[2] / "examples" / "scenarios" / "gpt-oss-120b-8xh100.toml"


@pytest.fixture
def running() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """It, and the processes that simulate for it, which have begun what would take them minutes."""
    command = [sys.executable, "-m", "appliance", "simulate", "--scenario", str(SCENARIO), "--duration", "20000"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=_hears_ctrl_c
    )
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        found = psutil.Process(process.pid).children()
        children = [child for child in found if "spawn_main" in " ".join(child.cmdline())]
    time.sleep(2)
    yield process, children
    process.kill()
    process.communicate()


def _hears_ctrl_c() -> None:
    """Also where a shell runs these tests in the background, and has them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_it_at_once_and_without_a_traceback(
    running: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    process, children = running
    for one in (process, *children):  # as a terminal does
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):  # some end by themselves meanwhile
            one.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert children
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_whoever_simulates_ends_with_it(running: tuple[subprocess.Popen[str], list[psutil.Process]]) -> None:
    process, children = running
    process.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_no_thread_of_it_is_left_for_python_to_wake_as_it_exits() -> None:
    """Python closed the pipe to such a thread while it wrote to it, now and then, and said so in a traceback."""
    before = set(threading.enumerate())
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    unfinished = pool.submit(time.sleep, 600)
    assert set(threading.enumerate()) - before
    end(pool)
    assert set(threading.enumerate()) <= before
    assert unfinished.done()
