"""What is not as it was, from one snapshot to the next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from appliance.incidents.traffic import Traffic
from appliance.records import Change, ChangeKind, EngineSnapshot, EngineState, NodeSnapshot

_GONE: Final = (EngineState.BACKOFF, EngineState.FAILED, EngineState.STOPPED)


class Changes:
    """Is given each snapshot, and says what has changed. The first one is the appliance's start."""

    def __init__(self) -> None:
        self._before: NodeSnapshot | None = None
        self._traffic = Traffic()

    def fold(self, snapshot: NodeSnapshot) -> tuple[Change, ...]:
        before, self._before = self._before, snapshot
        return (*changed(before, snapshot), *self._traffic.fold(snapshot))


def changed(before: NodeSnapshot | None, after: NodeSnapshot) -> tuple[Change, ...]:
    """Of two consecutive snapshots; None is before the first one."""
    if before is None:
        return (_started(after),)
    return (*_topology(before, after), *_engines(before, after))


def settings(node: NodeSnapshot) -> str:
    """What a start of the appliance is told by: ``gpt-oss-120b as 4p4d, version 0.1.0``."""
    return f"{node.model} as {node.topology}, version {node.version}"


def _started(node: NodeSnapshot) -> Change:
    after = settings(node)
    return Change(time=node.time, kind=ChangeKind.STARTED, sentence=f"The appliance was started: {after}.", after=after)


def _topology(before: NodeSnapshot, after: NodeSnapshot) -> Iterator[Change]:
    if before.topology != after.topology:
        sentence = f"The topology was changed: {before.topology} → {after.topology}."
        yield Change(
            time=after.time,
            kind=ChangeKind.TOPOLOGY,
            sentence=sentence,
            before=before.topology,
            after=after.topology,
        )


def _engines(before: NodeSnapshot, after: NodeSnapshot) -> Iterator[Change]:
    old = {engine.name: engine for engine in before.engines}
    for engine in after.engines:
        if (was := old.get(engine.name)) is not None:
            yield from (change for test in _TESTS if (change := test(was, engine, after.time)) is not None)


# ---- one engine. The time of each is that of the snapshot in which it shows first.

Test = Callable[[EngineSnapshot, EngineSnapshot, float], Change | None]


def _role(was: EngineSnapshot, now: EngineSnapshot, time: float) -> Change | None:
    if was.role is now.role:
        return None
    sentence = f"{now.name} got another role: {was.role.value} → {now.role.value}."
    return _of(now, time, ChangeKind.ROLE, sentence, was.role.value, now.role.value)


def _weight(was: EngineSnapshot, now: EngineSnapshot, time: float) -> Change | None:
    if was.weight == now.weight:
        return None
    sentence = f"{now.name} got another weight in routing: {was.weight:g} → {now.weight:g}."
    return _of(now, time, ChangeKind.WEIGHT, sentence, f"{was.weight:g}", f"{now.weight:g}")


def _drained(was: EngineSnapshot, now: EngineSnapshot, time: float) -> Change | None:
    if now.state is not EngineState.DRAINING or was.state is EngineState.DRAINING:
        return None
    return _of(now, time, ChangeKind.DRAINED, f"{now.name} was drained: it takes no new work.")


def _resumed(was: EngineSnapshot, now: EngineSnapshot, time: float) -> Change | None:
    if was.state is not EngineState.DRAINING or now.state is not EngineState.READY or was.epoch != now.epoch:
        return None
    return _of(now, time, ChangeKind.RESUMED, f"{now.name} takes work again.")


def _ended(was: EngineSnapshot, now: EngineSnapshot, time: float) -> Change | None:
    if now.state not in _GONE or now.state is was.state:
        return None
    what = {EngineState.BACKOFF: "ended", EngineState.FAILED: "was given up", EngineState.STOPPED: "was stopped"}
    return _of(now, time, ChangeKind.ENDED, f"{now.name} {what[now.state]}{_because(now)}.")


def _restarted(was: EngineSnapshot, now: EngineSnapshot, time: float) -> Change | None:
    """An end that came and went between two snapshots is told of with its cause here. The first life is no restart."""
    if now.epoch <= max(was.epoch, 1):
        return None
    unseen = "" if was.state in _GONE else _because(now)
    sentence = f"{now.name} was started again{unseen} (life {now.epoch})."
    return _of(now, time, ChangeKind.RESTARTED, sentence, f"life {was.epoch}", f"life {now.epoch}")


def _ready(was: EngineSnapshot, now: EngineSnapshot, time: float) -> Change | None:
    if now.state is not EngineState.READY or (was.state is not EngineState.STARTING and was.epoch == now.epoch):
        return None
    return _of(now, time, ChangeKind.READY, f"{now.name} is ready (life {now.epoch}).")


_TESTS: Final[tuple[Test, ...]] = (_role, _weight, _drained, _resumed, _ended, _restarted, _ready)


def _of(
    engine: EngineSnapshot,
    time: float,
    kind: ChangeKind,
    sentence: str,
    before: str | None = None,
    after: str | None = None,
) -> Change:
    return Change(time=time, kind=kind, engine=engine.name, sentence=sentence, before=before, after=after)


def _because(engine: EngineSnapshot) -> str:
    return f": {engine.cause.rstrip('.')}" if engine.cause else ""
