"""How numbers are said."""

from __future__ import annotations

import pytest

from web import words


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize("say", [words.count, words.number, words.percent, words.duration, words.memory, words.traffic])
def test_absent_is_a_dash(say: object) -> None:
    assert say(None) == "—"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.0042, "4.2 ms"),
        (0.00999, "10 ms"),
        (0.012, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.254, "1.25 s"),
        (42.4, "42 s"),
        (59.4, "59 s"),
        (59.9, "1 min"),
        (60, "1 min"),
        (75, "1 min 15 s"),
        (119.6, "2 min"),
        (605, "10 min"),
        (3599, "59 min"),
        (3720, "1 h 2 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert plain(words.duration(seconds)) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "—"), (0.05, "50 ms"), (0.0125, "12.5 ms"), (1.0, "1 s"), (1.5, "1.5 s"), (90.0, "1 min 30 s")],
)
def test_what_is_set_has_no_digits_that_say_nothing(seconds: float | None, said: str) -> None:
    assert plain(words.setting(seconds)) == said


def test_numbers_and_their_units_stay_on_one_line() -> None:
    said = words.unbroken("GPU 2 runs at 990 of 1,980 MHz at 88 °C: 31 % of 12 sent in 3 s wait, 2 GB/s and 4 dogs.")
    assert {part for part in said.split(" ") if "\u00a0" in part} == {
        "1,980\u00a0MHz",
        "88\u00a0°C:",
        "31\u00a0%",
        "3\u00a0s",
        "2\u00a0GB/s",
    }


def test_how_often() -> None:
    assert [words.times(amount) for amount in (1, 2, 3)] == ["once", "twice", "3 times"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.04, "0.04"), (0.42, "0.42"), (4.23, "4.2"), (98.12, "98.1"), (100.4, "100"), (4213.4, "4,213")],
)
def test_numbers(value: float, said: str) -> None:
    assert words.number(value) == said


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 B"), (512, "512 B"), (1 << 20, "1 MiB"), (61 << 20, "61 MiB"), (1400 << 20, "1.37 GiB")]
)
def test_memory(size: int, said: str) -> None:
    assert plain(words.memory(size)) == said


@pytest.mark.parametrize(
    ("rate", "said"), [(None, "—"), (12e3, "12 kB/s"), (3.24e9, "3.24 GB/s"), (5e7, "0.05 GB/s"), (42.4e9, "42.4 GB/s")]
)
def test_rates_of_bytes(rate: float | None, said: str) -> None:
    assert plain(words.traffic_rate(rate)) == said


def test_ages_do_not_flicker() -> None:
    assert [plain(words.age(seconds)) for seconds in (0.4, 7.9, 59.9, 61)] == ["0 s", "7 s", "59 s", "1 min 1 s"]
    assert words.age(None) == "—"


def test_no_line_ends_between_a_number_and_its_unit() -> None:
    assert " " not in words.percent(0.5) + words.duration(0.2) + words.memory(5) + words.traffic_rate(3e9)


def test_runs_of_cores() -> None:
    assert words.ranges((0, 1, 2, 3, 8)) == "0–3, 8"
    assert words.ranges((5,)) == "5"
    assert words.ranges((3, 1)) == "1, 3"


def test_lists_and_plurals() -> None:
    assert words.listing([]) == ""
    assert words.listing(["a"]) == "a"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert (words.several(1, "request"), words.several(2, "request")) == ("1 request", "2 requests")
