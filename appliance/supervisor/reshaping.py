"""From the engines that there are to those of another layout, while the node serves.

``steps`` says in which order engines end and begin; it is pure. ``Reshaping`` does it: until it is over every engine does both, so that
any of them can serve whatever comes, and roles are given at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec

from appliance.errors import ActionError
from appliance.records import EngineState
from appliance.supervisor.acquaintance import Key
from appliance.supervisor.engine import Engine
from appliance.supervisor.introductions import Introductions
from appliance.supervisor.lifecycle import TERMINATION_S, Drain, Event, Retire, Start, Stop
from appliance.supervisor.roster import Roster
from appliance.supervisor.specs import EngineSpec

_LOOK_S: Final = 0.05
_OTHERS_S: Final = 300.0  # for another engine to be ready, so that one can end
_GONE_S: Final = 5.0  # after SIGKILL
_UNMAP_S: Final = 2.0  # for peers to unmap what has ended
_log = logging.getLogger("pd-appliance")


class Step(msgspec.Struct, frozen=True):
    """Engines that end, and those that begin where these were."""

    ends: tuple[str, ...]
    begins: tuple[EngineSpec, ...] = ()


def steps(now: Sequence[EngineSpec], wanted: Sequence[EngineSpec]) -> tuple[Step, ...]:
    """Those first that can begin while the most others serve. What is on the same hardware under the same name stays."""
    there = {spec.name: spec for spec in now}
    left = [spec for spec in wanted if spec.name not in there or not _is_same(there[spec.name], spec)]
    found = []
    while left:
        ends = min((_in_the_way(spec, there) for spec in left), key=len)
        begins = tuple(spec for spec in left if _in_the_way(spec, there) <= ends)
        there = {name: spec for name, spec in there.items() if name not in ends} | {one.name: one for one in begins}
        left = [spec for spec in left if spec not in begins]
        found.append(Step(tuple(sorted(ends)), begins))
    if rest := tuple(sorted(there.keys() - {spec.name for spec in wanted})):
        found.append(Step(rest))
    return tuple(found)


def gap(steps: Sequence[Step], serving: Collection[str]) -> tuple[str, ...]:
    """The engines with whose end nobody would serve any more; none where somebody always does. ``serving``: now."""
    serving = set(serving)
    for step in steps:
        serving -= set(step.ends)
        if not serving:
            return step.ends or tuple(spec.name for spec in step.begins)
        serving |= {spec.name for spec in step.begins}
    return ()


def _is_same(one: EngineSpec, other: EngineSpec) -> bool:
    """What arguments its role would give it does not matter: roles change without a restart, too."""
    return (one.tensor_parallel, one.gpus, one.cores) == (other.tensor_parallel, other.gpus, other.cores)


def _in_the_way(spec: EngineSpec, there: Mapping[str, EngineSpec]) -> frozenset[str]:
    """Whoever has its name, or one of its GPUs. CPU cores can be shared for a while."""
    return frozenset(name for name, one in there.items() if name == spec.name or set(one.gpus) & set(spec.gpus))


class Reshaping:
    """One change of the engines."""

    def __init__(
        self,
        roster: Roster,
        introductions: Introductions,
        post: Callable[[Engine, Event, int | None], None],
        in_flight: Callable[[str], int],
        grace_s: float,
    ) -> None:
        """``in_flight``: how much is under way on an engine, for the end of which ``grace_s`` are given."""
        self._roster = roster
        self._engines = roster.engines
        self._introductions = introductions
        self._post = post
        self._in_flight = in_flight
        self._grace_s = grace_s

    async def run(self, steps: Sequence[Step], *, force: bool) -> None:
        """All of them. Raises ``ActionError`` where it can't go on; what is there then serves."""
        for step in steps:
            if not force:
                await self._until_others_serve(step.ends)
            await asyncio.gather(*(self._end(self._engines[name], step) for name in step.ends))
            begun = [self._roster.begin(spec) for spec in step.begins]
            lives = [(engine, engine.life.epoch + 1) for engine in begun]
            for engine in begun:
                self._post(engine, Start(), None)
            for engine, epoch in lives:
                await self._until_ready(engine, epoch)

    async def _until_others_serve(self, ends: Collection[str]) -> None:
        deadline = time.monotonic() + _OTHERS_S
        while not any(one.life.state is EngineState.READY for name, one in self._engines.items() if name not in ends):
            if time.monotonic() > deadline:
                raise ActionError(f"no other engine is ready, so that {', '.join(ends)} can't end")
            await asyncio.sleep(_LOOK_S)

    async def _end(self, engine: Engine, step: Step) -> None:
        """Once what it has begun is done, or has had its time; what is left then goes on elsewhere."""
        key = engine.key
        self._post(engine, Drain(), None)
        await asyncio.sleep(_LOOK_S)  # what was chosen for it just before
        left, deadline = 0, time.monotonic() + self._grace_s
        while engine.lives and (left := self._in_flight(key.engine)) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)
        # Asked to end, vLLM would end what is left as if it were complete; killed, it is gone on with elsewhere.
        self._post(engine, Stop() if engine.lives and left else Retire(), None)
        if not await self._is_gone(engine, TERMINATION_S):
            self._post(engine, Stop(), None)
            if not await self._is_gone(engine, _GONE_S):
                raise ActionError(f"{key.engine} does not end")
        await self._introductions.unmapped(Key(key.engine, engine.life.epoch), _UNMAP_S)
        if key.engine not in {spec.name for spec in step.begins}:
            self._roster.remove(engine)

    async def _is_gone(self, engine: Engine, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while engine.lives or engine.life.state is not EngineState.STOPPED:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def _until_ready(self, engine: Engine, epoch: int) -> None:
        """A start that stalls or fails again and again is given up by the node, and then so is this. One that is stopped meanwhile is so
        because the node is, which cancels this."""
        while engine.life.epoch < epoch or engine.life.state is not EngineState.READY:
            if engine.life.epoch >= epoch and engine.life.state is EngineState.FAILED:
                raise ActionError(f"{engine.spec.name} can't start: {engine.life.cause}")
            await asyncio.sleep(_LOOK_S)
