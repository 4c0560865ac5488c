"""The KV connector that vLLM loads (``kv_connector_module_path``): a thin facade over its two halves."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import KVCacheSpecKind, UniformTypeKVCacheSpecs, get_kv_cache_spec_kind

from appliance.channel import Progress
from appliance.engine.kv.handshake import PROTOCOL, Manifest, fingerprint
from appliance.engine.kv.layout import Group, Heads, Layout, Plane, held_of, plane_of
from appliance.engine.kv.pulls import Pulls
from appliance.engine.kv.scheduler import SchedulerHalf
from appliance.engine.kv.settings import Settings
from appliance.engine.kv.transport import open_transport
from appliance.engine.kv.worker import WorkerHalf
from appliance.engine.life import entitle, tell_stacks
from appliance.engine.link import Link, process_link
from appliance.engine.mends import keep_generators_from_discarded_samples
from appliance.engine.resume import force
from appliance.errors import HandoffError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

_KINDS: Final = frozenset(
    {
        KVCacheSpecKind.FULL_ATTENTION,
        KVCacheSpecKind.MLA_ATTENTION,
        KVCacheSpecKind.SLIDING_WINDOW,
        KVCacheSpecKind.SLIDING_WINDOW_MLA,
        KVCacheSpecKind.CHUNKED_LOCAL_ATTENTION,
    }
)
"""How the tokens of a group may be kept: each in a place of its own. (A state of all tokens, as Mamba's, can't be taken a token back.)"""
_WITHIN_A_BLOCK: Final = str.maketrans("", "", "LB")  # of a layout's name, such as LBNHC: heads and tokens


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
        refuse(vllm_config, kv_cache_config)
        self._settings = settings_of(vllm_config)
        self._link = link_of(vllm_config, role)
        self._worker: WorkerHalf | None = None
        self._scheduler: SchedulerHalf | None = None
        if role == KVConnectorRole.WORKER and current_platform.is_cpu():
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
            block_bytes=tuple(
                sum(_spec(group, name).page_size_bytes for name in group.layer_names) for group in groups
            ),
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
        layout = _layout(self._vllm_config, self._kv_cache_config, kv_caches, index, sizes)
        handles, descriptors = transport.export(storages)
        parallel = self._vllm_config.parallel_config
        traits = _traits(self._vllm_config, kv_caches)
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


def refuse(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """Raises ``HandoffError`` for an engine whose KV can't be handed over, whatever the peer is."""
    parallel = vllm_config.parallel_config
    for size, what in (
        (parallel.pipeline_parallel_size, "pipeline stages (--pipeline-parallel-size)"),
        (parallel.decode_context_parallel_size, "ranks that share out its tokens (--decode-context-parallel-size)"),
        (parallel.prefill_context_parallel_size, "ranks that share out its tokens (--prefill-context-parallel-size)"),
    ):
        if size > 1:
            raise HandoffError(
                f"the KV of an engine with {size} {what} can't be handed over: use tensor-parallel ranks"
            )
    for group in kv_cache_config.kv_cache_groups:
        kind = get_kv_cache_spec_kind(group.kv_cache_spec)
        if kind not in _KINDS:
            raise HandoffError(
                f"layers such as {group.layer_names[0]} keep their KV as {kind.value}, which can't be handed over: "
                "serve this model with one vLLM engine"
            )


def _spec(group: KVCacheGroupSpec, layer: str) -> AttentionSpec:
    """Of one layer: where those of a group differ in size, each has its own."""
    spec: Any = group.kv_cache_spec
    return spec.kv_cache_specs[layer] if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def _layout(
    vllm_config: VllmConfig,
    config: KVCacheConfig,
    views: dict[str, torch.Tensor],
    index: dict[int, int],
    storage_bytes: tuple[int, ...],
) -> Layout:
    """``index``: of each storage, by where it begins."""
    groups = []
    for group in config.kv_cache_groups:
        planes = tuple(
            _plane(vllm_config, config.num_blocks, name, views[name], _spec(group, name), index)
            for name in group.layer_names
        )
        kind = get_kv_cache_spec_kind(group.kv_cache_spec).value
        groups.append(Group(kind, group.kv_cache_spec.block_size, planes))
    return Layout(tuple(groups), storage_bytes)


def _plane(
    vllm_config: VllmConfig, blocks: int, layer: str, view: torch.Tensor, spec: AttentionSpec, index: dict[int, int]
) -> Plane:
    split, rest = divmod(view.shape[0], blocks)
    plane = plane_of(
        layer=layer,
        storage=index[view.untyped_storage().data_ptr()],
        offset=int(view.storage_offset()) * view.element_size(),
        shape=list(view.shape),
        strides=list(view.stride()),
        item=view.element_size(),
        split=split,
        heads=_heads(vllm_config, spec),
    )
    if rest or plane.size != spec.unpadded_page_size_bytes:
        raise HandoffError(
            f"the KV cache of layer {layer} is not laid out block by block (shape {list(view.shape)} for "
            f"{blocks} blocks of {spec.unpadded_page_size_bytes} bytes): it can't be handed over"
        )
    return plane


def _heads(vllm_config: VllmConfig, spec: AttentionSpec) -> Heads:
    parallel, of_model = vllm_config.parallel_config, vllm_config.model_config.get_total_num_kv_heads()
    return held_of(parallel.rank, parallel.tensor_parallel_size, spec.num_kv_heads, spec.max_tp_shards, of_model)


def _traits(vllm_config: VllmConfig, views: dict[str, torch.Tensor]) -> dict[str, str]:
    """All that decides what the bytes of a head's part of a block mean. How many heads a rank has does not."""
    model, context = vllm_config.model_config, vllm_config.compilation_config.static_forward_context
    backends = sorted({context[name].get_attn_backend().get_name() for name in views if name in context})
    shapes = sorted({f"{list(view.shape[2:])}/{view.dtype}" for view in views.values()})
    layout = vllm_config.cache_config.get_resolved_kv_cache_layout().name
    return {
        "vllm": vllm.__version__,
        "model": str(model.model),
        "revision": str(model.revision),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "hf_config": sha256(model.hf_config.to_json_string(use_diff=False).encode()).hexdigest()[:16],
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "attention": ",".join(backends),
        "block": ";".join(shapes),
        "order": layout.translate(_WITHIN_A_BLOCK),
    }
