"""A snapshot as Prometheus text. Pure; what is absent is left out, never 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from appliance.records import (
    EngineSnapshot,
    EngineState,
    GpuSnapshot,
    HostReading,
    IncidentTotals,
    NodeSnapshot,
    Role,
    Verdict,
)

_PREFIX: Final = "pd_appliance"

_Read = Callable[[EngineSnapshot], "float | None"]
_ReadGpu = Callable[[GpuSnapshot], "float | None"]
_ReadNode = Callable[[NodeSnapshot], "float | None"]

_ENGINE_GAUGES: Final[tuple[tuple[str, str, _Read], ...]] = (
    ("start_progress_ratio", "Estimated progress of the engine's start.", lambda e: e.progress),
    ("state_seconds", "Time in the present state.", lambda e: e.in_state_s),
    ("epoch", "Life of the engine, counted from 1.", lambda e: e.epoch),
    ("legs_in_flight", "Legs that the router has open on the engine.", lambda e: e.in_flight),
    (
        "outstanding_prompt_tokens",
        "Prompt tokens of those legs, not yet prefilled.",
        lambda e: e.outstanding_prompt_tokens,
    ),
    ("requests_running", "Requests in the engine's running batch.", lambda e: e.running),
    ("requests_waiting", "Requests waiting in the engine.", lambda e: e.waiting),
    ("requests_fetching", "Requests whose KV is on its way in.", lambda e: e.fetching),
    ("kv_usage_ratio", "Share of the KV cache in use.", lambda e: e.kv_usage),
    ("kv_blocks", "KV blocks in all.", lambda e: e.kv_blocks_total),
    ("kv_blocks_free", "KV blocks that are free.", lambda e: e.kv_blocks_free),
    ("kv_block_tokens", "Tokens per KV block.", lambda e: e.block_tokens),
    (
        "prompt_tokens_per_second",
        "Prompt tokens computed, over the last telemetry window.",
        lambda e: e.prompt_tokens_s,
    ),
    ("output_tokens_per_second", "Output tokens, over the last telemetry window.", lambda e: e.output_tokens_s),
    ("steps_per_second", "Scheduler steps, over the last telemetry window.", lambda e: e.steps_s),
    ("step_seconds", "Mean duration of a step with tokens in it.", lambda e: _seconds(e.step_ms)),
    ("prefix_hit_ratio", "Share of prompt tokens found in the prefix cache.", lambda e: e.prefix_hit_rate),
    ("last_step_age_seconds", "Since the engine's last step or heartbeat.", lambda e: e.last_step_age_s),
    ("peers", "Engines whose KV memory this one has mapped.", lambda e: len(e.peers)),
    ("peer_errors", "Engines that this one can't share KV with.", lambda e: len(e.peer_errors)),
    ("memory_bytes", "Proportional set size of all the engine's processes.", lambda e: e.memory_bytes),
    ("weight", "How much of the work the engine is given, against its like.", lambda e: e.weight),
    ("places", "Requests that may run at once.", lambda e: e.max_running),
    ("token_budget", "Tokens that a step may have.", lambda e: e.token_budget),
    ("busy_ratio", "Share of the last seconds in which it made steps with tokens.", lambda e: e.busy),
    ("slowdown_ratio", "Time of its steps, of what such steps take.", lambda e: e.slowdown),
    (
        "usual_since_timestamp_seconds",
        "From when on it was known what such steps take, and kept as what is usual.",
        lambda e: e.usual_since,
    ),
    ("calibration_steps", "Steps of its calibration.", lambda e: e.calibration.steps if e.calibration else None),
    (
        "calibration_slowdown_ratio",
        "Time of its calibration, of what was known of such steps.",
        lambda e: e.calibration.slowdown if e.calibration else None,
    ),
    (
        "calibration_against_like_ratio",
        "Time of its calibration, of that of engines of its kind.",
        lambda e: e.calibration.against_like if e.calibration else None,
    ),
    ("step_prompt_tokens", "Of a step with prompt tokens, mean.", lambda e: e.step_prompt_tokens),
    ("step_decode_tokens", "Of a step with decode tokens, mean.", lambda e: e.step_decode_tokens),
    ("itl_seconds", "From one step with decode tokens to the next, mean over their tokens.", lambda e: e.itl_s),
    ("itl_late_ratio", "Share of these tokens whose step came later than the target.", lambda e: e.itl_late),
    (
        "budget_gain_ratio",
        "Prompt tokens per second in full steps, times those in half-full ones, predicted.",
        lambda e: e.fuller,
    ),
    (
        "decode_room_ratio",
        "Times what it decodes now that it could decode in time, by its KV, too; predicted.",
        lambda e: e.room,
    ),
    ("kv_blocks_leased", "KV blocks that are held for others, as the engine tells.", lambda e: e.leased_blocks),
    ("api_delay_seconds", "From a first token to its bytes, mean.", lambda e: e.api_delay_s),
    (
        "long_prompt_tokens",
        "Of the longest prompt, of those many times as long as is usual, that it computed lately.",
        lambda e: e.long_prompt_tokens,
    ),
    ("intake_seconds", "From a decode leg's dispatch to what its engine does about it, mean.", lambda e: e.intake_s),
    (
        "core_delay_ratio",
        "Time for which EngineCore could run and had no core.",
        lambda e: _host(e).core_delay,
    ),
    ("core_busy_ratio", "Time for which EngineCore ran.", lambda e: _host(e).core_busy),
    ("api_busy_ratio", "Time for which the API process ran, or could have.", lambda e: _host(e).api_busy),
    ("api_starved_ratio", "Time for which the API process could run, and had no core.", lambda e: _host(e).api_starved),
    ("cpu_throttled_ratio", "Time for which its control group was out of CPU quota.", lambda e: _host(e).throttled),
    ("cpu_pressure_ratio", "Time for which something around it had no core.", lambda e: _host(e).pressure),
    ("cores_allowed", "Cores that EngineCore's main thread may run on.", lambda e: _host(e).cores),
    (
        "core_switches_per_second",
        "How often EngineCore's main thread was made to leave its core.",
        lambda e: _host(e).core_switches_s,
    ),
)
_GPU_GAUGES: Final[tuple[tuple[str, str, _ReadGpu], ...]] = (
    ("clock_hertz", "Clock of the GPU's multiprocessors.", lambda g: _hertz(g.clock_mhz)),
    ("clock_max_hertz", "The highest that it can be.", lambda g: _hertz(g.clock_max_mhz)),
    ("power_watts", "Power drawn.", lambda g: g.power_w),
    ("power_limit_watts", "Power that may be drawn.", lambda g: g.power_limit_w),
    ("temperature_celsius", "Temperature of the GPU.", lambda g: g.temperature_c),
    ("memory_used_bytes", "Memory in use.", lambda g: g.memory_used_bytes),
    ("memory_bytes", "Memory in all.", lambda g: g.memory_total_bytes),
    ("busy_ratio", "Share of the time in which some kernel ran.", lambda g: g.busy),
    ("tensor_ratio", "Share of the time in which tensor cores worked.", lambda g: g.tensor),
    ("dram_ratio", "Share of the memory's bandwidth in use.", lambda g: g.dram),
    ("nvlink_bytes_per_second", "In and out over NVLink.", lambda g: g.nvlink_bytes_s),
    ("sm_ratio", "Share of the time in which multiprocessors worked.", lambda g: g.sm),
    ("pcie_bytes_per_second", "In and out over PCIe.", lambda g: g.pcie_bytes_s),
    ("pcie_generation", "Of its PCIe link now.", lambda g: g.pcie_generation),
    ("pcie_generation_max", "That GPU and slot can do.", lambda g: g.pcie_generation_max),
    ("pcie_lanes", "Of its PCIe link now.", lambda g: g.pcie_lanes),
    ("pcie_lanes_max", "That GPU and slot have.", lambda g: g.pcie_lanes_max),
    ("rows_remapped", "Rows of its memory that others stand in for.", lambda g: g.rows_remapped),
    ("other_processes", "Processes on it that are no engine's.", lambda g: None if g.others is None else len(g.others)),
)
_GPU_COUNTERS: Final[tuple[tuple[str, str, _ReadGpu], ...]] = (
    ("ecc_corrected", "Memory errors that were corrected.", lambda g: g.ecc_corrected),
    ("ecc_uncorrected", "Memory errors that could not be corrected.", lambda g: g.ecc_uncorrected),
    ("xids", "Errors that the driver has told of.", lambda g: len(g.xids)),
    ("pcie_replays", "Packets that had to be sent again over PCIe.", lambda g: g.pcie_replays),
    ("nvlink_errors", "Wrong checksums on NVLink, and what had to be sent again.", lambda g: g.nvlink_errors),
)
_ENGINE_COUNTERS: Final[tuple[tuple[str, str, _Read], ...]] = (
    ("restarts", "Times the engine was started again.", lambda e: e.restarts),
    ("preemptions", "Requests preempted since the engine's start.", lambda e: e.preemptions),
)
_NODE_GAUGES: Final[tuple[tuple[str, str, _ReadNode], ...]] = (
    ("ready", "1 when a request sent now would be served.", lambda s: s.ready),
    ("uptime_seconds", "Since the supervisor's start.", lambda s: s.uptime_s),
    ("queue_depth", "Requests in the router's queue.", lambda s: s.queue.depth),
    ("queue_capacity", "Requests that the queue has room for.", lambda s: s.queue.capacity),
    ("queue_oldest_seconds", "Age of the oldest request in the queue.", lambda s: s.queue.oldest_s),
    ("requests_in_flight", "Requests taken from the queue and not yet answered.", lambda s: s.queue.in_flight),
    ("handoffs_per_second", "Recent hand-offs.", lambda s: s.handoffs.recent_s),
    ("handoff_bytes_per_second", "While bytes were being copied, recently.", lambda s: s.handoffs.recent_bytes_s),
    ("slo_ttft_seconds", "Target for the time to first token.", lambda s: s.slo_ttft_s),
    ("slo_itl_seconds", "Target for the time between tokens.", lambda s: s.slo_itl_s),
    ("supervisor_memory_bytes", "Proportional set size of the supervisor.", lambda s: s.supervisor.memory_bytes),
    ("supervisor_cpu_ratio", "Of one core, used by the supervisor.", lambda s: s.supervisor.cpu_share),
    ("supervisor_loop_delay_seconds", "Lateness of the event loop.", lambda s: _seconds(s.supervisor.loop_delay_ms)),
)
_NODE_COUNTERS: Final[tuple[tuple[str, str, _ReadNode], ...]] = (
    ("requests_received", "Requests that have come.", lambda s: s.requests.total),
    (
        "requests_refused",
        "Requests answered with a 4xx but 429, among those that failed.",
        lambda s: s.requests.refused,
    ),
    ("requests_split", "Requests prefilled and decoded on different engines.", lambda s: s.requests.split),
    ("requests_retried", "Requests that needed more than one attempt.", lambda s: s.requests.retried),
    ("leases_granted", "Leases on KV blocks, granted.", lambda s: s.ledger.granted),
    ("handoffs", "KV hand-offs.", lambda s: s.handoffs.count),
    ("handoffs_failed", "Hand-offs that failed; the KV was computed again.", lambda s: s.handoffs.failed),
    ("handoff_bytes", "Bytes handed over.", lambda s: s.handoffs.bytes),
)


_NO_READING: Final = HostReading()


def _host(engine: EngineSnapshot) -> HostReading:
    return engine.host or _NO_READING


def render(snapshot: NodeSnapshot, incidents: IncidentTotals | None = None) -> bytes:
    """The snapshot in Prometheus' text format, and what there has been of incidents where they are kept."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(snapshot, incidents))
    return generate_latest(registry)


class _Snapshot(Collector):
    """All metrics of one snapshot. A family without a sample is left out."""

    def __init__(self, snapshot: NodeSnapshot, incidents: IncidentTotals | None) -> None:
        self._snapshot = snapshot
        self._incidents = incidents

    def describe(self) -> list[Metric]:
        return []  # or the registry would collect once more, for the names

    def collect(self) -> Iterator[Metric]:
        families = (
            *_node(self._snapshot),
            *_labelled(self._snapshot),
            *_verdict(self._snapshot.verdict),
            *_incidents(self._incidents),
            *_engines(self._snapshot.engines),
            *_gpus(self._snapshot.gpus),
        )
        return (family for family in families if family.samples)


def _hertz(megahertz: float | None) -> float | None:
    return None if megahertz is None else megahertz * 1e6


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _gauge(
    name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float | None]]
) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _counter(
    name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float | None]]
) -> Metric:
    family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _node(snapshot: NodeSnapshot) -> Iterator[Metric]:
    info = InfoMetricFamily(_PREFIX, "What runs here.")
    simulated = str(snapshot.simulated).lower()
    info.add_metric(
        (),
        {"version": snapshot.version, "model": snapshot.model, "topology": snapshot.topology, "simulated": simulated},
    )
    yield info
    for name, text, read in _NODE_GAUGES:
        yield _gauge(name, text, (), [((), read(snapshot))])
    for name, text, read in _NODE_COUNTERS:
        yield _counter(name, text, (), [((), read(snapshot))])


def _labelled(snapshot: NodeSnapshot) -> Iterator[Metric]:
    requests, ledger = snapshot.requests, snapshot.ledger
    outcomes = (("ok", requests.ok), ("failed", requests.failed), ("cancelled", requests.cancelled))
    ends = ("released", "cancelled", "expired", "lost")
    yield _counter("requests", "Requests that are over, by outcome.", ("outcome",), [((o,), n) for o, n in outcomes])
    yield _counter(
        "leases_ended", "Leases that are over, by reason.", ("reason",), [((r,), getattr(ledger, r)) for r in ends]
    )
    for name, text, amount in (
        ("leases", "Leases held, by the engine that holds the blocks.", _leases),
        ("leased_blocks", "KV blocks held by leases.", _leased_blocks),
    ):
        yield _gauge(name, text, ("engine",), [((e.name,), amount(snapshot, e.name)) for e in snapshot.engines])
    text = "KV blocks that the engine holds for others and no lease accounts for: a leak."
    yield _gauge("unexplained_blocks", text, ("engine",), [((e.name,), _leak(snapshot, e)) for e in snapshot.engines])
    pair_ok = [((pair.prefill, pair.decode), pair.ok) for pair in snapshot.pairs]
    yield _gauge("pair_ok", "1 where KV was last seen to get from one to the other.", ("prefill", "decode"), pair_ok)
    pair_in_use = [((pair.prefill, pair.decode), pair.in_use) for pair in snapshot.pairs]
    yield _gauge("pair_in_use", "0 where it does not: nothing is split over them.", ("prefill", "decode"), pair_in_use)
    quantiles = [(("0.5",), snapshot.ttft_p50_s), (("0.99",), snapshot.ttft_p99_s)]
    yield _gauge("ttft_seconds", "Time to first token of the recent requests.", ("quantile",), quantiles)
    yield _gauge(
        "itl_seconds", "Time between tokens of the recent requests.", ("quantile",), [(("0.5",), snapshot.itl_p50_s)]
    )


def _verdict(verdict: Verdict | None) -> Iterator[Metric]:
    if verdict is None:
        return
    state = StateSetMetricFamily(f"{_PREFIX}_verdict", "Whether something holds the node back.")
    state.add_metric((), {one: one == verdict.state for one in ("ok", "bottleneck", "unknown")})
    yield state
    text = "When the verdict became what it is."
    yield _gauge("verdict_since_timestamp_seconds", text, (), [((), verdict.since)])
    if verdict.state != "ok":
        yield from _bottleneck(verdict)


def _bottleneck(verdict: Verdict) -> Iterator[Metric]:
    """A series for each engine that shares it; without an engine where it is a link's, the node's, or nobody knows whose."""
    why = ("-".join(verdict.link or ()), verdict.stage or "", verdict.cause or "unknown")
    held = [((engine, *why), 1) for engine in verdict.engines or (verdict.engine or "",)]
    text = "What holds the node back; none while nothing does."
    yield _gauge("bottleneck", text, ("engine", "link", "stage", "cause"), held)
    yield _gauge("bottleneck_confidence_ratio", "How sure that is, 0 to 1.", (), [((), verdict.confidence)])
    text = "Share by which what is late would get shorter, were it gone; estimated."
    yield _gauge("bottleneck_expected_gain_ratio", text, (), [((), verdict.expected_gain)])


def _incidents(totals: IncidentTotals | None) -> Iterator[Metric]:
    if totals is None:
        return
    yield _gauge("incident_open", "1 while an incident is open.", (), [((), totals.open)])
    yield _counter("incidents_opened", "Incidents opened, or opened again.", (), [((), totals.opened)])
    closed = [((cause,), count) for cause, count in totals.closed.items()]
    yield _counter("incidents_closed", "Incidents closed, by what explained them.", ("cause",), closed)
    text = "Notices of incidents that the owner's command or webhook did not take."
    yield _counter("incident_notices_failed", text, (), [((), totals.untold)])
    yield _gauge(
        "incidents_kept", "1 while incidents get to the disk, 0 while memory only has them.", (), [((), totals.kept)]
    )


def _leases(snapshot: NodeSnapshot, owner: str) -> int:
    return sum(1 for lease in snapshot.ledger.leases if lease.owner == owner)


def _leak(snapshot: NodeSnapshot, engine: EngineSnapshot) -> float | None:
    """None of an engine that does not tell what it holds."""
    if engine.leased_blocks is None:
        return None
    return sum(one.blocks for one in snapshot.ledger.unexplained if one.engine == engine.name)


def _leased_blocks(snapshot: NodeSnapshot, owner: str) -> int:
    return sum(lease.blocks for lease in snapshot.ledger.leases if lease.owner == owner)


def _engines(engines: Sequence[EngineSnapshot]) -> Iterator[Metric]:
    states = StateSetMetricFamily(f"{_PREFIX}_engine_state", "The engine's state.", labels=("engine",))
    roles = StateSetMetricFamily(f"{_PREFIX}_engine_role", "What the router uses the engine for.", labels=("engine",))
    for engine in engines:
        states.add_metric((engine.name,), {state.value: state is engine.state for state in EngineState})
        roles.add_metric((engine.name,), {role.value: role is engine.role for role in Role})
    yield states
    yield roles
    for name, text, read in _ENGINE_GAUGES:
        yield _gauge(f"engine_{name}", text, ("engine",), [((e.name,), read(e)) for e in engines])
    for name, text, read in _ENGINE_COUNTERS:
        yield _counter(f"engine_{name}", text, ("engine",), [((e.name,), read(e)) for e in engines])


def _gpus(gpus: Sequence[GpuSnapshot]) -> Iterator[Metric]:
    labels = ("gpu", "engine")
    places = [((gpu.uuid, gpu.engine or ""), gpu) for gpu in gpus]
    for name, text, read in _GPU_GAUGES:
        yield _gauge(f"gpu_{name}", text, labels, [(place, read(gpu)) for place, gpu in places])
    for name, text, read in _GPU_COUNTERS:
        yield _counter(f"gpu_{name}", text, labels, [(place, read(gpu)) for place, gpu in places])
    held = [((*place, one.reason), one.total_s) for place, gpu in places for one in gpu.throttled]
    text = "How long its clocks were held down since its driver was loaded."
    yield _counter("gpu_throttled_seconds", text, (*labels, "reason"), held)
    slowed = [((*place, reason), 1) for place, gpu in places for reason in gpu.clock_reasons]
    yield _gauge("gpu_clock_reason", "Why the clock is not at its highest.", (*labels, "reason"), slowed)
