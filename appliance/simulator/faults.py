"""What can go wrong with a simulated engine. Each fault changes what it has to work with, and never what it reports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from appliance.channel import Fault
from appliance.errors import ConfigError, quoted
from appliance.records import EngineView
from appliance.simulator.engine import Engine
from appliance.simulator.fabric import Shares
from appliance.simulator.frontend import Frontend
from appliance.simulator.gpus import VirtualGpus
from appliance.simulator.physics import Physics

KINDS: Final = {
    "clocks": "its first GPU gets too hot and lowers its clocks",
    "ecc": "its first GPU's memory has errors, whose correction takes bandwidth",
    "link": "the link to a peer (or to all) is slow",
    "cpu": "its main loop is starved of CPU time",
    "hang": "its main loop stops for good; the severity means nothing",
    "crash": "its processes end; the severity means nothing",
    "kv": "KV blocks are lost",
    "cache": "the prefix cache is emptied, and part of what would be found in it is not",
    "skew": "the router prefers it to its like",
    "frontend": "its API process is starved of CPU time",
}
LASTING: Final = frozenset(KINDS) - {"hang", "crash"}
"""Those of the hardware or the node: a new life of the engine has them, too."""
_LEAST: Final = 0.01  # share that is always left: nothing takes for ever
_HEAVIEST: Final = 100.0  # that an engine may be
_LEAST_LINK: Final = 0.001  # of a link: what falls back to the network is slower by far


def check(fault: Fault, engine: str, engines: Collection[str]) -> None:
    """Raises ``ConfigError`` that says what would be right."""
    if engine not in engines:
        raise ConfigError(f"there is no engine {quoted(engine)}: there are {', '.join(engines)}")
    if fault.kind not in KINDS:
        raise ConfigError(f"fault kind {quoted(fault.kind)} is not one: there are {', '.join(KINDS)}")
    if not 0 <= fault.severity <= 1:
        raise ConfigError(
            f"severity {fault.severity:g} is not from 0 to 1: it is the share of the capacity that is lost"
        )
    if fault.kind not in LASTING and not fault.severity:
        raise ConfigError(f"a {fault.kind} can't be ended: it is over when the engine has been started again")
    if fault.peer is not None and fault.kind != "link":
        raise ConfigError(f"a {fault.kind} fault has no peer; only link faults have one")
    if fault.peer is not None and (fault.peer not in engines or fault.peer == engine):
        raise ConfigError(f"peer {quoted(fault.peer)} is not another engine: there are {', '.join(engines)}")


class Faults:
    """Those of one engine."""

    def __init__(
        self,
        engine: Engine,
        physics: Physics,
        gpus: VirtualGpus,
        links: Shares,
        frontend: Frontend,
        crash: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._physics = physics
        self._gpus = gpus
        self._links = links
        self._frontend = frontend
        self._crash = crash

    def apply(self, fault: Fault) -> None:
        """Begin it, change how severe it is, or with severity 0 end one that lasts."""
        left = max(_LEAST, 1 - fault.severity)
        match fault.kind:
            case "clocks":
                self._physics.speed = replace(self._physics.speed, clock=left)
                self._gpus.broke(replace(self._gpus.wear, clock=1 - left))
            case "ecc":
                self._physics.speed = replace(self._physics.speed, memory=left)
                self._gpus.broke(replace(self._gpus.wear, memory=1 - left))
            case "cpu":
                self._physics.speed = replace(self._physics.speed, core=left)
            case "link":
                self._links.set(self._engine.name, fault.peer, max(_LEAST_LINK, 1 - fault.severity))
            case "kv":
                self._engine.withhold(int(self._engine.blocks.count * (1 - left)))
            case "cache":
                self._engine.cached = 1 - fault.severity
                if fault.severity:
                    self._engine.blocks.lose_cache()
            case "frontend":
                self._frontend.share = left
            case "hang":
                self._engine.hang()
            case "crash":
                self._crash()
            case _:
                pass  # skew is the router's


class Bias:
    """What a router that prefers engines makes of their weights: more than they had, by so much.

    Weights are the owner's, too. Those that nobody has set otherwise meanwhile become again what they were.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[float, float]] = {}  # by engine: what it was, and what it was made

    def weights(self, engines: Sequence[EngineView], preferred: Mapping[str, float]) -> dict[str, float]:
        """That are to be other ones than now. ``preferred``: by engine, the share of an even one that others lose beside it."""
        wanted = {engine.name: self._weight(engine, preferred.get(engine.name, 0.0)) for engine in engines}
        return {engine.name: wanted[engine.name] for engine in engines if wanted[engine.name] != engine.weight}

    def _weight(self, engine: EngineView, severity: float) -> float:
        own, made = self._made.pop(engine.name, (engine.weight, engine.weight))
        if engine.weight != made:
            own = engine.weight  # its owner's doing
        if not severity:
            return own
        self._made[engine.name] = own, min(_HEAVIEST, round(own / max(_LEAST, 1 - severity), 4))
        return self._made[engine.name][1]
