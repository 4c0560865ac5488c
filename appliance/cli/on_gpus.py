"""Engines on this machine's GPUs: which, or why none, and what was decided, in words. Pure but for a hub that is asked what a model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from appliance import presets
from appliance.checks import software
from appliance.cli.arguments import Told, told
from appliance.cli.asked import (
    SMALL,
    USUAL,
    Asked,
    as_asked,
    chosen,
    engine_specs,
    kind,
    known,
    longest,
    placed_on,
)
from appliance.config import Config
from appliance.costs import huggingface
from appliance.errors import ConfigError, NotNowError
from appliance.gpu.inventory import visible
from appliance.planner.cards import usable
from appliance.planner.node import Targets
from appliance.planner.wanted import Placement
from appliance.records import Inventory
from appliance.supervisor.specs import DEMO_CONTEXT, EngineSpec, Model
from web.words import ranges


class Seated(msgspec.Struct, frozen=True, kw_only=True):
    """Engines on GPUs. ``notes``: why so, line by line."""

    layout: str
    specs: tuple[EngineSpec, ...]
    notes: tuple[str, ...]


def available(inventory: Inventory, variables: Mapping[str, str], runtime: tuple[int, int] | None) -> Inventory:
    """The GPUs that engines may see. ``runtime``: the CUDA that torch is built with.

    Raises:
        NotNowError: there is none, or its driver is too old.
        ConfigError: ``CUDA_VISIBLE_DEVICES`` names one that isn't there.
    """
    if old := software.too_old(inventory, runtime):
        raise NotNowError(old)
    found = seen(inventory, variables)
    if not found.cards:
        raise NotNowError(
            f"vLLM's CUDA build is installed and finds no NVIDIA GPU: {found.trouble or 'this machine has none'}. "
            "Where there is to be none, make clean serve CPU=1 installs the CPU build"
        )
    return found


def seen(inventory: Inventory, variables: Mapping[str, str]) -> Inventory:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves; where these are none, ``trouble`` says so. Raises ``ConfigError``, as ``visible``."""
    named = variables.get("CUDA_VISIBLE_DEVICES")
    if named is None or not inventory.cards:
        return inventory
    found = visible(inventory, named)
    return found if found.cards else replace(found, trouble=f"CUDA_VISIBLE_DEVICES={named!r} shows none of its GPUs")


def seat(config: Config, model: Model, inventory: Inventory, layout: str | None) -> Seated:
    """Engines of ``layout``, or of the best one. Raises ``ConfigError`` that says what stands against it."""
    preset = presets.load(Path(model.path).name) if model.preset else None
    loaded = Model(preset.repository, model.name, False) if preset else model
    said = told(config)
    targets = Targets(ttft_s=config.slo.ttft_s, itl_s=config.slo.itl_s, share=config.slo.share)
    try:
        asked = _asked(said, model, loaded, preset, inventory)
    except ConfigError as error:
        return _unplanned(config, loaded, preset, inventory, layout, error)
    asked, placed = placed_on(asked, targets, layout)
    inventory = asked.inventory
    one = chosen(placed, layout, asked, targets)
    why = "as it was asked for" if layout else f"{placed.why}; --topology takes another one"
    specs = engine_specs(
        one, config, inventory=inventory, model=loaded, preset=preset, context=_said(config, asked.context)
    )
    return Seated(layout=one.layout, specs=specs, notes=_notes(inventory, one, specs, why))


def _unplanned(
    config: Config,
    model: Model,
    preset: presets.Preset | None,
    inventory: Inventory,
    layout: str | None,
    error: ConfigError,
) -> Seated:
    """Of a model that nothing is known of, what somebody asks for is tried."""
    if layout is None:
        raise ConfigError(f"{error}. So no layout can be planned: name one, as in --topology 1p1d") from error
    one = as_asked(inventory, layout, None)
    specs = engine_specs(one, config, inventory=inventory, model=model, preset=preset, context=_said(config, None))
    why = f"as it was asked for; whether it fits shows when engines load it ({error})"
    return Seated(layout=one.layout, specs=specs, notes=_notes(inventory, one, specs, why))


def _asked(
    said: Told,
    model: Model,
    loaded: Model,
    preset: presets.Preset | None,
    inventory: Inventory,
) -> Asked:
    """Raises ``ConfigError`` for a model that can't be described."""
    source = Path(model.path) if model.local else from_hub(model.path)
    return Asked(
        model=loaded,
        shape=huggingface.read(source, kv_format=said.kv),
        context=said.context or (DEMO_CONTEXT if model.shipped else longest(preset, source)),
        traffic=preset.traffic if preset else SMALL if model.shipped else USUAL,
        inventory=inventory,
        gpu=known(kind(inventory)),
        preset=preset,
        told=said,
    )


def _said(config: Config, context: int | None) -> int | None:
    """None where the owner says it to vLLM himself."""
    said = told(config)
    return None if said.context or said.open_context else context


def from_hub(repository: str) -> Path:
    """A model's ``config.json``, from the cache or from the hub. Raises ``ConfigError``."""
    import huggingface_hub as hub  # large, and mostly not needed

    hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it tells of each try; what came of them is said below
    try:
        return Path(hub.hf_hub_download(repository, "config.json"))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        said: Any = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"the config.json of {repository} can't be had ({said[0]})") from error


# ---- in words


def _notes(inventory: Inventory, one: Placement, specs: Sequence[EngineSpec], why: str) -> tuple[str, ...]:
    _, unused = usable(inventory)
    return (
        _there(inventory),
        f"{one.layout}: {why}",
        "; ".join(f"{spec.name} ({spec.role.value}) on {on(spec, inventory)}" for spec in specs),
        *one.remarks,
        *(f"not used: {reason}" for reason in unused),
    )


def _there(inventory: Inventory) -> str:
    """2 × NVIDIA H100 80GB HBM3, driver 580.82"""
    names = [card.name for card in inventory.cards]
    kinds = " and ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    return f"GPUs: {kinds}" + (f", driver {inventory.driver}" if inventory.driver else "")


def on(spec: EngineSpec, inventory: Inventory) -> str:
    """GPU 0–3, cores 0–15"""
    indexes = {card.uuid: card.index for card in inventory.cards}
    cores = f", cores {ranges(spec.cores)}" if spec.cores else ""
    return f"GPU {ranges(sorted(indexes[gpu] for gpu in spec.gpus))}{cores}"
