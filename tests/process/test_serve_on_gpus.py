"""``serve`` on a machine with GPUs, started for real: what it says, what its engines are given, and what the page shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATH = f"{ROOT}:{HERE}:{ROOT / 'tests' / 'unit'}"
START = re.compile(r" as (\S+) on (http://\S+)")


class Node:
    """``said``: its lines until it listened, and the notes after that."""

    def __init__(self, url: str, layout: str, session: aiohttp.ClientSession, said: list[str]) -> None:
        self.url, self.layout, self.said, self._session = url, layout, said, session

    async def get(self, path: str) -> str:
        async with self._session.get(self.url + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()

    async def engines(self) -> list[dict[str, Any]]:
        async with self._session.get(self.url + "/api/node") as answer:
            return list((await answer.json())["engines"])

    async def all_ready(self, layout: str) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            while True:
                async with self._session.get(self.url + "/api/node") as answer:
                    state = await answer.json()
                if state["topology"] == layout and all(one["state"] == "ready" for one in state["engines"]):
                    return list(state["engines"])
                await asyncio.sleep(0.1)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._session.post(self.url + path, json=body) as answer:
            assert answer.status < 300, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found


@contextlib.asynccontextmanager
async def node(directory: Path, notes: int, *arguments: str, **environment: str) -> AsyncIterator[Node]:
    command = [sys.executable, str(HERE / "gpu_appliance.py"), "serve", "--port", "0", "--model", "llama-3.1-8b"]
    command += ["--state-dir", str(directory / "state"), *arguments]
    more = {"PYTHONPATH": PATH, "PD_APPLIANCE_DIAGNOSIS_CALIBRATE_S": "0", **environment}
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **more}, stdout=asyncio.subprocess.PIPE, cwd=directory
    )
    assert process.stdout is not None
    try:
        said = [(await asyncio.wait_for(process.stdout.readline(), 30)).decode().rstrip() for _ in range(1 + notes)]
        found = START.search(said[0])
        assert found is not None, said
        async with aiohttp.ClientSession() as session:
            yield Node(found.group(2), found.group(1), session, said)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 30)


async def test_each_engine_is_given_a_gpu_of_its_own_and_it_is_said_why(tmp_path: Path) -> None:
    async with node(tmp_path, 3, GPUS="2") as built:
        assert built.layout == "2b"
        assert built.said[1] == "GPUs: 2 × NVIDIA H100 80GB HBM3, driver 580.82.07"
        assert "(predicted)" in built.said[2] and "the highest of all" in built.said[2]
        assert built.said[3] == "e0 (both) on GPU 0; e1 (both) on GPU 1"
        engines = await built.all_ready("2b")
        assert [engine["gpus"] for engine in engines] == [["GPU-0"], ["GPU-1"]]
        for engine in engines:
            log = await built.get(f"/api/engines/{engine['name']}/logs")
            assert f'"CUDA_VISIBLE_DEVICES={engine["gpus"][0]}"' in log
            assert "PYTORCH_ALLOC_CONF=expandable_segments:False" in log
        page = await built.get("/")
        assert "Why engines are where they are" in page
        assert "GPUs: 2 × NVIDIA H100 80GB HBM3, driver 580.82.07" in page


async def test_two_engines_share_one_gpu_and_answer_a_request_that_is_split(tmp_path: Path) -> None:
    async with node(tmp_path, 4, GPUS="2", MIG="0") as built:
        assert "not used: GPU 0: it is cut into parts (MIG)" in (await built.get("/api/node"))
        engines = await built.all_ready("1p1d")
        command = json.loads(await built.get("/api/engines/e1/command"))["command"]
        assert "--kv-cache-memory-bytes" in command, "it is told its half"
        assert [engine["gpus"] for engine in engines] == [["GPU-1"], ["GPU-1"]]
        body = {"model": "llama-3.1-8b", "prompt": "once upon a time", "max_tokens": 4}
        assert (await built.post("/v1/completions", body))["usage"]["completion_tokens"] == 4


async def test_another_layout_is_put_on_the_same_gpus(tmp_path: Path) -> None:
    async with node(tmp_path, 3, GPUS="4") as built:
        await built.all_ready("4b")
        await built.post("/api/topology", {"topology": "1p1d@tp2"})
        engines = await built.all_ready("1p1d@tp2")
        assert [engine["gpus"] for engine in engines] == [["GPU-0", "GPU-1"], ["GPU-2", "GPU-3"]]
        assert "1p1d@tp2: as it was asked for" in await built.get("/api/node")


async def test_where_no_gpu_can_be_used_it_ends_with_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, str(HERE / "gpu_appliance.py"), "serve", "--port", "0", "--model", "llama-3.1-8b"],
        env={**os.environ, "PYTHONPATH": PATH, "GPUS": "1", "MIG": "0"},
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert said.decode().startswith("pd-appliance: no GPU can be used: GPU 0: it is cut into parts (MIG)")
    assert said.decode().count("\n") == 1
