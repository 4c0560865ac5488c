"""The schedule of faults, the pool of requests, and what is made of a run: pure functions all."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from bench import chaos, integrity
from bench.chaos import Load
from bench.checker import Case, Ending, Heard, Kind, Verdict
from bench.clients import Manner
from bench.integrity import Look, Usage, growth, held, is_whole
from bench.outcomes import KEPT_BYTES, Happened, Outcome, Report, effects, excuse, markdown
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


def happened(at_s: float, kind: str, made: bool = True) -> Happened:
    return Happened(planned=planned(kind), at_s=at_s, over_s=at_s + 4, did="it", made=made)


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


@pytest.mark.parametrize(
    ("seen", "capacity_s"),
    [
        ([(11, None), (19, None)], None),
        ([], None),
        ([(11, None), (14, True)], 4),
        ([(11, True), (14, None), (17, True)], 7),
        ([(11, True)], 0),
    ],
)
def test_a_page_that_does_not_answer_shows_no_capacity(seen: Any, capacity_s: float | None) -> None:
    [effect] = effects([happened(10, "kill: API")], [outcome(5, 6)], looks(*seen), 20)
    assert effect.capacity_s == capacity_s


def test_what_never_recovers_is_said() -> None:
    [effect] = effects([happened(10, "kill: API")], [outcome(5, 6)], looks((11, False), (19, False)), 20)
    assert (effect.success_s, effect.capacity_s) == (None, None)


SEEN = looks((11, False), (15, True))


def report(
    outcomes: list[Outcome],
    problems: tuple[str, ...] = (),
    unstable: tuple[str, ...] = (),
    faults: tuple[Happened, ...] = (happened(10, "kill: API"),),
) -> Report:
    judged = excuse(outcomes, faults)
    return Report(
        seed=1,
        layout="1p1d",
        concurrency=2,
        duration_s=60,
        pool=18,
        unstable=unstable,
        versions={},
        outcomes=tuple(judged),
        effects=tuple(effects(faults, judged, SEEN, 60)),
        usages=(),
        problems=problems,
    )


RIGHT = [outcome(11, 12)] * 18


def test_a_report_has_what_was_wrong() -> None:
    well = report([*RIGHT, outcome(11, 14, Kind.FAILED, "engine_lost")])
    assert well.well
    assert "| kill: API | 1 | 19 | 18 | 1 | 94.74% | 2.0 / 2.0 | 5.0 / 5.0 |" in markdown(well)
    wrong = report([*RIGHT, outcome(11, 12, Kind.WRONG, "text is 'b' instead of 'a'")], ("a stray process 7",))
    assert not wrong.well
    assert "text is 'b' instead of 'a'" in markdown(wrong) and "- a stray process 7" in markdown(wrong)
    assert not report(RIGHT, ("left",)).well
    for kind in (Kind.SHORT, Kind.HUNG, Kind.DROPPED):
        assert not report([*RIGHT, outcome(1, 2, kind)]).well


def test_who_went_first_has_not_survived() -> None:
    left = [outcome(11, 12, Kind.LEFT)] * 100
    found = markdown(report([*RIGHT, *left, outcome(11, 14, Kind.FAILED, "engine_lost")]))
    assert "| kill: API | 1 | 119 | 18 | 1 | 94.74% |" in found
    assert "| kill: API | 1 | 100 | 0 | 0 | — |" in markdown(report(left))


def test_a_run_in_which_little_was_right_is_not_well() -> None:
    refused = [outcome(11, 12, Kind.REFUSED)] * 99
    for outcomes in (
        [*refused, outcome(11, 12, Kind.FAILED)],
        [*RIGHT, *refused[:3]],
        [outcome(11, 12, Kind.LEFT)],
        [],
    ):
        assert not report(outcomes).well, outcomes
        assert "This run proves too little" in markdown(report(outcomes))
    assert report([*RIGHT, *refused[:2]]).well
    assert "90.00% were right (at least 90% must be)" in markdown(report([*RIGHT, *refused[:2]]))


def test_a_run_that_leaves_out_many_requests_is_not_well() -> None:
    assert report(RIGHT, unstable=("a", "b")).well
    found = report(RIGHT, unstable=("a", "b", "c"))
    assert not found.well and "14.3% of the requests were left out; at most 10% may be" in markdown(found)


def test_faults_that_were_not_made_are_listed_apart() -> None:
    made, not_made = happened(10, "kill: API"), happened(20, "oom: API data", made=False)
    found = report([*RIGHT, outcome(21, 22)], faults=(made, not_made))
    assert found.well
    assert "| oom: API data |" not in markdown(found)
    assert "- 20 s, oom: API data of e0: it" in markdown(found) and "1 faults and" in markdown(found)
    assert not report(RIGHT, faults=(not_made,)).well, "nothing has happened at all"


def test_only_who_has_no_descriptors_may_drop_a_connection() -> None:
    dropped = [*RIGHT, outcome(11, 12, Kind.DROPPED)]
    assert report(dropped, faults=(happened(10, "fds: limit"),)).well
    assert not report(dropped, faults=(happened(10, "kill: API"),)).well
    assert not report(dropped, faults=(happened(10, "fds: limit", made=False), happened(50, "kill: API"))).well
    assert not report(dropped, faults=(happened(40, "fds: limit"),)).well
    assert not report([*RIGHT, outcome(11, 12, Kind.SHORT)], faults=(happened(10, "fds: limit"),)).well


class Liar:
    """A client to whom everything is answered in one way."""

    async def ask(self, case: Case, manner: Manner = Manner.PLAIN) -> Heard:
        body = b'{"choices": [{"index": 0, "text": "Onze", "finish_reason": "stop"}], "usage": 7}' + b" " * KEPT_BYTES
        return Heard(ending=Ending.COMPLETE, status=200, headers={"x-request-id": "r1"}, body=body)


async def test_a_wrong_answer_is_said_at_once_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(name="7 greedy", path="/v1/completions", body={})
    said = {"0.text": "Once", "0.finish_reason": "stop"}
    load = Load(Liar(), [case], {case.name: said})  # type: ignore[arg-type]
    await load.lap()
    assert "7 greedy, plain" in capsys.readouterr().err
    [kept] = load.wrongs
    assert (kept.case, kept.manner, kept.request_id) == ("7 greedy", "plain", "r1")
    assert kept.reason and "Once" in kept.expected and "Onze" in kept.heard and len(kept.heard) == KEPT_BYTES
    for _ in range(chaos._KEPT + 5):
        await load.lap()
    assert len(load.wrongs) == chaos._KEPT


async def test_a_supervisor_that_has_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        pid = 2**22 + 1  # more than there can be

        async def json(self, path: str) -> Any:
            raise OSError(path)

    monkeypatch.setattr(integrity, "_IDLE_S", 0.0)
    found = await integrity.after_traffic(Ended(), 10)  # type: ignore[arg-type]
    assert found == ["/api/node does not answer", "the supervisor has ended"]


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
