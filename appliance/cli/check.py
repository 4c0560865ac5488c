"""``pd-appliance check``: whether a node could be started here, and how well, before it is."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import psutil
import typer
from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape

from appliance import presets
from appliance.checks import machine, movers, software
from appliance.checks import model as files
from appliance.checks.line import Line, Standing, bad, ok, skipped, warn
from appliance.cli.cast import check_kind, hardware, memory_bytes, seated, weight_bytes
from appliance.cli.on_gpus import Seated, seen
from appliance.config import Config, Loaded, config_path_default, load, state_directory
from appliance.errors import ApplianceError, ConfigError
from appliance.gpu.nvml import machine as inventory
from appliance.records import Inventory, Role
from appliance.supervisor.runtime import parent_directory
from appliance.supervisor.specs import EngineSpec, Model, resolve_model

Found = TypeVar("Found")

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
    found = []
    for line in map(_legible, _all(config or config_path_default(), given, move=move)):
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


def _all(path: Path | None, given: Mapping[str, tuple[str, Any]], *, move: bool) -> Iterator[Line]:
    """A configuration that can't be is a line like others: whoever reads JSON gets some."""
    try:
        loaded = load(path, os.environ, given)
    except ConfigError as error:
        yield bad("configuration", str(error), "mend it, where it comes from")
        return
    yield from lines(loaded, move=move)


def lines(loaded: Loaded, *, move: bool) -> Iterator[Line]:
    """In the order in which they matter. What has failed is no reason to look at nothing after it."""
    config, found = loaded.config, inventory()
    yield software.vllm()
    yield software.environment(os.environ)
    yield software.driver(found, software.runtime())
    yield from _gpus(found)
    model = _had("model", lambda: resolve_model(config))
    engines = model if isinstance(model, Line) else _had("engines", lambda: _engines(loaded, model))
    yield engines if isinstance(engines, Line) else _seated(engines)
    if isinstance(model, Model):
        yield _files(model, config)
    specs = () if isinstance(engines, Line) else engines.specs
    if specs and isinstance(model, Model):
        yield from _memory(config, model, specs, found)
        yield machine.cores(sorted(os.sched_getaffinity(0)), len(specs))
    yield machine.descriptors()
    yield machine.port(config.server.host, config.server.port)
    yield _state(config)
    yield from _moved(specs, move=move)


def _had(what: str, find: Callable[[], Found]) -> Found | Line:
    """It, or the line that says why it can't be."""
    try:
        return find()
    except ApplianceError as error:
        return bad(what, str(error), "mend the configuration, or what stands above")
    except Exception as error:  # nobody has foreseen it; the other lines are still worth having
        said = f"{type(error).__name__}: {error}"
        return bad(what, said, "serve would fail so, too: that is a fault of ours, to be reported")


def _seated(engines: Seated) -> Line:
    return ok("engines", "; ".join(engines.notes) or f"{engines.layout} on the CPU")


def _engines(loaded: Loaded, model: Model) -> Seated:
    """Raises ``ConfigError``."""
    check_kind(loaded.config)
    layout = loaded.config.topology.layout if "topology.layout" in loaded.origins else None
    return seated(loaded.config, model, hardware(loaded.config), layout)


def _gpus(found: Inventory) -> Iterator[Line]:
    """Those that engines may see."""
    try:
        yield from software.gpus(seen(found, os.environ))
    except ConfigError as error:
        yield bad("GPUs", str(error), "name some of these, or unset it")


def _files(model: Model, config: Config) -> Line:
    """Of a preset, the weights are what its repository has; and whatever is no directory and no preset may be on the hub."""
    if (
        not model.local
        and "/" not in model.path
        and (near := difflib.get_close_matches(model.path, presets.names(), n=1))
    ):
        said = f"{model.path} is no directory and no preset here: it is taken for a hub id"
        return warn("model", said, f"--model {near[0]}, if that preset is meant")
    repository = presets.load(Path(model.path).name).repository if model.preset else ""
    engine = config.engine
    return files.files(model, repository, (*engine.args, *engine.prefill.args, *engine.decode.args))


def _memory(config: Config, model: Model, engines: Sequence[EngineSpec], found: Inventory) -> Iterator[Line]:
    """Of the host; that of GPUs has decided where engines are, by what the model's configuration tells of its weights."""
    available, ranks = psutil.virtual_memory().available, any(spec.tensor_parallel > 1 for spec in engines)
    weights = weight_bytes(model)
    if any(spec.gpus for spec in engines):
        if line := files.on_gpus(weights, engines, found.cards):
            yield line
        yield machine.host_memory(available, sum(spec.tensor_parallel for spec in engines))
        if ranks:
            yield machine.shared_memory(0, ranks=True)
        return
    yield machine.memory(available, memory_bytes(config, engines, weights), len(engines), weights)
    yield machine.shared_memory(len(engines) * config.engine.kv_cache_bytes, ranks=ranks)


def _state(config: Config) -> Line:
    try:
        return machine.state(state_directory(config, os.environ))
    except ApplianceError as error:
        return bad("state directory", str(error), "take another --state-dir")


def _moved(engines: Sequence[EngineSpec], *, move: bool) -> Iterator[Line]:
    if not move or not engines:
        yield skipped("KV", "not moved: there are no engines to move it between" if move else "not moved: --no-move")
        return
    if len(engines) < 2:
        yield skipped("KV", "one engine hands nothing over")
        return
    with (
        Console(stderr=True).status("moving KV between engines"),
        tempfile.TemporaryDirectory(prefix="pd-check-", dir=parent_directory(os.environ)) as directory,
    ):
        yield from movers.prove(_by_gpu(engines), Path(directory), engines[0].transport, dict(os.environ))


def _by_gpu(engines: Sequence[EngineSpec]) -> Sequence[EngineSpec]:
    """Ranks hand KV over, each from GPU to GPU, and roles change: every pair of GPUs of two engines is proved, both ways."""
    return [spec for engine in engines for spec in (_ranks(engine) if engine.gpus else (engine,))]


def _ranks(engine: EngineSpec) -> Iterator[EngineSpec]:
    others = engine.environment["CUDA_VISIBLE_DEVICES"].split(",")[len(engine.gpus) :]
    for rank, gpu in enumerate(engine.gpus):
        name = engine.name if len(engine.gpus) == 1 else f"{engine.name}.{rank}"
        seen = {**engine.environment, "CUDA_VISIBLE_DEVICES": ",".join((gpu, *others))}
        yield replace(engine, name=name, role=Role.BOTH, gpus=(gpu,), tensor_parallel=1, environment=seen)


def _legible(line: Line) -> Line:
    """Names of files may be no text."""
    said, remedy = (text and text.encode(errors="backslashreplace").decode() for text in (line.said, line.remedy))
    return replace(line, said=said, remedy=remedy)


def _tell(line: Line) -> None:
    glyph = f"[{_STYLES[line.standing]}]{_GLYPHS[line.standing]} {line.standing.value:<7}[/]"
    _say(f"{glyph} [b]{escape(line.what)}[/b]: {escape(line.said)}")
    if line.remedy:
        _say(f"          [b]→[/b] {escape(line.remedy)}")


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text)
