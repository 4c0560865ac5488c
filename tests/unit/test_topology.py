"""Layouts: what is understood, and what is said of the rest."""

from __future__ import annotations

import pytest

from appliance.errors import ConfigError
from appliance.records import Role
from appliance.supervisor.topology import Place, described, parse, relabelled


@pytest.mark.parametrize(
    ("layout", "roles", "sizes"),
    [
        ("1p1d", [Role.PREFILL, Role.DECODE], [1, 1]),
        ("2b", [Role.BOTH, Role.BOTH], [1, 1]),
        ("1p1d@tp4", [Role.PREFILL, Role.DECODE], [4, 4]),
        ("2p1d@tp2:tp4", [Role.PREFILL, Role.PREFILL, Role.DECODE], [2, 2, 4]),
        (" 1B@TP8 ", [Role.BOTH], [8]),
    ],
)
def test_layouts(layout: str, roles: list[Role], sizes: list[int]) -> None:
    places = parse(layout).places
    assert [place.role for place in places] == roles
    assert [place.tensor_parallel for place in places] == sizes
    assert [place.name for place in places] == [f"e{number}" for number in range(len(roles))]


@pytest.mark.parametrize(
    "layout",
    [
        "",
        "1p",
        "9" * 5000 + "b",
        "1b@tp" + "9" * 5000,
        "p1d",
        "0p1d",
        "1p0d",
        "0b",
        "1p1d@4",
        "1p1d@tp0",
        "1b@tp2:tp4",
        "65b",
        "-1b",
        "1p1d2b",
        f"{10**20}b",
        "2000000000b",
        "1p9999999999d",
        "1b@tp65",
        "١p١d",
    ],
)
def test_what_is_not_a_layout_says_what_would_be(layout: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(layout)
    assert repr(layout[:80]) in str(caught.value)


@pytest.mark.parametrize("layout", ["1p1d@pp2", "2b@tp2pp2", "1p1d@tp2:pp2"])
def test_pipeline_stages_are_said_to_be_unsupported(layout: str) -> None:
    with pytest.raises(ConfigError, match=r"pipeline stages \(pp\) are not supported: .* as in 1p1d@tp2"):
        parse(layout)


@pytest.mark.parametrize("layout", ["1p1d", "4b", "1p1d@tp4", "2p1d@tp2:tp4", "1b@tp8"])
def test_engines_are_described_as_they_were_asked_for(layout: str) -> None:
    assert described(parse(layout).places) == layout


def test_as_few_engines_as_can_be_change_their_role() -> None:
    before = parse("3p1d").places
    assert relabelled(before, "2p2d") == {
        "e0": Role.PREFILL, "e1": Role.PREFILL, "e2": Role.DECODE, "e3": Role.DECODE,
    }  # fmt: skip
    mixed = [Place("e0", Role.DECODE), Place("e1", Role.PREFILL), Place("e2", Role.BOTH)]
    assert relabelled(mixed, "1p2d") == {"e0": Role.DECODE, "e1": Role.PREFILL, "e2": Role.DECODE}


def test_a_role_is_not_left_to_an_engine_that_is_down() -> None:
    before = parse("2p1d").places
    assert relabelled(before, "1p2d", ["e1", "e2"]) == {"e0": Role.DECODE, "e1": Role.PREFILL, "e2": Role.DECODE}
    assert relabelled(parse("2b").places, "1p1d", ["e1"]) == {"e0": Role.DECODE, "e1": Role.PREFILL}


@pytest.mark.parametrize("layout", ["2p1d", "5b", "2p2d@tp2", "1b@tp4"])
def test_a_layout_of_other_engines_is_refused(layout: str) -> None:
    with pytest.raises(ConfigError, match="takes other engines than there are"):
        relabelled(parse("2p2d").places, layout)


def test_engines_keep_their_sizes() -> None:
    there = parse("2p1d@tp2:tp4").places
    assert relabelled(there, "1p2d@tp4:tp2") == {"e0": Role.DECODE, "e1": Role.DECODE, "e2": Role.PREFILL}
    with pytest.raises(ConfigError):
        relabelled(there, "1p2d@tp2:tp4")
