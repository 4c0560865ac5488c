"""The bounded queue in front of all engines, fair between clients (``fairness``), with late binding.

A request stays here until an engine has room for it (``policy``): until then it is visible, cancellable and free to go
anywhere. No task and no lock: whoever changes something that matters calls ``pump``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from appliance.errors import RequestError
from appliance.records import EngineView, QueueSnapshot
from appliance.router import policy
from appliance.router.fairness import Lines
from appliance.router.loads import Leg, Loads
from appliance.router.pace import Pace
from appliance.router.policy import Choice

DRAINING: Final = "the appliance is shutting down and takes no new requests"
ABANDONED: Final = "the appliance has shut down before this answer was complete"
DRAINING_RETRY_S: Final = 10.0
LOADING_RETRY_S: Final = 5.0

Deliver = Callable[[Choice, Leg], None]
Refuse = Callable[[RequestError], None]


class Ticket:
    """One request that waits. Either ``deliver`` or ``refuse`` is called, once, unless it is withdrawn before."""

    def __init__(
        self,
        prompt_tokens: int,
        unsplit_reason: str | None,
        deliver: Deliver,
        refuse: Refuse,
        avoid: Collection[str] = (),
        client: str = "",
    ) -> None:
        self.client = client
        self.prompt_tokens = prompt_tokens
        self.unsplit_reason = unsplit_reason
        self.avoid = avoid
        self.deliver = deliver
        self.refuse = refuse
        self.since_ns = 0
        self.leg: Leg | None = None


class Queue:
    """Tickets in order. ``views`` is asked anew at every pump; a delivered ticket's leg is booked in ``loads``."""

    def __init__(
        self,
        capacity: int,
        model: str,
        views: Callable[[], Sequence[EngineView]],
        loads: Loads,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._capacity = capacity
        self._model = model
        self._views = views
        self._loads = loads
        self._clock_ns = clock_ns
        self._waiting: Lines[Ticket] = Lines()
        self._pace = Pace()
        self.draining = False
        self.abandoned = False
        self._pumping = False
        loads.on_less = self.pump

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, ticket: Ticket, since_ns: int, *, again: bool = False) -> None:
        """Let a ticket wait; it may be delivered before this returns.

        Args:
            since_ns: when its request came, the same each time it is put; or its stream lost its engine.
            again: it has waited before, and goes first.

        Raises ``RequestError``: 429 where the queue is full, 503 while draining. (No engine ready: ``refuse``.)
        """
        ticket.since_ns = since_ns
        if again:
            self._waiting.add_first(ticket)
        else:
            self._admit(ticket)
            self._waiting.add(ticket)
        self.pump()

    def withdraw(self, ticket: Ticket) -> None:
        """Forget a ticket, and what was booked for it if it has just been delivered."""
        if self._waiting.remove(ticket):
            self.pump()  # the next one may want less than this one did
        elif ticket.leg is not None:
            ticket.leg.end()

    def drain(self) -> None:
        """Take no new tickets; those that wait are still served."""
        self.draining = True

    def abandon(self) -> None:
        """Take no new tickets, and refuse those that wait."""
        self.draining = self.abandoned = True
        self.pump()

    def pump(self) -> None:
        """Deliver from the front for as long as an engine has room."""
        if self._pumping:  # a delivery may end something, which pumps
            return
        self._pumping = True
        try:
            while (ticket := self._waiting.next()) is not None and self._serve(ticket):
                pass
        finally:
            self._pumping = False
            self._pace.waits(len(self._waiting) > 0, self._clock_ns())

    def snapshot(self, now_ns: int, in_flight: int) -> QueueSnapshot:
        """``oldest_s``: since the one of these that came first has come, or has lost its engine."""
        oldest_ns = min((ticket.since_ns for ticket in self._waiting), default=None)
        return QueueSnapshot(
            depth=len(self._waiting),
            capacity=self._capacity,
            oldest_s=None if oldest_ns is None else max(0, now_ns - oldest_ns) * 1e-9,
            in_flight=in_flight,
        )

    def count_output(self, client: str, tokens: int) -> None:
        """A client has been answered with so many tokens: its next requests may have to wait for those of others."""
        self._waiting.count_output(client, tokens)

    def too_long(self, waited_s: float) -> RequestError:
        """429 for one that has waited for as long as it may."""
        message = (
            f"it has waited in the queue for {waited_s:.0f} s, which is the longest ([router] queue_timeout_s says how long); "
            f"{len(self._waiting)} others wait: try again later"
        )
        return self._shed(message, "queue_timeout")

    def _admit(self, ticket: Ticket) -> None:
        """Make sure of a place for it: that of one of a client that has many waiting, if need be."""
        if self.draining:
            raise RequestError(
                503, DRAINING, kind="service_unavailable", code="draining", retry_after_s=DRAINING_RETRY_S
            )
        if len(self._waiting) < self._capacity:
            return
        message = f"{len(self._waiting)} requests already wait, which is the most; try again later"
        error = self._shed(message, "queue_full")
        other = self._waiting.to_make_room_for(ticket.client)
        if other is None:
            raise error
        self._waiting.remove(other)
        other.refuse(error)

    def _shed(self, message: str, code: str) -> RequestError:
        retry_s = self._pace.retry_after_s(len(self._waiting), self._clock_ns())
        return RequestError(429, message, kind="rate_limit_error", code=code, retry_after_s=retry_s)

    def _serve(self, ticket: Ticket) -> bool:
        """Deliver or refuse the first ticket; False if it has to go on waiting."""
        if self.abandoned:
            self._waiting.remove(ticket)
            ticket.refuse(abandoned())
            return True
        views = self._views()
        reason = policy.none_ready(views)
        if reason is not None and not policy.one_may_be_back(views):
            self._waiting.remove(ticket)
            ticket.refuse(not_ready(self._model, reason))
            return True
        choice = policy.choose(views, self._loads, ticket.unsplit_reason, ticket.avoid, ticket.prompt_tokens)
        if choice is None:
            return False
        self._waiting.serve(ticket)
        self._pace.taken(self._clock_ns())
        ticket.leg = self._loads.begin(choice.engine.name, ticket.prompt_tokens)
        ticket.deliver(choice, ticket.leg)
        return True


def abandoned() -> RequestError:
    """503: it was begun, and is not finished."""
    return RequestError(503, ABANDONED, kind="service_unavailable", code="draining", retry_after_s=DRAINING_RETRY_S)


def not_ready(model: str, reason: str) -> RequestError:
    """503: nothing can be served now."""
    message = f"{model} can't be served now: {reason}"
    return RequestError(503, message, kind="service_unavailable", code="no_engine_ready", retry_after_s=LOADING_RETRY_S)
