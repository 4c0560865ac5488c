"""Whose turn it is: clients take turns by the work they were given, whatever they send and in whatever order."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from appliance.router.fairness import OUTPUT_WEIGHT, Lines


@dataclass(eq=False)
class One:
    client: str
    prompt_tokens: int = 10


def lines(*ones: One) -> Lines[One]:
    found: Lines[One] = Lines()
    for one in ones:
        found.add(one)
    return found


def served(waiting: Lines[One], most: int = 1000) -> list[str]:
    order = []
    while (one := waiting.next()) is not None and len(order) < most:
        waiting.serve(one)
        order.append(one.client)
    return order


def test_one_client_is_served_in_order() -> None:
    ones = [One("a", tokens) for tokens in (5, 1, 9)]
    waiting = lines(*ones)
    for one in ones:
        assert waiting.next() is one
        waiting.serve(one)
    assert (waiting.next(), len(waiting)) == (None, 0)


def test_a_flood_does_not_keep_another_client_waiting() -> None:
    waiting = lines(*[One("flood") for _ in range(100)], One("single"))
    assert served(waiting, 3) == ["flood", "single", "flood"]


def test_turns_are_of_tokens_not_of_requests() -> None:
    waiting = lines(*[One("long", 30) for _ in range(4)], *[One("short", 10) for _ in range(12)])
    order = served(waiting, 8)
    assert (order.count("long"), order.count("short")) == (2, 6)


def test_what_was_answered_counts_too() -> None:
    waiting = lines(One("a"), One("b"), One("a"), One("b"))
    first = waiting.next()
    assert first is not None
    waiting.serve(first)
    waiting.count_output("a", 100)
    assert served(waiting) == ["b", "b", "a"]
    assert OUTPUT_WEIGHT == 2


def test_who_comes_late_is_owed_nothing_for_the_time_before() -> None:
    waiting = lines(*[One("early") for _ in range(100)])
    served(waiting, 50)
    for _ in range(50):
        waiting.add(One("late"))
    order = served(waiting, 20)
    assert order.count("late") in (10, 11)


def test_when_nobody_waits_nothing_is_remembered() -> None:
    waiting = lines(One("a", 10_000))
    assert served(waiting) == ["a"]
    waiting.count_output("a", 10_000)
    waiting.add(One("a"))
    waiting.add(One("b"))
    assert served(waiting) == ["a", "b"]
    assert not waiting._work


def test_what_has_waited_before_comes_first_and_is_not_counted_again() -> None:
    waiting = lines(One("a"), One("b"))
    again = One("a", 10_000)
    waiting.add_first(again)
    assert waiting.next() is again
    waiting.serve(again)
    assert served(waiting) == ["a", "b"]


def test_removing() -> None:
    first, second, again = One("a"), One("a"), One("b")
    waiting = lines(first, second)
    waiting.add_first(again)
    assert [waiting.remove(one) for one in (first, first, again, One("c"))] == [True, False, True, False]
    assert list(waiting) == [second]


def test_the_newest_of_the_longest_line_makes_room() -> None:
    flood = [One("flood") for _ in range(3)]
    waiting = lines(*flood, One("b"))
    assert waiting.to_make_room_for("single") is flood[-1]
    assert waiting.to_make_room_for("b") is flood[-1]
    assert waiting.to_make_room_for("flood") is None
    assert lines(One("a"), One("b")).to_make_room_for("c") is None, "nobody has more than another would have"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=1, max_size=200))
def test_of_clients_that_wait_none_is_ahead_by_more_than_one_request(asked: list[tuple[str, int]]) -> None:
    waiting = lines(*[One(client, tokens) for client, tokens in asked])
    work = dict.fromkeys("abc", 0)
    left = {client: sum(1 for name, _ in asked if name == client) for client in "abc"}
    while (one := waiting.next()) is not None:
        work[one.client] += one.prompt_tokens
        left[one.client] -= 1
        waiting.serve(one)
        backlogged = [work[client] for client in "abc" if left[client]]
        if len(backlogged) > 1:
            assert max(backlogged) - min(backlogged) <= 50
    assert not any(left.values())
