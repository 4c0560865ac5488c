"""``pd-appliance plan``: which engines to put on which GPUs for a model, before there is a node. Needs no GPU. All of it is predicted."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appliance import presets
from appliance.cli.asked import (
    USUAL,
    Asked,
    chosen,
    counted,
    engine_specs,
    kind,
    known,
    longest,
    preset_layout,
    wanted,
    within,
)
from appliance.cli.on_gpus import seen
from appliance.config import Config
from appliance.costs import huggingface
from appliance.errors import ConfigError
from appliance.gpu.inventory import described
from appliance.gpu.nvml import machine
from appliance.planner.node import Targets
from appliance.planner.placement import place
from appliance.planner.wanted import Placed, Placement
from appliance.records import Inventory
from appliance.supervisor.specs import Model
from web.words import ranges

_COUNTS: Final = re.compile(r"\d+(?=[pdb])")  # of engines: the rest of a layout's name is its shape


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
    shown = _shown(asked, placed, everything=everything)
    console.print(_table(placed, shown, everything=everything))
    for line in _closing(asked, placed, shown):
        console.print(line, highlight=False)
    if show_commands or layout:
        for line in commands(asked, chosen(placed, layout or None, asked, targets)):
            console.print(line, highlight=False, soft_wrap=True)


def ask(
    model: str, gpus: str, rate: float | None, prompt: float | None, output: float | None, context: int | None
) -> Asked:
    """What is not said is the preset's, or usual. Raises ``ConfigError``."""
    preset = presets.load(model) if presets.directory(model) and not presets.exists(Path(model)) else None
    inventory = _inventory(gpus)
    usual = preset.traffic if preset else USUAL
    source = presets.described(model)
    path = str(Path(model).resolve())
    name = model if preset else Path(model).resolve().name
    return Asked(
        model=Model(preset.repository, name, False) if preset else Model(path, name, True),
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
    lines = []
    specs = engine_specs(
        one, Config(), inventory=asked.inventory, model=asked.model, preset=asked.preset, context=asked.context
    )
    for spec in specs:
        where = f"GPU {ranges([indexes[gpu] for gpu in spec.gpus])}"
        cores = f", cores {ranges(spec.cores)}" if spec.cores else ""
        variables = [f"{name}={shlex.quote(value)}" for name, value in spec.environment.items()]
        lines.append(f"\n[b]{spec.name}[/b] ({spec.role.value}) on {where}{cores}")
        lines.append(
            escape(" ".join([*variables, *map(shlex.quote, ["python", "-m", spec.module, "--", *spec.arguments])]))
        )
    return lines


# ---- what is printed


def _heading(asked: Asked, targets: Targets) -> str:
    cards = asked.inventory.cards
    where = f"{len(cards)} × {cards[0].name}{' (not here)' if asked.inventory.given else ''}"
    traffic = asked.traffic
    share = f"{targets.share:.0%} of requests"
    return (
        f"[b]{escape(asked.model.name)}[/b]: {asked.shape.parameters / 1e9:.1f} billion parameters, "
        f"{asked.shape.weight_bytes() / 1e9:.0f} GB of weights; on {where}\n"
        f"for {traffic.rate:g} requests/s of {traffic.prompt:g} prompt and {traffic.output:g} output tokens, requests of up to "
        f"{asked.context:,}; targets: first token in {targets.ttft_s:g} s, {targets.itl_s * 1e3:g} ms per token, {share}"
    )


def _shown(asked: Asked, placed: Placed, *, everything: bool) -> list[Placement]:
    """The feasible ones, those first that go farthest; of each shape (roles, and GPUs per engine) the best, and the preset's own."""
    found = sorted((one for one in placed.placements if one.feasible), key=lambda one: one.most_rate_s, reverse=True)
    best: dict[str, str] = {}
    for one in found:
        best.setdefault(_COUNTS.sub("", one.layout), one.layout)
    kept = {*best.values(), placed.best, *(_given(asked) or ())[1:]}
    return [one for one in found if everything or one.layout in kept]


def _table(placed: Placed, shown: Sequence[Placement], *, everything: bool) -> Table:
    table = Table(title="PREDICTED by a cost model (docs/costs.md, docs/planner.md)", title_justify="left")
    table.add_column("")
    table.add_column("layout", no_wrap=True)
    for name in ("KV tokens\nper engine", "requests\nat once", "TTFT", "per token", "in time", "highest\nrate/s"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for one in shown:
        table.add_row(*_row(one, placed.best))
    if everything:
        for reason, layouts in _infeasible(placed).items():
            table.add_row("✕", "\n".join(layouts), *["—"] * 6, escape(reason), style="dim")
    return table


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


def _closing(asked: Asked, placed: Placed, shown: Sequence[Placement]) -> list[str]:
    feasible = sum(1 for one in placed.placements if one.feasible)
    hidden, worse = len(placed.placements) - feasible, feasible - len(shown)
    lines = [
        f"Take [b]{placed.best}[/b]: {escape(placed.why)}."
        if placed.best
        else escape(placed.why[:1].upper() + placed.why[1:] + ".")
    ]
    lines += [escape(f"Not used: {one}.") for one in placed.unused]
    if worse:
        lines.append(
            f"{worse} more layouts fit, of shapes that are there with other numbers of engines; --all shows them."
        )
    if hidden:
        lines.append(f"{hidden} layouts do not fit; --all shows why.")
    if given := _given(asked):
        lines.append(f"The preset has {given[1]} for {given[0]}.")
    return lines


def _given(asked: Asked) -> tuple[str, str] | None:
    """What the preset calls so many of these GPUs, and its layout for them."""
    return preset_layout(asked.preset, len(asked.inventory.cards), asked.gpu) if asked.preset and asked.gpu else None


def _json(asked: Asked, targets: Targets, placed: Placed) -> dict[str, Any]:
    return {
        "model": asked.model.name,
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
