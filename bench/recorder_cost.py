"""What recording steps takes of an engine: ``bench.diagnosis_cost`` runs it, in a process that may import torch and vLLM.

A real vLLM engine on the CPU decodes in this very process. Its scheduler is the product's recorder around one that times vLLM's own part
in each of the calls that are overridden; the rest is ours: counting, encoding, and the socket, whose other end a thread reads. Of both, the
thread's CPU time is taken, and medians over steps.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

SEQUENCES: Final = 64
TOKENS: Final = 200
Call = Callable[..., Any]


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over steps in which all sequences decode, in microseconds of CPU time."""

    ours_us: float
    vllms_us: float  # its scheduler's own part
    step_us: float  # all of the step
    sequences: int
    steps: int


class Timer:
    """CPU nanoseconds of the thread, by step, within vLLM's own calls and within ours around them."""

    def __init__(self) -> None:
        self.inner_ns = self.outer_ns = 0
        self.steps: list[tuple[int, int, int]] = []  # ours, vLLM's, all
        self._began_ns = 0

    def inner(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """A call of vLLM's."""
        began_ns = time.thread_time_ns()
        found = call(*args, **kwargs)
        self.inner_ns += time.thread_time_ns() - began_ns
        return found

    def outer(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """The same with ours around it."""
        began_ns = time.thread_time_ns()
        found = call(*args, **kwargs)
        self.outer_ns += time.thread_time_ns() - began_ns
        return found

    def begin(self) -> None:
        """A step."""
        self.inner_ns = self.outer_ns = 0
        self._began_ns = time.thread_time_ns()

    def end(self) -> None:
        """It is over."""
        self.steps.append((self.outer_ns - self.inner_ns, self.inner_ns, time.thread_time_ns() - self._began_ns))


TIMER: Final = Timer()


def scheduler() -> type:
    """The product's, with a clock within and a clock around."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from appliance.engine.recorder import StepRecorder

    class Inner(Scheduler):  # type: ignore[misc]
        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            return TIMER.inner(super().schedule, *args, **kwargs)

        def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
            return TIMER.inner(super().update_from_output, *args, **kwargs)

    class Timed(StepRecorder, Inner):
        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            TIMER.begin()
            return TIMER.outer(super().schedule, *args, **kwargs)

        def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
            found = TIMER.outer(super().update_from_output, *args, **kwargs)
            TIMER.end()
            return found

    return Timed


def main() -> None:
    """Prints what was measured as JSON."""
    from appliance.supervisor.specs import cpu_environment

    os.environ |= {**cpu_environment(cores=1), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from bench.random_model import write  # torch reads the environment when it is imported

    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        directory = Path(name)
        _swallow(directory / "channel")
        found = _measured(write(directory / "model"), directory)
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.flush()
    os._exit(0)  # its link would wait for a supervisor


def _measured(model: Path, directory: Path) -> Recorded:
    from vllm import LLM, SamplingParams

    extra = {"engine": "e0", "epoch": 1, "directory": str(directory), "channel": str(directory / "channel")}
    llm = LLM(
        str(model),
        dtype="float32",
        max_model_len=1024,
        kv_cache_memory_bytes=64 << 20,
        enforce_eager=True,
        disable_log_stats=False,
        distributed_executor_backend="uni",
        scheduler_cls=scheduler(),
        kv_transfer_config={
            "kv_connector": "ApplianceConnector",
            "kv_connector_module_path": "appliance.engine.kv.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {**extra, "transport": "shared_memory", "inline_bytes": 1 << 20},
        },
    )
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0)
    prompts = [{"prompt_token_ids": [number] * 16} for number in range(SEQUENCES)]
    llm.generate(prompts, params, use_tqdm=False)
    counted = TIMER.steps[len(TIMER.steps) // 4 : -1]  # without the prompts, and without the end
    ours_us, vllms_us, step_us = (statistics.median(times_ns) * 1e-3 for times_ns in zip(*counted, strict=True))
    return Recorded(ours_us=ours_us, vllms_us=vllms_us, step_us=step_us, sequences=SEQUENCES, steps=len(counted))


def _swallow(path: Path) -> None:
    """A supervisor that listens and says nothing."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def read() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_drain, args=(connection,), daemon=True).start()

    threading.Thread(target=read, daemon=True).start()


def _drain(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


if __name__ == "__main__":
    main()
