"""The one path on which the node is told to change something: from the API, the command line and the page."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from msgspec.structs import replace

from appliance.errors import ActionError, quoted
from appliance.records import (
    Better,
    EngineView,
    Moved,
    NodeSnapshot,
    Order,
    OrderKind,
    Remedy,
    RemedyState,
    Role,
    Verdict,
    new_id,
)
from appliance.remedies import catalogue, trial
from appliance.remedies.trial import Outcome, Trial

KEPT: Final = 200  # remedies in memory; how many are on disk is told elsewhere
_ENDED: Final = "not known: the appliance ended before it had settled"
_log = logging.getLogger("pd-appliance")


class Hands(Protocol):
    """What does it. Each returns at once, and raises ``ActionError`` where it can't be done.

    ``force``: even if no engine takes requests then, or none of a role that one has now.
    """

    def drain(self, name: str, *, force: bool = False) -> None: ...
    def resume(self, name: str) -> None: ...
    def restart(self, name: str) -> None: ...
    def restart_all(self) -> None: ...
    def weight(self, name: str, weight: float) -> None: ...
    def role(self, name: str, role: Role, *, force: bool = False) -> None: ...
    def relabel(self, layout: str, roles: Mapping[str, Role] | None = None, *, force: bool = False) -> Moved: ...


class Remedies:
    """Gives orders, and keeps what they were to bring and what they brought. Implements ``web.ports.Actions``.

    ``fold`` is to be called with each snapshot, or ``run`` with where they come from.
    """

    def __init__(
        self,
        hands: Hands,
        now: Callable[[], NodeSnapshot],
        tell: Callable[[str], None] = lambda line: None,
        keep: Callable[[Remedy], None] = lambda remedy: None,
        run: str = "",
    ) -> None:
        """``now``: how the node is at this moment; a second order at once must see what the first one has done. ``tell`` is given a line
        when an order is given, and when it is known what it brought; ``keep`` a remedy whenever it is new or has changed. ``run``: what
        ids end in until ``recall`` has told which there are.
        """
        self._hands = hands
        self._now = now
        self._tell = tell
        self._keep_on_disk = keep
        self._run = run
        self._recent: deque[NodeSnapshot] = deque()  # of the last ``trial.BEFORE_S``
        self._remedies: dict[str, Remedy] = {}  # oldest first
        self._trials: dict[str, Trial] = {}  # of those that settle, by id
        self._is_over = False

    def recall(self, kept: Sequence[Remedy]) -> None:
        """What an earlier run of the appliance has left, oldest first; the configuration may have reset what they changed."""
        self._run = ""
        given, node = tuple(self._remedies.values()), self._now()
        self._remedies.clear()
        for remedy in (*kept, *given):
            self._remedies[remedy.id] = remedy
        for remedy in kept:
            if (now := _after_restart(remedy, node)) != remedy:
                self._put(now)

    async def run(self, snapshots: AsyncIterator[NodeSnapshot]) -> None:
        """Look on, until there are no more snapshots. A fault in here must not end the node."""
        async for snapshot in snapshots:
            try:
                self.fold(snapshot)
            except Exception:
                _log.exception("this snapshot's part in remedies is lost")

    def apply(self, order: Order, by: str) -> Remedy:
        """Give an order. Raises ``ActionError`` where it can't be done, and nothing is changed then."""
        return self._apply(order, by, None)

    def undo(self, id: str, by: str, *, force: bool = False) -> Remedy:
        """Take a remedy back: an order like any other. ``force``: even if that order would be refused. Raises ``ActionError``."""
        remedy = self._remedies.get(id)
        if remedy is None:
            raise ActionError(f"there is no remedy {quoted(id)}, or it is no longer kept", unknown=True)
        if remedy.over is not None:
            raise ActionError(f"{id} does not hold any more: {remedy.over}")
        if remedy.undo is None:
            raise ActionError(f"{id} can't be taken back: {remedy.sentence}")
        return self._apply(catalogue.forced(remedy.undo) if force else remedy.undo, by, id)

    def close(self) -> None:
        """The appliance ends: an order would only disturb what is finished now."""
        self._is_over = True

    def remedies(self) -> tuple[Remedy, ...]:
        """Those that were given, newest first."""
        return tuple(reversed(self._remedies.values()))

    def fold(self, snapshot: NodeSnapshot) -> None:
        """A snapshot has been published."""
        self._recent.append(snapshot)
        while snapshot.uptime_s - self._recent[0].uptime_s > trial.BEFORE_S:
            self._recent.popleft()
        for id, one in list(self._trials.items()):
            if (outcome := one.fold(snapshot)) is not None:
                self._settle(id, outcome)

    # ---- one order

    def _apply(self, order: Order, by: str, takes_back: str | None) -> Remedy:
        catalogue.check(order)
        if self._is_over:
            raise ActionError("the appliance is being stopped and takes no orders any more")
        node = self._now()
        verdict = self._recent[-1].verdict if self._recent else node.verdict
        remedy = Remedy(
            id=new_id(node.time, self._remedies, "r", self._run),
            time=node.time,
            by=by,
            order=order,
            sentence=catalogue.words(order, node),
            restarts=catalogue.restarted(order, node),
            verdict=verdict.summary if verdict is not None and verdict.state != "ok" else None,
            expected=_expected(verdict, order, node.better),
            before=trial.condition(tuple(self._recent)),
            undo=catalogue.undo(order, node),
        )
        moved = self._do(order)
        if order.kind is OrderKind.TOPOLOGY:
            sentence = f"{remedy.sentence}; {catalogue.moves(moved)}"
            remedy = replace(remedy, sentence=sentence, restarts=moved.starts, ends=moved.ends)
        self._note(remedy, node, takes_back)
        self._tell(f"{remedy.id} (by {by}): {remedy.sentence}")
        return self._remedies[remedy.id]

    def _note(self, remedy: Remedy, node: NodeSnapshot, takes_back: str | None) -> None:
        """It has been given: what it makes of those before, and that it has to settle."""
        changes = catalogue.changes(remedy.order, node)
        for earlier in list(self._remedies.values()):
            if earlier.id == takes_back or (changes and _is_replaced(earlier, remedy)):
                self._end(earlier, remedy.id, taken_back=earlier.id == takes_back)
        if not changes:
            self._put(replace(remedy, state=RemedyState.SETTLED, brought="nothing: it was so before"))
            return
        for other in self._trials.values():
            other.given_too(remedy.id)
        self._trials[remedy.id] = Trial(node, remedy.before, remedy.restarts, remedy.ends, tuple(self._trials))
        self._put(remedy)

    def _end(self, remedy: Remedy, by: str, *, taken_back: bool) -> None:
        """It does not hold any more; and if it has not settled, it never will."""
        if self._trials.pop(remedy.id, None) is not None:
            brought = f"not known: {by} changed the same before it had settled"
            remedy = replace(remedy, state=RemedyState.UNKNOWN, brought=brought)
        over = f"it was taken back by {by}" if taken_back else f"{by} changed the same"
        self._put(replace(remedy, over=over))

    def _settle(self, id: str, outcome: Outcome) -> None:
        del self._trials[id]
        if (remedy := self._remedies.get(id)) is None:
            return
        state = RemedyState.UNKNOWN if outcome.after is None else RemedyState.SETTLED
        told = {"after": outcome.after, "brought": outcome.brought, "beside": outcome.beside}
        self._put(replace(remedy, state=state, **told))
        beside = f" (but {'; '.join(outcome.beside)})" if outcome.beside else ""
        self._tell(f"{id} ({remedy.sentence}) brought: {outcome.brought}{beside}")

    def _do(self, order: Order) -> Moved:
        hands, name, force = self._hands, order.engine or "", order.force
        match order.kind:
            case OrderKind.ROLE:
                hands.role(name, order.role or Role.BOTH, force=force)
            case OrderKind.WEIGHT:
                hands.weight(name, order.weight or 0.0)
            case OrderKind.DRAIN:
                hands.drain(name, force=force)
            case OrderKind.RESUME:
                hands.resume(name)
            case OrderKind.TOPOLOGY:
                return hands.relabel(order.topology or "", order.roles, force=force)
            case OrderKind.RESTART:
                hands.restart_all() if order.engine is None else hands.restart(name)
        return Moved()

    def _put(self, remedy: Remedy) -> None:
        self._remedies[remedy.id] = remedy
        self._keep_on_disk(remedy)
        while len(self._remedies) > KEPT:
            oldest = next(iter(self._remedies))
            del self._remedies[oldest]
            self._trials.pop(oldest, None)


def present(latest: NodeSnapshot, views: Iterable[EngineView], topology: str) -> NodeSnapshot:
    """The latest snapshot, with what can be ordered as it is now."""
    known = {engine.name: engine for engine in latest.engines}
    engines = tuple(  # one that has just begun has no snapshot yet
        replace(
            known[view.name],
            role=view.role,
            state=view.state,
            weight=view.weight,
            epoch=view.epoch,
            restarting=view.restarting,
        )
        for view in views
        if view.name in known
    )
    return replace(latest, engines=engines, topology=topology)


def _is_replaced(earlier: Remedy, later: Remedy) -> bool:
    """By one that changes the same. A restart that is over is past, and nothing changes it."""
    is_past = earlier.order.kind is OrderKind.RESTART and earlier.state is not RemedyState.SETTLING
    return earlier.over is None and not is_past and catalogue.overlap(earlier, later)


def _after_restart(remedy: Remedy, node: NodeSnapshot) -> Remedy:
    """Of an earlier run: engines, roles and weights are those of the configuration since."""
    if remedy.state is RemedyState.SETTLING:
        remedy = replace(remedy, state=RemedyState.UNKNOWN, brought=_ENDED)
    holds = remedy.over is not None or remedy.undo is None or not catalogue.resets(remedy.order, node)
    return remedy if holds else replace(remedy, over=catalogue.reset(remedy.order))


def _expected(verdict: Verdict | None, order: Order, better: Better | None) -> str | None:
    """What the planner predicts of that layout, or what the verdict says of what it advises."""
    if better is not None and order.topology == better.layout:
        return f"{better.good_rises:.0%} more of the requests within both targets, and {better.load_falls:.0%} less load (predicted)"
    action = verdict.action if verdict is not None else None
    if verdict is None or action is None or action.order != order or verdict.expected_gain is None:
        return None
    return f"what is late gets {verdict.expected_gain:.0%} shorter (estimated)"
