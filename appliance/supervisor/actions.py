"""What the node can be told to do with its engines. Implements ``remedies.apply.Hands``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from msgspec.structs import replace

from appliance.errors import ActionError, ConfigError, NotNowError, quoted
from appliance.records import EngineState, Moved, Role
from appliance.supervisor.acquaintance import Acquaintances, Key
from appliance.supervisor.engine import Engine
from appliance.supervisor.introductions import Task
from appliance.supervisor.lifecycle import GIVEN_UP, Drain, Drained, Event, Life, Restart, Resume
from appliance.supervisor.reshaping import Reshaping, Step, gap, steps
from appliance.supervisor.specs import EngineSpec
from appliance.supervisor.topology import Place, described, is_of, relabelled

_SETTLE_S: Final = 0.05
_LOOK_S: Final = 0.1
LEAST_WEIGHT: Final = 0.01
MOST_WEIGHT: Final = 100.0
_BACK_S: Final = 300.0  # for an engine to load, and to meet the others
_log = logging.getLogger("pd-appliance")
_SERVING: Final = (EngineState.READY, EngineState.SUSPECT)
_DOES: Final[Mapping[str, Callable[[Role], bool]]] = {
    "prefill": lambda role: role.prefills,
    "decode": lambda role: role.decodes,
}

InFlight = Callable[[str], int]
Post = Callable[[Engine, Event, int | None], None]


class Casting(Protocol):
    """Which engines a layout has."""

    def specs(self, layout: str, there: int) -> Sequence[EngineSpec]:
        """``there``: how many there are now. Raises ``ConfigError`` for what can't be."""
        ...


class EngineActions:
    """Each returns at once; what comes of it shows in the engines' states."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        known: Acquaintances,
        post: Post,
        task: Task,
        publish: Callable[..., None],
        reshaping: Reshaping,
        grace_s: float,
    ) -> None:
        """``publish`` makes known what some engines are now. ``grace_s``: the longest that a restart waits for what is under way."""
        self._engines = engines
        self._known = known
        self._post = post
        self._task = task
        self._publish = publish
        self.in_flight: InFlight = lambda engine: 0
        """How much is under way on an engine; told by whoever knows."""
        self.casting: Casting | None = None
        """Who knows the engines of other layouts; without, they are refused."""
        self._reshaping = reshaping
        self._changing: str | None = None  # to that layout
        self._grace_s = grace_s
        self._rolling = False
        self._told_to_rest: dict[str, Life] = {}  # as long as that is its life, the node has not got to it yet
        self._deadlines: dict[Key, float] = {}  # of restarts that wait; the latest order's counts

    def drain(self, name: str, *, force: bool = False) -> None:
        """Take no new work on an engine. Raises ``ActionError``, for the last one that takes any, or of a role, unless it is forced."""
        self._not_amid_a_change()
        engine = self._engine_in(name, "drain", _SERVING)
        others = [other for other in self._engines.values() if other is not engine]
        if self._takes_work(engine) and not force:
            if not any(map(self._takes_work, others)):
                raise ActionError(
                    f"{name} is the only engine that takes requests: all would be refused. Let another one take them first, or force it"
                )
            self._check_left({name: None})
        self._post(engine, Drain(), None)
        self._told_to_rest[name] = engine.life

    def resume(self, name: str) -> None:
        """Take work again on an engine that drains; try one that was given up once more. Raises ``ActionError``."""
        self._not_amid_a_change()
        engine = self._engine_in(name, "resume", (EngineState.DRAINING, *GIVEN_UP))
        if engine.life.state is EngineState.DRAINING and engine.life.leaving:
            raise ActionError(
                f"{name} has been told to end and can't resume now: it is being started again, which needs no order"
            )
        self._post(engine, Resume(), None)

    def restart(self, name: str) -> None:
        """Start an engine again once what it has begun is finished. Raises ``ActionError``."""
        self._not_amid_a_change()
        engine = self._engine_in(name, "restart", (*_SERVING, EngineState.DRAINING, *GIVEN_UP))
        self._post(engine, Restart(), None)
        self._told_to_rest[name] = engine.life
        waits = engine.key in self._deadlines
        self._deadlines[engine.key] = time.monotonic() + self._grace_s
        if not waits:
            self._task(self._await_drained(engine, engine.key), f"restart of {name}")

    def weight(self, name: str, weight: float) -> None:
        """Give an engine more or less of the work than its like, by so much. Raises ``ActionError``."""
        if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            raise ActionError(
                f"weight {weight:g} is not from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}; 1 is what every engine begins with",
                invalid=True,
            )
        self._not_amid_a_change()
        self.weigh(name, weight)

    def weigh(self, name: str, weight: float) -> None:
        """The same at any time: a simulated fault is no order, and comes when it comes. Raises ``ActionError`` for an engine that isn't."""
        engine = self._engine_in(name, "be weighted", tuple(EngineState))
        engine.weight = weight
        self._publish(engine)

    def role(self, name: str, role: Role, *, force: bool = False) -> None:
        """Use an engine for something else. Raises ``ActionError``, also where nobody who takes requests would be left for what it does."""
        self._not_amid_a_change()
        engine = self._engine_in(name, "change its role", tuple(EngineState))
        self._relabel({name: role}, force)
        self._publish(engine)

    def relabel(self, layout: str, roles: Mapping[str, Role] | None = None, *, force: bool = False) -> Moved:
        """Give the engines the roles of a layout, or just these ``roles`` of it; where it takes others, engines end and begin.

        Raises ``ActionError``.
        """
        self._not_amid_a_change()
        places = [engine.place for engine in self._engines.values()]
        try:
            if roles is not None and _is_theirs(places, roles, layout):
                wanted = roles
            elif self.casting is not None and not is_of(places, layout):
                return self._change(layout, roles, force)
            elif roles is not None and is_of(places, layout):
                raise ConfigError(_not_theirs(places, roles, layout))
            else:
                wanted = relabelled(places, layout, self._serving())
        except NotNowError as error:
            raise ActionError(str(error)) from error
        except ConfigError as error:
            raise ActionError(str(error), invalid=True) from error
        self._relabel(wanted, force)
        self._publish(*self._engines.values())
        return Moved()

    def _change(self, layout: str, roles: Mapping[str, Role] | None, force: bool) -> Moved:
        """To other engines, beside everything else. Raises ``ConfigError`` or ``ActionError``."""
        assert self.casting is not None
        if self._rolling:
            raise ActionError("the engines are being restarted one after the other: wait until that is done")
        wanted = self.casting.specs(layout, len(self._engines))
        final = roles or {spec.name: spec.role for spec in wanted}
        if set(final) != {spec.name for spec in wanted}:
            raise ActionError(f"roles are of {', '.join(final)}, and {layout} has {len(wanted)} engines", invalid=True)
        plan = steps([engine.spec for engine in self._engines.values()], wanted)
        if (lost := gap(plan, self._serving())) and not force:
            raise ActionError(
                f"no engine would take requests between the end of {', '.join(lost)} and the start of what comes instead: force it if "
                "that is meant"
            )
        self._changing = layout
        for engine in self._engines.values():
            engine.role = Role.BOTH
        self._publish(*self._engines.values())
        self._task(self._reshape(plan, layout, final, force), f"change to {layout}")
        begins = {spec.name for step in plan for spec in step.begins}
        wanted_names = [spec.name for spec in wanted]
        return Moved(
            tuple(name for name in wanted_names if name in begins),
            tuple(name for name in self._engines if name not in wanted_names),
        )

    async def _reshape(self, plan: Sequence[Step], layout: str, roles: Mapping[str, Role], force: bool) -> None:
        try:
            await self._reshaping.run(plan, force=force)
            for name, role in roles.items():
                self._engines[name].role = role
            self._publish(*self._engines.values())
        except ActionError as error:
            _log.error(
                "the change to %s ends here: %s. Engines that are there do both; the order's undo leads back",
                layout,
                error,
            )
        finally:
            self._changing = None

    def _not_amid_a_change(self) -> None:
        if self._changing is not None:
            raise ActionError(
                f"the engines are being changed to {self._changing}: wait until all are ready, see their states in /api/node"
            )

    def _serving(self) -> list[str]:
        return [name for name, engine in self._engines.items() if self._takes_work(engine)]

    def _relabel(self, wanted: Mapping[str, Role], force: bool) -> None:
        """Raises ``ActionError`` where engines that take requests do something now that none would do then."""
        if not force:
            self._check_left(wanted)
        for name, role in wanted.items():
            self._engines[name].role = role

    def _check_left(self, wanted: Mapping[str, Role | None]) -> None:
        """``wanted``: what engines do then; None: nothing more. Raises ``ActionError``."""
        for verb, does in _DOES.items():
            self._check_left_for(verb, does, wanted)

    def _check_left_for(self, verb: str, does: Callable[[Role], bool], wanted: Mapping[str, Role | None]) -> None:
        engines = self._engines.values()
        now = [engine for engine in engines if does(engine.role)]
        roles = [(engine, wanted.get(engine.spec.name, engine.role)) for engine in engines]
        then = [engine for engine, role in roles if role is not None and does(role)]
        taking = [engine for engine in now if self._takes_work(engine)]
        if not now or (any(map(self._takes_work, then)) if taking else then):
            return
        names = ", ".join(engine.spec.name for engine in taking or now)
        rests = EngineState.DRAINING  # one that is still ready has just been told so
        states = [rests if engine.life.state is EngineState.READY else engine.life.state for engine in then]
        others = "; ".join(f"{engine.spec.name} is {state}" for engine, state in zip(then, states, strict=True))
        only = (
            f"{names} are the only engines that {verb}" if "," in names else f"{names} is the only engine that {verb}s"
        )
        raise ActionError(f"{only}{f' now ({others})' if others else ''}: let another one {verb} first, or force it")

    def _takes_work(self, engine: Engine) -> bool:
        """It does, and has not just been told not to."""
        return engine.life.state is EngineState.READY and self._told_to_rest.get(engine.spec.name) is not engine.life

    def restart_all(self) -> None:
        """Restart one engine after the other, so that the node serves all the time. Raises ``ActionError``."""
        self._not_amid_a_change()
        if self._rolling:
            raise ActionError(
                "the engines are being restarted one after the other already: see their states in /api/node"
            )
        if not any(engine.life.state is EngineState.READY for engine in self._engines.values()):
            raise ActionError("no engine is ready: restart those that are down by their names")
        self._rolling = True
        self._task(self._roll(), "rolling restart")

    def _engine_in(self, name: str, verb: str, possible: Sequence[EngineState]) -> Engine:
        engine = self._engines.get(name)
        if engine is None:
            raise ActionError(f"there is no engine {quoted(name)}: there are {', '.join(self._engines)}", unknown=True)
        if engine.life.state not in possible:
            states = ", ".join(sorted(possible))
            raise ActionError(
                f"{name} is {engine.life.state} and can't {verb} now: only an engine that is {states} can"
            )
        return engine

    async def _await_drained(self, engine: Engine, key: Key) -> None:
        await asyncio.sleep(_SETTLE_S)  # what was chosen for it just before
        while (left := self.in_flight(key.engine)) and time.monotonic() < self._deadlines[key]:
            await asyncio.sleep(_LOOK_S)
        del self._deadlines[key]
        self._post(engine, Drained(left > 0), key.epoch)

    async def _roll(self) -> None:
        try:
            for engine in tuple(self._engines.values()):
                if engine.life.state is EngineState.READY:
                    await self._restarted(engine, engine.life.epoch)
        except ActionError as error:
            _log.warning("%s", error)
        finally:
            self._rolling = False

    async def _restarted(self, engine: Engine, epoch: int) -> None:
        self.restart(engine.spec.name)
        deadline = time.monotonic() + self._grace_s + _BACK_S
        await asyncio.sleep(_LOOK_S)
        while not self._is_back(engine, epoch):
            resumed = engine.life.epoch == epoch and engine.life.state is EngineState.READY
            if resumed or engine.life.state is EngineState.FAILED or time.monotonic() > deadline:
                raise ActionError(f"the rolling restart ends at {engine.spec.name}, which is {engine.life.state}")
            await asyncio.sleep(_LOOK_S)

    def _is_back(self, engine: Engine, epoch: int) -> bool:
        """Ready in a later life, and known to all others that are ready."""
        ready = [other for other in self._engines.values() if other.life.state is EngineState.READY]
        known = all(engine.spec.name in self._known.peers(other.key) for other in ready if other is not engine)
        return engine.life.epoch > epoch and engine in ready and known


def _not_theirs(places: Sequence[Place], roles: Mapping[str, Role], layout: str) -> str:
    said = ", ".join(f"{name} {role.value}" for name, role in roles.items()) or "none"
    names = ", ".join(place.name for place in places)
    return f"these roles ({said}) of {names} are not {layout}: name each engine, as that layout has them"


def _is_theirs(places: Sequence[Place], roles: Mapping[str, Role], layout: str) -> bool:
    """Whether these engines with these roles are that layout, which may be one that no configuration can say."""
    if {place.name for place in places} != set(roles):
        return False
    return described([replace(place, role=roles[place.name]) for place in places]) == layout.strip().lower()
