"""Layouts, predicted: against what theory says where it is known, and against simulated nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.planner import split
from appliance.planner.answers import Answers, in_time
from appliance.planner.measured import demand_of, engines_of, measured, present
from appliance.planner.node import Chunk, Engines, Estimate, Lengths, Settings, Targets
from appliance.planner.waiting import Line, waits
from appliance.records import Demand, Plan, Predicted, Role
from bench.split.cases import Case, cases
from bench.split.play import after_a_minute, layout

TARGETS = Targets(ttft_s=2.0, itl_s=0.05)


def step(chunks: Sequence[Chunk], sequences: float, context: float) -> Estimate:
    """A prompt token takes 0.1 ms, a step 10 ms, and each sequence another 0.2 ms."""
    return Estimate(0.01 + 1e-4 * sum(tokens for tokens, _ in chunks) + 2e-4 * sequences, 0.02)


def engines(count: int = 4, **fields: Any) -> Engines:
    settings = {role: Settings(token_budget=8192, places=256) for role in Role}
    values: dict[str, Any] = {"count": count, "step": step, "kv_tokens": 1_000_000, "settings": settings}
    return Engines(**(values | fields))


def demand(rate_s: float = 5.0, prompt: float = 1000, output: float = 100, **fields: Any) -> Demand:
    return Demand(rate_s=rate_s, prompt_tokens=(prompt,), output_tokens=(output,), **fields)


def predicted(plan: Plan) -> Predicted:
    assert plan.predicted is not None, plan.reason
    return plan.predicted


def planned(layout: str, asked: Demand, node: Engines | None = None, targets: Targets = TARGETS) -> Plan:
    return next(plan for plan in split.plans(asked, node or engines(), targets) if plan.layout == layout)


# ---- which layouts there are


def test_every_split_and_the_aggregated_layout() -> None:
    assert [plan.layout for plan in split.plans(demand(), engines(), TARGETS)] == ["1p3d", "2p2d", "3p1d", "4b"]
    assert [plan.layout for plan in split.plans(demand(), engines(2, tensor_parallel=4), TARGETS)] == [
        "1p1d@tp4",
        "2b@tp4",
    ]
    assert [plan.layout for plan in split.plans(demand(), engines(1), TARGETS)] == ["1b"]


# ---- prompts that wait


def line(load: float, most: float = 1.0, spread: float = 0.0, engines: int = 1) -> Line:
    """Prompts of a second each."""
    return Line(
        rate_s=load * engines, engines=engines, most=most, batch_s=lambda prompts: prompts, burst=1.0, spread=spread
    )


@pytest.mark.parametrize(("load", "spread"), [(0.3, 0.0), (0.7, 0.0), (0.7, 1.0), (0.9, 0.5)])
def test_one_engine_that_takes_one_at_a_time_is_pollaczeks_and_khinchins(load: float, spread: float) -> None:
    assert waits(line(load, spread=spread)).mean_s == pytest.approx(
        1 + load * (1 + spread) / (2 * (1 - load)), rel=0.12
    )


def test_of_several_engines_one_is_free_more_often() -> None:
    assert waits(line(0.7, engines=4)).mean_s - 1 < 0.5 * (waits(line(0.7)).mean_s - 1)


def test_what_takes_as_long_together_as_alone_is_never_saturated_by_two() -> None:
    together = Line(rate_s=1.5, engines=1, most=8, batch_s=lambda prompts: 1.0, burst=1.0, spread=0.0)
    found = waits(together)
    assert found.load == pytest.approx(1.5 / 8)
    assert 1.2 < found.mean_s < 2.0  # half of the step under way, and the next


def test_shares_are_of_all_and_more_time_does_not_hurt() -> None:
    found = waits(line(0.8, spread=0.5))
    assert math.fsum(share for _, share in found.shares) == pytest.approx(1)
    shares = [found.within(target_s, (0.0,)) for target_s in (0.5, 1, 2, 5, 50)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=1e-3)


def test_of_more_than_can_be_done_nothing_is_in_time() -> None:
    found = waits(line(1.01))
    assert (found.mean_s, found.within(1e9, (0.0,))) == (math.inf, 0.0)


@given(
    load=st.floats(1e-3, 0.99),
    most=st.floats(0.05, 64),
    spread=st.floats(0, 20),
    burst=st.floats(0, 20),
    count=st.integers(1, 16),
    fixed=st.floats(0, 1),
)
def test_a_line_of_any_kind_has_shares_and_no_wait_is_shorter_than_a_step(
    load: float, most: float, spread: float, burst: float, count: int, fixed: float
) -> None:
    def batch_s(prompts: float) -> float:
        return fixed + (1 - fixed) * prompts + 1e-3

    rate_s = load * count * most / batch_s(most)
    found = waits(Line(rate_s=rate_s, engines=count, most=most, batch_s=batch_s, burst=burst, spread=spread))
    assert found.load == pytest.approx(load)
    assert math.fsum(share for _, share in found.shares) == pytest.approx(1)
    assert found.mean_s >= 0.99 * batch_s(min(1.0, most)) / min(1.0, most)


# ---- answers


def test_how_many_decode_at_once_is_littles_law() -> None:
    found = predicted(planned("1p3d", demand(rate_s=6.0)))
    assert found.at_once == pytest.approx(6.0 / 3 * 100 * found.itl_s, rel=0.01)
    assert found.itl_s == pytest.approx(0.01 + 2e-4 * (found.at_once or 0), rel=0.05)


def test_an_answer_that_nothing_interrupts_takes_its_own_time() -> None:
    alone = Answers(token_s=0.01, crowd=0, per_s=1e-9, before_s=0, turns=1, delay_s=0.1, spread=0, burst=1)
    assert (alone.in_time(100, 0.0101), alone.in_time(100, 0.0099)) == (pytest.approx(1), pytest.approx(0))


def test_of_few_interruptions_each_counts() -> None:
    """Ten tokens of 10 ms may take 15 ms each: no interruption of 0.1 s, of which e^(−0.5) have none."""
    answers = Answers(token_s=0.01, crowd=0, per_s=5.0, before_s=0, turns=1, delay_s=0.1, spread=0, burst=1)
    assert answers.in_time(10, 0.015) == pytest.approx(math.exp(-0.5), rel=1e-6)


def test_few_and_many_interruptions_agree_where_they_meet() -> None:
    fields = {"token_s": 0.01, "crowd": 0.0, "before_s": 0.0, "turns": 1, "spread": 0.0, "burst": 1.0}
    tokens = 700
    counted = Answers(per_s=3.9, delay_s=0.05, **fields)  # 34 with those that others bring: beyond the limit
    one_by_one = counted._few_in_time(tokens * 0.01, tokens * 0.0135)
    assert counted.in_time(tokens, 0.0135) == pytest.approx(one_by_one, abs=0.03)


def test_an_inverse_gaussian_with_no_variance_is_a_step_and_with_some_has_its_median_below_its_mean() -> None:
    assert (in_time(1.01, 1.0, 0.0), in_time(0.99, 1.0, 0.0)) == (1.0, 0.0)
    assert in_time(1.0, 1.0, 0.25) > 0.5


# ---- what is not feasible says why


@pytest.mark.parametrize(
    ("layout", "asked", "node", "targets", "reason"),
    [
        ("1p3d", demand(rate_s=20.0), engines(), TARGETS, "more prompts come than can be computed"),
        (
            "3p1d",
            demand(rate_s=20.0, output=1000),
            engines(kv_tokens=50_000),
            TARGETS,
            "than there are places or KV for",
        ),
        ("2p2d", demand(), engines(), Targets(ttft_s=2.0, itl_s=0.005), "from token to token"),
        ("2p2d", demand(), engines(), Targets(ttft_s=0.05, itl_s=0.05), "of first tokens are within 0.05 s"),
        ("2p2d", demand(), engines(step=lambda *_: None), TARGETS, "is not known yet"),
    ],
)
def test_why_not(layout: str, asked: Demand, node: Engines, targets: Targets, reason: str) -> None:
    found = planned(layout, asked, node, targets)
    assert not found.feasible
    assert reason in (found.reason or "")


@pytest.mark.parametrize("layout", ["1p3d", "2p2d", "3p1d", "4b"])
def test_the_highest_rate_is_where_the_targets_are_just_met(layout: str) -> None:
    most_s = predicted(planned(layout, demand(), targets=Targets(ttft_s=1.0, itl_s=0.02))).most_rate_s
    tight = Targets(ttft_s=1.0, itl_s=0.02)
    assert planned(layout, demand(rate_s=0.97 * most_s), targets=tight).feasible
    assert not planned(layout, demand(rate_s=1.05 * most_s), targets=tight).feasible


def test_prompts_that_are_found_in_the_cache_are_not_computed() -> None:
    cold, warm = (predicted(planned("2p2d", demand(rate_s=10.0, hit_share=share))) for share in (0.0, 0.8))
    assert warm.prefill_load < 0.35 * cold.prefill_load
    assert warm.kv_load == pytest.approx(cold.kv_load)


def test_an_error_is_that_of_the_steps() -> None:
    assert predicted(planned("2p2d", demand())).error == 0.02


# ---- what to take, and whether to change


def plan(layout: str, rate_s: float, good: float = 1.0, error: float | None = 0.02) -> Plan:
    found = predicted(planned("2p2d", demand()))
    changed = msgspec.structs.replace(found, good=good, most_rate_s=rate_s, error=error)
    return Plan(layout=layout, feasible=good >= 0.95, predicted=changed)


@pytest.mark.parametrize("good", [1.0, 0.1])
def test_the_one_that_goes_farthest_is_taken_whether_or_not_the_targets_are_met(good: float) -> None:
    found = split.choose([plan("2p2d", 3.0, good), plan("4b", 4.0, good), plan("1p3d", 2.0, good)])
    assert found is not None
    assert found.layout == "4b"


def test_nothing_is_taken_of_what_nothing_is_known_of() -> None:
    assert split.choose([]) is None
    assert split.choose([Plan(layout="4b", feasible=False, reason="not known")]) is None


def test_splitting_that_is_not_worth_it() -> None:
    now = plan("2p2d", 5.0, good=0.7)
    found = split.advice(now, [now, plan("4b", 8.0)])
    assert found is not None
    assert (found.layout, found.aggregated) == ("4b", True)
    assert (found.load_falls, found.good_rises, found.rate_grows) == pytest.approx((3 / 8, 0.3, 0.6))


@pytest.mark.parametrize("better", ["1p3d", "2p2d"])
def test_aggregated_engines_that_should_be_split_are_no_such_cause(better: str) -> None:
    now = plan("4b", 5.0)
    found = split.advice(now, [now, plan(better, 8.0)])
    assert found is not None
    assert (found.layout, found.aggregated) == (better, False)


@pytest.mark.parametrize(
    ("now", "better", "fewer"),
    [
        ("2p2d@tp2", "3p1d@tp2", ("decode",)),
        ("2p2d", "1p3d", ("prefill",)),
        ("2p2d", "4b", ()),
        ("4b", "3p1d", ("prefill", "decode")),
    ],
)
def test_it_is_told_what_fewer_engines_do_then(now: str, better: str, fewer: tuple[str, ...]) -> None:
    found = split.advice(plan(now, 5.0), [plan(now, 5.0), plan(better, 8.0)])
    assert found is not None
    assert found.fewer == fewer


@pytest.mark.parametrize("better", [plan("4b", 5.4), plan("4b", 8.0, error=0.5)])
def test_no_change_for_a_tenth_or_for_less_than_may_be_wrong(better: Plan) -> None:
    now = plan("2p2d", 5.0)
    assert split.advice(now, [now, better]) is None


def test_no_change_to_what_there_is_or_to_what_goes_less_far() -> None:
    now = plan("2p2d", 5.0)
    assert split.advice(now, [now, plan("4b", 3.0)]) is None


def test_from_what_meets_the_targets_at_no_rate_any_change_is_one() -> None:
    now = plan("2p2d", 0.0, good=0.0)
    found = split.advice(now, [now, plan("4b", 3.0)])
    assert found is not None
    assert (found.load_falls, found.rate_grows) == (1.0, None)


# ---- simulated nodes


@pytest.fixture(scope="module")
def case() -> Case:
    """Long prompts and few tokens per second wanted late: which layout is best is clear."""
    return next(case for case in cases(range(7, 8)))


def test_a_node_that_runs_says_what_another_layout_would_bring(case: Case) -> None:
    """It is learnt on the aggregated node, and measured on the split one."""
    node, window = after_a_minute(case, case.layouts[-1])
    plans = measured(window, *node.learnt("e0"), case.scenario.slo.share)
    now = present(plans)
    assert now is not None
    assert now.layout == case.layouts[-1]
    advised = split.advice(now, plans.layouts)
    assert advised is not None
    assert advised.layout == plans.best
    assert "b" not in advised.layout
    before, after = layout(case, now.layout, None), layout(case, advised.layout, None)
    assert after.good > before.good + 0.3
    chosen = next(plan for plan in plans.layouts if plan.layout == advised.layout)
    assert predicted(chosen).itl_s == pytest.approx(after.itl_s, rel=0.15)


def test_a_split_node_for_which_splitting_is_not_worth_it_says_so() -> None:
    """Short prompts and short answers, more than one prefill engine can compute."""
    [case] = [case.at(95.0) for case in cases(range(8, 9))]
    node, window = after_a_minute(case, "1p1d@tp4")
    plans = measured(window, *node.learnt("e0"), case.scenario.slo.share)
    now = present(plans)
    assert now is not None
    advised = split.advice(now, plans.layouts)
    assert advised is not None
    assert (advised.layout, advised.aggregated) == ("2b@tp4", True)
    assert layout(case, "2b@tp4", None).good > layout(case, "1p1d@tp4", None).good + 0.1


def test_what_is_asked_is_what_was_sent(case: Case) -> None:
    node, window = after_a_minute(case, case.layouts[1])
    asked = demand_of(window)
    assert asked is not None
    assert asked.rate_s == pytest.approx(case.scenario.traffic.rate, rel=0.15)
    assert Lengths(asked).answer == pytest.approx(70 * math.exp(0.4**2 / 2), rel=0.15)
    assert asked.hit_share == 0.0
    found = engines_of(window[-1], *node.learnt("e0"))
    assert isinstance(found, Engines)
    assert (found.count, found.tensor_parallel) == (4, 2)
    assert found.settings[Role.DECODE].token_budget == 2048
    copied = found.copy(1000) if found.copy else None
    assert copied is not None
    assert 0 < copied.seconds < 0.1


def test_of_a_node_that_nobody_asks_nothing_is_said(case: Case) -> None:
    node, window = after_a_minute(case, case.layouts[-1])
    quiet = [msgspec.structs.replace(snapshot, demand=None) for snapshot in window]
    plans = measured(quiet, *node.learnt("e0"), 0.95)
    assert (plans.layouts, plans.best) == ((), None)
    assert "too little" in (plans.reason or "")


@pytest.mark.parametrize("hit_share", [0.41, 0.5, 0.87])
def test_prompts_that_are_all_alike_have_layouts_too(hit_share: float) -> None:
    """Their spread is 0, of which rounding may leave less than nothing."""
    asked = Demand(rate_s=5.0, prompt_tokens=(200.0,) * 9, output_tokens=(100.0,) * 9, hit_share=hit_share)
    assert Lengths(asked).spread == pytest.approx(0.0)
    for plan in split.plans(asked, engines(), TARGETS):
        assert predicted(plan).good > 0.99
