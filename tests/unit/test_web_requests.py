"""The list of requests and its filters, and the page of one request."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from appliance.cli.why import explained_by
from appliance.errors import RequestError
from appliance.records import Pieces, Timeline
from web import request_answer, request_list, request_page
from web.request_list import RequestList, Wanted, chosen, rows
from web.request_page import RequestPage
from web.views import Asked

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_states as made
from made_up import FullNode

TARGET_S = 2.0
QUICK = made.timeline(1, (1, 2, 30, 1, 2, 1, 10))
LATE = made.timeline(2, (1900, 2, 300, 1, 2, 1, 10), prefill_engine="e2", route="/v1/completions")
FAILED = made.timeline(3, (1, 2, 30), outcome="failed", status=502, ttft_s=None, error="gone")
LEFT = made.timeline(4, (1, 2, 30), outcome="cancelled", ttft_s=None)
WAITS = made.timeline(5, (2500,), outcome="running", ttft_s=None, total_s=None, prefill_engine=None, decode_engine=None)
ALL = [WAITS, LEFT, FAILED, LATE, QUICK]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), ALL),
        (Wanted(show="slow"), [WAITS, LATE]),  # one that waits for longer than that already is slow, too
        (Wanted(show="failed"), [FAILED]),
        (Wanted(show="cancelled"), [LEFT]),
        (Wanted(show="running"), [WAITS]),
        (Wanted(engine="e2"), [LATE]),
        (Wanted(engine="e1", show="failed"), [FAILED]),
        (Wanted(route="/v1/completions"), [LATE]),
    ],
)
def test_filters(wanted: Wanted, found: list[Timeline]) -> None:
    assert chosen(ALL, wanted, TARGET_S) == found


def test_one_request_that_waited_for_a_minute_does_not_hide_the_others() -> None:
    many = [made.timeline(n, (1, 2, 30, 1, 2, 1, 10)) for n in range(99)]
    forever = made.timeline(100, (60_000, 2, 30))
    found = rows([forever, *many], Wanted(limit=200), made.busy(0))
    assert found.scale == "50\u00a0ms"
    assert found.rows.count("▸") == 1


def test_the_list_says_what_it_shows_of_how_many() -> None:
    snapshot = made.busy(0)
    assert rows(ALL, Wanted(), snapshot).sentence == "5 requests kept"
    assert rows(ALL, Wanted(show="slow"), snapshot).sentence == "2 slow (over 2\u00a0s to the first token), of 5 kept"
    assert (
        rows(ALL, Wanted(show="failed", engine="e9"), snapshot).empty
        == "None is like that now. Those that come will stand here."
    )
    assert (rows([], Wanted(), snapshot).empty or "").startswith("None yet.")


def test_a_query_that_means_nothing_is_refused_in_words() -> None:
    page = RequestList(FullNode("busy"))
    for query in ({"show": "odd"}, {"limit": "100000"}):
        with pytest.raises(RequestError, match="must be") as refused:
            page.view(Asked(query=query))
        assert refused.value.status == 400


def test_links_keep_the_other_choices() -> None:
    node = FullNode("busy")
    snapshot = node.latest()
    view = RequestList(node).view(Asked(query={"engine": "e1", "limit": "200"}))
    context = view.body(snapshot, {})
    assert isinstance(context, request_list.RequestListContext)
    choices = {choice.label: choice for group in context.groups for choice in group.choices}
    assert choices["slow"].href == "/requests?show=slow&engine=e1&limit=200"
    assert choices["e0"].href == "/requests?engine=e0&limit=200"
    assert choices["50"].href == "/requests?engine=e1"
    assert (choices["e1"].here, choices["any"].here, choices["all"].here) == (True, False, True)


def test_one_that_still_waits_for_its_first_token_says_for_how_long() -> None:
    found = rows([WAITS], Wanted(), made.busy(0)).rows
    assert "&gt; 2.50\u00a0s" in found
    assert "<b class" in found  # late already


def test_an_answer_that_comes_too_slowly_is_not_shown_as_well() -> None:
    slow = msgspec.structs.replace(QUICK, total_s=60.0)
    snapshot = made.busy(0)
    assert request_page.head(slow, explained_by(slow, ALL, snapshot), snapshot).tone == "warn"
    assert request_page.head(QUICK, explained_by(QUICK, ALL, snapshot), snapshot).tone == "ok"


def test_what_a_client_calls_its_request_is_text() -> None:
    odd = msgspec.structs.replace(FAILED, error="<script>alert(1)</script>")
    assert "<script>" not in rows([odd], Wanted(), made.busy(0)).rows


# ---- one request


def explained(timeline: Timeline) -> request_page.StagesContext:
    snapshot = made.busy(0)
    return request_page.stages(timeline, explained_by(timeline, ALL, snapshot), snapshot)


def test_each_place_that_it_was_at_has_a_lane_in_its_order() -> None:
    assert [way.label for way in explained(QUICK).ways] == ["queue", "e0", "e0 → e1", "e1"]
    whole = made.timeline(9, (1, 2, 30), split=False, decode_engine="e0")
    assert [way.label for way in explained(whole).ways] == ["queue", "e0"]
    assert [way.label for way in explained(WAITS).ways] == ["queue"]
    assert explained(WAITS).ways[0].href is None


def test_the_stage_that_held_it_up_is_marked() -> None:
    held = [stage.label for stage in explained(LATE).stages if stage.held]
    assert held == ["queue"]
    assert not any(stage.held for stage in explained(QUICK).stages)


def test_titles() -> None:
    snapshot = made.busy(0)
    titles = {one.id: request_page.head(one, None, snapshot).title for one in ALL}
    assert titles[QUICK.id] == "First token after 47\u00a0ms"
    assert titles[LATE.id] == "First token after 2.22\u00a0s, 216\u00a0ms late"
    assert titles[FAILED.id].startswith("Failed (502) after")
    assert titles[LEFT.id].startswith("Cancelled after")
    assert titles[WAITS.id] == "Has run for 2.50\u00a0s, without a token"


def test_pieces_are_stairs_that_end_when_it_ended() -> None:
    timeline = msgspec.structs.replace(QUICK, output_chunks=4, total_s=0.4, pieces=Pieces(every=2, after_s=(0.1, 0.2)))
    found = request_answer.tokens(timeline, None, made.busy(0))
    assert found.plot is not None
    drawn = {one.kind: one.d for one in found.plot.drawn}
    assert drawn["pieces"] == "M250.0 150.0H500.0V50.0H1000.0V0.0"  # the 1st, the 3rd, and all of them
    assert not found.whole


def test_an_answer_in_one_piece_has_no_pieces_to_be_drawn() -> None:
    once = msgspec.structs.replace(QUICK, stream=False)
    found = request_answer.tokens(once, None, made.busy(0))
    assert found.plot is None
    assert "in one piece" in found.why_not


def test_a_request_that_is_forgotten_while_somebody_looks_stays_as_it_was() -> None:
    node = FullNode("busy")
    known = node.timelines(20)[15]
    view = RequestPage(node, explained_by).view(Asked(names={"id": known.id}))
    snapshot = node.latest()
    before = view.parts(snapshot)
    node.timeline = lambda id: None  # type: ignore[method-assign]
    later = msgspec.structs.replace(snapshot, time=snapshot.time + 5)
    assert view.parts(later)["request_facts"] == before["request_facts"]


def test_some_time_after_its_end_nothing_is_looked_for_any_more() -> None:
    node, asked = FullNode("busy"), []
    known = node.timelines(40)[39]
    view = RequestPage(node, lambda *of: asked.append(1) or explained_by(*of)).view(Asked(names={"id": known.id}))  # type: ignore[func-returns-value]
    snapshot = node.latest()
    for seconds in range(5):
        view.parts(msgspec.structs.replace(snapshot, time=known.arrived + 60 + 2 * seconds))
    assert asked == [1]


def test_a_request_that_is_not_kept_is_a_404_in_words() -> None:
    with pytest.raises(RequestError, match="no longer kept") as refused:
        RequestPage(FullNode("busy"), None).view(Asked(names={"id": "none"}))
    assert refused.value.status == 404
