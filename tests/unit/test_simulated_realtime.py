"""The simulator's clock in real time: in order, and as due."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise

from appliance.simulator.realtime import RealClock

MS = 1_000_000


async def test_what_is_due_earlier_comes_first_however_late_it_was_asked_for() -> None:
    clock, came = RealClock(asyncio.get_running_loop()), []
    chance = random.Random(1)
    begin_ns = time.monotonic_ns() + 20 * MS
    dues = [begin_ns + chance.randrange(20 * MS) for _ in range(300)]
    for due_ns in dues:
        clock.at(due_ns, lambda due_ns=due_ns: came.append((due_ns, clock.now_ns)))  # type: ignore[misc]
    await asyncio.sleep(0.1)
    assert [due_ns for due_ns, _ in came] == sorted(dues)
    assert sum(now_ns == due_ns for due_ns, now_ns in came) > 250, (
        "while it is seen to, it is the time at which it was due"
    )


async def test_what_is_asked_for_first_comes_first_of_what_is_due_together() -> None:
    clock, came = RealClock(asyncio.get_running_loop()), []
    due_ns = time.monotonic_ns() + MS
    for number in range(20):
        clock.at(due_ns, lambda number=number: came.append(number))  # type: ignore[misc]
    await asyncio.sleep(0.05)
    assert came == list(range(20))


async def test_what_was_cancelled_does_not_come_and_a_fault_ends_nothing() -> None:
    loop, said = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: said.append(context["exception"]))
    clock, came = RealClock(loop), []
    now_ns = time.monotonic_ns()
    clock.at(now_ns + MS, lambda: came.append("cancelled")).cancel()
    clock.at(now_ns + MS, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    clock.at(now_ns + 2 * MS, lambda: came.append("after"))
    await asyncio.sleep(0.05)
    assert came == ["after"]
    assert [type(error) for error in said] == [ZeroDivisionError]


async def test_an_event_may_ask_for_the_next_and_the_loop_turns_meanwhile() -> None:
    clock, steps, turns = RealClock(asyncio.get_running_loop()), [], 0

    def step() -> None:
        steps.append(clock.now_ns)
        clock.at(clock.now_ns + MS // 10, step)

    clock.at(time.monotonic_ns(), step)
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10
    exact = sum(later - earlier == MS // 10 for earlier, later in pairwise(steps))
    assert exact > 0.9 * len(steps) > 10, "lateness does not add up"
