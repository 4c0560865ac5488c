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


def test_nor_does_it_go_ahead_of_one_that_was_given_much_lately() -> None:
    """However many clients come that each ask once: it has its turn among those that wait."""
    waiting = lines(*[One("old") for _ in range(100)])
    served(waiting, 1)
    waiting.count_output("old", 64_000)
    turns = []
    for number in range(100):
        waiting.add(One(f"new{number}"))
        turns += served(waiting, 1)
    assert turns.count("old") > 9
    assert turns.index("old") == 0


def test_clients_that_come_once_are_forgotten() -> None:
    waiting = lines(*[One("old") for _ in range(2000)])
    for number in range(900):
        waiting.add(One(f"new{number}"))
        served(waiting, 2)
    assert len(waiting._work) < 10


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


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from("abc"), st.integers(1, 50)),
            st.tuples(st.just("answer"), st.sampled_from("abc"), st.integers(1, 25)),
            st.tuples(st.just("serve"), st.just(""), st.just(0)),
        ),
        max_size=200,
    )
)
def test_nobody_that_waits_is_passed_over_for_long(acts: list[tuple[str, str, int]]) -> None:
    """While one waits, another is given at most what it was behind, and one request more."""
    waiting: Lines[One] = lines()
    for act, client, tokens in acts:
        if act == "ask":
            waiting.add(One(client, tokens))
        elif act == "answer":
            waiting.count_output(client, tokens)
        elif (one := waiting.next()) is not None:
            assert all(waiting._work[one.client] <= waiting._work[other.client] for other in waiting)
            waiting.serve(one)
        assert set(waiting._lines) <= set(waiting._work)
    for client in "abc":
        waiting.add(One(client))
    assert set(served(waiting)) == set("abc")
