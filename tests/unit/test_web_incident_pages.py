"""Pages of incidents: what is on top, what is on the axis, and what was seen at a moment."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sys
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from starlette.testclient import TestClient

from appliance.errors import RequestError
from appliance.records import IncidentState, Moment, NodeSnapshot, Order, OrderKind, Remedy, Said
from appliance.remedies.apply import Remedies
from web import incident_axis, incident_list, incident_page, views
from web.fresh import Fresh
from web.stream import Render
from web.times import Span, offset
from web.views import Asked

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_kept as kept
import page_states as made
from demo_server import Demo

NOW = kept.NOON


def client() -> TestClient:
    return TestClient(Demo(made.FakeNode("bottleneck")), base_url="http://localhost")


def shown(query: dict[str, str]) -> tuple[incident_list.IncidentSummaryContext, incident_list.IncidentListContext]:
    page = incident_list.IncidentList(kept.FakeIncidents())
    parts = asyncio.run(views.of(page, Asked(query=query))).parts(made.large(0))
    return parts["incident_summary"], parts["incident_list"]  # type: ignore[return-value]


def test_what_is_open_is_on_top_and_said_first() -> None:
    older = replace(kept.OPEN, id="231113-0100", opened=NOW - 90_000, engine="e0")
    page = incident_list.IncidentList(kept.FakeIncidents(kept.LINK, older))
    parts = asyncio.run(views.of(page, Asked())).parts(made.large(0))
    listed, brief = parts["incident_list"], parts["incident_summary"]
    assert isinstance(listed, incident_list.IncidentListContext) and isinstance(
        brief, incident_list.IncidentSummaryContext
    )
    assert [(row.id, row.open) for row in listed.rows] == [(older.id, True), (kept.LINK.id, False)]
    assert (brief.tone, brief.sentence) == ("bad", "1 incident is open: slow GPU on e0.")


def test_none_open_says_how_long_ago_the_last_one_ended() -> None:
    brief = incident_list.summary([kept.CLOSED, kept.LINK], NOW, filtered=False, kept=True)
    assert (brief.tone, brief.sentence) == ("ok", "No incident is open. The last one ended 41\u00a0min ago.")
    assert incident_list.summary([], NOW, filtered=False, kept=True).sentence == "No incident so far."
    assert incident_list.summary([], NOW, filtered=True, kept=True).sentence == "No incident is like these."


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, [kept.OPEN.id, kept.LINK.id, kept.CLOSED.id]),
        ({"state": "closed"}, [kept.LINK.id, kept.CLOSED.id]),
        ({"engine": "e0 → e3"}, [kept.LINK.id]),
        ({"engine": "e2", "state": "open"}, []),
        ({"cause": "engine_crashed"}, [kept.CLOSED.id]),
        ({"cause": ""}, [kept.OPEN.id, kept.LINK.id, kept.CLOSED.id]),
    ],
)
def test_filters_narrow_it_down(query: dict[str, str], ids: list[str]) -> None:
    brief, listed = shown(query)
    assert [row.id for row in listed.rows] == ids
    assert sum(len(lane.bars) for lane in brief.lanes) == len(ids)


def test_a_filters_links_keep_the_other_filters() -> None:
    found = incident_list.filters([kept.OPEN, kept.LINK, kept.CLOSED], {"state": "closed"})
    engines = next(one for one in found if one.label == "Engine")
    assert [option.href for option in engines.choices][:2] == [
        "/incidents?state=closed",
        "/incidents?state=closed&engine=e0+%E2%86%92+e3",
    ]
    state = next(one for one in found if one.label == "State")
    assert [(option.label, option.here) for option in state.choices] == [
        ("all", False),
        ("over", True),
        ("open", False),
    ]


def test_the_worse_the_higher_and_the_shortest_is_still_seen() -> None:
    short = replace(kept.CLOSED, opened=NOW - 5000, closed=NOW - 4999.9, severity=0.0, engine="e1")
    brief = incident_list.summary([kept.CLOSED, short], NOW, filtered=False, kept=True)
    [second, first] = [lane.bars[0] for lane in brief.lanes]
    assert (first.x, second.height, first.height) == ("0.00%", "25%", "41%")
    assert second.width == "0.40%"


def test_places_beyond_the_twelfth_lane_share_one() -> None:
    many = [replace(kept.CLOSED, id=str(n), engine=f"e{n:02}") for n in range(20)]
    lanes = incident_list.summary(many, NOW, filtered=False, kept=True).lanes
    assert [len(lane.bars) for lane in lanes] == [1] * 11 + [9]
    assert lanes[-1].label == "others"


# ---- one of them


def test_verdicts_stand_until_the_next_one_and_the_last_until_the_end() -> None:
    over = Span(kept.CLOSED.opened, kept.CLOSED.opened + 360)
    found = incident_axis.axis(kept.CLOSED, (), (), over).verdicts
    assert [(one.x, one.width, one.tone) for one in found] == [
        ("0.00%", "8.33%", "bad"),
        ("8.33%", "41.67%", "ok"),
    ]
    assert [one.label for one in found] == [None, "no bottleneck"], "words only where there is room"


def test_curves_break_off_where_nothing_is_known() -> None:
    moments = asyncio.run(kept.FakeIncidents().moments(kept.OPEN.id, 999)) or ()
    gap = [replace(one, ttft_s=None) if 20 <= n < 30 else one for n, one in enumerate(moments)]
    over = incident_axis.span(kept.OPEN, gap, NOW)
    curves = {one.label: one for one in incident_axis.axis(kept.OPEN, gap, (), over).curves}
    assert curves["TTFT, mean"].line.count("M") == 2
    assert curves["queue"].line.count("M") == 1
    assert curves["TTFT, mean"].target_y is not None
    none = [replace(one, output_tokens_s=None) for one in moments]
    assert "output tokens/s" not in {one.label for one in incident_axis.axis(kept.OPEN, none, (), over).curves}


def test_everything_that_happened_is_told_in_its_order() -> None:
    given = Remedy(
        id="r1",
        time=NOW - 90,
        by="page",
        order=Order(kind=OrderKind.DRAIN, engine="e1"),
        sentence="e1 takes no new work.",
        brought="late first tokens: 62% → 4%",
    )
    late, early = replace(given, id="r2", time=NOW + 900), replace(given, id="r0", time=NOW - 2000)
    remedies = incident_page.meanwhile([late, given, early], kept.OPEN, NOW)
    moments = asyncio.run(kept.FakeIncidents().moments(kept.OPEN.id, 999)) or ()
    over = incident_axis.span(kept.OPEN, moments, NOW)
    found = incident_axis.events(kept.OPEN, moments, remedies, over).events
    assert [(one.offset, one.kind) for one in found] == [
        ("−1\u00a0min", "changed"),
        ("+0\u00a0s", "said"),
        ("+44\u00a0s", "traffic"),
        ("+50\u00a0s", "remedy, by page"),
    ]
    assert found[3].sentence == "e1 takes no new work. It brought: late first tokens: 62% → 4%."
    assert found[1].at == 1000 - 140
    assert {one.at for one in incident_axis.events(kept.OPEN, (), remedies, over).events} == {None}, (
        "nothing of it was kept"
    )


def test_the_moment_that_is_shown_first_is_the_one_at_which_the_cause_was_named() -> None:
    page = client().get(f"/incidents/{kept.OPEN.id}").text
    assert f"/incidents/{kept.OPEN.id}?at={1000 - 140 - 2:.1f}#seen" in page, "earlier"
    assert "Bottleneck: slow GPU on e1" in page
    before = client().get(f"/incidents/{kept.OPEN.id}?at=801").text
    assert "No bottleneck." in before


def test_one_moment_is_a_part_of_its_own() -> None:
    part = client().get(f"/incidents/{kept.OPEN.id}/seen?at=900")
    assert (part.status_code, part.headers["cache-control"]) == (200, "no-store")
    assert "<html" not in part.text
    assert "data-order" not in part.text, "what was to be done then is not to be done now"
    assert 'class="card' in part.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/incidents/none/seen?at=1", 404),
        ("/live/incidents/none", 404),
        (f"/incidents/{kept.OPEN.id}/seen", 400),
        ("/api/incidents/none/frames", 404),
        ("/api/incidents/none/frames/1.0", 404),
        (f"/api/incidents/{kept.OPEN.id}/frames?limit=0", 400),
        (f"/api/incidents/{kept.CLOSED.id}/frames/7", 404),
    ],
)
def test_what_is_not_there_is_said(path: str, status: int) -> None:
    answer = client().get(path)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


@pytest.mark.parametrize(
    ("path", "status"), [("none", 404), (f"{kept.OPEN.id}?at=noon", 400), (f"{kept.OPEN.id}?at=nan", 400)]
)
def test_a_page_that_is_not_there_is_said_in_the_pages_frame(path: str, status: int) -> None:
    answer = client().get(f"/incidents/{path}")
    assert (answer.status_code, "</html>" in answer.text) == (status, True)


def test_moments_and_snapshots_in_the_api() -> None:
    moments = client().get(f"/api/incidents/{kept.OPEN.id}/frames").json()
    assert moments[0]["uptime_s"] == 740
    assert moments[-1]["cause"] == "prefill_straggler_gpu"
    assert client().get(f"/api/incidents/{kept.OPEN.id}/frames/900").json()["uptime_s"] == 900


def test_an_incident_without_snapshots_is_whole_all_the_same() -> None:
    page = client().get(f"/incidents/{kept.CLOSED.id}").text
    assert "Incident: e2 has ended" in page
    assert "No snapshots of it are kept" in page
    assert 'id="steps-by" class="steps-by" hidden' in page
    assert "data-at" not in page


def test_a_cause_that_nobody_knows_and_text_of_others_are_shown_as_they_are() -> None:
    odd = replace(kept.CLOSED, cause=None, engine=None, verdicts=(Said(time=NOW, state="unknown", summary="<b>&"),))
    facts = incident_page.facts(odd, NOW)
    assert (facts.what, facts.open) == ("no cause found", False)
    assert incident_page.facts(replace(odd, state=IncidentState.OPEN, closed=None), NOW).when.startswith("since ")
    axis = incident_axis.axis(odd, (), (), Span(NOW - 10, NOW + 10))
    assert axis.verdicts[0].title == "no cause found: <b>&"


# ---- small parts


def test_offsets_are_of_whole_seconds() -> None:
    assert (offset(10.0, 22.4), offset(95.0, 10.0)) == ("−12\u00a0s", "+1\u00a0min 25\u00a0s")


@pytest.mark.parametrize("length_s", [5, 30, 400, 4000, 90_000, 3_000_000])
def test_an_axis_has_a_few_round_moments(length_s: float) -> None:
    ticks = Span(NOW - length_s, NOW).ticks()
    assert 1 <= len(ticks) <= 7
    assert len({tick.label for tick in ticks}) == len(ticks)


async def test_many_askers_share_an_answer_until_it_is_old() -> None:
    asked, now = [], [0.0]

    async def ask(key: str) -> int:
        asked.append(key)
        if key == "bad":
            raise RequestError(404, "no")
        return len(asked)

    fresh = Fresh(ask, 2.0, most=2, clock=lambda: now[0])
    assert await asyncio.gather(*(fresh.get("a") for _ in range(5))) == [1] * 5
    now[0] = 2.5
    assert await fresh.get("a") == 2
    for key in ("b", "c", "a"):
        await fresh.get(key)
    assert asked == ["a", "a", "b", "c", "a"], "the oldest was forgotten"
    for _ in range(2):
        with pytest.raises(RequestError):
            await fresh.get("bad")
    assert asked[-2:] == ["bad", "bad"], "a refusal is not kept"


async def test_what_takes_long_is_asked_for_less_often() -> None:
    asked, now = [], [0.0]

    async def ask(key: str) -> int:
        asked.append(now[0])
        now[0] += 0.5
        return len(asked)

    fresh = Fresh(ask, 2.0, clock=lambda: now[0])
    while now[0] < 21:
        await fresh.get("a")
        now[0] += 0.25
    assert asked == [0.0, 10.5], "half a second of every ten"


def test_moments_are_given_to_the_slider_as_json() -> None:
    moments = asyncio.run(kept.FakeIncidents().moments(kept.OPEN.id, 999)) or ()
    over = incident_axis.span(kept.OPEN, moments, NOW)
    row = json.loads(incident_axis.axis(kept.OPEN, moments, (), over).moments)
    assert row[0][:2] == [740, 0.0]
    assert (row[-1][0], row[-1][1]) == (1000, 100.0)
    first, last = (incident_page.scrub(kept.OPEN, moments, index, over) for index in (0, len(moments) - 1))
    assert (first.at, first.earlier, first.later) == (740, None, 742)
    assert (last.at, last.earlier, last.later) == (1000, 998, None)


@pytest.mark.parametrize(("at", "earlier", "later"), [(740, None, 742.0), (1000, 998.0, None), (5, None, 742.0)])
def test_beyond_the_first_and_the_last_moment_no_link_leads(
    at: float, earlier: float | None, later: float | None
) -> None:
    page = client().get(f"/incidents/{kept.OPEN.id}?at={at}").text
    for name, moment in (("earlier", earlier), ("later", later)):
        [link] = re.findall(f'<a id="{name}"[^>]*>', page)
        expected = [] if moment is None else [f"/incidents/{kept.OPEN.id}?at={moment}#seen"]
        assert re.findall('href="([^"]*)"', link) == expected


# ---- while it goes on


class Going(kept.FakeIncidents):
    """The open one, on a node with a clock of its own; counts how often what was seen is read."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.read = NOW, 0
        self.node = made.FakeNode("bottleneck")
        self.node.latest = self.snapshot  # type: ignore[method-assign]
        self.page = incident_page.IncidentPage(self.node, self, Remedies(self.node, self.snapshot))
        for fresh in (self.page._latest, self.page._courses):
            fresh._clock = lambda: self.now

    def snapshot(self) -> NodeSnapshot:
        return replace(made.bottleneck(0), time=self.now)

    async def moments(self, id: str, limit: int) -> Sequence[Moment] | None:
        self.read += 1
        seen = [replace(one, time=self.now - 10 + n, uptime_s=self.now - NOW + n) for n, one in enumerate(_THREE)]
        return seen if self.now > NOW - 1 else []


_THREE = [Moment(time=0.0, uptime_s=0.0, state="bottleneck", queue=n) for n in range(3)]


async def sent(render: Render, snapshot: NodeSnapshot) -> Mapping[str, bytes]:
    found = render(snapshot)
    return await found if isinstance(found, Awaitable) else found


async def test_the_axis_of_an_open_incident_follows_and_its_reading_is_shared() -> None:
    going = Going()
    asked = Asked(names={"id": kept.OPEN.id}, following=True)
    one, other = [await views.followed(going.page, asked) for _ in range(2)]
    first = await sent(one, going.snapshot())
    going.now += 4
    assert (await sent(other, going.snapshot()))["incident_axis"] == first["incident_axis"]
    assert going.read == 1
    going.now += 7
    later = await sent(one, going.snapshot())
    assert later["incident_axis"] != first["incident_axis"]
    assert "[13.0, 100.0, " in html.unescape(later["incident_axis"].decode()), "what was seen since is on it"
    assert going.read == 2


async def test_what_is_over_is_drawn_to_its_end_and_not_read_again_and_again() -> None:
    going = Going()
    asked = Asked(names={"id": kept.OPEN.id}, following=True)
    going.kept[0] = replace(kept.OPEN, closed=NOW + 1, state=IncidentState.CLOSED)
    render = await views.followed(going.page, asked)
    going.now += 20
    assert b'class="edge"' in (await sent(render, going.snapshot()))["incident_axis"]
    going.now += 300
    read = going.read
    assert "incident_axis" not in await sent(render, going.snapshot())
    assert going.read == read
    view = await views.of(going.page, Asked(names=asked.names))
    assert "incident_axis" in view.parts(going.snapshot()), "who comes sees all of it"


async def test_an_incident_of_which_nothing_is_kept_yet_has_a_slider_for_what_comes() -> None:
    going = Going()
    going.now = NOW - 5
    view = await views.of(going.page, Asked(names={"id": kept.OPEN.id}))
    page = views.paint(going.page, view, going.snapshot(), None)
    assert "No snapshot of it is kept yet." in page
    assert 'id="scrub"' in page
    assert "data-at" not in page
