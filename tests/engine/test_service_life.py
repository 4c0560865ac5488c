"""Under a service manager: the supervisor is killed, and the service is back, with nothing of the old life."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import aiohttp
import psutil
import pytest
from product import ENGINE_ARGUMENTS, READY_S, ROOT
from service_manager import ServiceManager, environment
from test_stopping import shared_memory

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]
UNIT = ROOT / "systemd" / "pd-appliance.service"
QUESTION = {"model": "m", "prompt": list(range(200)), "max_tokens": 8, "temperature": 0}


def service(directory: Path, model: Path) -> ServiceManager:
    settings = {
        "PD_APPLIANCE_MODEL_PATH": str(model),
        "PD_APPLIANCE_MODEL_NAME": "m",
        "PD_APPLIANCE_ENGINE_ARGS": json.dumps(ENGINE_ARGUMENTS),
        "PD_APPLIANCE_ENGINE_KV_CACHE_BYTES": str(128 << 20),
    }
    command = [sys.executable, "-m", "appliance", "serve", "--port", "0"]
    return ServiceManager(UNIT, command, environment(directory, **settings), directory)


async def answer(running: ServiceManager) -> str:
    url = re.findall(r" on (http://\S+)", running.log.read_text())[-1]
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions", json=QUESTION) as reply:
        assert reply.status == 200, await reply.text()
        return str((await reply.json())["choices"][0]["text"])


async def test_kill_9_of_the_supervisor(random_model: Path) -> None:
    before = shared_memory()
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with service(Path(name), random_model) as running:
            old = await running.until_ready(timeout_s=READY_S)
            said = await answer(running)
            assert len(old.members) >= 5
            os.kill(old.pid, signal.SIGKILL)
            new = await running.until_ready(2, timeout_s=READY_S)
            assert old.result == "signal"
            assert await answer(running) == said
            assert not old.alive() and not psutil.pid_exists(old.pid)
            assert not {process.pid for process in old.members} & {process.pid for process in new.members}
            assert len(list((Path(name) / "run").iterdir())) == 1, "the old one's sockets and lease tables went"
        assert (new.result, new.process.returncode, new.left) == ("success", 0, [])
    assert shared_memory() <= before
