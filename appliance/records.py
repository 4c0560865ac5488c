"""Frozen records that cross a boundary between packages.

``NodeSnapshot`` is the single source of every surface: the page, ``/api/node``, ``/metrics``, ``/events`` and the CLI read
snapshots and nothing else. Absent is ``None`` and shown as a dash; it is never 0. Units are in the names.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import msgspec


class Role(StrEnum):
    """What the router uses an engine for. A label of the router's, not a property of the engine."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"

    @property
    def prefills(self) -> bool:
        """True where prefill legs may run."""
        return self is not Role.DECODE

    @property
    def decodes(self) -> bool:
        """True where decode legs may run."""
        return self is not Role.PREFILL


class EngineState(StrEnum):
    """Where an engine is in its life."""

    STARTING = "starting"  # spawned, not yet answering
    READY = "ready"  # answers, and takes new work
    DRAINING = "draining"  # answers, takes no new work
    SUSPECT = "suspect"  # has missed what it should have said by now; takes no new work
    HUNG = "hung"  # alive, but makes no progress; about to be replaced
    BACKOFF = "backoff"  # died; is started again after a pause
    FAILED = "failed"  # could not start, or dies again and again; needs the owner
    STOPPED = "stopped"  # ended on purpose


class EngineSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One engine at one moment. Rates are over the last telemetry window."""

    name: str
    role: Role
    state: EngineState
    epoch: int  # counts this engine's lives, from 1
    pid: int | None = None  # session leader
    gpus: tuple[str, ...] = ()  # GPU UUIDs; empty on a CPU engine
    cores: tuple[int, ...] = ()  # CPU cores the engine is pinned to
    stage: str | None = None  # what it does while it starts, in words
    progress: float | None = None  # of the start, 0 to 1, estimated
    in_state_s: float = 0.0
    restarts: int = 0
    cause: str | None = None  # why it last ended or could not start, with the remedy
    in_flight: int = 0  # legs the router has open on it
    outstanding_prompt_tokens: int = 0  # of those legs, not yet prefilled
    running: int | None = None
    waiting: int | None = None
    fetching: int | None = None  # requests whose KV is on its way in
    kv_usage: float | None = None  # 0 to 1
    kv_blocks_total: int | None = None
    kv_blocks_free: int | None = None
    block_tokens: int | None = None  # tokens per KV block
    prompt_tokens_s: float | None = None
    output_tokens_s: float | None = None
    steps_s: float | None = None
    step_ms: float | None = None  # mean duration of a step with tokens in it
    prefix_hit_rate: float | None = None  # of prompt tokens asked for, 0 to 1
    preemptions: int | None = None  # since the engine's start
    last_step_age_s: float | None = None  # since its last step or heartbeat
    peers: tuple[str, ...] = ()  # engines whose KV memory it has mapped
    peer_errors: tuple[str, ...] = ()  # peers it can't share KV with, and why
    memory_bytes: int | None = None  # proportional set size of all its processes
    weight: float = 1.0  # how much of the work it is given, against its like
    max_running: int | None = None  # places
    token_budget: int | None = None  # of a step
    busy: float | None = None  # share of the last seconds in which it made steps with tokens
    slowdown: float | None = None  # time that these took, of what such steps take on engines that are well
    step_prompt_tokens: float | None = None  # of a step with prompt tokens, mean
    step_decode_tokens: float | None = None  # of a step with decode tokens, mean
    fuller: float | None = None  # prompt tokens/s in full steps, times those in half-full ones; 1: more brings nothing
    itl_s: float | None = None  # from one step with decode tokens to the next, mean over their tokens
    itl_late: float | None = None  # share of these tokens whose step came later than the target
    room: float | None = None  # times what it decodes now that it could decode in time, predicted; 1: just so much
    leased_blocks: int | None = None
    api_delay_s: float | None = None  # from a first token to its bytes, mean
    host: HostReading | None = None
    calibration: CalibrationSnapshot | None = None


class CalibrationSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine made of the steps that it was given when it had become ready."""

    steps: int
    slowdown: float | None = None  # time that they took, of what was known then that such steps take; None: nothing was
    against_like: float | None = None  # time that they took, of what they took on engines of its kind
    like: tuple[str, ...] = ()  # these engines


class StepReading(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an engine, as it has told it."""

    number: int  # counted since the engine's start
    prompt_tokens: int
    decode_tokens: int
    context_tokens: int  # that its requests have by its end, all together
    seconds: float
    expected_s: float | None = None  # what such a step takes on engines that are well


class KneeReading(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest prefill batch that saturates an engine. ``missing``: why it is not known, in words; all else is None then."""

    tokens: int | None = None
    low: int | None = None  # of the 95 % interval
    high: int | None = None
    tokens_s: float | None = None  # prompt tokens per second, with such batches
    best_tokens_s: float | None = None
    limit_tokens: int | None = None  # beyond it the rate falls again
    steps: int | None = None  # that it is known from
    missing: str | None = None


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """What routing needs to know of an engine; the node replaces it whenever it changes."""

    name: str
    role: Role
    state: EngineState
    epoch: int
    socket: str  # path of the Unix socket that its OpenAI server listens on
    pid: int | None = None
    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    stage: str | None = None
    progress: float | None = None
    since_ns: int = 0  # CLOCK_MONOTONIC of the last change of state
    restarts: int = 0
    cause: str | None = None
    peers: tuple[str, ...] = ()  # engines whose KV this one has mapped on every rank, in their current epoch
    peer_errors: tuple[str, ...] = ()
    weight: float = 1.0  # how much of the work it is given, against its like
    core_pid: int | None = None  # EngineCore's
    max_batched_tokens: int = 2048
    max_running: int = 256
    max_model_len: int = 0
    block_tokens: int | None = None
    kv_blocks: int | None = None


class GpuSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one GPU reads. Activities are shares of the time since the last reading, 0 to 1; None is what it does not tell."""

    index: int
    uuid: str
    name: str
    engine: str | None = None  # that it belongs to
    clock_mhz: float | None = None  # of its multiprocessors
    clock_max_mhz: float | None = None
    clock_reasons: tuple[
        str, ...
    ] = ()  # why it is not at its highest, in NVML's words: gpu_idle, hw_thermal_slowdown, …
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    busy: float | None = None  # some kernel runs
    tensor: float | None = None  # tensor cores at work
    dram: float | None = None  # of the memory's bandwidth
    nvlink_bytes_s: float | None = None  # in and out
    ecc_corrected: int | None = None  # memory errors since its last reset
    ecc_uncorrected: int | None = None
    xids: tuple[int, ...] = ()  # errors that the driver has told of
    sm: float | None = None  # multiprocessors at work
    throttled: tuple[Throttled, ...] = ()  # for how long what has held its clocks down; only what the driver counts
    pcie_bytes_s: float | None = None  # in and out
    pcie_generation: int | None = None  # of its link now; an idle link is slow on purpose
    pcie_generation_max: int | None = None  # that GPU and slot can do
    pcie_lanes: int | None = None
    pcie_lanes_max: int | None = None
    pcie_replays: int | None = None  # packets that had to be sent again
    nvlink_errors: int | None = None  # checksums that were wrong, and what had to be sent again
    rows_remapped: int | None = None  # of its memory, for want of the ones that it had
    others: tuple[GpuProcess, ...] | None = None  # that are on it and no engine's; None where that can't be told


class Throttled(msgspec.Struct, frozen=True, kw_only=True):
    """How long one of NVML's reasons has held a GPU's clocks down, since its driver was loaded."""

    reason: str
    total_s: float


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody else's process on a GPU."""

    pid: int
    name: str | None = None
    memory_bytes: int | None = None
    busy: float | None = None  # share of the time in which its kernels had multiprocessors


class HostReading(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's processes get of the machine's CPUs. Shares are of the time since the last reading."""

    core_delay: float | None = None  # EngineCore's main thread could run, and had no core
    core_busy: float | None = None  # it ran
    api_busy: float | None = None  # the API process's main thread ran, or could have
    throttled: float | None = None  # its control group had used up its CPU quota
    pressure: float | None = None  # something of its control group (or of the machine) could run, and had no core
    cores: int | None = None  # that EngineCore's main thread may run on
    core_switches_s: float | None = None  # how often that thread was made to leave its core, per second


class LinkSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Hand-offs from one engine to another, of the last seconds."""

    producer: str
    consumer: str
    handoffs_s: float
    bytes_s: float | None = None  # while bytes were being copied
    slowdown: float | None = None  # time that they took, of what they take on links that are well


class QueueSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The router's queue."""

    depth: int = 0
    capacity: int = 0
    oldest_s: float | None = None
    in_flight: int = 0  # requests taken from the queue and not yet answered to the end


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """KV blocks held on one engine for a decode leg on another."""

    id: str
    owner: str  # engine that holds the blocks
    blocks: int
    tokens: int
    consumers: int  # pulls still to come
    age_s: float
    remaining_s: float


class LedgerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All leases, and what became of the past ones."""

    leases: tuple[Lease, ...] = ()
    granted: int = 0
    released: int = 0
    cancelled: int = 0
    expired: int = 0
    lost: int = 0  # ended by the death of their owner


class HandoffSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Hand-offs since the start, and the rate of the recent ones."""

    count: int = 0
    failed: int = 0  # recomputed by the decode engine
    bytes: int = 0
    recent_s: float | None = None  # hand-offs per second
    recent_bytes_s: float | None = None  # while bytes were being copied, not per wall second
    last_error: str | None = None  # of the last five minutes


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A prefill engine and a decode engine that requests are split over, and whether KV gets from the one to the other."""

    prefill: str
    decode: str
    ok: bool | None  # None: not known yet
    in_use: bool = True  # False while it is broken: nothing is split over it
    age_s: float | None = None  # since it was last tested or used
    duration_s: float | None = None  # of the last test, both legs
    error: str | None = None  # why a test failed, or why it could not be made


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests since the start."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    refused: int = 0  # of these, for what the client had asked, or how often (4xx)
    cancelled: int = 0
    split: int = 0  # a decode leg was sent; however it ended
    retried: int = 0


class SupervisorSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The supervisor's own cost."""

    memory_bytes: int | None = None
    cpu_share: float | None = None  # of one core
    loop_delay_ms: float | None = None  # how late the event loop ran its last tick


class NodeSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole node at one moment; immutable. ``time`` is Unix seconds."""

    time: float
    version: str
    model: str
    topology: str
    simulated: bool
    ready: bool
    reason: str | None  # why it is not ready, in words
    uptime_s: float
    engines: tuple[EngineSnapshot, ...]
    gpus: tuple[GpuSnapshot, ...] = ()
    queue: QueueSnapshot
    ledger: LedgerSnapshot
    handoffs: HandoffSnapshot
    links: tuple[LinkSnapshot, ...] = ()
    pairs: tuple[Pair, ...] = ()
    requests: RequestCounts
    supervisor: SupervisorSnapshot
    slo_ttft_s: float
    slo_itl_s: float
    ttft_p50_s: float | None = None  # of the recent requests
    ttft_p99_s: float | None = None
    itl_p50_s: float | None = None
    lately: Lately | None = None
    demand: Demand | None = None
    better: Better | None = None
    recent: tuple[Timeline, ...] = ()  # newest first
    verdict: Verdict | None = None


LATELY_S: Final = 3.0


class Lately(msgspec.Struct, frozen=True, kw_only=True):
    """Requests whose first token came in the last ``LATELY_S`` seconds. None where there was none."""

    first_tokens: int
    ttft_late: float | None = None  # share that came later than the target
    ttft_s: float | None = None  # mean
    stages: tuple[Stage, ...] = ()  # means; they sum to ``ttft_s``
    prompt_tokens: float | None = None  # mean
    behind_long: float | None = (
        None  # of the time that late ones waited for an engine, the share behind prompts many times as long
    )
    long_tokens: float | None = None  # of such prompts, mean


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the node, over the last minute.

    Lengths are quantiles: as many equally likely values, the least first; at least one each, and all above 0.
    """

    rate_s: float  # requests per second
    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    burstiness: float = 1.0  # coefficient of variation of the gaps between requests; 1: Poisson
    hit_share: float = 0.0  # of prompt tokens, found in a prefix cache


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """How a layout would serve a demand. Loads are ρ: shares of what can be done, above 1 where more is asked."""

    prefill_load: float
    decode_load: (
        float | None
    )  # 1: the mean time from token to token is the target, or all places are taken. None: one alone is late
    kv_load: float  # of one engine's KV, that those which decode take
    ttft_s: float | None  # means; None where a queue would grow without end
    ttft_share: float  # within the target
    itl_s: float
    itl_share: float  # of requests whose mean time per output token is within the target
    good: float  # share that meets both targets
    goodput_s: float  # of these, requests per second
    most_rate_s: float  # requests per second at which the share of ``[slo]`` meets both targets
    at_once: float | None  # sequences that an engine decodes at the same time, mean
    error: float | None = None  # of the times of such steps, relative: a standard deviation

    @property
    def load(self) -> float:
        """The highest."""
        decode_load = math.inf if self.decode_load is None else self.decode_load
        return max(self.prefill_load, decode_load, self.kv_load)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One layout of the node's engines for a demand. ``feasible``: the targets are met; else ``reason`` says why not."""

    layout: str
    feasible: bool
    reason: str | None = None
    predicted: Predicted | None = None  # None where nothing can be


class Better(msgspec.Struct, frozen=True, kw_only=True):
    """Another layout of the same engines, that would serve the traffic of the last minute clearly better. All of it is predicted."""

    layout: str
    load_falls: float  # share, of what is asked against the highest rate that meets the targets
    good_rises: float  # points of the share that meets both targets
    rate_grows: float | None  # share of the highest rate; None where there was none
    aggregated: bool  # it does without splitting, and this one does not


class Plans(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted for each layout of the node's engines. ``time`` is in Unix seconds; ``reason`` says why there is nothing."""

    time: float
    now: str  # the layout that there is
    best: str | None = None
    demand: Demand | None = None
    layouts: tuple[Plan, ...] = ()
    reason: str | None = None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Something measured that speaks for a verdict, beside what it would be if all were well."""

    measured: float
    expected: float | None
    unit: str
    sentence: str


class OrderKind(StrEnum):
    """What the node can be told to do while it serves."""

    ROLE = "role"  # use an engine for something else
    WEIGHT = "weight"  # give an engine more or less of the work than its like
    DRAIN = "drain"  # take no new work on an engine
    RESUME = "resume"  # take work on it again
    RESTART = "restart"  # start an engine again once what it has begun is done; without an engine: one after the other
    TOPOLOGY = "topology"  # give engines the roles of a layout


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that the node is told to do: the same from the API, the command line and the page."""

    kind: OrderKind
    engine: str | None = None
    role: Role | None = None
    weight: float | None = None
    topology: str | None = None


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    ``order`` does it while the node serves, and ``call`` is the API call that gives it. ``setting``: what to write where, if it takes
    a restart.
    """

    sentence: str
    order: Order | None = None
    call: str | None = None
    setting: str | None = None


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How requests fared over some seconds; shares are 0 to 1, None where there was nothing to judge by."""

    seconds: float
    ttft_late: float | None = None  # share of first tokens that came later than the target
    itl_late: float | None = None  # share of the tokens after these
    ttft_s: float | None = None  # mean
    output_tokens_s: float | None = None
    queue: float | None = None  # requests, mean
    failed: int = 0  # requests


class RemedyState(StrEnum):
    """How far a remedy is."""

    SETTLING = "settling"  # given; what it brings is not known yet
    SETTLED = "settled"  # ``after`` says how it is since
    UNDONE = "undone"  # taken back, or another order has changed the same thing


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """An order that was given, what it was to bring, and what it brought. ``time`` is in Unix seconds."""

    id: str
    time: float
    by: str  # api | cli | page
    order: Order
    sentence: str  # what was done
    restarts: tuple[str, ...] = ()  # engines that it starts again
    reason: str | None = None  # the verdict that stood then
    expected: str | None = None  # in words, estimated
    state: RemedyState = RemedyState.SETTLING
    before: Condition | None = None
    after: Condition | None = None
    brought: str | None = None  # in words
    undo: Order | None = None  # the way back; None where there is none


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the node back. ``since`` is in Unix seconds; ``confidence`` 0 to 1."""

    state: str  # ok | bottleneck | unknown
    summary: str
    since: float
    engine: str | None = None
    engines: tuple[str, ...] = ()  # all that share it
    link: tuple[str, str] | None = None
    stage: str | None = None  # prefill | handoff | decode | frontend
    cause: str | None = None
    confidence: float | None = None
    evidence: tuple[Evidence, ...] = ()
    action: Action | None = None
    expected_gain: float | None = None  # share by which what is late would get shorter; estimated
    next: str | None = None  # what would hold it back then


class Stage(msgspec.Struct, frozen=True):
    """One stage of a request's life."""

    name: str  # one of STAGES
    duration_s: float


STAGES = (
    "queue",  # in the supervisor's queue
    "prefill_wait",  # sent to the prefill engine, not yet scheduled
    "prefill_compute",  # first scheduled until the prompt's KV is complete
    "handoff_wait",  # KV complete, pull not yet begun
    "transfer",  # bytes being copied
    "decode_wait",  # KV there, not yet scheduled on the decode engine
    "first_step",  # scheduled until the first token: of a stream, until it leaves the supervisor
)
"""Stages before the first token, in order. Their durations sum to TTFT. An unsplit request has no hand-off stages."""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One request from arrival to its end, on the supervisor's CLOCK_MONOTONIC."""

    id: str
    route: str
    arrived: float  # Unix seconds
    stream: bool
    split: bool  # a decode leg was sent
    unsplit_reason: str | None = None
    status: int | None = None  # HTTP status sent; None while it runs or if the client left before one
    outcome: str = "running"  # running | ok | failed | cancelled
    error: str | None = None
    prefill_engine: str | None = None
    decode_engine: str | None = None
    attempts: int = 1
    continued: bool = False  # its stream had begun when its engine was lost, and went on on another one
    prompt_tokens: int | None = None
    output_chunks: int = 0  # pieces streamed to the client
    transfer_bytes: int | None = None
    transfer_copies: int | None = None  # runs of adjacent bytes that these were copied in
    recomputed: bool = False  # the KV was lost on the way and computed again
    ttft_s: float | None = None
    total_s: float | None = None
    stages: tuple[Stage, ...] = ()
    legs: tuple[Leg, ...] = ()


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """One call to one engine."""

    kind: str  # prefill | decode | whole
    engine: str
    outcome: str  # ok | error | unreachable | cancelled
    status: int | None = None
    duration_s: float | None = None
    error: str | None = None


class ChangeKind(StrEnum):
    """What is not as it was."""

    STARTED = "started"  # the appliance
    TOPOLOGY = "topology"
    ROLE = "role"
    WEIGHT = "weight"
    DRAINED = "drained"  # takes no new work
    RESUMED = "resumed"  # takes work again
    ENDED = "ended"  # an engine, by itself or on purpose
    RESTARTED = "restarted"  # another life of an engine begins
    READY = "ready"  # and it serves
    TRAFFIC = "traffic"  # more or fewer requests, or longer or shorter ones


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something about the node that is not as it was. ``time`` is in Unix seconds; ``before`` and ``after`` in words."""

    time: float
    kind: ChangeKind
    sentence: str
    engine: str | None = None
    before: str | None = None
    after: str | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict that was new, and stood until the next one. ``time`` is in Unix seconds."""

    time: float
    state: str  # ok | bottleneck | unknown
    summary: str
    engine: str | None = None
    link: tuple[str, str] | None = None
    cause: str | None = None


class IncidentState(StrEnum):
    """Whether it is over."""

    OPEN = "open"
    CLOSED = "closed"


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A spell in which something held the node back. Times are in Unix seconds.

    What it is said to be (engine, cause, evidence, action) is of the verdict that explains it best: an engine that was gone, else the
    first of those that stood long. ``summary`` and ``evidence`` are as they were when that hurt most, ``action`` and ``next`` as they
    were said last.
    """

    id: str  # when it was opened, in UTC: 261126-1432
    opened: float
    state: IncidentState = IncidentState.OPEN
    closed: float | None = None
    ended: str | None = None  # why it is closed, in words
    reopened: int = 0  # times that the same thing was back soon after it seemed over
    engine: str | None = None
    engines: tuple[str, ...] = ()
    link: tuple[str, str] | None = None
    stage: str | None = None
    cause: str | None = None  # None: nothing told why
    summary: str = ""
    severity: float | None = (
        None  # at its peak, the share of first tokens or tokens that were late, or of requests that failed
    )
    late: int = 0  # first tokens that came late meanwhile, about
    failed: int = 0  # requests that failed meanwhile
    evidence: tuple[Evidence, ...] = ()
    action: Action | None = None
    expected_gain: float | None = None
    next: str | None = None
    verdicts: tuple[Said, ...] = ()  # oldest first
    changes: tuple[Change, ...] = ()  # of the ten minutes before, and since; oldest first
    simulated: bool = False
    version: str = ""  # of the appliance
    model: str = ""
    topology: str = ""  # when it was opened
    slo_ttft_s: float | None = None
    slo_itl_s: float | None = None
    slo_share: float | None = None
