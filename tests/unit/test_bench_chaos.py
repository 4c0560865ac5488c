"""The schedule of faults, the pool of requests, and what is made of a run: pure functions all."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from bench.checker import Kind, Verdict
from bench.integrity import Look, Usage, growth, held, is_whole
from bench.outcomes import Happened, Outcome, Report, effects, markdown
from bench.pool import cases
from bench.schedule import BLOCK_S, ENGINE_FAULTS, GROUPS, NODE_FAULTS, Planned, schedule

ENGINES = ("e0", "e1")


def test_a_schedule_is_a_function_of_its_seed() -> None:
    assert schedule(1, 1800, ENGINES) == schedule(1, 1800, ENGINES)
    assert schedule(1, 1800, ENGINES) != schedule(2, 1800, ENGINES)


@pytest.mark.parametrize("seed", range(20))
def test_every_engine_has_a_quiet_time_after_each_block_and_no_block_is_its_end(seed: int) -> None:
    """A stable minute wipes out what went before; ten deaths in a row would be the end of an engine."""
    faults = [one for one in schedule(seed, 1800, ENGINES) if one.group in ENGINE_FAULTS]
    for block in range(int(1800 // BLOCK_S)):
        within = [one for one in faults if block * BLOCK_S <= one.at_s < (block + 1) * BLOCK_S]
        assert len({one.victim for one in within}) == 1
        assert len(within) == 3
    assert {one.victim for one in faults} == set(ENGINES)


@pytest.mark.parametrize("seed", range(5))
def test_in_half_an_hour_everything_happens(seed: int) -> None:
    faults = schedule(seed, 1800, ENGINES)
    wanted = {(group, variant) for some in (ENGINE_FAULTS, NODE_FAULTS) for group in some for variant in some[group]}
    assert {(one.group, one.variant) for one in faults} == wanted
    times = [one.at_s for one in faults]
    assert times == sorted(times) and times[-1] <= 1785
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 6


def test_only_some_groups() -> None:
    assert {one.group for one in schedule(1, 600, ENGINES, ["kill", "fds"])} == {"kill", "fds"}
    assert {one.group for one in schedule(1, 600, ENGINES, ["channel"])} == {"channel"}
    assert {one.kind for one in schedule(1, 600, ENGINES, ["fds: limit"])} == {"fds: limit"}
    left = {one.kind for one in schedule(1, 1800, ENGINES, ["-kill", "-fds: limit"])}
    assert "fds: connections" in left and not left & {"kill: API", "fds: limit"}
    with pytest.raises(ValueError, match="no such faults: typo; there are kill"):
        schedule(1, 600, ENGINES, ["typo", *GROUPS])


def test_the_pool_has_every_kind_and_no_request_twice() -> None:
    pool = cases(1, 66)
    assert pool == cases(1, 66) != cases(2, 66)
    bodies = {msgspec.json.encode(one.body) for one in pool}
    assert len(bodies) == len(pool) == len({one.name for one in pool})
    streamed = sum(one.streams for one in pool)
    assert 0.5 < streamed / len(pool) < 0.8
    for kind in ("greedy", "n=2", "chat tool", "chat schema", "logprobs"):
        assert {one.streams for one in pool if f" {kind}," in one.name} == {True, False}, kind


def planned(kind: str, victim: str = "e0") -> Planned:
    group, _, variant = kind.partition(": ")
    return Planned(at_s=0, group=group, variant=variant, victim=victim)


def happened(at_s: float, kind: str) -> Happened:
    return Happened(planned=planned(kind), at_s=at_s, over_s=at_s, did="it")


def outcome(sent_s: float, ended_s: float, kind: Kind = Kind.RIGHT, reason: str = "") -> Outcome:
    verdict = Verdict(kind=kind, status=503 if kind is Kind.FAILED else 200, reason=reason)
    return Outcome(case="c", manner="plain", sent_s=sent_s, ended_s=ended_s, verdict=verdict)


def looks(*pairs: tuple[float, bool | None]) -> list[Look]:
    return [Look(at_s=at_s, whole=whole) for at_s, whole in pairs]


def test_what_follows_from_a_fault() -> None:
    faults = [happened(10, "kill: API"), happened(20, "fds: limit")]
    outcomes = [
        outcome(9, 10.5),  # sent before: no sign of recovery
        outcome(11, 11.5, Kind.FAILED, "engine_lost"),
        outcome(11, 13),
        outcome(20.5, 21),
    ]
    seen = looks((10.1, True), (10.5, False), (14, True), (14.5, False), (16, None), (17, True), (20.5, True))
    first, second = effects(faults, outcomes, seen, 30)
    assert first.failed == {"failed clearly 503 engine_lost": 1}
    assert (first.requests, first.success_s, first.capacity_s) == (3, 3, 7)
    assert (second.requests, second.success_s, second.capacity_s) == (1, 1, 0)


def test_what_never_recovers_is_said() -> None:
    [effect] = effects([happened(10, "kill: API")], [outcome(5, 6)], looks((11, False), (19, False)), 20)
    assert (effect.success_s, effect.capacity_s) == (None, None)


def report(outcomes: list[Outcome], problems: tuple[str, ...] = ()) -> Report:
    return Report(
        seed=1,
        layout="1p1d",
        concurrency=2,
        duration_s=60,
        pool=3,
        unstable=(),
        versions={},
        outcomes=tuple(outcomes),
        effects=tuple(effects([happened(10, "kill: API")], outcomes, looks((11, False), (15, True)), 60)),
        usages=(),
        problems=problems,
    )


def test_a_report_has_what_was_wrong() -> None:
    well = report([outcome(11, 12), outcome(11, 14, Kind.FAILED, "engine_lost")])
    assert well.well
    assert "| kill: API | 1 | 2 | 1 | 50.00% | 2.0 / 2.0 | 5.0 / 5.0 |" in markdown(well)
    wrong = report([outcome(11, 12, Kind.WRONG, "text is 'b' instead of 'a'")], ("a stray process 7",))
    assert not wrong.well
    assert "text is 'b' instead of 'a'" in markdown(wrong) and "- a stray process 7" in markdown(wrong)
    assert not report([outcome(1, 2)], ("left",)).well
    for kind in (Kind.SHORT, Kind.HUNG):
        assert not report([outcome(1, 2, kind)]).well


def engine(**fields: Any) -> dict[str, Any]:
    idle = {"name": "e0", "state": "ready", "peers": ["e1"], "kv_blocks_free": 9, "kv_blocks_total": 9}
    return {**idle, **dict.fromkeys(("running", "waiting", "fetching", "in_flight"), 0), **fields}


def node(*engines: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"engines": engines, "ledger": {"leases": []}, "queue": {"depth": 0, "in_flight": 0}, **fields}


def test_what_an_idle_node_still_holds_is_told() -> None:
    assert held(node(engine(), engine())) == []
    for wrong in (
        node(engine(kv_blocks_free=8)),
        node(engine(fetching=1)),
        node(engine(state="backoff")),
        node(engine(), ledger={"leases": [{"id": "x"}]}),
        node(engine(), queue={"depth": 0, "in_flight": 1}),
    ):
        assert len(held(wrong)) == 1, wrong
    assert is_whole(node(engine(), engine()))
    assert not is_whole(node(engine(), engine(peers=[])))
    assert not is_whole(node(engine(state="starting"), engine()))


def usage(mib: float, fds: int) -> Usage:
    return Usage(at_s=0, pss_bytes=round(mib * 2**20), descriptors=fds)


def test_growth_of_the_supervisor_is_told() -> None:
    flat = [usage(60 + n % 3, 40 + n % 5) for n in range(100)]
    assert growth(flat) == []
    assert "memory grew" in growth([usage(60 + n / 2, 40) for n in range(100)])[0]
    assert "descriptors grew" in growth([usage(60, 40 + n) for n in range(100)])[0]
    assert growth([usage(60, 40), usage(600, 400)]) == [], "too short a run to tell"
