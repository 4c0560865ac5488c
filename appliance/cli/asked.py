"""What is to be put on GPUs, as ``plan``, ``serve`` and ``check`` ask the planner for it, and the engines that come of its answer."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Final

import msgspec
from msgspec.structs import replace

from appliance import presets
from appliance.cli.arguments import Told
from appliance.config import Config
from appliance.costs import closed, huggingface
from appliance.costs.gpus import Gpu, gpu
from appliance.costs.memory import Memory
from appliance.costs.roofline import Batch, Roofline
from appliance.costs.shape import ModelShape
from appliance.errors import ConfigError
from appliance.planner.cards import other_kinds, usable
from appliance.planner.node import Chunk, CopyTime, Estimate, StepTime, Targets
from appliance.planner.placement import place, seated
from appliance.planner.wanted import SETTINGS, Placed, Placement, Seat, Times, Wanted
from appliance.records import Demand, Inventory
from appliance.supervisor.specs import EngineSpec, GpuSeat, Model, gpu_specs
from appliance.supervisor.topology import parse

USUAL: Final = presets.Usual(rate=4.0, prompt=2000.0, output=300.0)
SMALL: Final = presets.Usual(rate=4.0, prompt=200.0, output=100.0)  # what the demo model is asked
CONTEXT: Final = 32_768
_GPUS: Final = re.compile(r"(\d+)\s*[x×*]\s*(.+)", re.IGNORECASE)
_MOST_GPUS: Final = 64
_SPREAD: Final = 0.5  # sigma of the logarithm of lengths, assumed
_QUANTILES: Final = 16
_ERROR: Final = 0.13  # of the cost model's times: half of the published figures are nearer (docs/costs.md)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A model, what it is to serve, and where."""

    model: Model
    shape: ModelShape
    context: int  # the longest request, in tokens
    traffic: presets.Usual
    inventory: Inventory
    gpu: Gpu | None  # None: of a kind that the cost model does not know, so that nothing is predicted
    preset: presets.Preset | None = None
    told: Told | None = None  # to vLLM by the owner


def longest(preset: presets.Preset | None, config: Path) -> int:
    """Tokens of the longest request, where nobody says: a preset's, or as long as is usual and the model can."""
    if preset is not None:
        return preset.context
    return min(CONTEXT, huggingface.positions(config) or CONTEXT)


def within(context: int, config: Path) -> int:
    """Tokens of the longest request, if the model can take so many. Raises ``ConfigError``: vLLM would not start."""
    most = huggingface.positions(config)
    if most is not None and context > most:
        raise ConfigError(
            f"requests of {context:,} tokens are more than the model has positions for (max_position_embeddings: {most:,}): "
            f"--context {most} is the most"
        )
    return context


def kind(inventory: Inventory) -> str:
    """Of the GPUs that engines are put on."""
    cards, _ = usable(inventory)
    return (cards or inventory.cards)[0].name


def known(name: str) -> Gpu | None:
    """What the cost model knows of GPUs that are called so; None where that is nothing."""
    try:
        return gpu(name)
    except ConfigError:
        return None


def counted(gpus: str) -> tuple[int, Gpu]:
    """How many, and which: ``8xH100``. Raises ``ConfigError``."""
    match = _GPUS.fullmatch(gpus.strip())
    if match is None or not 0 < int(match[1]) <= _MOST_GPUS:
        raise ConfigError(f"--gpus {gpus!r} is none: write how many and which, as in 8xH100")
    return int(match[1]), gpu(match[2])


def preset_layout(preset: presets.Preset, count: int, kind: Gpu) -> tuple[str, str] | None:
    """What a preset calls so many of these GPUs, and its layout for them; None where it has none."""
    there = preset.layouts.items()
    return next(((named, layout) for named, layout in there if counted(named) == (count, kind)), None)


def wanted(asked: Asked, targets: Targets) -> Wanted:
    """For the planner: the cost model's times, and the traffic."""
    return Wanted(
        model=Memory(asked.shape),
        context=asked.context,
        demand=Demand(
            rate_s=asked.traffic.rate,
            prompt_tokens=_lengths(asked.traffic.prompt, asked.context),
            output_tokens=_lengths(asked.traffic.output, asked.context),
        ),
        targets=targets,
        times=lambda size: _times(asked.shape, asked.gpu, size),
        settings=asked.told.settings if asked.told else SETTINGS,
        firm=asked.told.firm if asked.told else frozenset(),
        share=asked.told.share if asked.told else None,
    )


def _lengths(mean: float, most: int) -> tuple[float, ...]:
    """Quantiles of a lognormal distribution with that mean."""
    at = [NormalDist().inv_cdf((number + 0.5) / _QUANTILES) for number in range(_QUANTILES)]
    drawn = [math.exp(_SPREAD * one) for one in at]
    scale = mean * _QUANTILES / sum(drawn)
    return tuple(min(float(most), max(1.0, scale * one)) for one in drawn)


def clipped(asked: Asked) -> float:
    """Share of prompts, or of answers, that would be longer than the longest request, and are taken to be as long."""
    counts = [
        sum(tokens >= asked.context for tokens in _lengths(mean, asked.context)) / _QUANTILES
        for mean in (asked.traffic.prompt, asked.traffic.output)
    ]
    return max(counts)


def _times(shape: ModelShape, kind: Gpu | None, size: int) -> Times:
    if kind is None:
        return Times(lambda *_: None, lambda _: None)
    return Times(
        _step(shape, kind, size),
        _copy(shape, size, closed.nvlink(kind, size)),
        _copy(shape, size, closed.pcie(kind, size)),
    )


def _step(shape: ModelShape, kind: Gpu, size: int) -> StepTime:
    roofline = Roofline(shape, kind, size)

    def step(chunks: Sequence[Chunk], sequences: float, context: float) -> Estimate:
        return Estimate(roofline.step(Batch(chunks, sequences, context)).total_s, _ERROR)

    return step


def _copy(shape: ModelShape, size: int, link: closed.Link) -> CopyTime:
    def copy(tokens: float) -> Estimate:
        return Estimate(closed.handoff_s(closed.handoff_bytes(shape, round(tokens), size), link), _ERROR)

    return copy


# ---- what comes of the answer


def placed_on(asked: Asked, targets: Targets, layout: str | None = None) -> tuple[Asked, Placed]:
    """On GPUs of the kind with the most memory in all; where nothing fits there (``layout``: that one), of the first kind where it does."""
    tried = [(asked, place(asked.inventory, wanted(asked, targets)))]
    if _fits(tried[0][1], layout):
        return tried[0]
    for other in other_kinds(asked.inventory):
        there = replace(asked, inventory=replace(asked.inventory, kind=other), gpu=known(other))
        found = place(there.inventory, wanted(there, targets))
        if _fits(found, layout):
            why = f"{found.why}; on {kind(asked.inventory)}, of which there is more memory in all, nothing fits"
            return there, found if layout else replace(found, why=why)
        tried.append((there, found))
    return tried[0] if layout else max(tried, key=lambda one: max(layout.fits for layout in one[1].placements))


def _fits(placed: Placed, layout: str | None) -> bool:
    wanted = layout or placed.best
    return any(one.feasible for one in placed.placements if one.layout == wanted)


def chosen(placed: Placed, layout: str | None, asked: Asked, targets: Targets) -> Placement:
    """The best, or the one that somebody asks for, also if nobody else would take it. Raises ``ConfigError`` where it can't be."""
    found = next((one for one in placed.placements if one.feasible and one.layout == (layout or placed.best)), None)
    if found is None and layout:
        return as_asked(asked.inventory, layout, wanted(asked, targets))
    if found is None:
        raise ConfigError(f"{asked.model.name} fits on none of these GPUs: {nearest(placed)}")
    return found


def as_asked(inventory: Inventory, layout: str, wanted: Wanted | None) -> Placement:
    """``seated``, by the layout's name."""
    topology = parse(layout)
    places = [(place.role, place.tensor_parallel) for place in topology.places]
    return seated(inventory, places, topology.layout, wanted)


def nearest(placed: Placed) -> str:
    """Why not, of the layout that is nearest to working: that which takes the longest requests, where shorter ones would do; else the one
    with the largest engines, and the fewest: it wants the least.
    """
    found = max(reversed(placed.placements), key=lambda one: (one.fits, one.tensor_parallel))
    return f"{found.layout} is the nearest: {found.reason}"


def engine_specs(
    one: Placement,
    config: Config,
    *,
    inventory: Inventory,
    model: Model,
    preset: presets.Preset | None,
    context: int | None,
) -> tuple[EngineSpec, ...]:
    """Raises ``ConfigError`` for a configuration that contradicts it. ``context`` None: the model's own."""
    seats = [
        GpuSeat(
            name=seat.name,
            role=seat.role,
            gpus=seat.gpus,
            memory_fraction=seat.memory_fraction,
            token_budget=seat.settings.token_budget,
            places=seat.settings.places,
            kv_bytes=seat.kv_bytes,
            sees=_others(seat, one) if config.engine.see_all_gpus else seat.sees,
        )
        for seat in one.seats
    ]
    ours = os.sched_getaffinity(0)  # a container's may be few, and far from its GPUs
    near = {card.uuid: tuple(core for core in card.cores if core in ours) for card in inventory.cards}
    return gpu_specs(config, seats, model, arguments=preset.args if preset else (), context=context, near=near)


def _others(seat: Seat, one: Placement) -> tuple[str, ...]:
    """GPUs of all other engines."""
    return tuple(dict.fromkeys(gpu for other in one.seats for gpu in other.gpus if gpu not in seat.gpus))
