"""Spare processes: what multiprocessing spawns is they, with all that it is handed, and they die with their parents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="the CPU engine is not installed")

SCRIPT = """
import json, multiprocessing, os, sys, time
from appliance.engine import spare
from appliance.engine.life import bind_children, die_with_spawner

if __name__ == "__mp_main__":
    die_with_spawner()

def worker(number, said, lock):
    with lock:
        said.send((number, os.getpid(), os.getppid(), os.environ["TOLD"]))
    time.sleep(60)

def core(said):
    os.environ["TOLD"] = "by core"
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    for number in range(3):
        mine, theirs = context.Pipe()
        context.Process(target=worker, args=(number, theirs, lock), daemon=False).start()
        theirs.close()
        said.send(mine.recv())
    time.sleep(60)

if __name__ == "__main__":
    bind_children()
    spare.keep(2)
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=core, args=(theirs,))
    process.start()
    print(json.dumps([process.pid, *(mine.recv() for _ in range(3))]), flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def interpreter_of_its_own(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_spares_become_what_is_spawned_and_die_with_their_parents(tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    core, *workers = json.loads(process.stdout.readline())
    pids = [pid for _, pid, _, _ in workers]
    assert [number for number, *_ in workers] == [0, 1, 2]
    assert [parent for _, _, parent, _ in workers] == [core] * 3
    assert {told for *_, told in workers} == {"by core"}, "they get the environment of whoever spawns"
    assert [interpreter_of_its_own(pid) for pid in (core, *pids)] == [False, False, False, True], (
        "there were two spares"
    )
    os.kill(core, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a worker outlives EngineCore"
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=10)
