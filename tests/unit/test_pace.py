"""When a retry makes sense: after as long as those that wait will take, as measured while somebody waited."""

from __future__ import annotations

import pytest

from appliance.router.pace import Pace

S = 1_000_000_000


def paced(*times_s: float, since_s: float = 0.0) -> Pace:
    """Somebody has waited since then; requests were taken at these times."""
    pace = Pace()
    pace.waits(True, int(since_s * S))
    for time_s in times_s:
        pace.taken(int(time_s * S))
    return pace


def test_while_nobody_waits_it_is_the_shortest() -> None:
    assert Pace().retry_after_s(0, 5 * S) == 1.0


def test_while_nothing_is_known_it_is_a_few_seconds() -> None:
    assert paced().retry_after_s(500, 1 * S) == 5.0


def test_what_was_taken_while_nobody_waited_says_nothing() -> None:
    pace = Pace()
    for number in range(20):
        pace.taken(number)
    pace.waits(True, 1000)
    assert pace.retry_after_s(1004, 2000) == 5.0, "not: twenty in twenty nanoseconds"


@pytest.mark.parametrize(("waiting", "expected_s"), [(1, 1.0), (20, 10.0), (1000, 60.0)])
def test_as_long_as_those_that_wait_will_take_within_bounds(waiting: int, expected_s: float) -> None:
    pace = paced(*[number * 0.5 for number in range(1, 11)])
    assert pace.retry_after_s(waiting, 5 * S) == pytest.approx(expected_s)


def test_a_standstill_is_the_longest_and_stays_so() -> None:
    pace = paced(0.5, 1.0)
    assert [pace.retry_after_s(1024, at_s * S) for at_s in (60, 62, 600)] == [60.0, 60.0, 60.0]
    assert paced().retry_after_s(10, 3 * S) == pytest.approx(30.0), "none in three seconds: at best one each three"


def test_only_the_last_minute_counts() -> None:
    pace = paced(*[number * 0.01 for number in range(1000)], *[60 + number for number in range(60)])
    assert pace.retry_after_s(10, 120 * S) == pytest.approx(10.0, rel=0.05)


def test_when_nobody_waits_any_more_it_begins_anew() -> None:
    pace = paced(1.0, 2.0, 3.0)
    pace.waits(False, 4 * S)
    pace.waits(True, 100 * S)
    assert pace.retry_after_s(10, 101 * S) == 5.0
