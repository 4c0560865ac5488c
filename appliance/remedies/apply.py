"""The one path on which the node is told to change something: from the API, the command line and the page."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from msgspec.structs import replace

from appliance.errors import ActionError
from appliance.records import Condition, NodeSnapshot, Order, OrderKind, Remedy, RemedyState, Role, Verdict
from appliance.remedies import catalogue, trial

_KEPT: Final = 200  # remedies
_WINDOW_S: Final = trial.BEFORE_S + trial.AFTER_S + trial.SETTLES_S


class Hands(Protocol):
    """What does it. Each returns at once, and raises ``ActionError`` where it can't be done."""

    def drain(self, name: str) -> None: ...
    def resume(self, name: str) -> None: ...
    def restart(self, name: str) -> None: ...
    def restart_all(self) -> None: ...
    def weight(self, name: str, weight: float) -> None: ...
    def role(self, name: str, role: Role) -> None: ...
    def relabel(self, layout: str) -> None: ...


class Remedies:
    """Gives orders, and keeps what they were to bring and what they brought. Implements ``web.ports.Actions``.

    ``fold`` is to be called with each snapshot, or ``run`` with where they come from.
    """

    def __init__(
        self, hands: Hands, latest: Callable[[], NodeSnapshot], tell: Callable[[str], None] = lambda line: None
    ) -> None:
        """``latest``: how the node is now. ``tell`` is given a line when an order is given, and when it is known what it brought."""
        self._hands = hands
        self._latest = latest
        self._tell = tell
        self._window: deque[NodeSnapshot] = deque()
        self._remedies: dict[str, Remedy] = {}
        self._given = 0

    async def run(self, snapshots: AsyncIterator[NodeSnapshot]) -> None:
        """Look on, until there are no more snapshots."""
        async for snapshot in snapshots:
            self.fold(snapshot)

    def apply(self, order: Order, by: str) -> Remedy:
        """Give an order. Raises ``ActionError`` where it can't be done, and nothing is changed then."""
        catalogue.check(order)
        node = self._latest()
        self._do(order)
        self._given += 1
        remedy = Remedy(
            id=f"r{self._given}",
            time=node.time,
            by=by,
            order=order,
            sentence=catalogue.words(order, node),
            restarts=catalogue.restarted(order, node),
            reason=_reason(node.verdict),
            expected=_expected(node.verdict, order),
            before=trial.condition([one for one in self._window if node.time - one.time <= trial.BEFORE_S]),
            undo=catalogue.undo(order, node),
        )
        self._supersede(order)
        self._keep(remedy)
        self._tell(f"{remedy.id} (by {by}): {remedy.sentence}")
        return remedy

    def undo(self, id: str, by: str) -> Remedy:
        """Take a remedy back: an order like any other. Raises ``ActionError``."""
        remedy = self._remedies.get(id)
        if remedy is None:
            raise ActionError(f"there is no remedy {id!r}, or it is no longer kept", unknown=True)
        if remedy.undo is None:
            raise ActionError(f"{id} can't be taken back: {remedy.sentence}")
        if remedy.state is RemedyState.UNDONE:
            raise ActionError(f"{id} does not hold any more: it was taken back, or a later order has changed the same")
        return self.apply(remedy.undo, by)

    def remedies(self) -> tuple[Remedy, ...]:
        """Those that were given, newest first."""
        return tuple(reversed(self._remedies.values()))

    def fold(self, snapshot: NodeSnapshot) -> None:
        """A snapshot has been published."""
        if self._window and snapshot.time < self._window[-1].time:
            self._window.clear()  # somebody has set the clock back
        self._window.append(snapshot)
        while snapshot.time - self._window[0].time > _WINDOW_S:
            self._window.popleft()
        for remedy in [one for one in self._remedies.values() if one.state is RemedyState.SETTLING]:
            self._look_at(remedy, snapshot)

    def _look_at(self, remedy: Remedy, now: NodeSnapshot) -> None:
        from_s = trial.settled_from(remedy, tuple(self._window))
        if from_s is None or now.time < from_s + trial.AFTER_S:
            if now.time - remedy.time > trial.GIVEN_UP_S:
                self._settle(remedy, None, f"{', '.join(remedy.restarts)} did not come back")
            return
        after = trial.condition([one for one in self._window if one.time >= now.time - trial.AFTER_S])
        self._settle(remedy, after, trial.brought(remedy.before, after, now.slo_ttft_s, now.slo_itl_s))

    def _settle(self, remedy: Remedy, after: Condition | None, brought: str) -> None:
        self._keep(replace(remedy, state=RemedyState.SETTLED, after=after, brought=brought))
        self._tell(f"{remedy.id} ({remedy.sentence}) brought: {brought}")

    def _do(self, order: Order) -> None:
        hands, name = self._hands, order.engine or ""
        match order.kind:
            case OrderKind.ROLE:
                hands.role(name, order.role or Role.BOTH)
            case OrderKind.WEIGHT:
                hands.weight(name, order.weight or 0.0)
            case OrderKind.DRAIN:
                hands.drain(name)
            case OrderKind.RESUME:
                hands.resume(name)
            case OrderKind.TOPOLOGY:
                hands.relabel(order.topology or "")
            case OrderKind.RESTART:
                hands.restart(name) if order.engine else hands.restart_all()

    def _supersede(self, order: Order) -> None:
        """What changed the same thing before does not hold any more."""
        for remedy in [one for one in self._remedies.values() if one.state is not RemedyState.UNDONE]:
            if (
                catalogue.touches(remedy.order) == catalogue.touches(order)
                and remedy.order.kind is not OrderKind.RESTART
            ):
                self._keep(replace(remedy, state=RemedyState.UNDONE))

    def _keep(self, remedy: Remedy) -> None:
        self._remedies[remedy.id] = remedy
        while len(self._remedies) > _KEPT:
            del self._remedies[next(iter(self._remedies))]


def _reason(verdict: Verdict | None) -> str | None:
    return verdict.summary if verdict is not None and verdict.state != "ok" else None


def _expected(verdict: Verdict | None, order: Order) -> str | None:
    """What the verdict says of it, if it is what the verdict advises."""
    action = verdict.action if verdict is not None else None
    if verdict is None or action is None or action.order != order or verdict.expected_gain is None:
        return None
    return f"{verdict.expected_gain:.0%} of that time less (estimated)"
