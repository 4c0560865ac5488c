"""Records every step inside EngineCore: vLLM's scheduler with a clock and a link.

``--scheduler-cls`` names ``RecordingScheduler`` where scheduling is synchronous (CPU), else ``recording_scheduler``, which makes the one
that vLLM's configuration asks for. What they override is held by ``tests/contract``.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from appliance.channel import LONG_STEP_TOKENS, CoreReady, FirstToken, Heartbeat, Progress, Scheduled, Step, StepBegan
from appliance.engine import heap, pulse
from appliance.engine.kv.connector import ApplianceConnector, link_of, settings_of
from appliance.engine.kv.params import Offer, Ticket, read
from appliance.engine.life import entitle, tell_stacks
from appliance.engine.link import BEAT_S
from appliance.engine.resume import Tee

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

pulse.install()
_BEAT_NS: Final = int(BEAT_S * 1e9)
_REST_NS: Final = 10_000_000_000  # without a step, until what steps have freed is given back


class Batch:
    """What one step was given to do, counted when it was scheduled."""

    __slots__ = (
        "attended",
        "context_tokens",
        "decode_tokens",
        "decoding",
        "prompt_tokens",
        "scheduled",
        "sequences",
        "start_ns",
    )

    def __init__(self, start_ns: int, speculates: bool = False) -> None:
        self.start_ns = start_ns
        self.scheduled: Mapping[str, int] = {}  # tokens by request
        self.prompt_tokens = 0
        self.decode_tokens = 0
        self.context_tokens = 0
        self.attended = 0
        self.sequences = 0  # that decode
        self.decoding: set[str] | None = (
            set() if speculates else None
        )  # their ids, where they may be given several tokens

    def goes_on(self, last: Batch, scheduled: Mapping[str, int]) -> bool:
        """Whether the same sequences get one more token each, as most steps go: then nothing need be counted."""
        if last.decoding is not None or last.prompt_tokens or last.decode_tokens != len(last.scheduled):
            return False
        if scheduled != last.scheduled:
            return False
        self.scheduled = scheduled
        self.decode_tokens = self.sequences = last.decode_tokens
        self.context_tokens = last.context_tokens + last.decode_tokens
        return True

    def count(self, scheduled: Mapping[str, int], requests: Mapping[str, Request]) -> None:
        """Tokens by request; vLLM has counted them as computed already. A loop without calls: it runs over all sequences."""
        self.scheduled = scheduled
        prompt_tokens = decode_tokens = context_tokens = attended = sequences = 0
        for request_id, tokens in scheduled.items():
            request = requests[request_id]
            computed = request.num_computed_tokens
            context_tokens += computed
            prompt = request.num_prompt_tokens - computed + tokens  # that was left
            if prompt >= tokens:
                prompt_tokens += tokens
                attended += tokens * (2 * computed - tokens + 1) // 2
                continue
            sequences += 1
            decode_tokens += tokens
            if prompt > 0:
                prompt_tokens += prompt
                decode_tokens -= prompt
            if self.decoding is not None:
                self.decoding.add(request_id)
        self.prompt_tokens, self.decode_tokens = prompt_tokens, decode_tokens
        self.context_tokens, self.sequences, self.attended = context_tokens, sequences, attended

    def given(self, outputs: Mapping[int, EngineCoreOutputs]) -> int | None:
        """Tokens that those were given that decode; None where that is one each."""
        ids = self.decoding
        return None if ids is None else sum(len(one.new_token_ids) for one in _each(outputs) if one.request_id in ids)


def _each(outputs: Mapping[int, EngineCoreOutputs]) -> Iterator[EngineCoreOutput]:
    """Of all of vLLM's clients."""
    return (one for group in outputs.values() for one in group.outputs)


class StepRecorder:
    """Mixin for vLLM's schedulers. Says each step, and each request of the router's when it is first scheduled."""

    connector: Any
    requests: dict[str, Request]
    vllm_config: Any
    kv_cache_manager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.connector, ApplianceConnector):
            raise TypeError("the step recorder needs kv_connector=ApplianceConnector")
        self._link = link_of(self.vllm_config, KVConnectorRole.SCHEDULER)
        self._link.send(Progress(stage="warming up", fraction=0.9))
        self._batches: dict[int, Batch] = {}
        self._last = Batch(0)
        self._speculates = self.vllm_config.speculative_config is not None
        self._tee = Tee()
        self._tokenless: dict[str, str] = {}  # requests without an output token yet: vLLM's id → the router's key
        self._last_end_ns = 0
        self._given_back_ns = 0  # when freed memory was given back
        self._last_sign_ns = 0  # when the supervisor was last told anything
        self._preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0

    # ---- what vLLM calls

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        start_ns = time.monotonic_ns()
        self.connector.scheduler_half.tick(start_ns)
        output: SchedulerOutput = super().schedule(*args, **kwargs)  # type: ignore[misc]
        batch = Batch(start_ns, self._speculates)
        if not batch.goes_on(self._last, output.num_scheduled_tokens):
            batch.count(output.num_scheduled_tokens, self.requests)
        self._last = batch
        for new in output.scheduled_new_reqs:
            self._say_scheduled(self.requests[new.req_id])
        self._batches[id(output)] = batch
        self._give_sign(batch)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        batch = self._batches.pop(id(scheduler_output), None)
        end_ns = time.monotonic_ns()
        if batch is not None and scheduler_output.total_num_scheduled_tokens > 0:
            self._say_step(batch, end_ns, batch.given(outputs))
        self._last_end_ns = end_ns
        if self._tokenless:
            self._say_first_tokens(outputs, end_ns)
        if self._tee.listens and (said := self._tee.take(_each(outputs), self.requests)) is not None:
            self._link.send(said)
        return outputs

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        stats: SchedulerStats | None = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None and stats.prefix_cache_stats is not None:
            self._prefix_queries += stats.prefix_cache_stats.queries
            self._prefix_hits += stats.prefix_cache_stats.hits
        return stats

    def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
        self._preemptions += 1
        super()._preempt_request(*args, **kwargs)  # type: ignore[misc]

    # ---- what the pulse calls, on the main loop

    def begin(self) -> None:
        """EngineCore is about to serve."""
        settings, parallel = settings_of(self.vllm_config), self.vllm_config.parallel_config
        entitle(f"{settings.engine} EngineCore")
        tell_stacks()
        scheduler = self.vllm_config.scheduler_config
        self._link.send(
            CoreReady(
                kv_blocks=self.kv_cache_manager.block_pool.num_gpu_blocks - 1,  # one is the null block
                block_tokens=self.vllm_config.cache_config.block_size,
                max_model_len=self.vllm_config.model_config.max_model_len,
                max_batched_tokens=scheduler.max_num_batched_tokens,
                max_running=scheduler.max_num_seqs,
                sockets=tuple(str(settings.kv_socket(rank)) for rank in range(parallel.tensor_parallel_size)),
                lease_table=str(settings.lease_table()),
            )
        )

    def idle(self) -> None:
        """The main loop has nothing to do: see to leases, say that it is alive, and keep nothing that steps have freed in this process."""
        now_ns = time.monotonic_ns()
        self.connector.scheduler_half.tick(now_ns)
        self._beat(now_ns)
        if self._given_back_ns <= self._last_end_ns < now_ns - _REST_NS:
            heap.give_back()
            self._given_back_ns = now_ns

    # ---- what goes up

    def _give_sign(self, batch: Batch) -> None:
        """Before a step that may be long, and now and then while steps have no tokens: requests may wait for KV alone."""
        if batch.prompt_tokens >= LONG_STEP_TOKENS:
            self._link.send(
                StepBegan(
                    at_ns=batch.start_ns,
                    prompt_tokens=batch.prompt_tokens,
                    decode_tokens=batch.decode_tokens,
                    context_tokens=batch.context_tokens,
                    attended=batch.attended,
                )
            )
        elif batch.start_ns - self._last_sign_ns >= _BEAT_NS:
            self._beat(batch.start_ns)

    def _beat(self, now_ns: int) -> None:
        self._last_sign_ns = now_ns
        running, waiting = self._counts()
        self._link.send(
            Heartbeat(
                at_ns=now_ns,
                running=running,
                waiting=waiting,
                fetching=self.connector.scheduler_half.fetching,
                kv_free=self.kv_cache_manager.block_pool.get_num_free_blocks(),
                leased=self.connector.scheduler_half.leased_blocks,
            )
        )

    def _step_start_ns(self, batch: Batch) -> int:
        """From schedule to update: right where steps do not overlap."""
        return batch.start_ns

    def _say_step(self, batch: Batch, end_ns: int, decoded: int | None) -> None:
        self._last_sign_ns = end_ns
        running, waiting = self._counts()
        kv_free, half = self.kv_cache_manager.block_pool.get_num_free_blocks(), self.connector.scheduler_half
        now = (running, waiting, half.fetching, kv_free, half.leased_blocks)
        so_far = (self._preemptions, self._prefix_queries, self._prefix_hits)
        step = partial(self._step, self._step_start_ns(batch), end_ns, batch, decoded, now, so_far)
        self._link.hold(step, end_ns, last=not running)

    def _step(
        self,
        start_ns: int,
        end_ns: int,
        batch: Batch,
        decoded: int | None,
        now: tuple[int, int, int, int, int],
        so_far: tuple[int, int, int],
    ) -> Step:
        """``now``: running, waiting, fetching, free blocks, leased ones. ``so_far``: preemptions, prefix queries and hits."""
        running, waiting, fetching, kv_free, leased = now
        preemptions, prefix_queries, prefix_hits = so_far
        return Step(
            start_ns=start_ns,
            end_ns=end_ns,
            prompt_tokens=batch.prompt_tokens,
            decode_tokens=batch.decode_tokens,
            context_tokens=batch.context_tokens,
            attended=batch.attended,
            running=running,
            waiting=waiting,
            fetching=fetching,
            kv_free=kv_free,
            leased=leased,
            preemptions=preemptions,
            prefix_queries=prefix_queries,
            prefix_hits=prefix_hits,
            sequences=None if batch.sequences == batch.decode_tokens else batch.sequences,
            decoded=decoded,
            dropped=self._link.dropped_steps,
        )

    def _say_scheduled(self, request: Request) -> None:
        self._tee.begin(request)
        params = read(request.kv_transfer_params)
        if params is None:
            return
        phase = "decode" if isinstance(params, Ticket) else "prefill"
        at_ns = time.monotonic_ns()
        self._link.send(
            Scheduled(request=params.request, phase=phase, at_ns=at_ns, prompt_tokens=request.num_prompt_tokens)
        )
        if not isinstance(params, Offer):
            self._tokenless[request.request_id] = params.request

    def _say_first_tokens(self, outputs: dict[int, EngineCoreOutputs], now_ns: int) -> None:
        made = {one.request_id for one in _each(outputs) if one.new_token_ids}
        for request_id in [known for known in self._tokenless if known in made or known not in self.requests]:
            key = self._tokenless.pop(request_id)
            if request_id in made:  # else it was aborted
                self._link.send(FirstToken(request=key, at_ns=now_ns))

    def _counts(self) -> tuple[int, int]:
        """Running, and waiting without those whose KV is on its way."""
        running, waiting = self.get_request_counts()  # type: ignore[attr-defined]
        return running, max(0, waiting - self.connector.scheduler_half.fetching)


class RecordingScheduler(StepRecorder, Scheduler):
    """For synchronous scheduling."""


class RecordingAsyncScheduler(StepRecorder, AsyncScheduler):
    """For asynchronous scheduling, where the next step is scheduled before this one is over: a step lasts from update to update."""

    def _step_start_ns(self, batch: Batch) -> int:
        return max(batch.start_ns, self._last_end_ns)


def recording_scheduler(*, vllm_config: VllmConfig, **kwargs: Any) -> StepRecorder:
    """For ``--scheduler-cls`` where vLLM decides whether scheduling is asynchronous (CUDA): by its options, and what else it is to do."""
    asynchronous = vllm_config.scheduler_config.async_scheduling
    kind = RecordingAsyncScheduler if asynchronous else RecordingScheduler
    return kind(vllm_config=vllm_config, **kwargs)
