"""``pd-appliance check``: whether a node could be started here, and how well, before it is."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import psutil
import typer
from rich.console import Console
from rich.markup import escape

from appliance.checks import machine, model, movers, software
from appliance.checks.line import Line, Standing, bad, skipped
from appliance.cli.cast import memory_bytes
from appliance.config import Config, config_path_default, load, state_directory
from appliance.errors import ApplianceError
from appliance.gpu.nvml import machine as inventory
from appliance.supervisor.runtime import parent_directory
from appliance.supervisor.specs import EngineSpec, resolve_model, specs
from appliance.supervisor.topology import parse

_GLYPHS: Final = {Standing.OK: "●", Standing.WARN: "▲", Standing.BAD: "✕", Standing.SKIPPED: "○"}
_STYLES: Final = {Standing.OK: "green", Standing.WARN: "yellow", Standing.BAD: "red", Standing.SKIPPED: "dim"}


def check(
    config: Annotated[Path | None, typer.Option(help="A TOML file, as serve takes it.")] = None,
    model_path: Annotated[str | None, typer.Option("--model", help="Instead of the configured one.")] = None,
    topology: Annotated[str | None, typer.Option(help="Instead of the configured one.")] = None,
    host: Annotated[str | None, typer.Option(help="Instead of the configured one.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of the configured one.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Instead of the configured one.")] = None,
    move: Annotated[
        bool, typer.Option("--move/--no-move", help="Prove the way of KV between engines by moving some.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Look at what a node needs, one line for each thing. Exit code 1: something stands against serving."""
    flags: dict[str, tuple[str, Any]] = {
        "model.path": ("--model", model_path),
        "topology.layout": ("--topology", topology),
        "server.host": ("--host", host),
        "server.port": ("--port", port),
        "server.state_dir": ("--state-dir", str(state_dir) if state_dir else None),
    }
    given = {setting: flag for setting, flag in flags.items() if flag[1] is not None}
    settings = load(config or config_path_default(), os.environ, given).config
    found = []
    for line in lines(settings, move=move):
        found.append(line)
        if not as_json:
            _tell(line)
    against = [line for line in found if line.standing is Standing.BAD]
    if as_json:
        body = {"ok": not against, "lines": found}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(body)).decode() + "\n")
    else:
        _say(f"{len(against)} of {len(found)} stand against serving." if against else "Nothing stands against serving.")
    if against:
        raise typer.Exit(1)


def lines(config: Config, *, move: bool) -> Iterator[Line]:
    """In the order in which they matter."""
    yield software.vllm()
    yield software.environment(os.environ)
    yield from software.gpus(inventory())
    try:
        engines = _engines(config)
    except ApplianceError as error:
        yield bad("engines", str(error), "mend the configuration")
        return
    found = resolve_model(config)
    yield model.files(found.path, local=found.local)
    count, kv_bytes = len(engines), len(engines) * config.engine.kv_cache_bytes
    yield machine.memory(psutil.virtual_memory().available, memory_bytes(config, engines), count)
    yield machine.shared_memory(kv_bytes)
    yield machine.cores(sorted(os.sched_getaffinity(0)), count)
    yield machine.descriptors()
    yield machine.port(config.server.host, config.server.port)
    yield _state(config)
    if not move:
        yield skipped("KV", "not moved: --no-move")
        return
    yield from _moved(engines)


def _engines(config: Config) -> tuple[EngineSpec, ...]:
    """Raises ``ConfigError``."""
    return specs(config, parse(config.topology.layout), resolve_model(config), sorted(os.sched_getaffinity(0)))


def _state(config: Config) -> Line:
    try:
        return machine.state(state_directory(config, os.environ))
    except ApplianceError as error:
        return bad("state directory", str(error), "take another --state-dir")


def _moved(engines: tuple[EngineSpec, ...]) -> Iterator[Line]:
    if len(engines) < 2:
        yield skipped("KV", "one engine hands nothing over")
        return
    with (
        Console(stderr=True).status("moving KV between engines"),
        tempfile.TemporaryDirectory(prefix="pd-check-", dir=parent_directory(os.environ)) as directory,
    ):
        yield from movers.prove(engines, Path(directory), "shared_memory", dict(os.environ))


def _tell(line: Line) -> None:
    glyph = f"[{_STYLES[line.standing]}]{_GLYPHS[line.standing]} {line.standing.value:<7}[/]"
    _say(f"{glyph} [b]{escape(line.what)}[/b]: {escape(line.said)}")
    if line.remedy:
        _say(f"          [b]→[/b] {escape(line.remedy)}")


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text)
