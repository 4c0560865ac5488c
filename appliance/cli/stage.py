"""Engines on GPUs that are not there: which GPUs, which layout, and requests of what length. Pure but for files that are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliance import presets
from appliance.cli import on_gpus
from appliance.cli.arguments import told
from appliance.cli.asked import counted, longest, preset_layout
from appliance.config import Loaded
from appliance.costs.gpus import Gpu, gpu
from appliance.gpu.inventory import described
from appliance.simulator import scenario
from appliance.simulator.plan import EnginePlan
from appliance.supervisor.specs import Model
from web.words import ranges

_USUAL: Final = "8xH100"


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated, and why so."""

    scenario: scenario.Loaded
    layout: str
    why: str


def stage(loaded: Loaded, model: Model, gpus: str) -> Stage:
    """Of a model whose config.json is there. What nobody says is a preset's.

    Args:
        gpus: how many, and which: ``8xH100``; empty: those that the preset has its first layout for.

    Raises:
        ConfigError: there are no such GPUs, or no layout of the model fits on them.
    """
    preset = presets.load(Path(model.path).name) if model.preset else None
    own = next(iter(preset.layouts), None) if preset else None
    count, kind = counted(gpus or own or _USUAL)
    layout, why = _layout(loaded, model, preset, count, kind, planned=bool(gpus or preset))
    context = told(loaded.config).context or longest(preset, Path(model.path))
    played = scenario.Scenario(
        layout=layout,
        hardware=scenario.Hardware(gpu=kind.name, gpus=count),
        model=scenario.Model(config=model.path, name=model.name),
        engine=scenario.Engines(max_model_len=context),
    )
    return Stage(scenario=scenario.Loaded(played, Path()), layout=layout, why=why)


def _layout(
    loaded: Loaded, model: Model, preset: presets.Preset | None, count: int, kind: Gpu, *, planned: bool
) -> tuple[str, str]:
    """As somebody has set it; else a preset's own; else what ``serve`` would take on such GPUs. And why."""
    if "topology.layout" in loaded.origins:
        return loaded.config.topology.layout, "as it was asked for"
    own = preset_layout(preset, count, kind) if preset else None
    if own is not None:
        return own[1], f"the preset's for {own[0]}; --topology takes another one"
    if not planned:
        return loaded.config.topology.layout, "what is usual; --topology takes another one"
    found = on_gpus.seat(loaded.config, model, described(count, kind.name, kind.memory_bytes), None)
    return found.layout, "what serve would take on such GPUs (pd-appliance plan); --topology takes another one"


def notes(played: scenario.Scenario, plans: Sequence[EnginePlan], layout: str, why: str) -> tuple[str, ...]:
    """Where engines are, and why there, in words."""
    asked = played.engine.max_model_len
    shared = sorted({index for plan in plans if plan.sharers > 1 for index in plan.indexes})
    least = min(plan.settings.max_model_len for plan in plans)
    found = [
        f"GPUs: {played.hardware.gpus} × {gpu(played.hardware.gpu).name} (simulated)",
        f"{layout}: {why}",
        "; ".join(f"{plan.name} ({plan.role.value}) on GPU {ranges(list(plan.indexes))}" for plan in plans),
    ]
    if shared:
        where = f"GPU{'s' if len(shared) > 1 else ''} {ranges(shared)}"
        found.append(f"engines that share {where} are simulated with half of its memory and half of its speed each")
    if least < asked:
        found.append(
            f"requests are cut to {least:,} tokens, for which there is KV: vLLM would not start for {asked:,} (--max-model-len)"
        )
    return tuple(found)
