"""The shapes between the map's stations."""

from __future__ import annotations

import re

from web import ribbons

TWO = {"e0": 100.0, "e1": 300.0}


def edges(path: str) -> tuple[float, float, float, float]:
    """Upper and lower edge on the left, upper and lower edge on the right."""
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]
    return numbers[1], numbers[-1], numbers[7], numbers[8]


def test_widths_are_shares_and_lie_side_by_side_around_the_middle() -> None:
    gap = ribbons.gap({"": 200.0}, TWO, {("", "e0"): 3000.0, ("", "e1"): 1000.0}, 400.0)
    first, second = (edges(ribbon.path) for ribbon in gap.ribbons)
    assert first[1] - first[0] == 3 * (second[1] - second[0])
    assert first[1] == second[0]
    assert (first[0] + second[1]) / 2 == 200.0
    assert (first[2] + first[3]) / 2 == 100.0
    assert (second[2] + second[3]) / 2 == 300.0


def test_together_they_widen_with_the_magnitude() -> None:
    def wide(rate: float) -> float:
        upper, lower, _, _ = edges(ribbons.gap({"": 200.0}, {"e0": 200.0}, {("", "e0"): rate}, 400.0).ribbons[0].path)
        return lower - upper

    assert wide(0.0) < wide(5.0) < wide(50.0) < wide(5000.0) < wide(50_000.0)
    assert wide(5000.0) == wide(6000.0)


def test_what_does_not_flow_is_a_thin_line() -> None:
    gap = ribbons.gap(TWO, {"e2": 200.0}, {("e0", "e2"): 0.0, ("e1", "e2"): 4.0}, 400.0)
    assert [ribbon.empty for ribbon in gap.ribbons] == [True, False]


def test_columns_are_centred_on_the_highest() -> None:
    whole = ribbons.height([4, 1])
    assert whole == 4 * ribbons.ROW + 3 * ribbons.SPACE
    assert ribbons.middles(["e4"], whole)["e4"] == whole / 2
    assert ribbons.middles(["e0", "e1", "e2", "e3"], whole)["e0"] == ribbons.ROW / 2
    assert ribbons.height([1, 1]) > ribbons.ROW, "there is room for what stands beside one card"
