"""Slowness that is older than the process: the real supervisor over simulated engines whose clocks are low from the start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "unit" / "configs" / "llama-3.1-8b"
START = re.compile(r" on (http://\S+)")


class Node:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self._session = url, session

    async def state(self) -> dict[str, Any]:
        async with self._session.get(self.url + "/api/node") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def slow(self, engine: str) -> None:
        body = {"kind": "clocks", "severity": 0.5}
        async with self._session.post(f"{self.url}/api/sim/engines/{engine}/fault", json=body) as answer:
            assert answer.status == 202, await answer.text()

    async def until(self, holds: Callable[[dict[str, Any]], bool], patience_s: float = 30.0) -> dict[str, Any]:
        async with asyncio.timeout(patience_s):
            while not holds(state := await self.state()):
                await asyncio.sleep(0.1)
        return state


@contextlib.asynccontextmanager
async def node(directory: Path, layout: str, calibrate_s: float) -> AsyncIterator[Node]:
    """Over engines that are as quick as an H100 and make some hundred steps a second."""
    command = [sys.executable, "-m", "appliance", "serve", "--engine", "sim", "--model", str(MODEL), "--port", "0"]
    command += ["--topology", layout, "--state-dir", str(directory / "state")]
    more = {"PYTHONPATH": str(ROOT), "PD_APPLIANCE_DIAGNOSIS_CALIBRATE_S": str(calibrate_s)}
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **more}, stdout=asyncio.subprocess.PIPE, cwd=directory
    )
    assert process.stdout is not None
    try:
        found = START.search((await asyncio.wait_for(process.stdout.readline(), 30)).decode())
        assert found is not None
        async with aiohttp.ClientSession() as session:
            yield Node(found.group(1), session)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 30)


def calibrated(state: dict[str, Any]) -> bool:
    return all(engine["calibration"] is not None for engine in state["engines"])


async def test_one_that_is_slow_from_the_start_stands_out_from_its_calibration_alone(tmp_path: Path) -> None:
    async with node(tmp_path, "2p1d", 2.0) as built:
        await built.slow("e1")
        state = await built.until(calibrated)
    ratios = [engine["calibration"]["against_like"] for engine in state["engines"]]
    assert ratios[1] > 1.2
    assert max(ratios[0], ratios[2]) < 1.15
    assert state["requests"]["total"] == 0
    assert (state["recent"], state["handoffs"]["failed"], state["verdict"]["state"]) == ([], 0, "ok")


async def test_what_was_kept_shows_slowness_that_is_older_than_the_process(tmp_path: Path) -> None:
    """Even where there is nothing to compare it with."""
    async with node(tmp_path, "3b", 6.0) as built:
        state = await built.until(calibrated)
        assert all((engine["calibration"]["slowdown"] or 1.0) < 1.15 for engine in state["engines"])
    assert len(list((tmp_path / "state" / "fits").glob("*.json"))) == 1
    async with node(tmp_path, "1b", 2.0) as built:
        await built.slow("e0")
        found = (await built.until(calibrated))["engines"][0]["calibration"]
    assert found["slowdown"] > 1.3
    assert found["against_like"] is None


async def test_it_can_be_off(tmp_path: Path) -> None:
    async with node(tmp_path, "1b", 0.0) as built:
        await built.until(lambda state: bool(state["ready"]))
        await asyncio.sleep(1.0)
        engine = (await built.state())["engines"][0]
    assert (engine["calibration"], engine["step_ms"]) == (None, None)
