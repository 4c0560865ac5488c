"""The parts of ``make gpu-check`` as they run, over what there is without a GPU: shared memory, and simulated engines."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from appliance.records import Card
from bench import gpu_engines, gpu_transport
from bench.gpu_report import Finding
from bench.servers import Serving

MODEL = Path(__file__).parents[1] / "unit" / "configs" / "llama-3.1-8b"


def test_every_way_is_measured_and_every_byte_is_looked_at(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_transport, "_MEMORY_BYTES", 8 << 20)
    monkeypatch.setattr(gpu_transport, "PIECES", (1, 64))
    monkeypatch.setattr(gpu_transport, "_BESIDE", 16)
    card = Card(index=0, uuid="GPU-0", name="none", memory_bytes=1, free_bytes=1)
    found = {one.what: one for one in gpu_transport.findings([card], short, "shared_memory")}
    ways = [one for what, one in found.items() if what in ("gpu0 → gpu0b, 64 KiB", "gpu0 → gpu0b, 4 MiB")]
    assert len(ways) == 2
    assert all("every byte right" in one.said and one.well for one in ways)
    beside = found["gpu0 → gpu0b, time of kernels beside transfers of 1 MiB"]
    assert "×, wanted is at most 1.05×" in beside.said


def test_memory_that_can_not_be_shared_ends_it_with_why(short: Path) -> None:
    card = Card(index=0, uuid="GPU-0", name="none", memory_bytes=1, free_bytes=1)
    [found] = gpu_transport.findings([card], short, "no_such_transport")
    assert found.well is False
    assert "unknown KV transport 'no_such_transport'" in found.said


async def test_engines_are_compared_and_a_killed_one_comes_back(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()

    def serving(layout: str) -> Serving:
        settings = {"engine": 'kind = "sim"', "diagnosis": "calibrate_s = 0"}
        return Serving(layout=layout, arguments=(), settings=settings)

    def free() -> int:
        """More and more, as if what was killed gave its memory back."""
        return int(time.monotonic() - began) << 31

    monkeypatch.setattr(gpu_engines, "serving", serving)
    monkeypatch.setattr(
        gpu_engines, "_PLAN", gpu_engines._PLAN.__class__(model="bench", requests=8, prompt_tokens=300, output_tokens=4)
    )
    found: list[Finding] = [one async for one in gpu_engines.findings("m", MODEL, short, 2, free)]
    said = {one.what: one for one in found}
    assert said["m 1p1d starts"].well
    assert said["m 2b starts"].well
    assert said["m: time until a killed prefill engine's memory is free again"].well
    assert said["m: hand-offs"].well
    assert [one.what for one in found if "tokens, 1 at once" in one.what] == [
        "m 1p1d, 300 + 4 tokens, 1 at once",
        "m 2b, 300 + 4 tokens, 1 at once",
    ]
    assert any("against those beside KV from the prefix cache" in what for what in said)
