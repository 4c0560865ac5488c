"""What is said of one engine: how it is, what it can be told, its log, its hand-offs."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from appliance.errors import RequestError
from appliance.records import EngineState, LinkSnapshot, Order, Pair, Role
from web import engine_log, engine_orders, engine_parts
from web.engines import EnginePage, listed
from web.views import Asked

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made
from made_up import FullNode


def test_the_engine_that_holds_the_node_back_says_so_first() -> None:
    snapshot = made.bottleneck(0)
    held = engine_parts.head(snapshot.engines[1], snapshot)
    assert (held.tone, held.held) == ("bad", "slow GPU on e1")
    assert held.summary is not None
    assert engine_parts.head(snapshot.engines[0], snapshot).held is None


def test_what_an_earlier_life_ended_of_is_not_said_as_if_it_were_now() -> None:
    snapshot = made.whole(0)
    again = engine_parts.head(snapshot.engines[1], snapshot)
    assert (again.again, again.cause) == (True, "Segmentation fault (SIGSEGV) 12 s ago.")
    gone = made.failed(0)
    assert not engine_parts.head(gone.engines[1], gone).again


def test_figures_that_are_not_as_they_should_be_are_marked() -> None:
    snapshot = made.bottleneck(0)
    facts = {
        fact.label: fact for group in engine_parts.figures(snapshot.engines[1], snapshot).groups for fact in group.facts
    }
    assert (facts["steps take"].value, facts["steps take"].odd) == ("1.90 × expected", True)
    assert not facts["running"].odd
    assert facts["ITL, mean"].value == "—"  # absent, not 0


def test_an_engine_that_does_not_work_is_not_a_page_of_dashes() -> None:
    gone = made.failed(0)
    found = engine_parts.figures(gone.engines[1], gone)
    assert not found.works
    assert {fact.label: fact.value for group in found.groups for fact in group.facts}["restarts"] == "5"
    assert all(fact.value != "—" for group in found.groups for fact in group.facts)


def test_hand_offs_to_and_from_an_engine_with_their_pairs() -> None:
    pairs = (
        Pair(prefill="e0", decode="e1", ok=True, age_s=3.0),
        Pair(prefill="e1", decode="e0", ok=False, in_use=False, error="no memory"),
        Pair(prefill="e2", decode="e1", ok=True),
    )
    links = (LinkSnapshot(producer="e0", consumer="e1", handoffs_s=4.0, bytes_s=2e9, slowdown=1.6),)
    snapshot = msgspec.structs.replace(made.busy(0), pairs=pairs, links=links)
    first, second = engine_parts.handoffs(snapshot.engines[0], snapshot).rows
    assert (first.way, first.peer, first.rate, first.slow, first.tested) == (
        "to",
        "e1",
        "4.0",
        True,
        "works, seen 3\u00a0s ago",
    )
    assert (second.way, second.peer, second.tone, second.tested) == ("from", "e1", "bad", "broken, not used: no memory")


def test_orders_say_what_nobody_would_do_then() -> None:
    snapshot = made.busy(0)
    said = {one.label: one for one in engine_orders.orders(snapshot.engines[0], snapshot).orders}
    assert set(said) == {"Use it for decode…", "Use it for prefill and decode…", "Drain…", "Restart…"}
    refused = "No other engine prefills: this is refused unless it is forced, from the command line or the API."
    assert said["Use it for decode…"].what.endswith(refused)
    assert "No other" not in said["Use it for prefill and decode…"].what
    assert said["Drain…"].what.endswith(refused)
    whole = "No other engine prefills: until it is ready again, the others do the whole of each request."
    assert whole in said["Restart…"].what, "that is soon over, and not refused"
    alone = made.node((made.engine("e0", Role.BOTH),), 0)
    [restart] = [one for one in engine_orders.orders(alone.engines[0], alone).orders if one.label == "Restart…"]
    assert "No other engine prefills or decodes: until it is ready again, requests are refused." in restart.what
    order = msgspec.json.decode(said["Use it for decode…"].order, type=Order)
    assert (order.engine, order.role) == ("e0", Role.DECODE)
    large = made.large(0)
    assert not any("No other" in one.what for one in engine_orders.orders(large.engines[0], large).orders)


@pytest.mark.parametrize(
    ("state", "labels"),
    [
        (EngineState.DRAINING, {"Resume…", "Restart…"}),
        (EngineState.FAILED, {"Resume…"}),
        (EngineState.STARTING, set()),
    ],
)
def test_only_orders_that_mean_something_now(state: EngineState, labels: set[str]) -> None:
    one = made.engine("e0", state=state)
    snapshot = made.node((one,), 0)
    found = {order.label for order in engine_orders.orders(one, snapshot).orders}
    assert {label for label in found if not label.startswith("Use")} == labels


LINES = [
    "--- life 1 of e0 ---",
    "INFO 11-26 it begins",
    "(EngineCore pid=7) WARNING 11-26 it is late",
    "ERROR 11-26 it broke",
    "Traceback (most recent call last):",
    "  ValueError: INFO is no level here, so far from the line's beginning" + " " * 80 + "INFO",
    "INFO 11-26 it goes on",
]


def test_lines_without_a_level_belong_to_the_one_before() -> None:
    found = [level for level, _ in engine_log.levels([*LINES[:5], LINES[6]])]
    assert found == ["info", "info", "warning", "error", "error", "info"]


def test_a_log_by_level_and_by_what_is_in_it() -> None:
    assert [line.level for line in engine_log.log(LINES[:5], "warning").lines] == ["warning", "error", "error"]
    assert [line.text for line in engine_log.log(LINES, containing="GOES ON").lines] == [LINES[6]]
    assert engine_log.log(LINES, "error", "nothing like it").said == "None of 7 lines."
    assert len(engine_log.log(["x" * 65536]).lines[0].text) == 2001, "the whole of it is in the log as text"
    assert engine_log.log([]).said == "It has said nothing yet."


def test_of_a_long_log_the_last_lines_that_fit_are_shown() -> None:
    found = engine_log.log([f"INFO {n}" for n in range(2000)])
    assert (len(found.lines), found.lines[-1].text) == (engine_log.SHOWN, "INFO 1999")
    some = engine_log.log([f"INFO {n}" for n in range(2000)], containing="info")
    assert some.said == "2,000 of 2,000 lines, the last 150 are shown."


async def test_a_page_of_an_engine_that_is_not_there_names_those_that_are() -> None:
    page = EnginePage(FullNode("busy"), made.NoActions())
    with pytest.raises(RequestError, match="It has e0 and e1") as refused:
        page.view(Asked(names={"name": "e9"}))
    assert refused.value.status == 404
    with pytest.raises(RequestError, match="level must be one of"):
        page.view(Asked(names={"name": "e0"}, query={"level": "loud"}))


async def test_steps_are_drawn_every_two_seconds() -> None:
    node = FullNode("busy")
    asked: list[str] = []
    steps = node.steps
    node.steps = lambda *of: asked.append(of[0]) or steps(*of)  # type: ignore[func-returns-value, method-assign]
    view = EnginePage(node, made.NoActions()).view(Asked(names={"name": "e0"}))
    for tick in range(8):  # half a second each
        view.parts(made.busy(tick))
    assert asked == ["e0", "e0"]


def test_the_list_says_how_many_are_ready() -> None:
    said = {state: listed(made.STATES[state](0)) for state in ("busy", "failed", "loading", "bottleneck")}
    assert {state: (one.tone, one.sentence) for state, one in said.items()} == {
        "busy": ("ok", "2 engines, all ready."),
        "failed": ("bad", "1 of 2 engines is ready."),
        "loading": ("wait", "0 of 2 engines are ready."),
        "bottleneck": ("bad", "4 engines, all ready; e1 holds the node back."),
    }
    assert [row.held for row in listed(made.bottleneck(0)).rows] == [False, True, False, False]
