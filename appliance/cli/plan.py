"""``pd-appliance plan``: which engines to put on which GPUs for a model, before there is a node. Needs no GPU. All of it is predicted."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

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
    nearest,
    placed_on,
    preset_layout,
    within,
)
from appliance.cli.on_gpus import seen
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
_REASONS_WIDTH: Final = 24  # of a column, below which reasons are lines of their own
_LEAST: Final = ("in time", "requests at once", "per token")  # of the figures, in the order in which they are left out
_NO_PASTE: Final = (
    "These do not run by themselves: the supervisor starts engines, and adds for each life which engine it is, and "
    "its channel (--engine, --epoch, --channel, --parent)."
)
_COUNTS: Final = re.compile(r"\d+(?=[pdb])")  # of engines: the rest of a layout's name is its shape


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
    console.print(_heading(asked, targets), highlight=False)
    everything = everything or placed.best is None  # the reasons are the answer then
    shown = _shown(asked, placed, everything=everything)
    for part in _tables(placed, shown, console, everything=everything):
        console.print(part, highlight=False)
    for line in _closing(asked, placed, shown, everything=everything):
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


# ---- what is printed


def _heading(asked: Asked, targets: Targets) -> str:
    names = [card.name for card in asked.inventory.cards]
    there = " and ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    where = f"{escape(there)}{' (not here)' if asked.inventory.given else ''}"
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


def _tables(
    placed: Placed, shown: Sequence[Placement], console: Console, *, everything: bool
) -> Iterator[RenderableType]:
    """One, with the reasons in it where there is the width; else with as many figures as there is, none of them cut, and reasons below."""
    without = [("why", *_LEAST[:count]) for count in range(len(_LEAST) + 1)]
    tables = [_table(placed, shown, everything=False, without=less) for less in without]
    widths = [console.measure(one, options=console.options.update(width=10 * _WIDTH)).maximum for one in tables]
    if widths[0] + _REASONS_WIDTH <= console.width:
        yield _table(placed, shown, everything=everything)
        return
    yield next((one for one, width in zip(tables, widths, strict=True) if width <= console.width), tables[-1])
    for one in shown:
        yield f"[b]{one.layout}[/b]: {_why(one)}"
    for reason, layouts in _infeasible(placed).items() if everything else ():
        yield f"[dim]✕ {', '.join(layouts)}: {escape(reason)}[/dim]"


def _table(placed: Placed, shown: Sequence[Placement], *, everything: bool, without: Sequence[str] = ()) -> Table:
    table = Table(title="PREDICTED by a cost model (docs/costs.md, docs/planner.md)", title_justify="left")
    columns = [name for name in _COLUMNS if name.replace("\n", " ") not in without]
    for name in columns:
        left = name in ("", "layout", "why")
        table.add_column(
            name,
            justify="left" if left else "right",
            no_wrap=name != "why",
            min_width=_REASONS_WIDTH if name == "why" else None,
        )
    for one in shown:
        cells = _cells(one, placed.best)
        table.add_row(*(cells[name] for name in columns))
    if everything:
        for reason, layouts in _infeasible(placed).items():
            cells = {"": "✕", "layout": "\n".join(layouts), "why": escape(reason)}
            table.add_row(*(cells.get(name, "—") for name in columns), style="dim")
    return table


_COLUMNS: Final = (
    *("", "layout", "KV tokens\nof each", "requests\nat once", "TTFT", "per\ntoken", "in\ntime", "highest\nrate/s"),
    "why",
)


def _infeasible(placed: Placed) -> dict[str, list[str]]:
    """Layouts, by what stands against them."""
    found: dict[str, list[str]] = {}
    for one in placed.placements:
        if not one.feasible:
            found.setdefault(one.reason, []).append(one.layout)
    return found


def _cells(one: Placement, best: str | None) -> dict[str, str]:
    """By column."""
    predicted = one.plan.predicted if one.plan else None
    if predicted is None:
        figures = ["—", "—", "—", "—"]
    else:
        ttft = "—" if predicted.ttft_s is None else f"{predicted.ttft_s:.2f} s"
        figures = [ttft, f"{predicted.itl_s * 1e3:.0f} ms", f"{predicted.good:.0%}", f"{predicted.most_rate_s:.3g}"]
    cells = [
        "→" if one.layout == best else "",
        one.layout,
        "—" if one.kv_tokens is None else f"{one.kv_tokens:,}",
        "—" if one.requests is None else f"{one.requests:.0f}",
        *figures,
        _why(one),
    ]
    return dict(zip(_COLUMNS, cells, strict=True))


def _why(one: Placement) -> str:
    return escape("; ".join((one.reason, *one.remarks)))


def _closing(asked: Asked, placed: Placed, shown: Sequence[Placement], *, everything: bool) -> list[str]:
    feasible = sum(1 for one in placed.placements if one.feasible)
    hidden, worse = len(placed.placements) - feasible, feasible - len(shown)
    lines = [
        f"Take [b]{placed.best}[/b]: {escape(placed.why)}."
        if placed.best
        else escape(f"{asked.model.name} fits on none of these GPUs: {nearest(placed)}.")
    ]
    if cut := clipped(asked):
        lines.append(
            f"{cut:.0%} of the prompts, or of the answers, would be longer than the longest request of {asked.context:,} tokens "
            "(--context): they are predicted as if they were cut to that."
        )
    lines += [escape(f"Not used: {one}.") for one in placed.unused]
    if worse:
        lines.append(
            f"{worse} more layouts fit, of shapes that are there with other numbers of engines; --all shows them."
        )
    if hidden and not everything:
        lines.append(f"{hidden} {'layouts do' if hidden > 1 else 'layout does'} not fit; --all shows why.")
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
        "clipped": clipped(asked),
        "traffic": asked.traffic,
        "targets": targets,
        "best": placed.best,
        "why": placed.why,
        "unused": placed.unused,
        "layouts": placed.placements,
    }
