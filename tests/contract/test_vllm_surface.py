"""vLLM's private surfaces that the engine rooms stand on. When vLLM moves, this says what moved before a user finds out."""

from __future__ import annotations

import inspect
import multiprocessing.context
import multiprocessing.popen_fork
import multiprocessing.popen_spawn_posix
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed
import vllm
from tqdm.std import TqdmDefaultWriteLock
from vllm.config import SchedulerConfig
from vllm.distributed.device_communicators import shm_broadcast
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorTransferResults,
    SupportsHMA,
    supports_hma,
)
from vllm.distributed.parallel_state import GroupCoordinator
from vllm.platforms import current_platform
from vllm.triton_utils import dispatcher
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import RequestStatus
from vllm.v1.sample.logits_processor import STR_POOLING_REJECTS_LOGITSPROCS, STR_SPEC_DEC_REJECTS_LOGITSPROCS
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.worker_base import WorkerWrapperBase

from appliance.engine import mends, pulse
from appliance.engine.kv.connector import ApplianceConnector
from appliance.engine.recorder import RecordingAsyncScheduler, RecordingScheduler
from appliance.router.wire import Answer, engine_died
from appliance.supervisor.exits import explain

PINNED = "0.32.0"


def test_the_version_is_the_one_that_was_read() -> None:
    assert vllm.__version__.split("+")[0] == PINNED


OVERRIDDEN = [
    name
    for name, member in vars(ApplianceConnector).items()
    if inspect.isfunction(member) and not name.startswith("_") and hasattr(KVConnectorBase_V1, name)
]


def test_the_facade_overrides_what_it_must() -> None:
    assert not ApplianceConnector.__abstractmethods__
    assert supports_hma(ApplianceConnector), "without it vLLM turns its hybrid KV manager off, silently"
    assert {"register_kv_caches", "handle_preemptions", "get_transfer_results", "bind_kv_cache_manager"} <= set(
        OVERRIDDEN
    )


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_hook_still_takes_what_it_took(name: str) -> None:
    def names(owner: Any) -> list[str]:
        return [p.name for p in inspect.signature(getattr(owner, name)).parameters.values() if p.kind != p.VAR_KEYWORD]

    assert names(ApplianceConnector) == names(KVConnectorBase_V1)


def test_the_connector_is_made_with_three_arguments() -> None:
    parameters = list(inspect.signature(KVConnectorBase_V1.__init__).parameters)
    assert parameters == ["self", "vllm_config", "role", "kv_cache_config"]
    assert list(inspect.signature(SupportsHMA.request_finished_all_groups).parameters) == [
        "self",
        "request",
        "block_ids",
    ]


def test_transfer_results_and_outputs_have_the_fields_used() -> None:
    results = KVConnectorTransferResults(finished_recving={"a"}, failed_recving={"a"})
    assert results.finished_sending == set()
    output = KVConnectorOutput()
    assert hasattr(output, "finished_recving") and hasattr(output, "failed_recving")
    assert hasattr(output, "kv_connector_worker_meta")


@pytest.mark.parametrize("scheduler", [Scheduler, AsyncScheduler])
@pytest.mark.parametrize(
    "name", ["schedule", "update_from_output", "make_stats", "_preempt_request", "get_request_counts"]
)
def test_the_scheduler_has_the_methods_that_are_recorded(scheduler: type, name: str) -> None:
    assert callable(getattr(scheduler, name))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_recorder_is_the_one_that_vllms_configuration_asks_for(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM calls whatever it finds under the name that it was given."""
    name = "appliance.engine.recorder.recording_scheduler"
    made: list[tuple[type, dict[str, Any]]] = []
    for kind in (RecordingAsyncScheduler, RecordingScheduler):
        monkeypatch.setattr(kind, "__init__", lambda self, **more: made.append((type(self), more)))
    config = SchedulerConfig(
        max_model_len=64, is_encoder_decoder=False, scheduler_cls=name, async_scheduling=asynchronous
    )
    vllm_config = SimpleNamespace(scheduler_config=config)
    config.get_scheduler_cls()(vllm_config=vllm_config, block_size=16)
    kind = RecordingAsyncScheduler if asynchronous else RecordingScheduler
    assert made == [(kind, {"vllm_config": vllm_config, "block_size": 16})]


def test_the_recorders_come_before_the_schedulers() -> None:
    for recording, base in ((RecordingScheduler, Scheduler), (RecordingAsyncScheduler, AsyncScheduler)):
        order = recording.__mro__
        assert order.index(base) > 1
        assert recording.schedule is not base.schedule


def test_an_api_process_whose_engine_core_is_gone_says_so_in_the_words_we_know() -> None:
    assert engine_died(Answer(500, "", msgspec.json.encode({"error": {"message": str(EngineDeadError())}})))


def test_an_idle_engine_core_can_be_woken() -> None:
    assert EngineCoreRequestType.WAKEUP
    loop = inspect.getsource(EngineCoreProc._process_input_queue)
    assert "_notify_idle_state_callbacks" in loop and "input_queue.get" in loop
    assert "_idle_state_callbacks.pop()" in inspect.getsource(EngineCoreProc._notify_idle_state_callbacks)
    assert EngineCoreProc.run_busy_loop.__module__ == pulse.__name__, "importing the recorder installs the pulse"


def test_blocks_can_be_pinned_and_freed_by_us() -> None:
    pool = BlockPool(num_gpu_blocks=8, enable_caching=True, hash_block_size=16)
    assert [block.block_id for block in pool.blocks] == list(range(8))
    free = pool.get_num_free_blocks()
    taken = pool.get_new_blocks(3)
    pool.touch([pool.blocks[block.block_id] for block in taken])  # the lease's reference
    pool.free_blocks(taken)  # the request ends
    assert pool.get_num_free_blocks() == free - 3
    pool.free_blocks([pool.blocks[block.block_id] for block in reversed(taken)])  # the lease ends
    assert pool.get_num_free_blocks() == free


def test_statuses_that_make_a_lease() -> None:
    assert RequestStatus.is_finished(RequestStatus.FINISHED_LENGTH_CAPPED)
    assert RequestStatus.is_finished(RequestStatus.FINISHED_STOPPED)
    assert hasattr(KVCacheManager, "get_blocks")


def test_a_storage_moves_into_shared_memory_under_its_views() -> None:
    memory = torch.arange(4096, dtype=torch.int32)
    view = memory.view(4, 1024)[1:3]
    before = view.clone()
    descriptor, _ = memory.untyped_storage()._share_fd_cpu_()
    assert descriptor >= 0
    assert torch.equal(view, before)
    memory[1024] = -7
    assert view[0, 0] == -7


def test_seeded_chunks_on_the_cpu_still_need_their_mend() -> None:
    """When vLLM no longer winds generators back by an offset, ``engine/mends.py`` can go."""
    source = inspect.getsource(GPUModelRunner._bookkeeping_sync)
    assert "gen.set_offset(gen.get_offset() - 4)" in source
    with pytest.raises(RuntimeError, match="does not use offset"):
        torch.Generator().get_offset()
    assert "_bookkeeping_sync" in inspect.getsource(GPUModelRunner.sample_tokens)


def test_tqdm_makes_no_lock_where_one_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TqdmDefaultWriteLock, "mp_lock", None, raising=False)
    TqdmDefaultWriteLock.create_mp_lock()
    assert TqdmDefaultWriteLock.mp_lock is None


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A world of Gloo's with this process alone; what mends replace is put back."""
    for name in ("new_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, getattr(torch.distributed, name))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_a_group_of_one_rank_still_brings_threads_of_its_own(one_rank: None) -> None:
    """When it no longer does, ``share_one_group_where_alone`` of ``engine/mends.py`` can go."""
    before = _threads()
    GroupCoordinator([[0]], 0, "gloo", use_device_communicator=False)
    assert _threads() >= before + 2


def test_groups_of_one_rank_are_one_and_last_until_all_are_ended(one_rank: None) -> None:
    mends.share_one_group_where_alone()
    first, second = (GroupCoordinator([[0]], 0, "gloo", use_device_communicator=False) for _ in range(2))
    groups = {id(group) for one in (first, second) for group in (one.cpu_group, one.device_group)}
    assert groups == {id(torch.distributed.group.WORLD)}
    first.destroy()
    tensor = torch.ones(3)
    torch.distributed.all_reduce(tensor, group=second.cpu_group)
    assert tensor.tolist() == [1, 1, 1]
    second.destroy()
    torch.distributed.destroy_process_group()
    assert not torch.distributed.is_initialized()


def test_kernels_are_replaced_in_the_fork_server_and_in_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no worker calls it any more, or looks at all modules for it, ``override_kernels_here`` of ``engine/mends.py`` can go."""
    assert "current_platform.register_triton_kernel_overrides()" in inspect.getsource(WorkerWrapperBase.init_worker)
    assert "sys.modules.values()" in inspect.getsource(dispatcher._rebind_kernels)
    calls: list[type] = []
    platform = type(current_platform)
    monkeypatch.setattr(platform, "register_triton_kernel_overrides", classmethod(calls.append))
    mends.override_kernels_here()
    assert calls == [platform]
    current_platform.register_triton_kernel_overrides()
    assert calls == [platform]


def test_a_rank_that_waits_calls_what_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """``engine/mends.py``: when this fails, see whether vLLM still yields in a loop."""
    naps: list[float] = []
    monkeypatch.setattr(shm_broadcast, "sched_yield", shm_broadcast.sched_yield)  # put back afterwards
    monkeypatch.setattr(mends.time, "sleep", naps.append)
    mends.wait_for_ranks_asleep()
    reader = SimpleNamespace(is_reader=True, last_read=time.monotonic(), busy_loop_s=60.0)
    shm_broadcast.SpinCondition.wait(reader, timeout_ms=None)
    assert naps == [mends._NAP_S]


def test_multiprocessing_spawns_by_what_the_spare_replaces() -> None:
    process = multiprocessing.get_context("spawn").Process()
    assert type(process)._Popen is multiprocessing.context.SpawnProcess._Popen
    assert issubclass(multiprocessing.popen_spawn_posix.Popen, multiprocessing.popen_fork.Popen)


def test_models_that_take_no_logits_processor_are_recognised_by_what_vllm_says() -> None:
    for message in (STR_POOLING_REJECTS_LOGITSPROCS, STR_SPEC_DEC_REJECTS_LOGITSPROCS):
        assert "continue_streams" in explain(1, [f"ValueError: {message}"]).cause
