"""What an engine is started with. Pure: from configuration and topology to command lines and environments."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance import demo, presets
from appliance.config import Config
from appliance.errors import ConfigError
from appliance.records import Role
from appliance.supervisor import refused
from appliance.supervisor.notify import without_ours
from appliance.supervisor.runtime import Runtime
from appliance.supervisor.topology import Place, Topology

ENGINE_MODULE: Final = "appliance.engine.main"
SHARED_MEMORY: Final = "shared_memory"
CUDA_IPC: Final = "cuda_ipc"
DEMO_CONTEXT: Final = 4096
_DEMO_TOOLS: Final = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
_DOTS: Final = "…"
_SECRET: Final = re.compile(r"(?i)key|token$|secret|passw|credential|auth")
_SECRET_IN_JSON: Final = re.compile(
    r'(?i)("[^"]*(?:key|token|secret|passw|credential|auth)[^"]*"\s*:\s*")(?:[^"\\]|\\.)*(")'
)
_SECRET_IN_ADDRESS: Final = re.compile(r"(://)[^/@\s]*@")


class Model(msgspec.Struct, frozen=True):
    """What is served, and under which name."""

    path: str
    name: str
    local: bool  # a directory, so that nothing is to be downloaded
    shipped: bool = False  # the demo model
    preset: bool = False  # ``path`` is the directory of a preset, which has a config.json and no weights


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, for all of its lives."""

    name: str
    role: Role
    cores: tuple[int, ...]
    tensor_parallel: int
    arguments: tuple[str, ...]  # of vLLM, without what changes from life to life
    environment: dict[str, str]
    gpus: tuple[str, ...] = ()  # UUIDs
    transport: str = SHARED_MEMORY  # of KV, as ``engine/kv/transport.py`` knows it
    module: str = ENGINE_MODULE
    forked: bool = (
        True  # from the fork server, where vLLM is imported already; else it begins with an interpreter of its own
    )


def resolve_model(config: Config) -> Model:
    """Raises ``ConfigError`` for a directory that isn't there or holds no model."""
    path, name = config.model.path, config.model.name
    if path == "demo":
        if not (demo.MODEL_DIR / "config.json").is_file():
            raise ConfigError("the demo model is missing: python -m appliance.demo.train makes it")
        return Model(str(demo.MODEL_DIR), name or demo.MODEL_NAME, True, True)
    try:
        directory = Path(path).expanduser()
        found = bool(path) and directory.is_dir()
        configured = found and (directory / "config.json").is_file()
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"model {path!r}: {error}; name a directory that can be read, a preset, a hub id, or demo"
        ) from error
    if found:
        if not configured:
            raise ConfigError(
                f"model {path!r}: there is no config.json in that directory, so it is not a Hugging Face model"
            )
        return Model(str(directory.resolve()), name or directory.resolve().name, True)
    if preset := presets.directory(path):
        return Model(str(preset), name or path, True, preset=True)
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or not path:
        raise ConfigError(
            f"model {path!r}: no such directory; name one, a preset ({', '.join(presets.names())}), a hub id such as org/model, or demo"
        )
    if "/" not in path and (meant := presets.nearest(path)):
        raise ConfigError(f"model {path!r}: no such directory, and no such preset{meant}")
    return Model(path, name or path, False)


def specs(config: Config, topology: Topology, model: Model, cores: Sequence[int]) -> tuple[EngineSpec, ...]:
    """One per place, the machine's cores shared out evenly to their ranks."""
    refused.check(config.engine, refused.ON_CPUS)
    seats = seated(topology.places, cores)
    return tuple(
        EngineSpec(
            name=place.name,
            role=place.role,
            cores=mine,
            tensor_parallel=place.tensor_parallel,
            arguments=_arguments(config, model, place),
            environment=_environment(config, model, max(1, len(mine) // place.tensor_parallel)),
        )
        for place, mine in zip(topology.places, seats, strict=True)
    )


def seated(places: Sequence[Place], cores: Sequence[int]) -> list[tuple[int, ...]]:
    """The cores of each engine: those of its ranks, which have equal shares."""
    ranks = sum(place.tensor_parallel for place in places)
    shares = iter([share(cores, number, ranks) for number in range(ranks)])
    return [tuple(sorted({core for _ in range(place.tensor_parallel) for core in next(shares)})) for place in places]


class GpuSeat(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's place on GPUs, as a planner has found it."""

    name: str
    role: Role
    gpus: tuple[str, ...]  # UUIDs
    memory_fraction: float  # of each GPU's memory
    token_budget: int  # of a step
    places: int  # requests that it runs at once
    kv_bytes: int | None = None  # on each GPU; None: what vLLM finds to be left
    sees: tuple[str, ...] = ()  # other engines' GPUs, besides its own


def gpu_specs(
    config: Config, seats: Sequence[GpuSeat], model: Model, *, arguments: Sequence[str], context: int | None, near: Near
) -> tuple[EngineSpec, ...]:
    """One per seat. Each begins with an interpreter of its own: CUDA can't be used in a fork of a process that has begun to use it.

    Args:
        arguments: of vLLM, for every engine; those of the configuration come later, and win.
        context: the longest request, in tokens; None: the model's own.
        near: cores that are near a GPU, by its UUID; none where that is not known.
    """
    shared = any(seat.kv_bytes is not None for seat in seats)
    refused.check(config.engine, refused.ON_SHARED_GPUS if shared else refused.ON_GPUS)
    cores = _near_cores(seats, near)
    return tuple(
        EngineSpec(
            name=seat.name,
            role=seat.role,
            cores=cores[seat.name],
            tensor_parallel=len(seat.gpus),
            arguments=_gpu_arguments(config, seat, model, arguments, context),
            environment=_gpu_environment(config, seat, model),
            gpus=seat.gpus,
            transport=CUDA_IPC,
            forked=False,
        )
        for seat in seats
    )


Near = Mapping[str, Sequence[int]]


def _near_cores(seats: Sequence[GpuSeat], near: Near) -> dict[str, tuple[int, ...]]:
    """Cores that are near the same GPUs are shared out evenly to these, and an engine has those of all of its GPUs: so none is given to
    two engines where there are enough.
    """
    places = [(seat.name, gpu) for seat in seats for gpu in seat.gpus if near.get(gpu)]
    found: dict[str, set[int]] = {seat.name: set() for seat in seats}
    for neighbours, cores in _alike(places, near).items():
        for number, (name, _) in enumerate(neighbours):
            found[name] |= set(share(cores, number, len(neighbours)))
    return {name: tuple(sorted(cores)) for name, cores in found.items()}


def _alike(places: Sequence[tuple[str, str]], near: Near) -> dict[tuple[tuple[str, str], ...], list[int]]:
    """Cores, by all of the engines' places (engine and GPU) that they are near."""
    found: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for core in sorted({core for _, gpu in places for core in near[gpu]}):
        found.setdefault(tuple(place for place in places if core in near[place[1]]), []).append(core)
    return found


def _gpu_arguments(
    config: Config, seat: GpuSeat, model: Model, arguments: Sequence[str], context: int | None
) -> tuple[str, ...]:
    size = len(seat.gpus)
    return (
        *("--model", model.path, "--served-model-name", model.name),
        *(("--tensor-parallel-size", str(size)) if size > 1 else ()),
        *_gpu_memory(seat),
        *(("--max-model-len", str(context)) if context else ()),
        *("--max-num-batched-tokens", str(seat.token_budget), "--max-num-seqs", str(seat.places)),
        *_usual_arguments(config, "appliance.engine.recorder.recording_scheduler"),
        *arguments,
        *(_DEMO_TOOLS if model.shipped else ()),
        *config.engine.args,
        *_role_arguments(config, seat.role),
    )


def _gpu_memory(seat: GpuSeat) -> tuple[str, ...]:
    """vLLM measures what a step takes by what becomes less free meanwhile; where another engine loads beside it, it is told."""
    fraction = f"{math.floor(seat.memory_fraction * 1000) / 1000:.3f}"  # never more than there is
    return (
        *("--gpu-memory-utilization", fraction),
        *(("--kv-cache-memory-bytes", str(seat.kv_bytes)) if seat.kv_bytes is not None else ()),
    )


def _gpu_environment(config: Config, seat: GpuSeat, model: Model) -> dict[str, str]:
    """Engines know their GPUs by UUID: an index means another one to each process that sees others. vLLM takes the first that it sees."""
    return {
        "CUDA_VISIBLE_DEVICES": ",".join((*seat.gpus, *seat.sees)),
        **dict.fromkeys(refused.ALLOCATOR, "expandable_segments:False"),  # memory of such segments can't be exported
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",  # nothing that has threads is forked
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        **({"HF_HUB_OFFLINE": "1"} if model.local else {}),
        **config.engine.env,
    }


def share(cores: Sequence[int], number: int, count: int) -> tuple[int, ...]:
    """The cores of engine ``number`` of ``count``: a part of its own, or one in turn where there are too few."""
    if len(cores) < count:
        return (cores[number % len(cores)],)
    return tuple(cores[number * len(cores) // count : (number + 1) * len(cores) // count])


def arguments(spec: EngineSpec, runtime: Runtime, config: Config, epoch: int, parent: int) -> list[str]:
    """What the engine's module is told in one life."""
    own = ["--engine", spec.name, "--epoch", str(epoch), "--channel", str(runtime.channel), "--parent", str(parent)]
    own += ["--cores", ",".join(map(str, spec.cores))]
    life = [
        "--uds",
        str(runtime.server_socket(spec.name)),
        "--kv-transfer-config",
        json.dumps(_transfer(spec, runtime, config, epoch)),
    ]
    return [*own, "--", *life, *spec.arguments]


def command(spec: EngineSpec, arguments: Sequence[str]) -> list[str]:
    """The command line of an engine in an interpreter of its own."""
    return [sys.executable, "-m", spec.module, *arguments]


def shown(spec: EngineSpec) -> list[str]:
    """The command line for people: without what changes from life to life, and with dots in the place of secrets."""
    found, hidden = [], False
    for argument in command(spec, ["--", *spec.arguments]):
        name, equals, _ = argument.partition("=")
        if argument.startswith("--"):
            hidden = _SECRET.search(name) is not None  # all values that follow, too
            found.append(f"{name}={_DOTS}" if hidden and equals else _without_secrets(argument))
        else:
            found.append(_DOTS if hidden else _without_secrets(argument))
    return found


def shown_environment(spec: EngineSpec) -> dict[str, str]:
    """The same of its environment."""
    return {
        name: _DOTS if _SECRET.search(name) else _without_secrets(value) for name, value in spec.environment.items()
    }


def _without_secrets(text: str) -> str:
    """JSON and addresses may have some within."""
    return _SECRET_IN_ADDRESS.sub(rf"\1{_DOTS}@", _SECRET_IN_JSON.sub(rf"\1{_DOTS}\2", text))


def environment(spec: EngineSpec, temporary: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """What an engine is started with. ``temporary`` is for what vLLM would leave in /tmp."""
    return {
        **without_ours(inherited),
        "TMPDIR": str(temporary),
        "VLLM_RPC_BASE_PATH": str(temporary),
        **spec.environment,
    }


def _role_arguments(config: Config, role: Role) -> tuple[str, ...]:
    return {Role.PREFILL: config.engine.prefill.args, Role.DECODE: config.engine.decode.args, Role.BOTH: ()}[role]


def _usual_arguments(config: Config, scheduler: str) -> tuple[str, ...]:
    """What the appliance needs of every engine."""
    return (
        *("--scheduler-cls", scheduler),
        *(("--logits-processors", "appliance.engine.resume:ForcedTokens") if config.router.continue_streams else ()),
        *("--disable-uvicorn-access-log", "--api-server-count", "1"),
    )


def _arguments(config: Config, model: Model, place: Place) -> tuple[str, ...]:
    return (
        *("--model", model.path, "--served-model-name", model.name),
        *_ranks(place.tensor_parallel),
        "--enforce-eager",
        *(
            "--kv-cache-memory-bytes",
            str(config.engine.kv_cache_bytes // place.tensor_parallel),
        ),  # vLLM's is each rank's
        *_usual_arguments(config, "appliance.engine.recorder.RecordingScheduler"),
        *(("--dtype", "float32", "--max-model-len", str(DEMO_CONTEXT), *_DEMO_TOOLS) if model.shipped else ()),
        *config.engine.args,
        *_role_arguments(config, place.role),
    )


def _ranks(size: int) -> tuple[str, ...]:
    """The only rank of an engine runs inside EngineCore."""
    if size == 1:
        return ("--distributed-executor-backend", "uni")
    return ("--distributed-executor-backend", "mp", "--tensor-parallel-size", str(size))


def _transfer(spec: EngineSpec, runtime: Runtime, config: Config, epoch: int) -> dict[str, Any]:
    return {
        "kv_connector": "ApplianceConnector",
        "kv_connector_module_path": "appliance.engine.kv.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "engine": spec.name,
            "epoch": epoch,
            "directory": str(runtime.directory),
            "channel": str(runtime.channel),
            "transport": spec.transport,
            "inline_bytes": _inline_bytes(spec, config),
        },
    }


def _inline_bytes(spec: EngineSpec, config: Config) -> int:
    """On a GPU none: a copy in the engine's loop would wait for the step under way, and leave the GPU with nothing to do after it."""
    return config.router.inline_bytes if spec.transport == SHARED_MEMORY else 0


def _environment(config: Config, model: Model, cores: int) -> dict[str, str]:
    return {**cpu_environment(cores), **({"HF_HUB_OFFLINE": "1"} if model.local else {}), **config.engine.env}


def cpu_environment(cores: int) -> dict[str, str]:
    """What every CPU engine is told."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # lets a CPU engine run its worker inside EngineCore
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the affinity of the process is set already
        "OMP_NUM_THREADS": str(cores),
        "OPENBLAS_NUM_THREADS": "1",
        "TORCH_COMPILE_DISABLE": "1",  # eager is not all: the first logprobs or top_p would stop every stream for 15 s of compiling
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
