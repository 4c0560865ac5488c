"""Who follows which pages: what is shared between viewers, what is made again with a tick, and what is not."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from appliance.cli.why import explained_by
from appliance.errors import RequestError
from appliance.records import NodeSnapshot
from appliance.remedies.apply import Remedies
from web import views
from web.app import create_app
from web.engines import EnginePage, Engines
from web.request_list import RequestList
from web.request_page import RequestPage
from web.request_rows import RowsContext
from web.stream import Render
from web.views import Asked

sys.path.append(str(Path(__file__).parents[1] / "browser"))
import page_kept as kept
import page_states as made
from made_up import FullNode
from page_states import OVERVIEW

CONNECT = re.compile(r'hx-sse:connect="([^"]+)"')


async def sent(render: Render, snapshot: NodeSnapshot) -> Mapping[str, bytes]:
    found = render(snapshot)
    return await found if isinstance(found, Awaitable) else found


def later(snapshot: NodeSnapshot, seconds: float) -> NodeSnapshot:
    return msgspec.structs.replace(snapshot, time=snapshot.time + seconds)


# ---- shared


@pytest.fixture
def client() -> TestClient:
    node = FullNode("bottleneck")
    site = create_app(
        inference=None,  # type: ignore[arg-type]
        node=node,
        actions=Remedies(node, node.latest),
        incidents=kept.FakeIncidents(),
        max_body_bytes=1000,
        max_held_bytes=10_000,
        metrics=lambda snapshot: b"",
        bound_to="0.0.0.0",
    )
    return TestClient(site)


@pytest.mark.parametrize(
    ("page", "stream"),
    [
        ("/", "/live/"),
        ("/?last=24h", "/live/"),
        ("/?from=1700000000&to=1700000500&by=mail", "/live/"),
        ("/engines?any=1", "/live/engines"),
        ("/engines/e1?find=a%26b&level=error&x=1", "/live/engines/e1?level=error&amp;find=a%26b"),
        ("/requests?limit=200&show=slow&theme=dark", "/live/requests?show=slow&amp;limit=200"),
        ("/requests?engine=", "/live/requests"),
        (f"/incidents/{kept.OPEN.id}?at=742", f"/live/incidents/{kept.OPEN.id}"),
        ("/incidents?state=open", "/live/incidents?state=open"),
    ],
)
def test_what_live_parts_do_not_depend_on_makes_no_stream_of_its_own(
    client: TestClient, page: str, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.assets.vendor_present", lambda: True)
    found = CONNECT.search(client.get(page).text)
    assert found is not None
    assert found[1] == stream


def test_a_part_that_has_not_changed_or_is_on_two_pages_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    compact = views.compact

    def counted(name: str, context: Any) -> str:
        rendered.append(name)
        return compact(name, context)

    monkeypatch.setattr(views, "compact", counted)
    views._partials.clear()
    snapshot = made.large(0)
    overview, engines = OVERVIEW.view(Asked()), Engines().view(Asked())
    first = views.fragments(overview, snapshot)
    assert sorted(rendered) == sorted(set(first) - {"sample"})
    rendered.clear()
    assert views.fragments(overview, snapshot) == first
    assert views.fragments(engines, snapshot)["gpus"] == first["gpus"]
    assert rendered == ["engine_list"]
    views.fragments(overview, msgspec.structs.replace(snapshot, model="another"))
    assert rendered == ["engine_list", "headline"]


def test_rows_of_requests_are_the_same_on_both_pages_that_have_some() -> None:
    snapshot, node = made.busy(0), FullNode("busy")
    few = OVERVIEW.view(Asked()).parts(snapshot)["request_rows"]
    many = RequestList(node).view(Asked()).parts(snapshot)["request_rows"]
    assert isinstance(few, RowsContext) and isinstance(many, RowsContext)
    assert (few.sentence, few.rows.count("<tr")) == (None, 6)
    assert (many.sentence, many.rows.count("<tr")) == ("101 requests kept; the newest 50 are shown", 50)


def test_the_library_for_charts_comes_with_pages_that_have_some(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.assets.vendor_present", lambda: True)
    with_charts = {path: "uPlot" in client.get(path).text for path in ("/engines/e0", "/engines", "/kv", "/requests")}
    assert with_charts == {"/engines/e0": True, "/engines": False, "/kv": False, "/requests": False}


# ---- remembered while somebody follows


async def test_what_takes_a_while_is_not_made_with_every_tick() -> None:
    node, asked = FullNode("busy"), []
    timelines, steps = node.timelines, node.steps
    node.timelines = lambda limit: asked.append("requests") or timelines(limit)  # type: ignore[func-returns-value, method-assign]
    node.steps = lambda *of: asked.append("steps") or steps(*of)  # type: ignore[func-returns-value, method-assign]
    pages = {"requests": RequestList(node), "steps": EnginePage(node, Remedies(node, node.latest))}
    for (name, page), times in zip(pages.items(), (3, 2), strict=True):
        render = await views.followed(page, Asked(names={"name": "e0"}, following=True))
        asked.clear()
        snapshot = node.latest()
        for tick in range(6):
            await sent(render, later(snapshot, tick / 2))
        assert asked == [name] * times


async def test_a_request_that_is_over_is_not_explained_again() -> None:
    node, asked = FullNode("busy"), []
    known = node.timelines(40)[39]

    def explain(*of: Any) -> Any:
        asked.append(1)
        return explained_by(*of)

    render = await views.followed(RequestPage(node, explain), Asked(names={"id": known.id}, following=True))
    snapshot = msgspec.structs.replace(node.latest(), time=known.arrived + 60)
    node.timeline = lambda id: None  # type: ignore[method-assign]  # and it is forgotten
    for tick in range(10):
        await sent(render, later(snapshot, 2 * tick))
    assert asked == [1]


async def test_who_follows_an_engine_that_goes_is_let_go() -> None:
    node = FullNode("busy")
    page = EnginePage(node, Remedies(node, node.latest))
    render = await views.followed(page, Asked(names={"name": "e1"}, following=True))
    snapshot = node.latest()
    await sent(render, snapshot)
    with pytest.raises(RequestError, match="no engine 'e1'"):
        await sent(render, msgspec.structs.replace(snapshot, engines=snapshot.engines[:1]))


@pytest.mark.parametrize("names", [{"name": "none"}, {"name": "e0"}])
async def test_what_is_not_there_or_not_understood_is_not_followed(names: dict[str, str]) -> None:
    page = EnginePage(FullNode("busy"), Remedies(node := FullNode("busy"), node.latest))
    with pytest.raises(RequestError):
        await views.followed(page, Asked(names=names, query={"level": "odd"}, following=True))
