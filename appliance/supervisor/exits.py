"""Why an engine ended: from its exit code and last lines to a cause and a remedy, in words. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.supervisor.oom import Evidence

_CONSEQUENCES: Final = (
    "EngineDeadError",
    "Engine core initialization failed",
    "WorkerProc initialization failed",
)  # what processes say of the end of those that they have started
_RANK_KILLED: Final = re.compile(r"Worker proc VllmWorker-(\d+) died unexpectedly \(exit code: -9\)")
_LESS_MEMORY: Final = "lower [engine] kv_cache_bytes, run fewer engines, or use a smaller model"
_MODELS_FILES: Final = "the model's files are damaged or missing: pd-appliance check says which; fetch them again"
_OOM_KILLED: Final = {
    Evidence.HERE: f"killed by the kernel for want of memory: {_LESS_MEMORY}",
    Evidence.ELSEWHERE: f"probably killed by the kernel, which has just killed a process for want of memory: {_LESS_MEMORY}",
}
_LINES: Final = 200  # the last ones are searched


class Exit(msgspec.Struct, frozen=True):
    """``terminal``: another try would end the same way."""

    cause: str
    terminal: bool = False


class _Sign(msgspec.Struct, frozen=True):
    pattern: re.Pattern[str]  # its first group is said, or all that it has matched; nothing if that is empty
    remedy: str
    terminal: bool


def _sign(pattern: str, remedy: str, *, terminal: bool) -> _Sign:
    return _Sign(re.compile(pattern), remedy, terminal)


_SIGNS: Final = (
    _sign(
        r"error: (?:unrecognized arguments|argument |invalid choice|the following arguments).*",
        "correct [engine] args: vLLM does not take them",
        terminal=True,
    ),
    _sign(
        r"CUDA out of memory.*",
        "use a smaller model, more GPUs per engine, or a lower --gpu-memory-utilization",
        terminal=True,
    ),
    _sign(r"CUDA error.*", "look at the GPU (nvidia-smi, dmesg); other processes may be using it", terminal=False),
    _sign(r"HandoffError: (.*)", "", terminal=True),
    _sign(  # vLLM reads as many bytes as the beginning of a file tells it to: of what is no such file, a MemoryError
        r"(?=.* in parse_safetensors_file_metadata\b)", _MODELS_FILES, terminal=True
    ),
    _sign(
        r"(?:Value error, |json\.decoder\.JSONDecodeError: )(.+: line \d+ column \d+ \(char \d+\))",
        _MODELS_FILES,
        terminal=True,
    ),
    _sign(
        r"(?:FileNotFoundError: .*\.(?:safetensors|bin)\b|Weight files referenced in index but missing|Cannot find any model weights"
        r"|Following weights were not initialized from checkpoint).*",
        _MODELS_FILES,
        terminal=True,
    ),
    _sign(
        r"(?:Cannot allocate memory|DefaultCPUAllocator: can't allocate memory|unable to allocate shared memory|MemoryError).*",
        "lower [engine] kv_cache_bytes, or run fewer engines",
        terminal=True,
    ),
    _sign(r"No available memory for the cache blocks.*", "raise [engine] kv_cache_bytes", terminal=True),
    _sign(
        r".*(?:larger than the available KV cache memory|KV cache is needed).*",
        "raise [engine] kv_cache_bytes, or lower --max-model-len in [engine] args",
        terminal=True,
    ),
    _sign(
        r"ModuleNotFoundError: (No module named .*)",
        "install it: make serve, or pip install 'pd-appliance[cpu]'",
        terminal=True,
    ),
    _sign(r"ImportError: .*", "reinstall: the engine's packages do not fit together", terminal=True),
    _sign(
        r"(.*is not a local folder and is not a valid model identifier.*|.*Can't load the configuration of.*|.*Repository Not Found.*)",
        "check [model] path",
        terminal=True,
    ),
    _sign(
        r"(ValueError: Model architectures .* are not supported.*)", "this vLLM can't serve that model", terminal=True
    ),
    _sign(
        r"(SafetensorError.*|.*Error while deserializing header.*)",
        _MODELS_FILES,
        terminal=True,
    ),
    _sign(
        r"ValueError: (?:Pooling models do not support custom logits|Custom logits processors are not supported when spec).*",
        "set [router] continue_streams = false",
        terminal=True,
    ),
    _sign(r".*pydantic_core.*ValidationError.*", "correct [engine] args, or [model] path", terminal=True),
    _sign(r".*Address already in use.*", "something else uses the runtime directory", terminal=False),
)


def explain(code: int, lines: Sequence[str], *, oom: Evidence = Evidence.NONE) -> Exit:
    """Why it ended.

    Args:
        code: exit status, negative for a signal.
        lines: what this life of the engine has said last, oldest first.
        oom: whether the kernel has just killed a process for want of memory.
    """
    if code == -signal.SIGKILL:  # nothing that it said can be why
        return Exit(_OOM_KILLED.get(oom) or _signalled(signal.SIGKILL))
    tail = [_plain(line) for line in lines[-_LINES:]]
    if killed := next((found for line in tail if (found := _RANK_KILLED.search(line))), None):
        return Exit(_OOM_KILLED.get(oom) or f"rank {killed[1]} was {_signalled(signal.SIGKILL)}")
    for sign in _SIGNS:
        for line in reversed(tail):
            if found := sign.pattern.search(line):
                said = (found[1] if found.groups() and found[1] else found[0]).strip()
                return Exit(": ".join(filter(None, (said[:300], sign.remedy))), sign.terminal)
    if code < 0:
        return Exit(_signalled(-code))
    error = _last_error(tail)
    if "EngineDeadError" in error:  # all that the API process knows
        if oom in _OOM_KILLED:
            return Exit(_OOM_KILLED[oom])
        return Exit(
            f"its EngineCore ended without a word: perhaps killed by the kernel for want of memory (see dmesg): then {_LESS_MEMORY}"
        )
    return Exit(f"exit status {code}: {error}")


def _signalled(number: int) -> str:
    name = signal.Signals(number).name if number in signal.Signals.__members__.values() else f"signal {number}"
    if number == signal.SIGKILL:
        return "killed (SIGKILL): perhaps by the kernel for want of memory (see dmesg), or by hand"
    return f"ended by {name}"


def _last_error(tail: Sequence[str]) -> str:
    """The last exception that was told, if possible. (vLLM's warnings name some that have not happened.)"""
    errors = [line for line in tail if re.match(r"[\w.]*(Error|Exception)(:|$)", line)]
    roots = [line for line in errors if not any(consequence in line for consequence in _CONSEQUENCES)]
    found = roots or errors or [line for line in tail if line.strip()]
    return found[-1].strip()[:300] if found else "it said nothing"


def _plain(line: str) -> str:
    """Without colours, and without vLLM's prefix of process, and of time and place where that says no more than ERROR."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line)
    return re.sub(r"^(\(\w+ pid=\d+\)\s*)?((ERROR|CRITICAL) \d\d-\d\d \S+ \[[^\]]+\]\s*)?", "", line)
