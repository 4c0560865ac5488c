"""What is kept of a snapshot, which grid answers a question, and which series a name means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.errors import RequestError
from appliance.history.resolutions import DAY_S, SLOTS, TICK, Kept, grid
from appliance.history.samples import ENGINE, GPU, NODE, TABLES, Sample, Seen, lately, sample
from appliance.history.selection import select
from appliance.records import EngineSnapshot, GpuSnapshot, HandoffSnapshot, Lately, NodeSnapshot, RequestCounts, Stage

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made

BASE = made.large(0)
NOW = 1_800_000_000.0


def node(time: float = NOW, **more: object) -> NodeSnapshot:
    return replace(BASE, time=time, **more)  # type: ignore[arg-type]


def value(found: Sample, name: str) -> float | None:
    [place] = [number for number, column in enumerate(NODE) if column.name == name]
    scaled = found.node[place]
    return None if scaled is None else scaled / NODE[place].scale


def test_a_nodes_numbers_are_sums_means_by_tokens_and_growth() -> None:
    engines = (
        made.engine("e0", prompt_tokens_s=100.0, output_tokens_s=None, itl_s=None),
        made.engine("e1", prompt_tokens_s=None, output_tokens_s=30.0, itl_s=0.010, itl_late=0.0),
        made.engine("e2", prompt_tokens_s=50.0, output_tokens_s=10.0, itl_s=0.030, itl_late=1.0),
    )
    counts = {"requests": RequestCounts(total=110, failed=4), "handoffs": HandoffSnapshot(count=60, bytes=9 << 20)}
    before = node(NOW, requests=RequestCounts(total=100, failed=4), handoffs=HandoffSnapshot(count=50, bytes=1 << 20))
    found = sample(Seen(node(NOW + 2, engines=engines, **counts), before))
    assert value(found, "prompt_tokens_s") == 150
    assert value(found, "output_tokens_s") == 40
    assert value(found, "itl_s") == pytest.approx(0.015)
    assert value(found, "itl_late") == pytest.approx(0.25)
    assert (value(found, "requests_s"), value(found, "failed_s"), value(found, "handoffs_s")) == (5, 0, 5)
    assert value(found, "handoff_bytes_s") == 4 << 20


@pytest.mark.parametrize("before", [None, node(NOW - 1000), node(NOW - 1, requests=RequestCounts(total=9999))])
def test_nothing_grows_across_a_start_or_a_pause(before: NodeSnapshot | None) -> None:
    assert value(sample(Seen(node(requests=RequestCounts(total=10)), before)), "requests_s") is None


def test_absent_is_none_and_never_zero() -> None:
    silent = made.engine("e0", prompt_tokens_s=None, output_tokens_s=None, kv_usage=None, running=None, waiting=None)
    found = sample(Seen(node(engines=(silent,), lately=Lately(first_tokens=0), ttft_p50_s=None, gpus=())))
    for name in ("prompt_tokens_s", "ttft_s", "ttft_queue_s", "ttft_p50_s", "itl_s", "good_share"):
        assert value(found, name) is None, name
    assert value(found, "good_s") == 0, "none ended: that is known"
    assert found.engines["e0"][[column.name for column in ENGINE].index("kv_usage")] is None
    assert found.gpus == {}
    assert lately(node(engines=(silent,)))["e0.kv_usage"] is None


def test_goodput_and_stages_are_those_of_the_last_seconds() -> None:
    stages = (Stage("queue", 0.25), Stage("first_step", 0.5))
    found = sample(Seen(node(lately=Lately(first_tokens=6, ttft_s=0.75, stages=stages, ended=9, good=2 / 3))))
    assert (value(found, "ended_s"), value(found, "good_s"), value(found, "first_tokens_s")) == (3, 2, 2)
    assert (value(found, "ttft_queue_s"), value(found, "ttft_transfer_s")) == (0.25, None)


def test_columns_are_fields_and_no_name_means_two_things() -> None:
    for columns, of in ((ENGINE, EngineSnapshot), (GPU, GpuSnapshot)):
        assert {column.name for column in columns} <= set(of.__struct_fields__)
    assert not {column.name for column in ENGINE} & {column.name for column in GPU}
    for table, columns in TABLES.items():
        names = [column.name for column in columns]
        assert len(names) == len(set(names)), table
        assert {column.weight for column in columns if column.weight} <= set(names)


# ---- grids

KEPT = Kept(tick_s=0.5, ticks_since=NOW - 600, days=30)


@pytest.mark.parametrize(
    ("back_s", "span_s", "resolution", "step_s"),
    [
        (300, 300, TICK, 1),
        (3600, 3600, 10, 10),
        (6 * 3600, 6 * 3600, 10, 40),
        (DAY_S, DAY_S, 60, 180),
        (7 * DAY_S, 7 * DAY_S, 600, 1200),
        (20 * DAY_S, 3600, 60, 60),  # what is old is known less finely
        (4000, 300, 10, 10),
        (40 * DAY_S, DAY_S, 600, 600),
    ],
)
def test_a_range_is_answered_from_the_resolution_that_fits(
    back_s: float, span_s: float, resolution: int, step_s: float
) -> None:
    found = grid(NOW - back_s, NOW - back_s + span_s, 600, KEPT, NOW)
    assert (found.resolution, found.step_s) == (resolution, step_s)


def test_after_a_restart_what_is_finest_does_not_reach_back() -> None:
    young = Kept(tick_s=0.5, ticks_since=NOW - 60, days=30)
    assert grid(NOW - 300, NOW, 600, young, NOW).resolution == 10
    assert grid(NOW - 50, NOW, 600, young, NOW).resolution == TICK


def test_slots_that_are_shorter_than_ticks_are_taken_together() -> None:
    slow = Kept(tick_s=30, ticks_since=NOW, days=30)
    assert grid(NOW - 7200, NOW, 600, slow, NOW).step_s == 60


@given(
    st.floats(0, 25 * DAY_S), st.floats(1, 30 * DAY_S), st.integers(2, 2000), st.sampled_from([0.05, 0.5, 7.0, 60.0])
)
def test_a_grid_covers_the_range_in_no_more_points_and_stands_still(
    ago_s: float, span_s: float, points: int, tick_s: float
) -> None:
    until = NOW - ago_s
    found = grid(until - span_s, until, points, Kept(tick_s=tick_s, ticks_since=NOW - 600, days=30), NOW)
    assert 1 <= found.count <= points
    assert found.begin <= until - span_s
    assert found.end >= until
    assert found.begin % found.step_s == 0
    assert found.resolution == TICK or found.step_s % found.resolution == 0
    assert found.resolution in (TICK, *SLOTS)


# ---- names


def names(table: str) -> list[str]:
    return {"engine": ["e0", "e1"], "gpu": ["gpu0"]}[table]


def keys(*series: str) -> list[str]:
    wanted = select(series, names)
    return [
        f"{name}.{column.name}" if name else column.name
        for by_name in wanted.values()
        for name, columns in by_name.items()
        for column in columns
    ]


def test_names_with_stars_are_all_of_them() -> None:
    assert keys("ttft_s", "e1.kv_usage") == ["ttft_s", "e1.kv_usage"]
    assert keys("*.kv_usage", "e0.kv_usage") == ["e0.kv_usage", "e1.kv_usage"]
    assert keys("*") == [column.name for column in NODE]
    assert keys("gpu0.*") == [f"gpu0.{column.name}" for column in GPU]
    assert len(keys("*.*")) == 2 * len(ENGINE) + len(GPU)


def test_what_there_is_now_can_be_asked_for_though_nothing_is_kept_of_it_yet() -> None:
    assert select(["e7.busy"], names, ["e7", "gpu7"])["engine"].keys() == {"e7"}
    assert len(select(["*.busy"], names, ["e7"])["engine"]) == 2, "a star is what is kept"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("e7.busy", "engines of that time are e0, e1."),
        ("e7.*", "engines of that time are e0, e1."),
        ("gpu7.tensor", "GPUs of that time are gpu0."),
        (".busy", "engines of that time are e0, e1."),
        ("x" * 9000 + ".busy", "(9,005 characters): engines of that time are e0, e1."),
    ],
)
def test_an_engine_that_there_was_not_is_refused_with_those_that_there_were(wrong: str, right: str) -> None:
    with pytest.raises(RequestError) as told:
        select(["queue_depth", wrong], names)
    assert (told.value.status, told.value.param) == (400, "series")
    assert told.value.message.endswith(right)
    assert len(told.value.message) < 300


def test_more_values_than_an_answer_has_are_refused_with_how_many_there_may_be() -> None:
    many = [f"e{number}" for number in range(64)]
    with pytest.raises(RequestError, match="for fewer series, or for at most 6") as told:
        select(["*.*"], lambda table: many if table == "engine" else [], count=2000)
    assert (told.value.status, told.value.param) == (400, "points")
    assert select(["*.*"], lambda table: many if table == "engine" else [], count=600)
    eight = {"engine": many[:8], "gpu": [f"gpu{number}" for number in range(8)]}
    assert select(["*", "*.*"], lambda table: eight[table], count=2000), "all that a node of eight has"


@pytest.mark.parametrize("wrong", ["tft_s", "e0.kv_usag", "gpu0.kv_usage", "*.nothing", "kv_usage", "e0.", ".ttft_s"])
def test_a_series_that_is_none_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(RequestError) as told:
        select([wrong], names)
    assert told.value.param == "series"
    assert repr(wrong) in told.value.message
