"""Axes, their round labels, and paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web import plot
from web.plot import Axis


def test_an_axis_goes_from_its_low_end_to_its_high_end_and_no_further() -> None:
    axis = Axis(10.0, 1000.0, logarithmic=True)
    assert [axis.x(value) for value in (1, 10, 100, 1000, 5000)] == pytest.approx([0, 0, 500, 1000, 1000])
    assert [axis.y(value) for value in (10, 1000)] == [200, 0]
    assert Axis(0.0, 4.0).x(1.0) == 250


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "labels"),
    [
        (1, 2000, True, (1, 10, 100, 1000)),
        (10, 200, True, (10, 20, 50, 100, 200)),
        (0, 96, False, (0, 20, 40, 60, 80)),
        (-90, 0, False, (-80, -60, -40, -20, 0)),
        (0, 2.2, False, (0, 0.5, 1, 1.5, 2)),
    ],
)
def test_labels_are_round_and_few(low: float, high: float, logarithmic: bool, labels: tuple[float, ...]) -> None:
    assert Axis(low, high, logarithmic).ticks() == pytest.approx(labels)


@given(st.lists(st.floats(1e-5, 1e6), min_size=1, max_size=20))
def test_an_axis_around_values_holds_them_and_has_labels(values: list[float]) -> None:
    axis = plot.around(values)
    assert axis is not None
    assert axis.low <= min(values) * 1.002
    assert axis.high >= max(values) * 0.998
    assert axis.high > axis.low
    assert 1 <= len(axis.ticks()) <= 12


def test_nothing_has_no_axis() -> None:
    assert plot.around([0.0, -1.0]) is None


def test_marks_on_one_another_are_drawn_once() -> None:
    assert plot.dots([(1.2, 5.0), (1.4, 5.1), (3.0, 5.0)]) == "M1 5h0M3 5h0"
    assert plot.uprights([(1.2, 50.0)]) == "M1 46v8"


def test_stairs_stay_until_they_change() -> None:
    assert plot.stairs([(0, 10), (5, 8)]) == "M0.0 10.0H5.0V8.0"
    assert plot.line([(0, 10), (5, 8)]) == "M0.0 10.0L5.0 8.0"
