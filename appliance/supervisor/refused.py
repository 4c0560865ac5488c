"""What an owner may not give engines: arguments and variables with which they would not be the ones that were meant. Pure.

vLLM takes an argument in more than one spelling: ``--kv_transfer_config``, ``--kv-transfer-config.kv_role`` (which it adds to its command
line as JSON, last of all), and any beginning that only one argument has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from appliance.config import EngineConfig
from appliance.errors import ConfigError

ALLOCATOR: Final = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the second is torch's newer name for it

_OURS: Final = "the appliance sets it itself"
_ALWAYS: Final = {
    **dict.fromkeys(("--tensor-parallel-size", "-tp"), "write it into the topology, as in 1p1d@tp2"),
    **dict.fromkeys(("--pipeline-parallel-size", "-pp"), "engines over several pipeline stages are not supported"),
    **dict.fromkeys(
        ("--decode-context-parallel-size", "-dcp", "--prefill-context-parallel-size", "-pcp"),
        "engines whose ranks share out a request's tokens are not supported: write tensor-parallel sizes into the topology",
    ),
    **dict.fromkeys(("--data-parallel-size", "-dp"), "use more engines (topology)"),
    **dict.fromkeys(("--model", "--served-model-name"), "write it into [model] path and name"),
    **dict.fromkeys(
        (
            "--uds",
            "--host",
            "--port",
            "--kv-transfer-config",
            "--scheduler-cls",
            "--api-server-count",
            "-asc",
            "--headless",
            "--logits-processors",
        ),
        _OURS,
    ),
    "--config": "what is in that file would win over what the appliance sets: write it into [engine] args",
    "--device-ids": "each engine gets GPUs of its own: write the layout into the topology",
    "--kv-offloading-size": "vLLM would put a connector of its own in the place of ours, and no KV would be handed over",
    "--enable-sleep-mode": "memory that can be put to sleep can't be shared with other engines",
    "--enable-cumem-allocator": "memory of CUDA's virtual memory management can't be shared with other engines",
    "--enable-return-routed-experts": "answers that are split over two engines can't have them",
}
ON_CPUS: Final = {**_ALWAYS, "--kv-cache-memory-bytes": "write it into [engine] kv_cache_bytes"}
ON_GPUS: Final = {
    **_ALWAYS,
    "--kv-cache-memory-bytes": "KV gets what weights leave of each GPU's memory: a lower --gpu-memory-utilization leaves less",
}
ON_SHARED_GPUS: Final = {
    **ON_GPUS,
    **dict.fromkeys(
        ("--gpu-memory-utilization", "--device-memory-utilization", "--num-gpu-blocks-override"),
        "engines that share a GPU have half of what may be had of its memory each, and with more of it the second one would not start: "
        "name a layout with a GPU for each engine (topology)",
    ),
}
_THEMSELVES: Final = ("-dc",)  # vLLM's --diffusion-config: not a beginning of -dcp
_UNSHARED: Final = {
    "expandable_segments:true": "has expandable_segments, whose memory can't be shared with other engines",
    "backend:cudamallocasync": "takes CUDA's asynchronous allocator, whose memory can't be shared with other engines",
}


def check(engine: EngineConfig, refused: Mapping[str, str]) -> None:
    """``refused``: names and why they are. Raises ``ConfigError``."""
    given = {"engine.args": engine.args, "engine.prefill.args": engine.prefill.args}
    for setting, arguments in {**given, "engine.decode.args": engine.decode.args}.items():
        _check_arguments(setting, arguments, refused)
    if "CUDA_VISIBLE_DEVICES" in engine.env:
        raise ConfigError("engine.env: CUDA_VISIBLE_DEVICES is not to be given: each engine gets GPUs of its own")
    for name in ALLOCATOR:
        if reason := unshared(engine.env.get(name, "")):
            raise ConfigError(f"engine.env: {name} {reason}: leave it out")


def _check_arguments(setting: str, arguments: Sequence[str], refused: Mapping[str, str]) -> None:
    for argument in arguments:
        name = meant(argument, refused)
        if name is not None:
            raise ConfigError(f"{setting}: {name} is not to be given: {refused[name]}")


def meant(argument: str, names: Mapping[str, str]) -> str | None:
    """That of these names which an argument is, in whatever spelling; None for what is none, values included."""
    name = argument.partition("=")[0].partition(".")[0].replace("_", "-")
    if not argument.startswith("-") or not name.strip("-") or name in _THEMSELVES:
        return None
    return name if name in names else next((one for one in names if one.startswith(name)), None)


def unshared(settings: str) -> str | None:
    """Why memory of an allocator with such settings can't be exported to other processes, of what torch calls its configuration."""
    plain = settings.replace(" ", "").lower()
    return next((reason for setting, reason in _UNSHARED.items() if setting in plain), None)
