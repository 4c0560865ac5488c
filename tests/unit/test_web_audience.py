"""Who gives a live page up where there is no room for another, and how many streams one client has."""

from __future__ import annotations

import pytest

from appliance.errors import RequestError
from web.audience import Audience, gives_way
from web.lasting import Lasting


@pytest.mark.parametrize(
    ("feeds", "client", "given_up"),
    [
        ({"a": ["x"], "b": ["x"], "c": ["x"]}, "y", "a"),
        ({"a": ["x"], "b": ["x"], "c": []}, "y", "c"),  # nobody's
        ({"a": ["x", "y"], "b": ["x"], "c": ["x"]}, "z", "b"),  # not what somebody else looks at, too
        ({"a": ["x", "y"], "b": ["x", "y"]}, "z", None),
        ({"a": ["x"], "b": ["x"], "c": ["x"]}, "x", None),  # not for itself
        ({"a": ["x"], "b": ["y"], "c": ["z"]}, "w", None),  # all have one
        ({"a": ["x"], "b": ["y"], "c": ["y"]}, "w", "b"),
        ({"a": ["x"], "b": ["y"], "c": ["y"]}, "x", None),  # it would have as many
        ({}, "x", None),
    ],
)
def test_whoever_looks_at_most_gives_up_the_oldest(
    feeds: dict[str, list[str]], client: str, given_up: str | None
) -> None:
    assert gives_way(feeds, client) == given_up


def test_a_client_has_so_many_seats_and_leaves_them() -> None:
    audience = Audience(each=2)
    with audience.seat("x"):
        audience.check("x")
        with audience.seat("x"):
            with pytest.raises(RequestError, match="x follows 2 live streams already") as told:
                audience.check("x")
            assert (told.value.status, told.value.code) == (429, "too_many_streams")
            audience.check("y")
        audience.check("x")
    assert not audience._streams, "nobody is remembered who has gone"


def test_what_is_asked_for_at_each_tick_is_made_once_and_what_is_not_is_forgotten() -> None:
    kept, made = Lasting[int, int](), []

    def get(at_s: float, key: int) -> int:
        return kept.get(at_s, key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]

    for tick in range(1, 5):
        assert [get(float(tick), key) for key in range(1000)] == list(range(1000))
    assert len(made) == 1000, "however many these are"
    get(5.0, 1)
    get(4.0, 2)  # somebody is late
    get(6.0, 1)
    assert made[1000:] == []
    get(7.0, 3)
    assert made[1000:] == [3], "that of the tick before the last one is gone"
    get(1.0, 1)
    get(2.0, 1)
    assert len(kept._before) + len(kept._now) < 10, "a node that begins anew is another one"
