"""What is asked of a node, over the last minute."""

from __future__ import annotations

import pytest

from appliance.telemetry.demand import Wanted, quantiles

S = 1_000_000_000


def asked(count: int, every_ns: int = S // 2) -> Wanted:
    wanted = Wanted()
    for number in range(count):
        wanted.came(number * every_ns)
        wanted.answered(100 + number, 10, number * every_ns)
    return wanted


def test_a_steady_rate_and_no_bursts() -> None:
    found = asked(100).demand(99 * S // 2)
    assert found is not None
    assert (found.rate_s, found.burstiness) == pytest.approx((2.0, 0.0))
    assert found.output_tokens == (10.0,) * 20
    assert found.prompt_tokens == tuple(sorted(found.prompt_tokens))


def test_requests_that_stop_make_the_rate_fall_and_are_forgotten() -> None:
    wanted = asked(40)
    before, after = wanted.demand(20 * S), wanted.demand(40 * S)
    assert before is not None
    assert after is not None
    assert after.rate_s == pytest.approx(before.rate_s / 2, rel=0.05)
    assert wanted.demand(200 * S) is None


def test_too_little_tells_nothing_and_failures_tell_no_lengths() -> None:
    assert asked(5).demand(3 * S) is None
    wanted = Wanted()
    for number in range(50):
        wanted.came(number * S // 10)
        wanted.answered(None, 0, number * S // 10)
    assert wanted.demand(5 * S) is None


def test_quantiles_keep_the_mean() -> None:
    values = [3, 1, 2, 100, 5, 8, 13, 21, 34, 55] * 4
    found = quantiles(values)
    assert sum(found) / len(found) == pytest.approx(sum(values) / len(values))
    assert quantiles([7]) == (7.0,)
