"""The second SIGTERM: answers that are under way are given up, and every client is told so."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from pathlib import Path

import pytest
from product import appliance

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
LONG = {"model": "m", "prompt": [5] * 40, "max_tokens": 3000, "ignore_eos": True, "temperature": 0}


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


async def test_whole_answers_are_a_503_and_streams_end_with_an_error(random_model: Path) -> None:
    before = shared_memory()
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with appliance(Path(name), random_model) as server:
            whole = asyncio.create_task(server.post("/v1/completions", LONG))
            async with server.session.post(f"{server.url}/v1/completions", json={**LONG, "stream": True}) as stream:
                text = (await stream.content.readany()).decode()
                for _ in range(2):
                    server.process.send_signal(signal.SIGTERM)
                    await asyncio.sleep(0.3)
                text += (await stream.content.read()).decode()
            answer = await whole
            assert (answer.status, answer.json["error"]["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) > 0
            last = text.strip().rsplit("\n\n", 1)[-1]
            assert "shut down" in json.loads(last.removeprefix("data: "))["error"]["message"]
            assert "[DONE]" not in text
            async with asyncio.timeout(20):
                assert await server.process.wait() == 0
        [log] = Path(name).glob("*.log")
        assert "Traceback" not in log.read_text()
    assert shared_memory() <= before, "semaphores and segments would pile up with every start"
