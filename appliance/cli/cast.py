"""Which engines a node has: real ones as configured, or those of a scenario."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec
import psutil
from msgspec.structs import replace

from appliance import presets
from appliance.checks import software, weights
from appliance.cli import kinds, on_gpus
from appliance.cli.on_gpus import Seated
from appliance.cli.stage import Stage, notes, stage
from appliance.config import Config, Loaded
from appliance.costs import huggingface
from appliance.errors import ConfigError, NotNowError
from appliance.gpu.nvml import machine
from appliance.records import Inventory
from appliance.simulator import scenario
from appliance.simulator import specs as simulated
from appliance.simulator.control import Control
from appliance.simulator.plan import EnginePlan
from appliance.supervisor.node import Node
from appliance.supervisor.specs import EngineSpec, Model, resolve_model, specs
from appliance.supervisor.topology import Topology, parse

_log = logging.getLogger("pd-appliance")
ENGINE_MEMORY_BYTES: Final = 1200 << 20  # of one CPU engine, measured, without its KV cache and its weights
RANK_MEMORY_BYTES: Final = 400 << 20  # of each rank, where an engine has several, besides
_KINDS: Final = ("auto", "vllm", "sim")
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Cast(msgspec.Struct, frozen=True, kw_only=True):
    """``plans`` are of simulated engines; ``scenario`` is what is played at them, if anything is."""

    model: str
    layout: str
    specs: tuple[EngineSpec, ...]
    plans: tuple[EnginePlan, ...] = ()
    scenario: Path | None = None
    settings: dict[str, dict[str, Any]] = {}  # of the scenario, by section, where nobody has set them otherwise
    notes: tuple[str, ...] = ()  # where engines are, and why there, in words
    remake: Callable[[str, int], Cast]  # of another layout, where there are so many engines; raises ``ConfigError``

    @property
    def kinds(self) -> dict[str, str]:
        """By engine: those of one kind take as long for the same batch."""
        if self.plans:
            return {plan.name: kinds.of_simulated(plan) for plan in self.plans}
        return {spec.name: kinds.of(spec) for spec in self.specs}

    @property
    def experts(self) -> bool:
        """Whether the model is a mixture of them. False for one that can't be told."""
        if self.plans:
            return any(plan.shape.experts for plan in self.plans)
        arguments = self.specs[0].arguments
        with contextlib.suppress(ConfigError):
            return huggingface.read(Path(arguments[arguments.index("--model") + 1])).experts > 0
        return False

    @property
    def remark(self) -> str:
        return " (simulated)" if self.plans else ""

    def adapt(self, config: Config) -> Config:
        """The configuration with the scenario's settings."""
        sections = {name: replace(getattr(config, name), **values) for name, values in self.settings.items()}
        return replace(config, **sections)

    def control(self, node: Node) -> Control | None:
        """What a simulated node has besides; see ``Company``, too."""
        if not self.plans:
            return None
        title = str(self.scenario) if self.scenario else self.model
        return Control(title, self.plans, node.views, node.send_core, node.actions.weigh)

    @contextlib.asynccontextmanager
    async def played(self, url: str) -> AsyncIterator[None]:
        """The scenario's clients are there."""
        if self.scenario is None:
            yield
            return
        command = [sys.executable, "-m", "appliance.simulator.player", "--url", _near(url), "--layout", self.layout]
        command += ["--scenario", str(self.scenario), "--model", self.model, "--parent", str(os.getpid())]
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        watching = asyncio.create_task(_tell_end(process))
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Company:
    """The cast as it is now: engines come and go where the topology is changed. Implements ``supervisor.actions.Casting``."""

    def __init__(self, cast: Cast) -> None:
        self._cast = self._next = cast
        self.kinds = cast.kinds
        """By engine; changes with them."""
        self.control: Control | None = None

    def follow(self, node: Node, control: Control | None) -> None:
        """Be asked for the engines of other layouts, and be told of those that come and go."""
        self.control = control
        node.actions.casting = self
        node.roster.on_begin.append(self._begins)
        node.roster.on_remove.append(self._is_gone)

    def notes(self) -> tuple[str, ...]:
        """Where engines are, and why there."""
        return self._next.notes

    def specs(self, layout: str, there: int) -> Sequence[EngineSpec]:
        """Raises ``ConfigError``."""
        self._next = self._cast.remake(layout, there)
        return self._next.specs

    def _begins(self, spec: EngineSpec) -> None:
        self.kinds[spec.name] = self._next.kinds[spec.name]
        if self.control is not None:
            self.control.begins(next(plan for plan in self._next.plans if plan.name == spec.name))

    def _is_gone(self, name: str) -> None:
        del self.kinds[name]
        if self.control is not None:
            self.control.ended(name)


async def _tell_end(process: asyncio.subprocess.Process) -> None:
    """Nobody ends them but us: a node that nobody asks any more should not look well."""
    code = await process.wait()
    _log.error("the scenario's clients have ended with exit code %d: nobody asks any more", code)


def cast(loaded: Loaded, path: Path | None, gpus: str = "") -> Cast:
    """``gpus``: of simulated engines, as in ``8xH100``. Raises ``ConfigError`` for engines that can't be."""
    config = loaded.config
    check_kind(config)
    if path is not None and config.engine.kind == "vllm":
        raise ConfigError("a scenario is played at simulated engines: leave --engine vllm out, or --scenario")
    if gpus and path is not None:
        raise ConfigError("--gpus: the scenario says which GPUs there are; leave it out")
    if path is not None:
        return _of_scenario(loaded, path)
    if config.engine.kind == "sim":
        return _simulated(loaded, gpus)
    if gpus:
        raise ConfigError(
            "--gpus is for simulated engines (--engine sim): CUDA_VISIBLE_DEVICES says which real ones to use"
        )
    return _real(loaded)


def check_kind(config: Config) -> None:
    """Raises ``ConfigError``."""
    if config.engine.kind not in _KINDS:
        raise ConfigError(
            f"engine.kind {config.engine.kind!r} is not one: write {', '.join(_KINDS[:-1])} or {_KINDS[-1]}"
        )


def _real(loaded: Loaded) -> Cast:
    found = hardware(loaded.config)
    layout = loaded.config.topology.layout if "topology.layout" in loaded.origins else None
    return _real_as(loaded.config, resolve_model(loaded.config), found, layout, 0)


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What engines can run on. ``inventory`` None: on the CPU; ``notes`` says why, where that may surprise."""

    inventory: Inventory | None
    notes: tuple[str, ...] = ()


def hardware(config: Config) -> Hardware:
    """By the vLLM that is installed. Raises ``ConfigError`` where it can't run here."""
    build, found = software.builds(), machine()
    if build is None:
        raise ConfigError(
            "vLLM is not installed in this environment: run make serve, or pip install 'pd-appliance[cpu]' (on GPUs: 'pd-appliance[gpu]')"
        )
    if build == "cuda":
        return Hardware(inventory=on_gpus.available(found, os.environ, software.runtime()))
    if presets.directory(config.model.path) and not presets.exists(Path(config.model.path)):
        raise ConfigError(
            f"model {config.model.path!r} is a preset for GPUs, and the vLLM that is installed here is built for the CPU: "
            "--engine sim plays it, pd-appliance plan says what it needs"
        )
    return Hardware(inventory=None, notes=_on_cpu_because(found))


def _on_cpu_because(found: Inventory) -> tuple[str, ...]:
    if not found.cards:
        return (f"engines run on the CPU: {found.trouble}",) if found.trouble else ()
    there = f"{len(found.cards)} GPU{'s' if len(found.cards) > 1 else ''}"
    return (f"engines run on the CPU beside {there}: vLLM's CPU build is installed; make serve installs the other",)


def seated(config: Config, model: Model, on: Hardware, layout: str | None) -> Seated:
    """Engines of a layout, or of the best one. Raises ``ConfigError``."""
    if on.inventory is not None:
        return on_gpus.seat(config, model, on.inventory, layout)
    topology = parse(layout or config.topology.layout)
    _check_heads(model, topology)
    found = specs(config, topology, model, sorted(os.sched_getaffinity(0)))
    return Seated(layout=topology.layout, specs=found, notes=on.notes)


def _real_as(config: Config, model: Model, on: Hardware, layout: str | None, there: int) -> Cast:
    """``there``: so many engines have their memory already."""
    found = seated(config, model, on, layout)
    if on.inventory is None:
        _check_memory(config, model, found.specs[there:])
    return Cast(
        model=model.name,
        layout=found.layout,
        specs=found.specs,
        notes=found.notes,
        remake=lambda other, there: _real_as(config, model, on, other, there),
    )


def _simulated(loaded: Loaded, gpus: str) -> Cast:
    """The configured model on GPUs that are not there, and nobody who asks."""
    model = resolve_model(loaded.config)
    if not model.local:
        raise ConfigError(
            f"model {model.path!r}: a simulated engine needs its config.json: name a directory with one, or --scenario"
        )
    return _staged(stage(loaded, model, gpus), model.name)


def _staged(found: Stage, name: str) -> Cast:
    played = _cast(found.scenario, found.layout, name)
    said = notes(found.scenario.scenario, played.plans, played.layout, found.why)

    def remade(layout: str, there: int) -> Cast:
        return _staged(replace(found, layout=layout, why="as it was asked for"), name)

    return replace(played, notes=said, remake=remade)


def _of_scenario(loaded: Loaded, path: Path) -> Cast:
    if "model.path" in loaded.origins:
        raise ConfigError(
            f"model.path (from {loaded.origins['model.path']}): the scenario says which model; leave it out"
        )
    found = scenario.load(path)
    described = found.scenario
    layout = loaded.config.topology.layout if "topology.layout" in loaded.origins else described.layout
    scenario.check(found, layout)
    name = loaded.config.model.name or described.model.name or Path(described.model.config).name
    settings = {
        section: {
            field: value
            for field, value in msgspec.structs.asdict(getattr(described, section)).items()
            if f"{section}.{field}" not in loaded.origins
        }
        for section in ("slo", "router")
    }
    return replace(_cast(found, layout, name), scenario=path.resolve(), settings=settings)


def _cast(loaded: scenario.Loaded, layout: str, name: str) -> Cast:
    plans: Sequence[EnginePlan] = scenario.plans(loaded, layout)
    return Cast(
        model=name,
        layout=parse(layout).layout,
        specs=simulated.specs(plans, name),
        plans=tuple(plans),
        remake=lambda other, there: _cast(loaded, other, name),
    )


def _near(url: str) -> str:
    """For a client on this machine: a node that listens everywhere listens here, too."""
    parts = urlsplit(url)
    host = _ANYWHERE.get(parts.hostname or "")
    if host is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{f'[{host}]' if ':' in host else host}:{parts.port}"))


def _check_heads(model: Model, topology: Topology) -> None:
    """Raises ``ConfigError`` for more ranks than the model's heads can be shared out to. Of one that we can't read, vLLM decides."""
    sizes = {place.tensor_parallel for place in topology.places} - {1}
    if not sizes or not model.local:
        return
    try:
        shape = huggingface.read(Path(model.path), name=model.name)
    except ConfigError:
        return
    for size in sorted(sizes):
        if reason := shape.unshared(size):
            raise ConfigError(f"topology {topology.layout!r}: {reason}")


def memory_bytes(config: Config, engines: Sequence[EngineSpec], weight_bytes: int) -> int:
    """What so many CPU engines take, about. ``weight_bytes``: of the model; each has its own."""
    ranks = sum(spec.tensor_parallel for spec in engines if spec.tensor_parallel > 1)
    each = ENGINE_MEMORY_BYTES + config.engine.kv_cache_bytes + weight_bytes
    return len(engines) * each + ranks * RANK_MEMORY_BYTES


def weight_bytes(model: Model) -> int:
    """That an engine takes for them at least; 0 of those that are not here yet."""
    return weights.taken(Path(model.path)) if model.local and not model.preset else 0


def _check_memory(config: Config, model: Model, engines: Sequence[EngineSpec]) -> None:
    """For those that there are not yet."""
    of_each = weight_bytes(model)
    wanted, available = memory_bytes(config, engines, of_each), psutil.virtual_memory().available
    if wanted > available:
        raise NotNowError(
            f"{len(engines)} engines need about {wanted >> 20} MiB of memory, {of_each >> 20} MiB of it for the weights of each, "
            f"and {available >> 20} MiB are available: use fewer engines (topology.layout), a smaller model, "
            f"or a lower engine.kv_cache_bytes (now {config.engine.kv_cache_bytes >> 20} MiB)"
        )
