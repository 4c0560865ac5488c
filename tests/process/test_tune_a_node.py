"""``pd-appliance tune`` over a real supervisor and simulated engines, whose knee is known from the cost model."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from test_slow_from_the_start import MODEL, ROOT, node

from appliance.costs.gpus import gpu
from appliance.costs.huggingface import read
from appliance.costs.roofline import Batch, Roofline


async def test_it_finds_what_brute_force_over_the_cost_model_finds(tmp_path: Path) -> None:
    async with node(tmp_path, "1p1d", 0.0) as built:
        await built.until(lambda state: bool(state["ready"]))
        command = [sys.executable, "-m", "appliance", "tune", "--url", built.url, "--seconds", "12", "--json"]
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        found = json.loads(said)
        assert (await built.state())["requests"]["failed"] == 0
    assert process.returncode == 0
    assert (found["simulated"], found["engines"]) == (True, ["e0"])
    line = Roofline(read(MODEL), gpu("h100"))
    rates = {size: size / line.step(Batch([(size, 0)])).total_s for size in range(16, 8193, 16)}
    truth = min(size for size, rate in rates.items() if rate >= 0.9 * max(rates.values()))
    assert found["knee"]["tokens"] == pytest.approx(truth, rel=0.25), "quick, and on a machine that is not quiet"
