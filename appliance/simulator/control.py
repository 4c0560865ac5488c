"""What the supervisor of a simulated node has besides: its virtual GPUs, and the faults that it was told to have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from appliance.channel import CoreReady, Down, Fault, Hardware, Up
from appliance.costs.gpus import gpu
from appliance.errors import ActionError, ConfigError, quoted
from appliance.records import EngineState, EngineView, GpuSnapshot, HostReading
from appliance.simulator import faults
from appliance.simulator.gpus import at_rest, together
from appliance.simulator.plan import EnginePlan


class Control:
    """Implements ``telemetry.collector.HardwareSource`` and ``web.ports.Simulation``."""

    def __init__(
        self,
        title: str,
        plans: Sequence[EnginePlan],
        views: Callable[[], Sequence[EngineView]],
        send: Callable[[str, Down], bool],
        weigh: Callable[[str, float], None],
    ) -> None:
        """``send`` says something to an engine, False if it is not there; ``weigh`` sets an engine's weight in routing."""
        self.title = title
        self._plans = {plan.name: plan for plan in plans}
        self._views = views
        self._send = send
        self._weigh = weigh
        self._readings: dict[str, Hardware] = {}
        self._past: dict[str, GpuSnapshot] = {}  # by UUID: what GPUs had read when the last life on them ended
        self._faults: dict[tuple[str, str, str | None], Fault] = {}  # by engine, kind and peer
        self._bias = faults.Bias()
        self._links: dict[tuple[str, str], float] = {}  # what engines were told of their links to others

    # ---- what engines say

    def fold(self, engine: str, message: Up) -> None:
        if isinstance(message, Hardware):
            self._readings[engine] = message
        elif isinstance(message, CoreReady):  # a new life, on hardware that has what it had
            for (name, kind, _), fault in self._faults.items():
                if name == engine and kind not in ("link", "skew"):
                    self._send(engine, fault)
            self._links = {ends: lost for ends, lost in self._links.items() if ends[0] != engine}
            self._tell_links()

    def lost(self, engine: str, epoch: int) -> None:
        """A life of an engine is over. What its GPUs have counted stays counted."""
        self._past |= {one.uuid: self._with_past(one) for one in self._of(self._plans[engine])}
        self._readings.pop(engine, None)

    def begins(self, plan: EnginePlan) -> None:
        """Another engine has that name from now on. Faults are of what is under its name, and stay."""
        self._plans[plan.name] = plan

    def ended(self, engine: str) -> None:
        """There is none of that name any more, and nothing of it to be mended."""
        del self._plans[engine]
        self._faults = {key: fault for key, fault in self._faults.items() if engine not in (key[0], key[2])}

    def gpus(self) -> tuple[GpuSnapshot, ...]:
        """See ``HardwareSource``."""
        return tuple(map(self._with_past, together(one for plan in self._plans.values() for one in self._of(plan))))

    def host(self, view: EngineView) -> HostReading | None:
        """See ``HardwareSource``."""
        known = self._readings.get(view.name)
        return known.host if known else None

    def _of(self, plan: EnginePlan) -> tuple[GpuSnapshot, ...]:
        """What its present life has counted."""
        known = self._readings.get(plan.name)
        return known.gpus if known else at_rest(gpu(plan.gpu), plan.first_gpu, plan.tensor_parallel, plan.name)

    def _with_past(self, now: GpuSnapshot) -> GpuSnapshot:
        """A GPU's counters outlive the engines on it."""
        past = self._past.get(now.uuid)
        if past is None:
            return now
        return msgspec.structs.replace(
            now,
            ecc_corrected=(now.ecc_corrected or 0) + (past.ecc_corrected or 0),
            ecc_uncorrected=(now.ecc_uncorrected or 0) + (past.ecc_uncorrected or 0),
            xids=past.xids + now.xids,
        )

    # ---- what an owner says

    def faults(self) -> dict[str, list[Fault]]:
        """That last now, by engine."""
        found: dict[str, list[Fault]] = {}
        for (engine, *_), fault in self._faults.items():
            found.setdefault(engine, []).append(fault)
        return found

    def fault(self, engine: str, kind: str, severity: float, peer: str | None = None) -> None:
        """It begins now, or changes. Raises ``ActionError``."""
        fault = Fault(kind=kind, severity=severity, peer=peer)
        try:
            faults.check(fault, engine, self._plans)
        except ConfigError as error:
            raise ActionError(str(error), unknown=engine not in self._plans, invalid=True) from error
        if kind in faults.LASTING:
            self._faults[engine, kind, peer] = fault
            if not severity:
                del self._faults[engine, kind, peer]
        elif not self._is_there(engine):
            raise ActionError(f"{engine} does not serve now, and can't {kind}")
        self._act(engine, fault)

    def mend(self, engine: str, kind: str | None = None) -> None:
        """All faults of an engine end, or those of one kind. Raises ``ActionError`` for an engine or a kind that isn't."""
        if engine not in self._plans:
            raise ActionError(f"there is no engine {quoted(engine)}: there are {', '.join(self._plans)}", unknown=True)
        if kind is not None and kind not in faults.KINDS:
            raise ActionError(
                f"fault kind {quoted(kind)} is not one: there are {', '.join(faults.KINDS)}", invalid=True
            )
        for name, known, peer in [key for key in self._faults if key[0] == engine and kind in (None, key[1])]:
            del self._faults[name, known, peer]
            self._act(engine, Fault(kind=known, severity=0.0, peer=peer))

    def _act(self, engine: str, fault: Fault) -> None:
        if fault.kind == "skew":
            self._skew()
        elif fault.kind == "link":
            self._tell_links()
        else:
            self._send(engine, fault)

    def _tell_links(self) -> None:
        """To both ends, the worst of all that touches a link: it is whoever pulls that waits."""
        for engine in self._plans:
            for peer in self._plans:
                lost = self._lost_between(engine, peer)
                if engine != peer and lost != self._links.get((engine, peer), 0.0):
                    self._links[engine, peer] = lost
                    self._send(engine, Fault(kind="link", severity=lost, peer=peer))

    def _lost_between(self, one: str, other: str) -> float:
        ends = {(one, None), (one, other), (other, None), (other, one)}
        links = ((name, peer, fault) for (name, kind, peer), fault in self._faults.items() if kind == "link")
        return max((fault.severity for name, peer, fault in links if (name, peer) in ends), default=0.0)

    def _skew(self) -> None:
        preferred = {name: fault.severity for (name, kind, _), fault in self._faults.items() if kind == "skew"}
        for engine, weight in self._bias.weights(self._views(), preferred).items():
            self._weigh(engine, weight)

    def _is_there(self, engine: str) -> bool:
        serving = (EngineState.READY, EngineState.DRAINING, EngineState.SUSPECT)
        return any(view.name == engine and view.state in serving for view in self._views())
