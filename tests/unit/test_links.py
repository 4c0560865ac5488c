"""How slow links are said to be, by the hand-offs that came over them."""

from __future__ import annotations

import pytest

from appliance.channel import HandoffEnded
from appliance.records import LinkSnapshot
from appliance.telemetry.links import Links

S = 1_000_000_000


def came(links: Links, at_s: float, seconds: float, size: int = 1_000_000_000, consumer: str = "e2") -> None:
    """One hand-off from e0."""
    begin, end = int((at_s - seconds) * S), int(at_s * S)
    ended = HandoffEnded(lease=f"l{at_s}", producer="e0", ok=True, bytes=size, tokens=5000, start_ns=begin, end_ns=end)
    links.fold(consumer, ended, end)


def learnt() -> Links:
    """That copies of a gigabyte take a tenth of a second."""
    links = Links()
    for n in range(300):
        came(links, n / 10, 0.1)
    return links


def of(links: Links, at_s: float) -> LinkSnapshot | None:
    return next(iter(links.snapshot(int(at_s * S))), None)


def test_hand_offs_of_the_last_seconds_are_counted_and_then_forgotten() -> None:
    links = learnt()
    assert (now := of(links, 30.0)) is not None
    assert now.handoffs_s == pytest.approx(10, rel=0.05)
    assert now.slowdown == pytest.approx(1.0, rel=0.05)
    assert of(links, 36.0) is None


def test_a_link_over_which_little_comes_is_called_slow_by_the_last_that_came() -> None:
    """Copies of 6 s each: never three of them within five seconds."""
    links = learnt()
    came(links, 46.0, 6.0)
    assert (first := of(links, 46.0)) is not None
    assert first.slowdown is None, "one tells nothing"
    came(links, 52.0, 6.0)
    assert (second := of(links, 52.0)) is not None
    assert second.slowdown == pytest.approx(8.0), "and no copy is taken for more than so much"
    assert (later := of(links, 60.0)) is not None
    assert (later.handoffs_s, later.slowdown) == (0.0, pytest.approx(8.0))
    assert of(links, 80.0) is None


def test_two_quick_ones_are_too_few_to_call_a_link_slow() -> None:
    links = learnt()
    for at_s in (46.0, 47.0):
        came(links, at_s, 0.3)
    assert (two := of(links, 47.0)) is not None
    assert two.slowdown is None
    came(links, 48.0, 0.3)
    assert (three := of(links, 48.0)) is not None
    assert three.slowdown == pytest.approx(3.0, rel=0.1)
