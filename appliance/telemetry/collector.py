"""The only writer of snapshots: folds what engines report, and at each tick says how the node is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from appliance.channel import HandoffEnded, Up
from appliance.config import Config
from appliance.costs.fitted import CopyModel, StepModel
from appliance.records import (
    Better,
    CalibrationSnapshot,
    EngineSnapshot,
    EngineState,
    EngineView,
    GpuSnapshot,
    HandoffSnapshot,
    HostReading,
    KneeReading,
    LedgerSnapshot,
    NodeSnapshot,
    Pair,
    QueueSnapshot,
    RequestCounts,
    StepReading,
    SupervisorSnapshot,
    Timeline,
    Verdict,
)
from appliance.telemetry.calibration import compared
from appliance.telemetry.engines import engine_snapshot
from appliance.telemetry.host import CpuShare, own_memory_bytes, session_memory_bytes
from appliance.telemetry.knees import Knees
from appliance.telemetry.lately import OfEngine
from appliance.telemetry.leaks import Leaks
from appliance.telemetry.links import Links
from appliance.telemetry.series import Series
from appliance.telemetry.steps import Steps
from appliance.telemetry.timeline import Timelines

_log = logging.getLogger("pd-appliance")
_MEMORY_S: Final = 15.0  # at the least, between two looks at how large processes are
_MEMORY_MOST_S: Final = 120.0
_SPARING: Final = 1000.0  # times what a look took of a core, until the next: the kernel walks all pages of all of them
_NEWEST: Final = 12  # timelines in a snapshot
_ENDED: Final = (EngineState.BACKOFF, EngineState.FAILED, EngineState.STOPPED)
_MUCH: Final = 1.3  # times what calibrations of others took: worth a line
_OWN: Final = 0  # the supervisor's place among the memory readings; no engine has this pid


class NodeSource(Protocol):
    @property
    def topology(self) -> str: ...
    def views(self) -> Sequence[EngineView]: ...
    def logs(self, name: str) -> list[str] | None: ...
    def command(self, name: str) -> list[str] | None: ...


class RouterSource(Protocol):
    def not_ready(self) -> str | None: ...
    def queue_snapshot(self, now_ns: int) -> QueueSnapshot: ...
    def in_flight(self, engine: str) -> int: ...
    def outstanding_prompt_tokens(self, engine: str) -> int: ...
    def pairs(self, now_ns: int) -> tuple[Pair, ...]: ...
    def counts(self) -> RequestCounts: ...


class LedgerSource(Protocol):
    def snapshot(self, now_ns: int) -> LedgerSnapshot: ...
    def handoffs(self, now_ns: int) -> HandoffSnapshot: ...


class HardwareSource(Protocol):
    """What is below engines. Never raises: what can't be had is None."""

    def gpus(self) -> tuple[GpuSnapshot, ...]:
        """What every GPU of the node reads now."""
        ...

    def host(self, view: EngineView) -> HostReading | None:
        """What an engine's processes get of the CPUs now."""
        ...


class Collector:
    """Implements ``web.ports.NodeView``."""

    def __init__(
        self,
        config: Config,
        node: NodeSource,
        router: RouterSource,
        ledger: LedgerSource,
        timelines: Timelines,
        *,
        model_name: str,
        version: str,
        hardware: HardwareSource | None = None,
        kinds: Mapping[str, str] | None = None,
        models: Callable[[str], StepModel] = lambda _: StepModel(),
        diagnose: Callable[[NodeSnapshot], Verdict | None] = lambda _: None,
        notes: Callable[[], tuple[str, ...]] = lambda: (),
        simulated: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._node = node
        self._router = router
        self._ledger = ledger
        self._timelines = timelines
        self._model = model_name
        self._version = version
        self._hardware = hardware
        self._kinds = {} if kinds is None else kinds  # these, and no copy: engines come and go
        self.better: Callable[[], Better | None] = lambda: None
        """A layout that would serve the traffic better; told by whoever plans."""
        self._diagnose = diagnose
        self._undiagnosed = False  # at the last tick, because of a fault
        self._notes = notes
        self._model_for = models
        self._models: dict[str, StepModel] = {}
        self._links = Links()
        self._leaks = Leaks()
        self._knees = Knees()
        self._simulated = simulated
        self._unix_s = unix_s
        self._series: dict[str, Series] = {}
        self._told: dict[str, int] = {}  # the life in which an engine was last said to be slow from the start
        self._memory: dict[int, int | None] = {}  # bytes, by the pid of the session's leader
        self._supervisor = SupervisorSnapshot()
        self._cpu = CpuShare()
        self._began_ns = clock_ns()
        self._changed = asyncio.Event()
        self._latest = self.snapshot(self._began_ns)

    # ---- what is told

    def fold(self, engine: str, epoch: int, message: Up, now_ns: int) -> None:
        """Take a message of a life of an engine; a new life begins with nothing."""
        series = self._series.get(engine)
        if series is None or series.epoch < epoch:
            series = self._series[engine] = Series(epoch, self._model_of(engine))
        if series.epoch == epoch:
            series.add(message, now_ns)
        if isinstance(message, HandoffEnded):
            self._links.fold(engine, message, now_ns)

    def calibrating(self, engine: str, epoch: int, under_way: bool) -> None:
        """An engine is given steps of known sizes from now on, or no longer."""
        series = self._series.get(engine)
        if series is None or series.epoch != epoch:
            return
        series.calibrating = under_way
        if not under_way:
            self._compare(self._kinds.get(engine, ""))

    def _compare(self, kind: str) -> None:
        """Engines of a kind by their calibrations. While little is known, those that are slow from the start teach nothing."""
        alike = {name: one for name, one in self._series.items() if self._kinds.get(name, "") == kind}
        for name, found in compared({name: one.calibration for name, one in alike.items()}).items():
            alike[name].calibrated = found
            self._tell(name, alike[name].epoch, _slow(name, found, self._models[kind].noise or 0.0))
        well = [one for one in alike.values() if not one.slow_from_the_start]
        model = self._models[kind]
        if len(well) < len(alike) and model.young:
            model.forget()
            for series in well:
                series.teach()

    def _tell(self, engine: str, epoch: int, line: str | None) -> None:
        """Once in a life: its like are calibrated one after the other, and go on where somebody has interrupted them."""
        if line is not None and self._told.get(engine) != epoch:
            self._told[engine] = epoch
            _log.warning("%s", line)

    def learnt(self, engine: str) -> tuple[StepModel, CopyModel]:
        """What its steps and its hand-offs take, as far as that is known."""
        return self._model_of(engine), self._links.model

    def _model_of(self, engine: str) -> StepModel:
        """Engines of one kind teach each other."""
        kind = self._kinds.get(engine, "")
        if kind not in self._models:
            self._models[kind] = self._model_for(kind)
        return self._models[kind]

    async def run(self) -> None:
        """Publish at every tick, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._weigh())
            while True:
                asked_ns = time.monotonic_ns()
                await asyncio.sleep(self._config.telemetry.tick_s)
                now_ns = time.monotonic_ns()
                late_ms = (now_ns - asked_ns) * 1e-6 - self._config.telemetry.tick_s * 1e3
                self._tick(now_ns, max(0.0, late_ms))

    def _tick(self, now_ns: int, late_ms: float) -> None:
        """A fault in telling how the node is must not end the node: it is logged, and the last snapshot stays."""
        try:
            self._supervisor = SupervisorSnapshot(
                memory_bytes=self._memory.get(_OWN), cpu_share=self._cpu.since_last(), loop_delay_ms=late_ms
            )
            self._publish(self.diagnosed(now_ns))
        except Exception:
            _log.exception("this tick's snapshot failed")

    # ---- what is asked

    def latest(self) -> NodeSnapshot:
        """The last snapshot published; before ``run``, how the node was when the collector was made."""
        return self._latest

    async def updates(self) -> AsyncIterator[NodeSnapshot]:
        """Each snapshot, beginning with the latest; who reads slowly skips to the newest."""
        while True:
            changed = self._changed
            yield self._latest
            await changed.wait()

    def timelines(self, limit: int) -> list[Timeline]:
        return self._timelines.recent(limit, time.monotonic_ns())

    def timeline(self, request_id: str) -> Timeline | None:
        return self._timelines.get(request_id, time.monotonic_ns())

    def logs(self, engine: str) -> list[str] | None:
        return self._node.logs(engine)

    def command(self, engine: str) -> list[str] | None:
        """See ``web.ports.NodeView``."""
        return self._node.command(engine)

    def steps(self, engine: str, since: int, limit: int) -> tuple[StepReading, ...] | None:
        """See ``web.ports.NodeView``."""
        view = self._view(engine)
        if view is None:
            return None
        series = self._living(view)
        offset_s = self._unix_s() - time.monotonic_ns() * 1e-9
        return series.steps.since(since, limit, lambda at_ns: offset_s + at_ns * 1e-9) if series else ()

    async def knee(self, engine: str) -> KneeReading | None:
        """See ``web.ports.NodeView``."""
        view = self._view(engine)
        if view is None:
            return None
        series = self._living(view)
        return await self._knees.get(engine, view.epoch, series.steps if series else Steps())

    def _view(self, engine: str) -> EngineView | None:
        return next((view for view in self._node.views() if view.name == engine), None)

    # ---- snapshots

    def _publish(self, snapshot: NodeSnapshot) -> None:
        self._latest = snapshot
        self._changed.set()
        self._changed = asyncio.Event()

    def diagnosed(self, now_ns: int) -> NodeSnapshot:
        """How the node is now, and what holds it back. ``run`` publishes one at each tick."""
        snapshot = self.snapshot(now_ns)
        return msgspec.structs.replace(snapshot, verdict=self._verdict(snapshot))

    def _verdict(self, snapshot: NodeSnapshot) -> Verdict | None:
        """A fault in the diagnosing costs the verdict alone; it is logged once, until it works again."""
        try:
            verdict = self._diagnose(snapshot)
        except Exception:
            if not self._undiagnosed:
                _log.exception("what holds the node back can't be told")
            self._undiagnosed = True
            return None
        self._undiagnosed = False
        return verdict

    def snapshot(self, now_ns: int) -> NodeSnapshot:
        """How the node is now."""
        begun = self._timelines.begun
        told = begun.of_engines(now_ns)
        views = self._node.views()
        there = {view.name for view in views}
        self._series = {name: series for name, series in self._series.items() if name in there}
        percentiles = self._timelines.percentiles()
        reason = self._router.not_ready()
        engines = tuple(self._engine(view, now_ns, told.get(view.name)) for view in views)
        ledger = self._timelines.named(self._ledger.snapshot(now_ns))
        return NodeSnapshot(
            time=self._unix_s(),
            version=self._version,
            model=self._model,
            topology=self._node.topology,
            simulated=self._simulated,
            ready=reason is None,
            reason=reason,
            uptime_s=(now_ns - self._began_ns) * 1e-9,
            engines=engines,
            gpus=self._hardware.gpus() if self._hardware is not None else (),
            notes=self._notes(),
            queue=self._router.queue_snapshot(now_ns),
            ledger=msgspec.structs.replace(ledger, unexplained=self._leaks.fold(engines, ledger.leases, now_ns)),
            handoffs=self._ledger.handoffs(now_ns),
            links=self._links.snapshot(now_ns),
            pairs=self._router.pairs(now_ns),
            requests=self._router.counts(),
            supervisor=self._supervisor,
            slo_ttft_s=self._config.slo.ttft_s,
            slo_itl_s=self._config.slo.itl_s,
            ttft_p50_s=percentiles.ttft_p50_s,
            ttft_p99_s=percentiles.ttft_p99_s,
            itl_p50_s=percentiles.itl_p50_s,
            lately=begun.lately(now_ns, self._config.slo.ttft_s, self._config.slo.itl_s),
            overdue=self._timelines.overdue(now_ns, self._config.slo.ttft_s),
            demand=self._timelines.wanted.demand(now_ns),
            better=self.better(),
            recent=tuple(self._timelines.recent(_NEWEST, now_ns)),
        )

    def _engine(self, view: EngineView, now_ns: int, told: OfEngine | None) -> EngineSnapshot:
        return engine_snapshot(
            view,
            self._living(view),
            now_ns,
            in_flight=self._router.in_flight(view.name),
            outstanding=self._router.outstanding_prompt_tokens(view.name),
            memory_bytes=self._memory.get(view.pid) if view.pid else None,
            itl_target_s=self._config.slo.itl_s,
            told=told,
            host=self._hardware.host(view) if self._hardware is not None else None,
        )

    def _living(self, view: EngineView) -> Series | None:
        """What the engine's present life has reported; what a dead one has is dropped."""
        series = self._series.get(view.name)
        if series is None or (series.epoch == view.epoch and view.state not in _ENDED):
            return series
        if series.epoch <= view.epoch:
            del self._series[view.name]
        return None

    async def _weigh(self) -> None:
        """Memory, off the loop. Rarely where it takes long, and sooner when engines have come, gone or become ready."""
        while True:
            lives = self._lives()
            self._memory, took_s = await asyncio.to_thread(_weighed, [pid for pid, _ in lives])
            rests_until_s = time.monotonic() + min(_SPARING * took_s, _MEMORY_MOST_S)
            await asyncio.sleep(_MEMORY_S)
            while self._lives() == lives and time.monotonic() < rests_until_s:
                await asyncio.sleep(_MEMORY_S)

    def _lives(self) -> list[tuple[int, EngineState]]:
        """Engines that have processes, by their leaders."""
        return [(view.pid, view.state) for view in self._node.views() if view.pid]


def _weighed(leaders: Sequence[int]) -> tuple[dict[int, int | None], float]:
    """Bytes, by the pid of the session's leader, and this process's; and the seconds that this thread worked for it."""
    began_s = time.thread_time()
    found = {**{pid: session_memory_bytes(pid) for pid in leaders}, _OWN: own_memory_bytes()}
    return found, time.thread_time() - began_s


def _slow(name: str, found: CalibrationSnapshot, noise: float) -> str | None:
    """What an owner should know before anybody waits; None where there is nothing. ``noise``: around what was expected."""
    if (found.against_like or 1.0) > _MUCH:
        return f"{name} took {found.against_like:.2f} times as long as {', '.join(found.like)} for the same steps"
    if (found.slowdown or 1.0) > _MUCH + noise:
        return f"{name} took {found.slowdown:.2f} times as long for its first steps as such steps took before"
    return None
