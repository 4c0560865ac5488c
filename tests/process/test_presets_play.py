"""Every preset on the simulated node: the whole appliance, on the GPUs and in the layout that the preset is made for, answers a chat."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from appliance import presets
from appliance.cli.asked import counted
from appliance.supervisor.topology import parse

ROOT = Path(__file__).parents[2]
START = re.compile(r": (\S+) as (\S+) on (http://\S+) \(simulated\)")


@pytest.mark.parametrize("name", presets.names())
async def test_it_answers_a_chat_and_says_everywhere_that_it_is_simulated(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "appliance", "serve", "--engine", "sim", "--model", name, "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PD_APPLIANCE_DIAGNOSIS_CALIBRATE_S": "0"}
        | {"STATE_DIRECTORY": str(tmp_path / "state")},
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    try:
        said = START.search((await asyncio.wait_for(process.stdout.readline(), 30)).decode())
        assert said is not None
        where, layout = next(iter(presets.load(name).layouts.items()))
        assert (said[1], said[2]) == (name, layout)
        count, kind = counted(where)
        assert await asyncio.wait_for(process.stdout.readline(), 30) == (
            f"GPUs: {count} × {kind.name} (simulated)\n".encode()
        )
        async with aiohttp.ClientSession(said[3]) as session:
            await _answers(session, name)
            await _shows(session, layout, kind.name)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 30)


async def _answers(session: aiohttp.ClientSession, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 6}
    async with asyncio.timeout(60):
        while (await session.get("/ready")).status != 200:
            await asyncio.sleep(0.1)
    async with session.post("/v1/chat/completions", json=body) as answer:
        found = await answer.json()
        assert answer.status == 200, found
        assert answer.headers["x-simulated"] == "true"
    assert found["choices"][0]["message"]["content"].strip()
    assert found["usage"]["completion_tokens"] == 6


async def _shows(session: aiohttp.ClientSession, layout: str, gpu: str) -> None:
    async with session.get("/api/node") as answer:
        node = await answer.json()
    places = parse(layout).places
    assert (node["simulated"], node["topology"], len(node["engines"])) == (True, layout, len(places))
    assert {one["name"] for one in node["gpus"]} == {gpu}
    assert [one["index"] for one in node["gpus"]] == sorted({one["index"] for one in node["gpus"]}), "one line for each"
    async with session.get("/") as answer:
        page = await answer.text()
    assert "<title>simulated: " in page
    assert f"{gpu} (simulated)" in page
    async with session.get("/metrics") as answer:
        assert 'simulated="true"' in await answer.text()
