"""The API process of a simulated engine: its backlog is work, which is done at whatever pace there is."""

from __future__ import annotations

import pytest

from appliance.simulator.clock import VirtualClock
from appliance.simulator.frontend import TOKEN_S, Frontend

SECOND = int(1 / TOKEN_S)  # tokens that take a second of its core


class Desk:
    """It, and when each that was passed came out, seconds from the beginning."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.frontend = Frontend(self.clock)
        self.out: list[float] = []
        self._origin_ns = self.clock.now_ns

    def tokens(self, count: int) -> None:
        self.frontend.tokens(count, lambda: self.out.append(self.at_s))

    @property
    def at_s(self) -> float:
        return round((self.clock.now_ns - self._origin_ns) * 1e-9, 3)

    def run(self, seconds: float) -> None:
        self.clock.run(self.clock.now_ns + int(seconds * 1e9))

    def busy(self, seconds: float) -> float:
        before = self.frontend.occupied_s
        self.run(seconds)
        return (self.frontend.occupied_s - before) / seconds


def test_a_backlog_is_worked_off_at_full_pace_once_the_fault_has_ended() -> None:
    desk = Desk()
    desk.frontend.share = 0.1
    for _ in range(3):
        desk.tokens(SECOND)  # ten seconds each, at that pace
    desk.run(15)
    assert desk.out == pytest.approx([10.0])
    desk.frontend.share = 1.0
    desk.run(10)
    assert desk.out == pytest.approx([10.0, 15.5, 16.5])
    desk.tokens(SECOND)
    desk.run(2)
    assert desk.out[-1] == pytest.approx(26.0), "and nothing of it is left"


def test_a_fault_slows_down_what_waits_already_and_a_milder_one_less() -> None:
    desk = Desk()
    desk.tokens(2 * SECOND)
    desk.run(1)
    desk.frontend.share = 0.5
    desk.run(1)
    desk.frontend.share = 0.25
    desk.run(10)
    assert desk.out == [pytest.approx(4.0)], "a half, a quarter and the last quarter of it"


def test_its_core_is_busy_as_long_as_there_is_a_backlog_and_no_longer() -> None:
    desk = Desk()
    desk.frontend.share = 0.5
    desk.tokens(2 * SECOND)
    assert desk.busy(1) == pytest.approx(1.0), "not four times so busy"
    assert desk.busy(1) == pytest.approx(1.0)
    desk.frontend.share = 1.0
    assert desk.busy(2) == pytest.approx(0.5, abs=1e-4), "the one second that was left"
    assert desk.busy(1) == pytest.approx(0.0, abs=1e-4)


def test_what_waits_when_its_process_ends_comes_out_at_once_and_in_order() -> None:
    desk = Desk()
    for _ in range(3):
        desk.tokens(SECOND)
    desk.run(1.5)
    desk.frontend.end()
    desk.run(0)
    assert desk.out == pytest.approx([1.0, 1.5, 1.5])
    assert desk.busy(1) == pytest.approx(0.0, abs=1e-4)
