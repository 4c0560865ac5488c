"""When a retry makes sense: after as long as those that wait will take."""

from __future__ import annotations

import pytest

from appliance.router.pace import Pace

S = 1_000_000_000


def paced(*times_s: float) -> Pace:
    pace = Pace()
    for time_s in times_s:
        pace.taken(int(time_s * S))
    return pace


def test_while_nothing_is_known_it_is_a_second() -> None:
    assert paced().per_s(0) is None
    assert paced(1.0).retry_after_s(500, 2 * S) == 1.0


def test_the_rate_is_that_of_the_last_minute() -> None:
    pace = paced(0.0, 100.0, 100.5, 101.0, 101.5)
    assert pace.per_s(102 * S) == pytest.approx(1.5)
    assert pace.per_s(200 * S) is None


@pytest.mark.parametrize(("waiting", "expected_s"), [(0, 1.0), (1, 1.0), (20, 10.0), (1000, 60.0)])
def test_as_long_as_those_that_wait_will_take_within_bounds(waiting: int, expected_s: float) -> None:
    pace = paced(*[number * 0.5 for number in range(11)])
    assert pace.retry_after_s(waiting, 5 * S) == pytest.approx(expected_s)


def test_a_standstill_shows() -> None:
    pace = paced(*[number * 0.1 for number in range(11)])
    assert pace.retry_after_s(10, 1 * S) == pytest.approx(1.0)
    assert pace.retry_after_s(10, 31 * S) == pytest.approx(31.0)
