"""``pd-appliance plan``: which engines to put on which GPUs for a model, before there is a node. Needs no GPU. All of it is predicted."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from appliance import demo, presets
from appliance.cli.asked import (
    SMALL,
    USUAL,
    Asked,
    chosen,
    clipped,
    counted,
    engine_specs,
    kind,
    known,
    longest,
    placed_on,
    within,
)
from appliance.cli.on_gpus import seen
from appliance.cli.plan_table import closing, heading, shown, tables
from appliance.config import Config
from appliance.costs import huggingface
from appliance.errors import ConfigError
from appliance.gpu.inventory import described
from appliance.gpu.nvml import machine
from appliance.planner.node import Targets
from appliance.planner.wanted import Placed, Placement
from appliance.records import Inventory
from appliance.supervisor.specs import EngineSpec, Model
from web.words import ranges

_WIDTH: Final = 130  # where there is no terminal
_NO_PASTE: Final = (
    "These do not run by themselves: the supervisor starts engines, and adds for each life which engine it is, and "
    "its channel (--engine, --epoch, --channel, --parent)."
)


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number that can be planned with")
    return value


def plan(
    model: Annotated[str, typer.Option(help="A preset's name, a directory with a config.json, that file, or demo.")],
    gpus: Annotated[str, typer.Option(help="8xH100: GPUs that are not here. Without it: those of this machine.")] = "",
    rate: Annotated[float | None, typer.Option(min=0.001, callback=_finite, help="Requests per second.")] = None,
    prompt: Annotated[
        float | None, typer.Option(min=1, callback=_finite, help="Tokens of a prompt, on average.")
    ] = None,
    output: Annotated[
        float | None, typer.Option(min=1, callback=_finite, help="Tokens of an answer, on average.")
    ] = None,
    context: Annotated[int | None, typer.Option(min=16, help="The longest request, in tokens.")] = None,
    ttft: Annotated[float, typer.Option(min=0.001, callback=_finite, help="Target: seconds to the first token.")] = 2.0,
    itl: Annotated[
        float, typer.Option(min=0.0001, callback=_finite, help="Target: seconds from token to token.")
    ] = 0.05,
    share: Annotated[float, typer.Option(min=0.01, max=0.9999, help="Of requests that are to meet both.")] = 0.95,
    everything: Annotated[bool, typer.Option("--all", help="Also those that do not fit, each with why.")] = False,
    show_commands: Annotated[
        bool, typer.Option("--show-commands", help="Also print what each engine would be started with.")
    ] = False,
    layout: Annotated[str, typer.Option(help="Show the commands of this layout instead of the best one's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the layouts of a model's engines on GPUs, with what each would bring, and say which to take. Exit code 1: none fits."""
    targets = Targets(ttft_s=ttft, itl_s=itl, share=share)
    asked, placed = placed_on(ask(model, gpus, rate, prompt, output, context), targets, layout or None)
    one = chosen(placed, layout or None, asked, targets) if layout or (show_commands and placed.best) else None
    if as_json:
        body = _json(asked, targets, placed) | ({"commands": _engines(asked, one)} if one else {})
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(body)).decode() + "\n")
    else:
        _print(asked, targets, placed, one, everything=everything)
    if placed.best is None and one is None:
        raise typer.Exit(1)


def _print(asked: Asked, targets: Targets, placed: Placed, one: Placement | None, *, everything: bool) -> None:
    console = Console(emoji=False, width=None if Console().is_terminal else _WIDTH)  # a path may well have :fire: in it
    console.print(heading(asked, targets), highlight=False)
    everything = everything or placed.best is None  # the reasons are the answer then
    rows = shown(asked, placed, everything=everything)
    for part in tables(placed, rows, console, everything=everything):
        console.print(part, highlight=False)
    for line in closing(asked, placed, rows, everything=everything):
        console.print(line, highlight=False)
    for line in commands(asked, one) if one else ():
        console.print(line, highlight=False, soft_wrap=True)


def ask(
    model: str, gpus: str, rate: float | None, prompt: float | None, output: float | None, context: int | None
) -> Asked:
    """What is not said is the preset's, or usual. Raises ``ConfigError``."""
    preset = presets.load(model) if presets.directory(model) and not presets.exists(Path(model)) else None
    inventory = _inventory(gpus)
    source = presets.described(model) if preset else _directory(model)
    shipped = not preset and source == demo.MODEL_DIR.resolve()
    usual = preset.traffic if preset else SMALL if shipped else USUAL
    name = model if preset else demo.MODEL_NAME if shipped else source.name
    return Asked(
        model=Model(preset.repository, name, False) if preset else Model(str(source), name, True, shipped),
        shape=huggingface.read(source),
        context=within(context, source) if context else longest(preset, source),
        traffic=presets.Usual(
            rate=usual.rate if rate is None else rate,
            prompt=usual.prompt if prompt is None else prompt,
            output=usual.output if output is None else output,
        ),
        inventory=inventory,
        gpu=known(kind(inventory)),
        preset=preset,
    )


def _directory(model: str) -> Path:
    """With a config.json, on this machine. Raises ``ConfigError`` that says what works instead."""
    path = demo.MODEL_DIR if model == "demo" else presets.described(model)
    if presets.exists(path):
        whole = path.resolve()
        return whole if whole.is_dir() else whole.parent if whole.name == "config.json" else whole
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        raise ConfigError(
            f"model {model!r}: no such directory, and no hub is asked for a plan: hf download {model} config.json --local-dir DIRECTORY "
            "has its config.json, and --model DIRECTORY plans it"
        )
    raise ConfigError(
        f"model {model[:200]!r}: no such preset, and no such directory with a config.json, or file{presets.nearest(model) or ';'} "
        f"there are {', '.join(presets.names())}"
    )


def _inventory(gpus: str) -> Inventory:
    if gpus:
        count, named = counted(gpus)
        return described(count, named.name, named.usable_bytes)
    found = seen(machine(), os.environ)
    if not found.cards:
        trouble = f" ({found.trouble})" if found.trouble else ""
        raise ConfigError(f"this machine has no GPU to plan for{trouble}: name some with --gpus, as in --gpus 8xH100")
    return found


# ---- what engines would be started with


def commands(asked: Asked, one: Placement) -> list[str]:
    """What the engines of a layout would be started with, less what changes from life to life."""
    indexes = {card.uuid: card.index for card in asked.inventory.cards}
    lines = ["", _NO_PASTE]
    for spec in _specs(asked, one):
        where = f"GPU {ranges([indexes[gpu] for gpu in spec.gpus])}"
        cores = f", cores {ranges(spec.cores)}" if spec.cores else ""
        variables = [f"{name}={shlex.quote(value)}" for name, value in spec.environment.items()]
        lines.append(f"\n[b]{spec.name}[/b] ({spec.role.value}) on {where}{cores}")
        lines.append(
            escape(" ".join([*variables, *map(shlex.quote, ["python", "-m", spec.module, "--", *spec.arguments])]))
        )
    return lines


def _specs(asked: Asked, one: Placement) -> Sequence[EngineSpec]:
    return engine_specs(
        one, Config(), inventory=asked.inventory, model=asked.model, preset=asked.preset, context=asked.context
    )


def _engines(asked: Asked, one: Placement) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {
            "engine": spec.name,
            "role": spec.role,
            "gpus": spec.gpus,
            "cores": spec.cores,
            "environment": spec.environment,
            "arguments": spec.arguments,
        }
        for spec in _specs(asked, one)
    ]


def _json(asked: Asked, targets: Targets, placed: Placed) -> dict[str, Any]:
    return {
        "model": asked.model.name,
        "predicted": True,
        "gpus": asked.inventory.cards,
        "given": asked.inventory.given,
        "context": asked.context,
        "clipped": clipped(asked),
        "traffic": asked.traffic,
        "targets": targets,
        "best": placed.best,
        "why": placed.why,
        "unused": placed.unused,
        "layouts": placed.placements,
    }
