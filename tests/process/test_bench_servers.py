"""Servers that the benchmarks start: nothing of them is left."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bench import servers
from bench.load import Target

_HOLDS = """
import signal, sys, time
from multiprocessing import shared_memory
signal.signal(signal.SIGTERM, {on_term})
held = shared_memory.SharedMemory(create=True, size=4096)
print(held.name, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("on_term", ["signal.SIG_IGN", "lambda *_: sys.exit(3)", "signal.SIG_DFL"])
async def test_the_memory_that_a_server_shared_goes_with_it_however_it_ends(
    on_term: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "STOP_S", 0.5)
    log = tmp_path / "log"
    command = ["-c", _HOLDS.format(on_term=on_term)]
    async with servers.process("one that holds memory", command, {}, Target("http://127.0.0.1:9"), log) as server:
        await server.until(lambda: _said(log))
        held = Path("/dev/shm") / log.read_text().strip()
        assert held.exists()
    assert server.returncode == {"signal.SIG_IGN": -signal.SIGKILL, "signal.SIG_DFL": -signal.SIGTERM}.get(on_term, 3)
    assert not held.exists()
    assert not servers._members(server.pid)


async def _said(log: Path) -> bool:
    return log.read_text().endswith("\n")
