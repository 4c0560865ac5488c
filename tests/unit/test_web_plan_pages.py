"""The KV ledger, the plan and the batch curves, as pages show them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from starlette.testclient import TestClient

from appliance.records import Better, KneeReading, Lease, Order, OrderKind, Remedy, RemedyState, Role
from web import batch_curve, contexts, ledger, plan_page, playground
from web.contexts import TONES

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_kept as kept
import page_states as made
from demo_server import Demo

# ---- the ledger


def test_leases_with_the_least_time_left_come_first() -> None:
    found = ledger.ledger(made.busy(0))
    assert found.sentence == "3 leases hold 96 blocks; no leak. The shortest has 45\u00a0s left."
    assert [lease.left for lease in found.leases] == ["45\u00a0s", "52\u00a0s", "59\u00a0s"]
    assert [lease.left_percent for lease in found.leases] == ["76.3%", "88.0%", "99.7%"]
    assert (found.tone, found.leaks) == ("ok", ())


def test_a_lease_past_its_deadline_and_blocks_that_nobody_accounts_for_are_leaks() -> None:
    node = kept.leaking(0)
    found = ledger.ledger(node)
    assert (found.tone, found.glyph) == ("bad", TONES["bad"])
    assert found.sentence == "Leak: e0 still holds 212 blocks, 14\u00a0s after the lease's deadline. And 1 more."
    assert [leak.call for leak in found.leaks] == ["POST /api/engines/e0/restart", "POST /api/engines/e1/restart"]
    assert found.leases[0].overdue
    assert found.leases[0].left == "14\u00a0s over"
    assert contexts.strip(node).tone == "warn"
    assert "e0 and e1 leak KV blocks" in contexts.strip(node).sentence, "it is said on every page"
    assert "e0 and e1 leak KV blocks" in contexts.announcement(node).text


def test_thousands_of_leases_past_their_deadline_are_one_leak_of_their_engine() -> None:
    late = [
        Lease(id=str(n), owner=f"e{n % 2}", blocks=2, tokens=1, consumers=1, age_s=90, remaining_s=-30 - n / 1e3)
        for n in range(3000)
    ]
    node = replace(made.busy(0), ledger=replace(made.busy(0).ledger, leases=tuple(late)))
    found = ledger.ledger(node)
    assert sorted(leak.what for leak in found.leaks) == [
        f"e{n} still holds 3,000 blocks, 32\u00a0s after the deadlines of 1,500 leases, at most." for n in range(2)
    ]


def test_an_engine_has_a_moment_to_take_its_blocks_back() -> None:
    late = Lease(id="a", owner="e0", blocks=1, tokens=1, consumers=1, age_s=61, remaining_s=-1.5)
    node = replace(made.busy(0), ledger=replace(made.busy(0).ledger, leases=(late,)))
    assert ledger.ledger(node).leaks == ()
    assert contexts.leaking(node) == ()


def test_blocks_are_in_use_leased_or_free() -> None:
    row = ledger.ledger(kept.leaking(0)).engines[0]
    assert (row.used, row.leased, row.free, row.total) == ("2,230", "309", "1,557", "4,096")
    assert (row.used_width, row.leased_x, row.leased_width) == ("54.44%", "54.44%", "7.54%")
    silent = ledger.ledger(made.failed(0)).engines[1]
    assert (silent.used, silent.leased, silent.free, silent.known) == ("—", "—", "—", False)


def test_a_test_of_a_pair_is_told_from_a_request() -> None:
    rows = {lease.id: lease for lease in ledger.ledger(kept.leaking(0)).leases}
    test = rows["canary/e0.e1.4"]
    assert (test.request, test.whose, test.consumer) == (None, "a test of this pair", "e1")


def test_engines_that_do_both_hand_nothing_over() -> None:
    assert (ledger.ledger(made.whole(0)).splits, ledger.ledger(made.idle(0)).splits) == (False, True)


def test_very_many_leases_are_not_all_shown() -> None:
    one = made.busy(0).ledger.leases[0]
    many = tuple(replace(one, id=f"{n}", remaining_s=10.0 + n) for n in range(260))
    found = ledger.ledger(replace(made.busy(0), ledger=replace(made.busy(0).ledger, leases=many)))
    assert (len(found.leases), found.more) == (200, "60 leases more, with more time left")


def test_what_expired_or_was_lost_stands_out_only_where_there_is_some() -> None:
    totals = {one.label: one for one in ledger.ledger(made.busy(0)).totals}
    assert [label for label, one in totals.items() if one.odd] == ["expired"]
    assert totals["lost"].value == "0"


# ---- the plan


def planned(node: str = "large", **more: object) -> plan_page.PlansContext:
    plans = replace(kept.PLANS, **more)
    return plan_page.plans(made.STATES[node](0), plans, (), planned=True)


def test_a_layout_that_is_clearly_better_is_the_headline() -> None:
    better = Better(layout="2p2d@tp2", load_falls=0.26, good_rises=0.36, rate_grows=0.347, aggregated=False)
    snapshot = replace(made.large(0), better=better)
    found = plan_page.plans(snapshot, kept.PLANS, (), planned=True)
    assert (found.tone, found.sentence) == ("warn", "2p2d@tp2 would serve this traffic better than 3p1d@tp2.")
    assert found.why is not None
    assert found.why.startswith("Predicted: its highest load would be 26\u00a0% lower")


@pytest.mark.parametrize(
    ("more", "tone", "sentence"),
    [
        ({"best": "3p1d@tp2"}, "ok", "3p1d@tp2 is the best of these layouts for this traffic."),
        ({}, "warn", "3p1d@tp2 misses the targets; 2p2d@tp2 would be better, but not clearly."),
        (
            {"layouts": tuple(replace(one, feasible=False) for one in kept.LAYOUTS)},
            "warn",
            "No layout of these engines meets the targets for this traffic.",
        ),
        ({"reason": "nobody asks.", "layouts": ()}, "wait", "Nothing is predicted: nobody asks."),
    ],
)
def test_what_is_said_of_the_layouts(more: dict[str, object], tone: str, sentence: str) -> None:
    found = planned(**more)
    assert (found.tone, found.sentence) == (tone, sentence)


def test_where_nobody_plans_or_nothing_is_known_yet_that_is_said() -> None:
    assert plan_page.plans(made.busy(0), None, (), planned=False).sentence == "Nobody plans on this node."
    assert plan_page.plans(made.busy(0), None, (), planned=True).sentence == "Nothing is predicted yet."


def test_the_table_has_what_is_predicted_and_dashes_for_what_is_not() -> None:
    rows = {row.layout: row for row in planned().rows}
    assert [load.value for load in rows["1p3d@tp2"].loads] == ["197\u00a0%", "31\u00a0%", "20\u00a0%"]
    assert [load.over for load in rows["1p3d@tp2"].loads] == [True, False, False]
    assert rows["1p3d@tp2"].loads[0].width == "100.0%"
    assert (rows["2p2d@tp2"].best, rows["3p1d@tp2"].now, rows["2p2d@tp2"].error) == (True, True, "± 3\u00a0%")
    unknown = rows["4b@tp2"]
    assert ({load.value for load in unknown.loads}, unknown.ttft, unknown.most) == ({"—"}, "—", "—")
    assert unknown.aggregated


def test_applying_a_layout_says_what_it_will_do_and_is_the_order_that_does_it() -> None:
    rows = {row.layout: row for row in planned().rows}
    assert rows["3p1d@tp2"].what is None, "it is the one that there is"
    assert rows["2p2d@tp2"].what == (
        "Use 2p2d@tp2: 1 engine more for decode and 1 fewer for prefill. "
        "Roles change at once, nothing is restarted, and requests under way end where they are."
    )
    order = msgspec.json.decode(rows["2p2d@tp2"].order, type=Order)
    assert order == Order(kind=OrderKind.TOPOLOGY, topology="2p2d@tp2")
    assert "4 engines more for prefill and decode" in (rows["4b@tp2"].what or "")
    assert "51.2 requests/s, 38.0 now" in (rows["2p2d@tp2"].gain or "")


@pytest.mark.parametrize(
    ("state", "over", "result", "undo"),
    [
        (RemedyState.SETTLING, None, "done 10\u00a0s ago; what it brings is not known yet", "r1"),
        (RemedyState.SETTLED, None, "brought: 4% late, 62% before", "r1"),
        (RemedyState.SETTLED, "taken back", "brought: 4% late, 62% before; taken back", None),
    ],
)
def test_what_a_layout_brought_is_told(state: RemedyState, over: str | None, result: str, undo: str | None) -> None:
    back = Order(kind=OrderKind.TOPOLOGY, topology="3p1d@tp2")
    order = replace(back, topology="2p2d@tp2")
    brought = "4% late, 62% before" if state is RemedyState.SETTLED else None
    given = Remedy(
        id="r1",
        time=made.NOON - 10,
        by="page",
        order=order,
        sentence="3p1d → 2p2d",
        state=state,
        undo=back,
        brought=brought,
        over=over,
    )
    drained = replace(given, id="r2", order=Order(kind=OrderKind.DRAIN, engine="e1"))
    [found] = plan_page.plans(made.large(0), kept.PLANS, (drained, given), planned=True).remedies
    assert (found.sentence, found.state, found.undo) == ("3p1d → 2p2d", result, undo)


# ---- batch curves

ENGINE = made.engine("e0", token_budget=512)


def test_a_budget_below_the_knee_is_too_small() -> None:
    found = batch_curve.curve(ENGINE, kept.KNEE, kept.steps())
    assert found.odd
    assert found.setting == '[engine.prefill] args = ["--max-num-batched-tokens", "1408"]'
    assert found.advice is not None
    assert "more tokens in a step would bring 1" in found.advice
    both = batch_curve.curve(replace(ENGINE, role=Role.BOTH), kept.KNEE, ())
    assert both.setting is not None
    assert both.setting.startswith("[engine] ")


@pytest.mark.parametrize(("budget", "odd"), [(900, False), (1408, False), (2900, False), (8192, True)])
def test_advice_comes_only_where_it_is_sure_to_bring_something(budget: int, odd: bool) -> None:
    found = batch_curve.curve(replace(ENGINE, token_budget=budget), kept.KNEE, kept.steps())
    assert (found.odd, found.setting is not None) == (odd, odd)


def test_the_interval_has_the_knee_in_it_and_the_budget_lies_below() -> None:
    drawn = batch_curve.curve(ENGINE, kept.KNEE, kept.steps()).plot
    assert drawn is not None
    assert drawn.band is not None
    low, knee, width = (float(one) for one in (drawn.band.x, drawn.band.middle, drawn.band.width))
    assert low < knee < low + width
    assert [one.kind for one in drawn.drawn] == ["steps-prompt", "as-expected", "budget"]
    assert float(drawn.drawn[-1].d[1:].split()[0]) < low
    assert [tick.label for tick in drawn.x_ticks] == ["10", "100", "1,000", "10,000"]


def test_a_knee_that_is_not_known_says_why_and_still_shows_the_steps() -> None:
    unknown = KneeReading(missing="steps of more than 600 tokens are missing")
    found = batch_curve.curve(ENGINE, unknown, kept.steps())
    assert found.plot is not None
    assert (found.plot.band, [one.kind for one in found.plot.drawn]) == (None, ["steps-prompt", "budget"])
    assert (found.sentence, found.advice) == (
        "Its knee is not known yet: steps of more than 600 tokens are missing.",
        None,
    )
    assert batch_curve.curve(ENGINE, unknown, ()).plot is None


def test_steps_that_decode_are_not_among_them() -> None:
    decoding = [replace(one, decode_tokens=one.prompt_tokens) for one in kept.steps()]
    assert batch_curve.curve(ENGINE, KneeReading(), decoding).plot is None


def test_the_curves_of_all_engines_that_prefill_are_a_part_of_their_own() -> None:
    html = TestClient(Demo(made.FakeNode("large")), base_url="http://localhost").get("/plan/curves").text
    assert [f'id="curve-e{n}"' in html for n in range(4)] == [True, True, True, False]


def test_the_curves_are_drawn_once_for_all_who_look(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    compact = plan_page.compact

    def counted(name: str, context: Any) -> str:
        drawn.append(name)
        return compact(name, context)

    monkeypatch.setattr(plan_page, "compact", counted)
    client = TestClient(Demo(made.FakeNode("large")), base_url="http://localhost")
    assert client.get("/plan/curves").text == client.get("/plan/curves").text
    assert drawn == ["curves"]


# ---- the playground


def test_the_playground_says_whether_it_would_be_answered() -> None:
    assert (
        playground.readiness(made.busy(0)).sentence
        == "A request would be served now. 2 requests are before it in the queue."
    )
    loading = playground.readiness(made.loading(0))
    assert (loading.ready, loading.sentence) == (False, "e0 and e1 are still starting.")


def test_on_a_simulated_node_the_playground_says_that_no_model_answers() -> None:
    page = TestClient(Demo(made.FakeNode("large")), base_url="http://localhost").get("/try").text
    assert "No model answers here" in page
    assert (
        "No model answers here"
        not in TestClient(Demo(made.FakeNode("busy")), base_url="http://localhost").get("/try").text
    )
