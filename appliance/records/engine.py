"""What is known of one engine."""

from __future__ import annotations

from enum import StrEnum

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
    restarting: bool = False  # it drains in order to be started again
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
    usual_since: float | None = None  # Unix time from when on that was known; None: it is not yet kept as what is usual
    step_prompt_tokens: float | None = None  # of a step with prompt tokens, mean
    step_decode_tokens: float | None = None  # of a step with decode tokens, mean
    fuller: float | None = None  # prompt tokens/s in full steps, times those in half-full ones; 1: more brings nothing
    itl_s: float | None = None  # from one step with decode tokens to the next, mean over their tokens
    itl_late: float | None = None  # share of these tokens whose step came later than the target
    room: float | None = (
        None  # times what it decodes now that it could decode in time, by its KV, too; predicted; 1: just so much
    )
    leased_blocks: int | None = None
    api_delay_s: float | None = None  # in its API process: from a first token, or a prompt's KV, to the answer; mean
    intake_s: float | None = None  # from when a decode leg was sent to it until it did something about it; mean
    long_prompt_tokens: int | None = (
        None  # of the longest prompt, of those many times as long as is usual, that it computed lately
    )
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
    time: float | None = None  # of its end, Unix seconds


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
    curve: tuple[tuple[int, float], ...] = ()  # prompt tokens of a step, and per second: the line it is read from


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
    restarting: bool = False  # it drains in order to be started again
    peers: tuple[str, ...] = ()  # engines whose KV this one has mapped on every rank, in their current epoch
    peer_errors: tuple[str, ...] = ()
    weight: float = 1.0  # how much of the work it is given, against its like
    core_pid: int | None = None  # EngineCore's
    worker_pids: tuple[int, ...] = ()  # its ranks', where these are processes of their own
    max_batched_tokens: int = 2048
    max_running: int = 256
    max_model_len: int = 0
    block_tokens: int | None = None
    kv_blocks: int | None = None


class HostReading(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's processes get of the machine's CPUs. Shares are of the time since the last reading."""

    core_delay: float | None = None  # EngineCore's main thread could run, and had no core
    core_busy: float | None = None  # it ran
    api_busy: float | None = None  # the API process's main thread ran, or could have
    api_starved: float | None = None  # the part of it in which it could run, and had no core
    throttled: float | None = None  # its control group had used up its CPU quota
    pressure: float | None = None  # something of its control group (or of the machine) could run, and had no core
    cores: int | None = None  # that EngineCore's main thread may run on
    core_switches_s: float | None = None  # how often that thread was made to leave its core, per second
