"""In which order engines end and begin, so that somebody serves all the time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.supervisor.reshaping import Step, gap, steps
from appliance.supervisor.specs import EngineSpec, share
from appliance.supervisor.topology import parse


def on_gpus(layout: str) -> list[EngineSpec]:
    """GPUs are given out in order."""
    found, first = [], 0
    for place in parse(layout).places:
        gpus = tuple(f"GPU-{number}" for number in range(first, first + place.tensor_parallel))
        found.append(_spec(place.name, place.tensor_parallel, gpus=gpus))
        first += place.tensor_parallel
    return found


def on_cores(layout: str, cores: int = 4) -> list[EngineSpec]:
    places = parse(layout).places
    return [_spec(place.name, 1, cores=share(range(cores), number, len(places))) for number, place in enumerate(places)]


def _spec(name: str, size: int, gpus: Sequence[str] = (), cores: Sequence[int] = ()) -> EngineSpec:
    role = parse("1b").places[0].role
    return EngineSpec(
        name=name,
        role=role,
        cores=tuple(cores),
        gpus=tuple(gpus),
        tensor_parallel=size,
        arguments=(),
        environment={},
    )


def told(found: Sequence[Step]) -> list[tuple[str, str]]:
    return [(" ".join(step.ends), " ".join(spec.name for spec in step.begins)) for step in found]


@pytest.mark.parametrize(
    ("now", "wanted", "order"),
    [
        ("4p4d", "1p1d@tp4", [("e0 e1 e2 e3", "e0"), ("e4 e5 e6 e7", "e1")]),
        ("1p1d@tp4", "4p4d", [("e0", "e0 e2 e3"), ("e1", "e1 e4 e5 e6 e7")]),
        ("4b", "6b", [("", "e4 e5")]),
        ("6b", "4b", [("e4 e5", "")]),
        ("2p1d", "1p1d", [("e2", "")]),
        ("2b@tp2", "3b@tp2", [("", "e2")]),
    ],
)
def test_gpus_are_regrouped_part_by_part(now: str, wanted: str, order: list[tuple[str, str]]) -> None:
    assert told(steps(on_gpus(now), on_gpus(wanted))) == order


@pytest.mark.parametrize(
    ("now", "wanted", "order"),
    [
        ("2b", "1b", [("e0", "e0"), ("e1", "")]),  # with e1's cores, too
        ("1b", "1p1d", [("", "e1"), ("e0", "e0")]),
        ("1p1d", "2b", []),
    ],
)
def test_cores_are_shared_for_a_while(now: str, wanted: str, order: list[tuple[str, str]]) -> None:
    assert told(steps(on_cores(now), on_cores(wanted))) == order


@pytest.mark.parametrize(
    ("now", "wanted", "serving", "lost"),
    [
        ("4p4d", "1p1d@tp4", "e0 e1 e2 e3 e4 e5 e6 e7", ()),
        ("4p4d", "1p1d@tp4", "e0 e1", ("e0", "e1", "e2", "e3")),
        ("4b", "1b@tp4", "e0 e1 e2 e3", ("e0", "e1", "e2", "e3")),
        ("1b", "1b@tp2", "e0", ("e0",)),
        ("1b", "2b", "e0", ()),
        ("1b", "2b", "", ("e1",)),
    ],
)
def test_with_whose_end_nobody_would_serve_is_known_before(
    now: str, wanted: str, serving: str, lost: tuple[str, ...]
) -> None:
    assert gap(steps(on_gpus(now), on_gpus(wanted)), serving.split()) == lost


LAYOUTS = st.sampled_from(
    ["1b", "2b", "8b", "1p1d", "4p4d", "3p2d", "1p1d@tp4", "2b@tp4", "1b@tp8", "2p2d@tp2", "3b@tp2"]
)


@given(now=LAYOUTS, wanted=LAYOUTS)
def test_at_its_end_all_are_there_and_no_gpu_is_ever_used_twice(now: str, wanted: str) -> None:
    there = {spec.name: spec for spec in on_gpus(now)}
    for step in steps(on_gpus(now), on_gpus(wanted)):
        for name in step.ends:
            del there[name]
        for spec in step.begins:
            assert spec.name not in there
            there[spec.name] = spec
        used = [gpu for spec in there.values() for gpu in spec.gpus]
        assert len(used) == len(set(used))
    assert there == {spec.name: spec for spec in on_gpus(wanted)}
