"""The charts of a day that was: asked for, zoomed and moved through, shared by their address, and kept up with what comes."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import page_history as past
import page_states as made
import pytest
from conftest import Served
from demo_server import Demo
from msgspec.structs import replace
from playwright.sync_api import Page, Route, expect

pytestmark = pytest.mark.browser
Opened = Callable[..., Page]

HOUR = past.HOUR
NOW = made.NOON + 3600


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day's history, to be read by several."""
    directory = tmp_path_factory.mktemp("state")
    past.write(directory, NOW, hours=25, apart_s=60)
    return directory


@pytest.fixture
def served(day: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A node that goes on from there."""
    monkeypatch.setattr(made, "NOON", NOW)
    history = past.history(day, NOW, tick_s=30)
    server = Served(lambda node: Demo(node, history, past.Marks(NOW)))
    server.start()
    yield server
    server.close()
    closing = threading.Thread(target=lambda: asyncio.run(history.close()))  # playwright has this thread's loop
    closing.start()
    closing.join()


@pytest.fixture
def charts(open_page: Opened, served: Served) -> Callable[..., Page]:
    """Opens the page at a range, and waits until it is drawn."""

    def opened(query: str = "", **options: object) -> Page:
        page = open_page("idle", **options)
        page.goto(f"{served.url}/{query}")
        drawn(page)
        return page

    return opened


def drawn(page: Page) -> None:
    expect(page.locator("#charts canvas")).to_have_count(6)
    expect(page.locator("#charts-range")).not_to_be_empty()


def range_of(page: Page) -> tuple[float, float]:
    query = parse_qs(urlsplit(page.url).query)
    return float(query["from"][0]), float(query["to"][0])


def press(page: Page, *keys: str) -> None:
    page.locator("#charts-plots").focus()
    for key in keys:
        page.keyboard.press(key)


def test_a_reload_shows_the_same_time_again(charts: Callable[..., Page]) -> None:
    page = charts("?last=24h")
    expect(page.get_by_role("button", name="24 h")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#charts-range")).to_contain_text("the last 24 h")
    expect(page.locator('[data-series="prompt_tokens_s"] b')).not_to_have_text("—")
    page.reload()
    drawn(page)
    expect(page.locator("#charts-range")).to_contain_text("the last 24 h")


def test_ranges_stand_in_the_address_and_back_goes_back(charts: Callable[..., Page]) -> None:
    page = charts()
    expect(page.locator("#charts-range")).to_contain_text("the last 1 h")
    page.get_by_role("button", name="6 h").click()
    page.get_by_role("button", name="7 d").click()
    expect(page).to_have_url(re.compile(r"\?last=7d$"))
    page.go_back()
    expect(page).to_have_url(re.compile(r"\?last=6h$"))
    expect(page.locator("#charts-range")).to_contain_text("the last 6 h")


def test_an_address_with_times_is_that_time_and_stays_it(charts: Callable[..., Page], served: Served) -> None:
    page = charts(f"?from={NOW - 5 * HOUR:.0f}&to={NOW - 2 * HOUR:.0f}")
    expect(page.locator(".spell")).to_have_count(1)
    said = page.locator("#charts-range").text_content()
    page.wait_for_timeout(700)
    assert page.locator("#charts-range").text_content() == said
    expect(page.locator('[data-last][aria-pressed="true"]')).to_have_count(0)


@pytest.mark.parametrize("nonsense", ["?last=soon", "?from=5&to=2", "?from=x", "?last=-3h"])
def test_an_address_that_makes_no_sense_is_the_last_hour(charts: Callable[..., Page], nonsense: str) -> None:
    expect(charts(nonsense).locator("#charts-range")).to_contain_text("the last 1 h")


def test_a_drag_zooms_in_on_all_charts_and_a_double_click_goes_back(charts: Callable[..., Page]) -> None:
    page = charts("?last=24h")
    page.locator('[data-chart="itl"]').scroll_into_view_if_needed()
    box = page.locator('[data-chart="itl"] .u-over').bounding_box()
    assert box is not None
    left, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2
    page.mouse.move(left, y)
    page.mouse.down()
    page.mouse.move(left + box["width"] * 0.25, y, steps=4)
    page.mouse.up()
    expect(page).to_have_url(re.compile("from="))
    since, until = range_of(page)
    assert until - since == pytest.approx(6 * HOUR, rel=0.03)
    assert since == pytest.approx(NOW - 18 * HOUR, abs=0.5 * HOUR)
    page.mouse.dblclick(left, y)
    expect(page).to_have_url(re.compile(r"last=24h$"))


def test_the_keyboard_moves_and_zooms(charts: Callable[..., Page]) -> None:
    page = charts("?last=6h")
    press(page, "ArrowLeft")
    since, until = range_of(page)
    assert (until - since, NOW - until) == (pytest.approx(6 * HOUR, abs=2), pytest.approx(1.5 * HOUR, abs=120))
    press(page, "+")
    assert (lambda now: now[1] - now[0])(range_of(page)) == pytest.approx(3 * HOUR, abs=2)
    press(page, "-", "ArrowRight", "ArrowRight")
    expect(page).to_have_url(re.compile("last=6h"))
    press(page, "-", "End")
    expect(page).to_have_url(re.compile("last=12h"))
    press(page, "Escape", "Escape")
    expect(page).to_have_url(re.compile("last=6h"))


def test_what_happened_is_told_at_its_time_and_as_a_list(charts: Callable[..., Page]) -> None:
    page = charts("?last=24h")
    lane = page.locator("#charts-lane")
    expect(lane.locator("button")).to_have_text(["2", "▾", "▾"])  # those that would lie on each other share a mark
    expect(lane.locator("a")).to_have_attribute("href", "/incidents/261126-0900")
    lane.locator("a").hover()
    expect(page.get_by_role("tooltip")).to_contain_text("More is asked than the node can do")
    last = lane.locator("[tabindex='0']")
    expect(last).to_have_count(1)
    last.focus()
    expect(page.get_by_role("tooltip")).to_contain_text("another weight")
    page.keyboard.press("ArrowLeft")
    expect(lane.locator("a")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#charts-tip")).to_be_hidden()
    page.locator("#charts-list summary").click()
    expect(page.locator("#charts-list li")).to_have_count(6)
    expect(page.locator("#charts-list li").last).to_contain_text("killed by the kernel")


def test_each_chart_is_told_in_words_and_in_a_table(charts: Callable[..., Page]) -> None:
    page = charts("?last=24h")
    for figure in page.locator("#charts figure").all():
        expect(figure.get_by_role("img")).to_have_attribute("aria-label", re.compile(r"newest .+, from .+ to "))
    page.locator("#charts-table summary").click()
    rows = page.locator("#charts-table tbody tr")
    expect(rows).to_have_count(page.locator("#charts [data-series]").count())
    late = rows.filter(has_text="Inter-token latency, late")
    assert [cell.text_content() for cell in late.locator("td").all()][1::2] == ["1 %", "31 %"]


def test_the_time_when_it_was_off_is_a_gap(charts: Callable[..., Page]) -> None:
    page = charts(f"?from={NOW - 12.45 * HOUR:.0f}&to={NOW - 12.05 * HOUR:.0f}")
    expect(page.locator("#charts-none")).to_have_text("Nothing was recorded in this time.")
    expect(page.locator('[data-series="queue_depth"] b')).to_have_text("—")


def test_live_values_go_on_from_what_was(charts: Callable[..., Page], served: Served) -> None:
    page = charts("?last=5m")
    served.node.show("busy")
    expect(page.locator('[data-series="queue_depth"] b')).to_have_text("2")
    page.evaluate(
        "window.asked = performance.getEntriesByType('resource').filter(one => one.name.includes('/api/history')).length"
    )
    page.wait_for_timeout(1500)
    again = "performance.getEntriesByType('resource').filter(one => one.name.includes('/api/history')).length"
    assert page.evaluate(f"{again} - window.asked") == 0, "the stream tells it"


def test_a_clock_that_is_set_back_leaves_no_chart_standing(charts: Callable[..., Page], served: Served) -> None:
    page = charts("?last=5m")
    latest = served.node.latest
    with page.expect_response("**/api/history**") as told:
        served.node.latest = lambda: replace(latest(), time=latest().time - HOUR)  # type: ignore[method-assign]
    assert told.value.json()["now"] == pytest.approx(latest().time - HOUR, abs=60)
    served.node.show("busy")
    expect(page.locator('[data-series="queue_depth"] b')).to_have_text("2")


def test_a_history_that_can_not_be_had_is_said(open_page: Opened, served: Served, complaints: list[str]) -> None:
    page = open_page("idle")
    page.route("**/api/history*", lambda route: refused(route))
    page.reload()
    expect(page.locator("#charts-none")).to_contain_text("The history can't be read: the disk is slow")
    assert all("503" in complaint for complaint in complaints)
    complaints.clear()


def refused(route: Route) -> None:
    route.fulfill(status=503, json={"error": {"message": "the disk is slow"}})


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_fit_and_can_be_read(charts: Callable[..., Page], width: int, scheme: str) -> None:
    from test_page import CONTRASTS

    page = charts("?last=24h", viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRASTS) == []


def test_another_theme_draws_in_other_inks(charts: Callable[..., Page]) -> None:
    page = charts("?last=24h", color_scheme="light")
    picture = "document.querySelector('[data-chart=itl] canvas').toDataURL()"
    light = page.evaluate(picture)
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme").click()
    page.wait_for_function(f"light => {picture} !== light", arg=light)
