"""The queue: first come first served, bounded, and it never loses a slot."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from appliance.errors import RequestError
from appliance.records import EngineState, EngineView, Role
from appliance.router.admission import Admission
from appliance.router.loads import Leg, Loads
from appliance.router.policy import _AHEAD, Choice
from appliance.router.queue import Queue, Ticket


class Desk:
    """A queue over two engines that do both, with windows of 10 tokens, and what it has delivered and refused."""

    def __init__(self, capacity: int = 4, running: int = 256) -> None:
        fields: dict[str, Any] = {"max_batched_tokens": 10, "max_running": running}
        self.views = [
            EngineView(name=name, role=Role.BOTH, state=EngineState.READY, epoch=1, socket="", **fields)
            for name in ("e0", "e1")
        ]
        self.loads = Loads()
        self.queue = Queue(capacity, "demo", lambda: self.views, self.loads)
        self.delivered: list[tuple[Ticket, Choice, Leg]] = []
        self.refused: list[tuple[Ticket, RequestError]] = []

    def ticket(self, tokens: int, unsplit: str | None = None) -> Ticket:
        ticket = Ticket(
            tokens,
            unsplit,
            deliver=lambda choice, leg: self.delivered.append((ticket, choice, leg)),
            refuse=lambda error: self.refused.append((ticket, error)),
        )
        return ticket

    def put(self, tokens: int, **kwargs: Any) -> Ticket:
        ticket = self.ticket(tokens)
        self.queue.put(ticket, 0, **kwargs)
        return ticket

    def order(self) -> list[Ticket]:
        return [ticket for ticket, _, _ in self.delivered]

    def set_state(self, state: EngineState) -> None:
        self.views = [msgspec.structs.replace(view, state=state) for view in self.views]
        self.queue.pump()


def test_there_is_room_at_once_or_later() -> None:
    desk = Desk()
    first, second = desk.put(10), desk.put(10)
    assert {choice.engine.name for _, choice, _ in desk.delivered} == {"e0", "e1"}
    third = desk.put(1)
    assert desk.order() == [first, second]
    desk.delivered[0][2].prefilled()
    assert desk.order() == [first, second, third]


def test_first_come_first_served_but_what_was_tried_before_comes_first() -> None:
    desk = Desk()
    desk.put(10)
    desk.put(10)
    third, fourth = desk.put(10), desk.put(10)
    again = desk.put(10, again=True)
    for expected in (again, third, fourth):
        desk.delivered[len(desk.delivered) - 2][2].end()
        assert desk.order()[-1] is expected


def test_full_and_draining() -> None:
    desk = Desk(capacity=1)
    desk.put(10)
    desk.put(10)
    desk.put(10)
    with pytest.raises(RequestError) as caught:
        desk.put(10)
    assert caught.value.status == 429
    desk.put(10, again=True)  # has been let in before
    desk.queue.drain()
    with pytest.raises(RequestError) as caught:
        desk.put(10)
    assert (caught.value.status, caught.value.code) == (503, "draining")


def test_none_ready_refuses_all_that_wait() -> None:
    desk = Desk()
    waiting = [desk.put(10) for _ in range(4)][2:]
    desk.set_state(EngineState.FAILED)
    assert [ticket for ticket, _ in desk.refused] == waiting
    assert {error.status for _, error in desk.refused} == {503}
    assert desk.put(1) is desk.refused[-1][0]


def test_while_the_last_engine_is_suspect_requests_wait() -> None:
    desk = Desk()
    waiting = [desk.put(10) for _ in range(4)][2:]
    desk.set_state(EngineState.SUSPECT)
    assert not desk.refused
    assert len(desk.queue) == 2
    desk.set_state(EngineState.READY)
    desk.queue.withdraw(waiting[0])
    assert not desk.refused


def test_how_long_the_oldest_has_waited() -> None:
    desk = Desk()
    for at in (0, 0, 5_000_000_000, 7_000_000_000):
        desk.queue.put(desk.ticket(10), at)
    snapshot = desk.queue.snapshot(8_000_000_000, in_flight=2)
    assert (snapshot.depth, snapshot.capacity, snapshot.oldest_s, snapshot.in_flight) == (2, 4, 3.0, 2)


def test_what_is_put_again_has_waited_since_it_came() -> None:
    desk = Desk()
    desk.put(10)
    desk.put(10)
    desk.queue.put(desk.ticket(10), 3_000_000_000)
    desk.queue.put(desk.ticket(10), 1_000_000_000, again=True)
    assert desk.queue.snapshot(8_000_000_000, in_flight=2).oldest_s == 7.0


async def test_a_stream_that_lost_its_engine_has_waited_since_then() -> None:
    desk = Desk()
    desk.set_state(EngineState.SUSPECT)  # it may be back: who comes waits
    plan: Any = SimpleNamespace(prompt_tokens=1, unsplit_reason=None)
    arrived_ns = time.monotonic_ns() - 60 * 10**9
    admission = Admission(desk.queue, plan, "somebody", arrived_ns, 10.0)
    going_on = asyncio.create_task(admission.to_go_on(()))
    await asyncio.sleep(0)
    oldest_s = desk.queue.snapshot(time.monotonic_ns(), 0).oldest_s
    assert oldest_s is not None
    assert oldest_s < 5.0, "for most of the minute it was being answered"
    beginning = asyncio.create_task(admission.to_begin((), again=True))
    await asyncio.sleep(0)
    assert (desk.queue.snapshot(time.monotonic_ns(), 0).oldest_s or 0.0) >= 60.0
    for task in (going_on, beginning):
        task.cancel()
    await asyncio.gather(going_on, beginning, return_exceptions=True)
    assert len(desk.queue) == 0


def test_a_leg_that_ends_lets_the_next_one_in() -> None:
    desk = Desk(capacity=100, running=1)
    for _ in range(2 * (1 + _AHEAD)):
        desk.put(0)
    waiting = desk.put(0)
    assert len(desk.queue) == 1
    desk.delivered[0][2].end()
    assert desk.order()[-1] is waiting


def test_withdrawing_twice_is_harmless() -> None:
    desk = Desk()
    delivered, _, waiting = desk.put(10), desk.put(10), desk.put(10)
    for ticket in (delivered, waiting, delivered, waiting):
        desk.queue.withdraw(ticket)
    assert (len(desk.queue), desk.loads["e0"].legs + desk.loads["e1"].legs) == (0, 1)


def test_the_next_may_have_somewhere_to_go_where_the_first_had_not() -> None:
    desk = Desk()
    roles = {"e0": Role.PREFILL, "e1": Role.DECODE}
    desk.views = [msgspec.structs.replace(view, role=roles[view.name], peers=("e0", "e1")) for view in desk.views]
    desk.put(10)
    waiting, whole = desk.put(10), desk.ticket(10, "echo")
    desk.queue.put(whole, 0)
    assert len(desk.queue) == 2
    desk.queue.withdraw(waiting)
    assert desk.order()[-1] is whole
    assert desk.delivered[-1][1].engine.name == "e1"


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: what is booked is what is open, and nobody waits while there is room."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(capacity=100, running=1)
        self.gone: set[int] = set()

    @rule(target=tickets, tokens=st.integers(0, 25), again=st.booleans())
    def arrive(self, tokens: int, again: bool) -> Ticket:
        return self.desk.put(tokens, again=again)

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: Ticket) -> None:
        self.gone.add(id(ticket))
        self.desk.queue.withdraw(ticket)

    @rule(index=st.integers(0, 50), end=st.booleans())
    def progress(self, index: int, end: bool) -> None:
        if self.desk.delivered:
            _, _, leg = self.desk.delivered[index % len(self.desk.delivered)]
            leg.end() if end else leg.prefilled()

    @rule(state=st.sampled_from([EngineState.READY, EngineState.READY, EngineState.DRAINING]))
    def change(self, state: EngineState) -> None:
        self.desk.set_state(state)

    @invariant()
    def books_are_right(self) -> None:
        still = [leg for _, _, leg in self.desk.delivered if leg._open]
        for name in ("e0", "e1"):
            mine = [leg for leg in still if leg.engine == name]
            load = self.desk.loads[name]
            assert (load.legs, load.prompt_tokens) == (len(mine), sum(leg._prompt_tokens for leg in mine))

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if len(self.desk.queue):
            assert all(view.state is EngineState.READY for view in self.desk.views)
            loads = [self.desk.loads[view.name] for view in self.desk.views]
            assert all(load.prompt_tokens >= 10 or load.legs >= 1 + _AHEAD for load in loads)

    @invariant()
    def everybody_hears_once(self) -> None:
        heard = [id(ticket) for ticket, *_ in (*self.desk.delivered, *self.desk.refused)]
        assert len(heard) == len(set(heard))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
