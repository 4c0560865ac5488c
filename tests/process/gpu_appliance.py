"""``pd-appliance`` on a machine with GPUs that are not there: NVML's real binding over a fake driver, and simulated engines where vLLM's
would begin. All that decides which engines there are, where, and what each is started with is real.

``GPUS``: how many; ``MIG``: those that are cut into parts, as in 0,1. ``tests/unit`` and ``tests/process``
are to be on the path.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pynvml as nv
from fake_nvml import GIB, FakeDriver, h100, installed
from msgspec.structs import replace

from appliance import cli
from appliance.checks import software
from appliance.cli import cast, on_gpus, serve
from appliance.gpu.nvml import Nvml, machine
from appliance.simulator import scenario, specs
from appliance.supervisor.specs import EngineSpec

MODEL = Path(__file__).parents[1] / "unit" / "configs" / "llama-3.1-8b"
made = on_gpus.engine_specs


def simulated(*args: Any, **more: Any) -> tuple[EngineSpec, ...]:
    """The engines that were decided on, run by another module that is told other things."""
    found = made(*args, **more)
    layout = args[0].layout
    described = scenario.Scenario(model=scenario.Model(config=str(MODEL), name=more["model"].name))
    plans = specs.specs(scenario.plans(scenario.Loaded(described, Path()), layout), more["model"].name)
    return tuple(
        replace(one, module="fake_vllm", arguments=(*one.arguments, *other.arguments[-2:]))
        for one, other in zip(found, plans, strict=True)
    )


def main() -> None:
    driver = FakeDriver(
        *(h100(uuid=f"GPU-{at}", used_bytes=GIB, links=[None] * 18) for at in range(int(os.environ["GPUS"])))
    )
    for index in filter(None, os.environ.get("MIG", "").split(",")):
        driver.gpus[int(index)].mig = ["MIG-1"]
    software.builds = lambda *_: "cuda"
    software.runtime = lambda *_: (13, 0)
    cast.machine = functools.partial(machine, lambda: nv)  # type: ignore[assignment]
    serve.Nvml = functools.partial(Nvml, lambda: nv)  # type: ignore[assignment,misc]
    on_gpus.engine_specs = simulated
    with installed(driver):
        cli.main()


if __name__ == "__main__":
    main()
