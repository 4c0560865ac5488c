"""Which engines there are. Under the name of one that is gone there may be another one later; its lives are counted on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from appliance.records import Role
from appliance.supervisor import lifecycle
from appliance.supervisor.engine import Engine
from appliance.supervisor.specs import EngineSpec

T = TypeVar("T")
_log = logging.getLogger("pd-appliance")


class Roster:
    """Of one node."""

    def __init__(self, specs: Sequence[EngineSpec]) -> None:
        self.engines = {spec.name: Engine(spec) for spec in specs}
        """By name: these, and no copy, for whoever has to do with those that there are."""
        self.on_begin: list[Callable[[EngineSpec], None]] = []
        """Called with an engine that is another one than had its name until now, before it starts."""
        self.on_remove: list[Callable[[str], object]] = []
        """Called with the name of an engine that there is no more."""
        self._epochs: dict[str, int] = {}  # of names that nobody has now

    def has(self, engine: Engine) -> bool:
        """It is one of them, and not one that had this name before."""
        return self.engines.get(engine.spec.name) is engine

    def begin(self, spec: EngineSpec) -> Engine:
        """An engine in the place of the one that had its name, which has ended. It is not started yet."""
        engine, before = Engine(spec), self.engines.get(spec.name)
        epoch = before.life.epoch if before else self._epochs.pop(spec.name, 0)
        engine.life, engine.role = lifecycle.Life(epoch=epoch), Role.BOTH
        if before is not None:
            engine.log = before.log
        self.engines[spec.name] = engine
        _tell(self.on_begin, spec)
        return engine

    def remove(self, engine: Engine) -> None:
        """One that has ended for good."""
        name = engine.spec.name
        self._epochs[name] = engine.life.epoch
        del self.engines[name]
        _tell(self.on_remove, name)


def _tell(callbacks: Sequence[Callable[[T], object]], what: T) -> None:
    """A callback that fails is its own affair."""
    for callback in callbacks:
        try:
            callback(what)
        except Exception:
            _log.exception("%s", callback)
