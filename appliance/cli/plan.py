"""``pd-appliance plan``: which engines to put on which GPUs for a model, before there is a node. Needs no GPU. All of it is predicted."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appliance import presets
from appliance.config import Config
from appliance.costs import closed, huggingface
from appliance.costs.gpus import Gpu, gpu
from appliance.costs.roofline import Batch, Roofline
from appliance.costs.shape import ModelShape
from appliance.errors import ConfigError
from appliance.gpu.inventory import described
from appliance.gpu.nvml import machine
from appliance.planner.node import Chunk, Estimate, Targets
from appliance.planner.placement import SETTINGS, Placed, Placement, Times, Wanted, place
from appliance.records import Demand, Inventory
from appliance.supervisor.specs import EngineSpec, GpuSeat, Model, gpu_specs
from web.words import ranges

_GPUS: Final = re.compile(r"(\d+)\s*[x×*]\s*(.+)", re.IGNORECASE)
_SPREAD: Final = 0.5  # sigma of the logarithm of lengths, assumed
_QUANTILES: Final = 16
_ERROR: Final = 0.13  # of the cost model's times: half of the published figures are nearer (docs/costs.md)
_CONTEXT: Final = 32_768
_USUAL: Final = presets.Usual(rate=4.0, prompt=2000.0, output=300.0)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A model, what it is to serve, and where."""

    name: str
    path: str
    shape: ModelShape
    context: int
    traffic: presets.Usual
    inventory: Inventory
    gpu: Gpu
    preset: presets.Preset | None = None


def plan(
    model: Annotated[str, typer.Option(help="A preset's name, a directory with a config.json, or the file.")],
    gpus: Annotated[str, typer.Option(help="8xH100: GPUs that are not here. Without it: those of this machine.")] = "",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests per second.")] = None,
    prompt: Annotated[float | None, typer.Option(min=1, help="Tokens of a prompt, on average.")] = None,
    output: Annotated[float | None, typer.Option(min=1, help="Tokens of an answer, on average.")] = None,
    context: Annotated[int | None, typer.Option(min=16, help="The longest request, in tokens.")] = None,
    ttft: Annotated[float, typer.Option(min=0.001, help="Target: seconds to the first token.")] = 2.0,
    itl: Annotated[float, typer.Option(min=0.0001, help="Target: seconds from token to token.")] = 0.05,
    share: Annotated[float, typer.Option(min=0.01, max=0.9999, help="Of requests that are to meet both.")] = 0.95,
    everything: Annotated[bool, typer.Option("--all", help="Also those that do not fit, each with why.")] = False,
    show_commands: Annotated[
        bool, typer.Option("--show-commands", help="Also print what each engine would be started with.")
    ] = False,
    layout: Annotated[str, typer.Option(help="Show the commands of this layout instead of the best one's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the layouts of a model's engines on GPUs, with what each would bring, and say which to take."""
    asked = ask(model, gpus, rate, prompt, output, context)
    targets = Targets(ttft_s=ttft, itl_s=itl, share=share)
    placed = place(asked.inventory, wanted(asked, targets))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(_json(asked, targets, placed))).decode() + "\n")
        return
    console = Console() if Console().is_terminal else Console(width=130)
    console.print(_heading(asked, targets), highlight=False)
    console.print(_table(placed, everything=everything))
    for line in _closing(asked, placed):
        console.print(line, highlight=False)
    if show_commands or layout:
        for line in commands(asked, _placement(placed, layout)):
            console.print(line, highlight=False, soft_wrap=True)


def ask(
    model: str, gpus: str, rate: float | None, prompt: float | None, output: float | None, context: int | None
) -> Asked:
    """What is not said is the preset's, or usual. Raises ``ConfigError``."""
    preset = presets.load(model) if presets.directory(model) and not Path(model).exists() else None
    inventory = _inventory(gpus)
    usual = preset.traffic if preset else _USUAL
    return Asked(
        name=model if preset else Path(model).resolve().name,
        path=str(Path(model).resolve()),
        shape=huggingface.read(presets.described(model)),
        context=context or (preset.context if preset else _CONTEXT),
        traffic=presets.Usual(
            rate=usual.rate if rate is None else rate,
            prompt=usual.prompt if prompt is None else prompt,
            output=usual.output if output is None else output,
        ),
        inventory=inventory,
        gpu=_kind(inventory),
        preset=preset,
    )


def _inventory(gpus: str) -> Inventory:
    if not gpus:
        found = machine()
        if not found.cards:
            raise ConfigError("this machine has no GPU that NVML tells of: name some with --gpus, as in --gpus 8xH100")
        return found
    match = _GPUS.fullmatch(gpus.strip())
    if match is None or not 0 < int(match[1]) <= 64:
        raise ConfigError(f"--gpus {gpus!r} is none: write how many and which, as in 8xH100")
    kind = gpu(match[2])
    return described(int(match[1]), kind.name, kind.memory_bytes)


def _kind(inventory: Inventory) -> Gpu:
    names = sorted({card.name for card in inventory.cards})
    if len(names) > 1:
        raise ConfigError(
            f"GPUs of several kinds ({', '.join(names)}) are not planned for: name those to be used with --gpus"
        )
    return gpu(names[0])


def wanted(asked: Asked, targets: Targets) -> Wanted:
    """For the planner: the cost model's times, and the traffic."""
    return Wanted(
        model=asked.shape,
        context=asked.context,
        demand=Demand(
            rate_s=asked.traffic.rate,
            prompt_tokens=_lengths(asked.traffic.prompt, asked.context),
            output_tokens=_lengths(asked.traffic.output, asked.context),
        ),
        targets=targets,
        times=lambda size: _times(asked.shape, asked.gpu, size),
        reserve_bytes=closed.RESERVE_BYTES,
    )


def _lengths(mean: float, most: int) -> tuple[float, ...]:
    """Quantiles of a lognormal distribution with that mean."""
    at = [NormalDist().inv_cdf((number + 0.5) / _QUANTILES) for number in range(_QUANTILES)]
    drawn = [math.exp(_SPREAD * one) for one in at]
    scale = mean * _QUANTILES / sum(drawn)
    return tuple(min(float(most), max(1.0, scale * one)) for one in drawn)


def _times(shape: ModelShape, kind: Gpu, size: int) -> Times:
    roofline, link = Roofline(shape, kind, size), closed.nvlink(kind, size)

    def step(chunks: Sequence[Chunk], sequences: float, context: float) -> Estimate:
        return Estimate(roofline.step(Batch(chunks, sequences, context)).total_s, _ERROR)

    def copy(tokens: float) -> Estimate:
        return Estimate(closed.handoff_s(closed.handoff_bytes(shape, round(tokens), size), link), _ERROR)

    return Times(step, copy)


# ---- what engines would be started with


def engine_specs(asked: Asked, one: Placement, config: Config) -> tuple[EngineSpec, ...]:
    """Raises ``ConfigError`` for a configuration that contradicts it."""
    seats = [
        GpuSeat(
            name=seat.name,
            role=seat.role,
            gpus=seat.gpus,
            memory_fraction=seat.memory_fraction,
            token_budget=SETTINGS[seat.role].token_budget,
            places=SETTINGS[seat.role].places,
        )
        for seat in one.seats
    ]
    preset, near = asked.preset, {card.uuid: card.cores for card in asked.inventory.cards}
    model = Model(preset.repository, asked.name, False) if preset else Model(asked.path, asked.name, True)
    return gpu_specs(config, seats, model, arguments=preset.args if preset else (), context=asked.context, near=near)


def commands(asked: Asked, one: Placement) -> list[str]:
    """What the engines of a layout would be started with, less what changes from life to life."""
    indexes = {card.uuid: card.index for card in asked.inventory.cards}
    lines = []
    for spec in engine_specs(asked, one, Config()):
        where = f"GPU {ranges([indexes[gpu] for gpu in spec.gpus])}"
        cores = f", cores {ranges(spec.cores)}" if spec.cores else ""
        variables = [f"{name}={shlex.quote(value)}" for name, value in spec.environment.items()]
        lines.append(f"\n[b]{spec.name}[/b] ({spec.role.value}) on {where}{cores}")
        lines.append(
            escape(" ".join([*variables, *map(shlex.quote, ["python", "-m", spec.module, "--", *spec.arguments])]))
        )
    return lines


def _placement(placed: Placed, layout: str) -> Placement:
    """Raises ``ConfigError`` for one that isn't there, or does not fit."""
    wanted = layout or placed.best
    found = next((one for one in placed.placements if one.layout == wanted), None)
    if found is None:
        known = ", ".join(one.layout for one in placed.placements if one.feasible)
        raise ConfigError(f"there is no layout {wanted!r} on these GPUs; feasible are {known or 'none'}")
    if not found.feasible:
        raise ConfigError(f"layout {found.layout} does not fit: {found.reason}")
    return found


# ---- what is printed


def _heading(asked: Asked, targets: Targets) -> str:
    cards = asked.inventory.cards
    where = f"{len(cards)} × {cards[0].name}{' (not here)' if asked.inventory.given else ''}"
    traffic = asked.traffic
    share = f"{targets.share:.0%} of requests"
    return (
        f"[b]{escape(asked.name)}[/b]: {asked.shape.parameters / 1e9:.1f} billion parameters, "
        f"{asked.shape.weight_bytes() / 1e9:.0f} GB of weights; on {where}\n"
        f"for {traffic.rate:g} requests/s of {traffic.prompt:g} prompt and {traffic.output:g} output tokens, requests of up to "
        f"{asked.context:,}; targets: first token in {targets.ttft_s:g} s, {targets.itl_s * 1e3:g} ms per token, {share}"
    )


def _table(placed: Placed, *, everything: bool) -> Table:
    table = Table(title="PREDICTED by a cost model (docs/costs.md, docs/planner.md)", title_justify="left")
    table.add_column("")
    table.add_column("layout", no_wrap=True)
    for name in ("KV tokens\nper engine", "requests\nat once", "TTFT", "per token", "in time", "highest\nrate/s"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for one in sorted((one for one in placed.placements if one.feasible), key=_most_rate_s, reverse=True):
        table.add_row(*_row(one, placed.best))
    if everything:
        for reason, layouts in _infeasible(placed).items():
            table.add_row("✕", "\n".join(layouts), *["—"] * 6, escape(reason), style="dim")
    return table


def _most_rate_s(one: Placement) -> float:
    predicted = one.plan.predicted if one.plan else None
    return predicted.most_rate_s if predicted else 0.0


def _infeasible(placed: Placed) -> dict[str, list[str]]:
    """Layouts, by what stands against them."""
    found: dict[str, list[str]] = {}
    for one in placed.placements:
        if not one.feasible:
            found.setdefault(one.reason, []).append(one.layout)
    return found


def _row(one: Placement, best: str | None) -> list[str]:
    predicted = one.plan.predicted if one.plan else None
    reason = escape("; ".join((one.reason, *one.remarks)))
    if predicted is None:
        figures = ["—", "—", "—", "—"]
    else:
        ttft = "—" if predicted.ttft_s is None else f"{predicted.ttft_s:.2f} s"
        figures = [ttft, f"{predicted.itl_s * 1e3:.0f} ms", f"{predicted.good:.0%}", f"{predicted.most_rate_s:.3g}"]
    return [
        "→" if one.layout == best else "",
        one.layout,
        "—" if one.kv_tokens is None else f"{one.kv_tokens:,}",
        "—" if one.requests is None else f"{one.requests:.0f}",
        *figures,
        reason,
    ]


def _closing(asked: Asked, placed: Placed) -> list[str]:
    hidden = sum(1 for one in placed.placements if not one.feasible)
    lines = [
        f"Take [b]{placed.best}[/b]: {escape(placed.why)}."
        if placed.best
        else escape(placed.why[:1].upper() + placed.why[1:] + ".")
    ]
    lines += [escape(f"Not used: {one}.") for one in placed.unused]
    if hidden:
        lines.append(f"{hidden} layouts do not fit; --all shows why.")
    given = asked.preset.layouts.get(_named(asked)) if asked.preset else None
    if given:
        lines.append(f"The preset has {given} for {_named(asked)}.")
    return lines


def _named(asked: Asked) -> str:
    """8xH100"""
    return f"{len(asked.inventory.cards)}x{asked.gpu.name.split('-')[0]}"


def _json(asked: Asked, targets: Targets, placed: Placed) -> dict[str, Any]:
    return {
        "model": asked.name,
        "predicted": True,
        "gpus": asked.inventory.cards,
        "given": asked.inventory.given,
        "context": asked.context,
        "traffic": asked.traffic,
        "targets": targets,
        "best": placed.best,
        "why": placed.why,
        "unused": placed.unused,
        "layouts": placed.placements,
    }
