"""A node that is not there, described: hardware, model, topology, traffic. From TOML to what the simulator runs."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec

from appliance import presets
from appliance.channel import Fault
from appliance.config import Config, Count, NotNegative, Positive, RouterConfig, Section, SloConfig
from appliance.costs import closed, huggingface
from appliance.costs.gpus import Gpu, gpu
from appliance.costs.memory import Memory
from appliance.costs.shape import ModelShape
from appliance.errors import ConfigError
from appliance.expected import in_words
from appliance.planner import node as planner
from appliance.planner.cards import SHARERS
from appliance.planner.room import Room, room
from appliance.records import Role
from appliance.simulator import faults
from appliance.simulator.leg import Settings
from appliance.simulator.plan import EnginePlan
from appliance.simulator.traffic import Traffic, arrivals
from appliance.supervisor.topology import Place, parse

BLOCK_TOKENS: Final = 16
_SHORTEST_S: Final = 0.1
_LONGEST_S: Final = 1e7  # four months


class Hardware(Section, frozen=True, kw_only=True):
    gpu: str = "h100"  # costs.gpus' names
    gpus: Count = 8
    link: Literal["nvlink", "pcie"] = "nvlink"  # by which they see each other


class Model(Section, frozen=True, kw_only=True):
    config: str  # a config.json, or a directory with one, relative to the scenario; or a preset's name
    name: str = ""


class RoleSettings(Section, frozen=True, kw_only=True):
    max_batched_tokens: Count = 8192
    max_running: Count = 256


class Engines(Section, frozen=True, kw_only=True):
    memory_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.92
    max_model_len: Count = 32_768
    prefill: RoleSettings = RoleSettings()
    decode: RoleSettings = RoleSettings(max_batched_tokens=2048)
    both: RoleSettings = RoleSettings()


class Misfortune(Section, frozen=True, kw_only=True):
    """A fault of the time line: see ``faults.KINDS``."""

    engine: str
    kind: str
    severity: float = 0.5
    at_s: Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)] = 0.0
    until_s: Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)] | None = None  # None: it stays
    peer: str | None = None

    @property
    def begins(self) -> Fault:
        return Fault(kind=self.kind, severity=self.severity, peer=self.peer)

    @property
    def ends(self) -> Fault:
        return Fault(kind=self.kind, severity=0.0, peer=self.peer)


class Scenario(Section, frozen=True, kw_only=True):
    """The whole file."""

    title: str = ""
    seed: int = 1
    duration_s: Positive = 300.0
    warmup_s: NotNegative = 30.0  # not counted
    layout: str = "1p1d"
    compare: tuple[str, ...] = ()  # other layouts, for the same traffic
    hardware: Hardware = Hardware()
    model: Model
    engine: Engines = Engines()
    traffic: Traffic = Traffic()
    faults: tuple[Misfortune, ...] = ()
    slo: SloConfig = SloConfig()
    router: RouterConfig = RouterConfig()


class Loaded(msgspec.Struct, frozen=True):
    """A scenario, and what its paths are relative to."""

    scenario: Scenario
    directory: Path


def load(path: Path) -> Loaded:
    """Raises ``ConfigError`` that names the file, what is wrong in it, and what would be right."""
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"), parse_float=_finite)
        return Loaded(msgspec.convert(values, Scenario), path.parent)
    except OSError as error:
        raise ConfigError(f"scenario {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scenario {path} is not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"scenario {path}: {_mistake(str(error))}") from error


def _finite(text: str) -> float:
    """What is neither is no number to simulate with. Raises ``ConfigError``."""
    number = float(text)
    if not math.isfinite(number):
        raise ConfigError(f"scenario: {text} is no number that can be simulated")
    return number


def _mistake(said: str) -> str:
    """In the words of the file: ``Expected `float` >= 0.0 - at `$.traffic.rate` `` is ``traffic.rate: expected a number of at least 0``."""
    what, _, where = said.partition(" - at `$.")
    section = where.rstrip("`")
    setting = section.rstrip(".") + "." if section else ""
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", what):
        return f"{setting}{unknown[1]}: there is no such setting; there are {', '.join(_settings(section))}"
    if missing := re.fullmatch(r"Object missing required field `(.+)`", what):
        return f"{setting}{missing[1]} is missing"
    return f"{section}: {in_words(what)}"


def _settings(section: str) -> list[str]:
    """That there are in a section, or in the file."""
    kind: Any = Scenario
    for name in filter(None, re.sub(r"\[.*?\]", "", section).split(".")):
        hint = get_type_hints(kind)[name]
        several = [one for one in get_args(hint) if hasattr(one, "__struct_fields__")]
        kind = several[0] if several else hint
    return list(kind.__struct_fields__)


def config(scenario: Scenario) -> Config:
    """What the real parts of the node are configured with."""
    return Config(slo=scenario.slo, router=scenario.router)


def plans(loaded: Loaded, layout: str, *, quiet: bool = False) -> list[EnginePlan]:
    """The engines of a layout, GPUs given out in order; two share one where there are too few, as on real ones.

    Raises ``ConfigError`` where they need more GPUs than there are, or the model does not fit.
    """
    scenario = loaded.scenario
    hardware, places = gpu(scenario.hardware.gpu), parse(layout).places
    firsts = _given_out(layout, places, scenario.hardware.gpus)
    shape = huggingface.read(
        presets.described(scenario.model.config, loaded.directory), name=scenario.model.name or None
    )
    link = closed.pcie if scenario.hardware.link == "pcie" else closed.nvlink
    lanes = link(hardware, min(place.tensor_parallel for place in places))  # ranks copy side by side
    link_bytes_s = lanes.bytes_s * lanes.reached * lanes.lanes
    return [
        msgspec.structs.replace(
            _plan(_shared(scenario, firsts.count(first)), shape, hardware, place),
            first_gpu=first,
            sharers=firsts.count(first),
            link_bytes_s=link_bytes_s,
            noise=0.0 if quiet else 1.0,
        )
        for place, first in zip(places, firsts, strict=True)
    ]


def _given_out(layout: str, places: Sequence[Place], gpus: int) -> list[int]:
    """The first GPU of each engine. Raises ``ConfigError`` where there are too few."""
    needed = sum(place.tensor_parallel for place in places)
    if needed <= gpus:
        return list(itertools.accumulate((place.tensor_parallel for place in places[:-1]), initial=0))
    if needed == len(places) <= SHARERS * gpus:
        return [number % gpus for number in range(needed)]
    raise ConfigError(f"layout {layout} needs {needed} GPUs and hardware.gpus is {gpus}")


def _shared(scenario: Scenario, sharers: int) -> Scenario:
    """With its part of the memory for each of so many engines on a GPU."""
    part = msgspec.structs.replace(scenario.engine, memory_fraction=scenario.engine.memory_fraction / sharers)
    return msgspec.structs.replace(scenario, engine=part)


def misfortunes(loaded: Loaded, layout: str) -> tuple[Misfortune, ...]:
    """The faults of the time line, for the layout that they are for; others have other engines."""
    scenario = loaded.scenario
    return scenario.faults if parse(layout) == parse(scenario.layout) else ()


def check(loaded: Loaded, layout: str) -> None:
    """All that can be wrong with a scenario as a whole. Raises ``ConfigError`` that says what would be right."""
    scenario = loaded.scenario
    if not _SHORTEST_S <= scenario.duration_s <= _LONGEST_S:
        raise ConfigError(f"duration_s {scenario.duration_s:g} is not from {_SHORTEST_S:g} to {_LONGEST_S:g} seconds")
    if scenario.warmup_s >= scenario.duration_s:
        raise ConfigError(
            f"warmup_s {scenario.warmup_s:g} is not shorter than duration_s {scenario.duration_s:g}: nothing would count"
        )
    names = [place.name for place in parse(layout).places]
    for one in misfortunes(loaded, layout):
        faults.check(one.begins, one.engine, names)
        if one.until_s is not None and one.kind not in faults.LASTING:
            raise ConfigError(f"faults: a {one.kind} ends by itself; leave until_s out")
        if one.until_s is not None and one.until_s <= one.at_s:
            raise ConfigError(
                f"faults: until_s {one.until_s:g} of {one.kind} on {one.engine} is not after at_s {one.at_s:g}"
            )
    next(arrivals(scenario.traffic, scenario.seed, scenario.duration_s, BLOCK_TOKENS, loaded.directory), None)


def _plan(scenario: Scenario, shape: ModelShape, hardware: Gpu, place: Place) -> EnginePlan:
    engines, tp = scenario.engine, place.tensor_parallel
    role = {Role.PREFILL: engines.prefill, Role.DECODE: engines.decode, Role.BOTH: engines.both}[place.role]
    there = _room(engines, shape, hardware, tp, role, engines.max_model_len)
    settings = Settings(
        max_batched_tokens=role.max_batched_tokens,
        max_running=role.max_running,
        kv_blocks=there.tokens // BLOCK_TOKENS,
        block_tokens=BLOCK_TOKENS,
        max_model_len=min(engines.max_model_len, there.tokens // BLOCK_TOKENS * BLOCK_TOKENS),
        block_bytes=int(closed.handoff_bytes(shape, BLOCK_TOKENS, tp)),
    )
    return EnginePlan(
        name=place.name,
        role=place.role,
        settings=settings,
        shape=shape,
        gpu=hardware.name,
        tensor_parallel=tp,
        memory_fraction=engines.memory_fraction,
        link_bytes_s=0.0,
        seed=scenario.seed,
    )


def _room(engines: Engines, shape: ModelShape, hardware: Gpu, tp: int, role: RoleSettings, context: int) -> Room:
    """For KV on each GPU, as the planner reckons it. An engine that has none for its longest request gets shorter ones.

    Raises:
        ConfigError: it has none for any.
    """
    there_bytes = engines.memory_fraction * hardware.usable_bytes
    wanted = planner.Settings(token_budget=role.max_batched_tokens, places=role.max_running)
    found = room(Memory(shape), there_bytes, tp, wanted, context, context)
    if isinstance(found, Room):
        return found
    if found.fits < BLOCK_TOKENS:
        raise ConfigError(
            f"{shape.name} has {found.weight_bytes / 1e9:.1f} GB of weights on each of {tp} ranks, and a {hardware.name} has"
            f" {(there_bytes - found.working_bytes) / 1e9:.1f} GB for them; more ranks, or fewer bits per weight, would do"
        )
    return _room(engines, shape, hardware, tp, role, found.fits // BLOCK_TOKENS * BLOCK_TOKENS)
