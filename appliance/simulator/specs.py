"""What simulated engines are started with: everything as for vLLM, but for what runs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.simulator.gpus import uuid
from appliance.simulator.plan import EnginePlan
from appliance.supervisor.specs import EngineSpec

MODULE = "appliance.simulator.server"


def specs(plans: Sequence[EnginePlan], model: str) -> tuple[EngineSpec, ...]:
    """One per plan, on whatever core has time."""
    return tuple(
        EngineSpec(
            name=plan.name,
            role=plan.role,
            cores=(),
            tensor_parallel=plan.tensor_parallel,
            arguments=("--served-model-name", model, "--plan", msgspec.json.encode(plan).decode()),
            environment={"PYTHONUNBUFFERED": "1"},
            gpus=tuple(map(uuid, plan.indexes)),
            module=MODULE,
            forked=False,
        )
        for plan in plans
    )
