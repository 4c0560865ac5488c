"""The KV connector that vLLM loads (``kv_connector_module_path``): a thin facade over its two halves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.platforms import current_platform

from appliance.channel import Progress
from appliance.engine.kv.handshake import PROTOCOL, Manifest, fingerprint
from appliance.engine.kv.memory import block_bytes, layout_of, refuse, traits_of
from appliance.engine.kv.pulls import Pulls
from appliance.engine.kv.scheduler import SchedulerHalf
from appliance.engine.kv.settings import Settings
from appliance.engine.kv.transport import open_transport
from appliance.engine.kv.worker import WorkerHalf
from appliance.engine.life import entitle, tell_stacks
from appliance.engine.link import Link, process_link
from appliance.engine.mends import keep_generators_from_discarded_samples, wait_for_ranks_asleep
from appliance.engine.resume import force

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


def settings_of(vllm_config: VllmConfig) -> Settings:
    assert vllm_config.kv_transfer_config is not None
    return msgspec.convert(vllm_config.kv_transfer_config.kv_connector_extra_config, Settings)


def link_of(vllm_config: VllmConfig, role: KVConnectorRole) -> Link:
    """This process's link."""
    settings, apart = settings_of(vllm_config), _apart(vllm_config, role)
    return process_link(
        settings.channel,
        settings.engine,
        settings.epoch,
        "worker" if apart else "core",
        vllm_config.parallel_config.rank if apart else 0,
    )


def _apart(vllm_config: VllmConfig, role: KVConnectorRole) -> bool:
    """Whether this is a worker in a process of its own. With the uniprocess executor, EngineCore is its only worker, too."""
    return role == KVConnectorRole.WORKER and vllm_config.parallel_config.distributed_executor_backend != "uni"


class ApplianceConnector(KVConnectorBase_V1, SupportsHMA):
    """Hands KV over between the engines of one node. vLLM makes one in EngineCore and one in each worker."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        refuse(vllm_config)
        self._settings = settings_of(vllm_config)
        self._link = link_of(vllm_config, role)
        self._worker: WorkerHalf | None = None
        self._scheduler: SchedulerHalf | None = None
        if current_platform.is_cpu():
            wait_for_ranks_asleep()
            if role == KVConnectorRole.WORKER:
                keep_generators_from_discarded_samples()
        if _apart(vllm_config, role):
            entitle(f"{self._settings.engine} rank {vllm_config.parallel_config.rank}")
            tell_stacks()
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = self._scheduler_half(kv_cache_config)
            self._link.on_message(self._scheduler.receive)

    @property
    def scheduler_half(self) -> SchedulerHalf:
        assert self._scheduler is not None, "this connector was made for a worker"
        return self._scheduler

    @property
    def worker_half(self) -> WorkerHalf:
        assert self._worker is not None, "register_kv_caches has not been called"
        return self._worker

    def _scheduler_half(self, kv_cache_config: KVCacheConfig) -> SchedulerHalf:
        groups = kv_cache_config.kv_cache_groups
        return SchedulerHalf(
            engine=self._settings.engine,
            epoch=self._settings.epoch,
            link=self._link,
            table=self._settings.lease_table(),
            group_tokens=tuple(group.kv_cache_spec.block_size for group in groups),
            block_bytes=tuple(block_bytes(group) for group in groups),
            inline_bytes=self._settings.inline_bytes,
        )

    # ---- worker half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._link.send(Progress(stage="sharing KV memory", fraction=0.85))
        transport = open_transport(self._settings.transport)
        storages = list(
            {view.untyped_storage().data_ptr(): view.untyped_storage() for view in kv_caches.values()}.values()
        )
        index = {storage.data_ptr(): number for number, storage in enumerate(storages)}
        sizes = tuple(storage.nbytes() for storage in storages)
        layout = layout_of(self._vllm_config, self._kv_cache_config, kv_caches, index, sizes)
        handles, descriptors = transport.export(storages)
        parallel = self._vllm_config.parallel_config
        traits = traits_of(self._vllm_config, kv_caches)
        manifest = Manifest(
            protocol=PROTOCOL,
            engine=self._settings.engine,
            epoch=self._settings.epoch,
            rank=parallel.rank,
            ranks=parallel.tensor_parallel_size,
            transport=transport.kind,
            traits=traits,
            fingerprint=fingerprint(traits),
            layout=layout,
            handles=tuple(handles),
        )
        self._worker = WorkerHalf(self._link, transport, manifest, self._settings.kv_socket(parallel.rank), descriptors)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        assert isinstance(kv_connector_metadata, Pulls)
        self.worker_half.before_forward(kv_connector_metadata.pulls)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Pulls)
        self.worker_half.at_load(metadata.pulls)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: loads are whole before their request is scheduled."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing to save: peers read the KV where it is."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        return self.worker_half.take_results()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self.worker_half.take_details()

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()

    # ---- scheduler half

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self.scheduler_half.bind(kv_cache_manager)

    def on_new_request(self, request: Request) -> None:
        force(request)
        self.scheduler_half.arrived(request)

    def get_loaded_kv_cache_group_ids(self, request: Request) -> tuple[int, ...]:
        return tuple(range(len(self._kv_cache_config.kv_cache_groups)))  # a request's own blocks, of every group

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        external = self.scheduler_half.matched_tokens(request, num_computed_tokens)
        return external, external > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self.scheduler_half.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self.scheduler_half.take_planned()

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self.scheduler_half.transferred(connector_output)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self.scheduler_half.finished(request, block_ids)
