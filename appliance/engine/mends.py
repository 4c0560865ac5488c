"""Mends of vLLM 0.32: where a client could end an engine, or an engine would leave something behind, or work for nothing.

Each says what it mends; ``tests/contract`` says when it can go.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
import torch.distributed
from tqdm.std import TqdmDefaultWriteLock
from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_NAP_S: Final = 5e-5


def keep_tqdm_in_one_process() -> None:
    """Have tqdm make no lock between processes: vLLM ends its processes by force, and the lock's semaphore stays in /dev/shm."""
    TqdmDefaultWriteLock.mp_lock = None


def override_kernels_here() -> None:
    """Have Triton's kernels replaced by those for the CPU now, and in no process that is forked from this one.

    To find whoever holds a kernel vLLM looks at everything that every module has, which touches, and so copies, 85 MiB of what engines
    share that nothing else touches.
    """
    platform: Any = type(current_platform)
    platform.register_triton_kernel_overrides()
    platform.register_triton_kernel_overrides = classmethod(lambda _: None)


def share_one_group_where_alone() -> None:
    """Have an engine of one rank make one process group, and not one for each that vLLM asks for.

    Each group of Gloo's brings a thread that looks for work a hundred times a second: nine take most of what an idle EngineCore does.
    Of one rank all groups are alike. Who ends a shared one leaves it to the others; whoever ends all, by naming none, ends it.
    """
    distributed: Any = torch.distributed
    new, destroy = distributed.new_group, distributed.destroy_process_group

    def alone() -> bool:
        return bool(distributed.get_world_size() == 1 and distributed.get_backend() == "gloo")

    def new_group(ranks: Any = None, timeout: Any = None, backend: str | None = None, *more: Any, **named: Any) -> Any:
        if backend in (None, "gloo") and alone():
            return distributed.group.WORLD
        return new(ranks, timeout, backend, *more, **named)

    def destroy_process_group(group: Any = None) -> None:
        if group is None or group is not distributed.group.WORLD or not alone():
            destroy(group)

    distributed.new_group, distributed.destroy_process_group = new_group, destroy_process_group


def wait_for_ranks_asleep() -> None:
    """Have EngineCore and ranks sleep between looks at their queue, where a core is shared.

    For a second after each message they only yield, in a tight loop. Linux 6.18 counts each yield beside another process as a whole time
    slice used up: then a rank is not run for up to a minute while the other one waits for it in a collective operation. Measured with
    two ranks on two cores beside one busy process: 57 s for what takes 1.5 s.
    """
    shm_broadcast.sched_yield = _nap


def _nap() -> None:
    time.sleep(_NAP_S)


def keep_generators_from_discarded_samples() -> None:
    """Let a seeded request prefill in chunks on the CPU.

    While a prompt is only partly computed, vLLM samples, discards the token, and winds the request's random generator back by an offset
    that CPU generators do not have: ``RuntimeError``, and EngineCore ends (``gpu_model_runner.py``, ``_bookkeeping_sync``). Setting those
    generators aside for the sampling has the effect that was meant: a discarded sample draws nothing from them.
    """
    sample = GPUModelRunner.sample_tokens
    if getattr(sample, "mended", False):
        return

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        partial = (
            np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist() if generators else ()
        )
        aside = {index: generators.pop(index) for index in partial if index in generators}
        try:
            return sample(self, *args, **kwargs)
        finally:
            generators.update(aside)

    sample_tokens.mended = True  # type: ignore[attr-defined]
    GPUModelRunner.sample_tokens = sample_tokens
