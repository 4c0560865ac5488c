"""The list of requests and the page of one, in a real browser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Served
from playwright.sync_api import Page, expect
from test_page import CONTRASTS

pytestmark = pytest.mark.browser
Opened = Callable[..., Page]
ROWS = "#request_rows tbody tr"
FAILED, ANSWERED, LEFT = (f"/requests/{number:032x}" for number in (71, 80, 70))


@pytest.mark.parametrize("path", ["/requests", ANSWERED, FAILED])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_themes(open_page: Opened, path: str, scheme: str) -> None:
    page = open_page("busy", path=path, color_scheme=scheme)
    assert page.evaluate(CONTRASTS) == []


@pytest.mark.parametrize("path", ["/requests", "/requests?show=failed", ANSWERED, FAILED])
def test_nothing_scrolls_sideways_on_the_narrowest_phone(open_page: Opened, path: str) -> None:
    page = open_page("busy", path=path, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("state", ["loading", "empty"])
def test_without_requests_it_says_what_will_stand_here(open_page: Opened, state: str) -> None:
    page = open_page(state, path="/requests")
    expect(page.locator("#request_rows")).to_contain_text("None yet.")


def test_filters_are_links_that_work_without_javascript(open_page: Opened) -> None:
    page = open_page("busy", live=False, path="/requests", java_script_enabled=False)
    expect(page.locator(ROWS)).to_have_count(50)
    page.get_by_role("link", name="failed").click()
    assert page.url.endswith("/requests?show=failed")
    assert page.locator(ROWS).count() > 3
    assert page.locator(ROWS).count() == page.locator(f"{ROWS}.tone-bad").count()
    expect(page.get_by_role("link", name="failed")).to_have_attribute("aria-current", "true")
    expect(page.get_by_role("button", name="Hold still")).to_be_hidden()


def test_new_ones_come_on_top_and_two_hundred_fit(open_page: Opened, served: Served) -> None:
    served.node.tick_s = 0.2
    page = open_page("busy", path="/requests?limit=200")
    assert page.locator(ROWS).count() > 100
    first = page.locator(ROWS).first.get_attribute("id")
    page.wait_for_function("first => document.querySelector('#request_rows tbody tr').id !== first", arg=first)
    assert page.locator(f"#{first}").count() == 1  # it has moved down


def test_held_still_it_stands_until_it_is_let_go(open_page: Opened, served: Served) -> None:
    served.node.tick_s = 0.2
    page = open_page("busy", path="/requests")
    page.get_by_role("button", name="Hold still").click()
    held = page.locator("tbody tr:visible").first.inner_text()
    newest = page.locator(ROWS).first.get_attribute("id")
    page.wait_for_function("first => document.querySelector('#request_rows tbody tr').id !== first", arg=newest)
    assert page.locator("tbody tr:visible").first.inner_text() == held
    expect(page.locator("#held")).to_contain_text("Held still since")
    page.get_by_role("button", name="Go on").press("Enter")
    assert page.locator("tbody tr:visible").first.inner_text() != held
    expect(page.locator("#request_rows")).to_be_visible()


def test_a_row_leads_to_its_request_and_back(open_page: Opened) -> None:
    page = open_page("busy", path="/requests?show=failed")
    page.locator(f'a[href="{FAILED}"]').focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("Failed (502) after")
    expect(page.locator("#request_head")).to_contain_text("connection reset before the first byte")
    page.get_by_role("link", name="Requests").first.click()
    expect(page.locator("h1")).to_have_text("Requests")


def test_one_request_says_what_held_it_up_where_and_how_its_answer_left(open_page: Opened) -> None:
    page = open_page("busy", path=ANSWERED)
    expect(page.locator("h1")).to_contain_text("First token after")
    expect(page.locator("#request_head .sentence")).to_contain_text("Nothing held it up")
    assert page.locator(".way > span:first-child").all_inner_texts()[1:] == ["queue", "e0", "e0 → e1", "e1"]
    expect(page.get_by_role("img", name="96 pieces of the answer")).to_be_visible()
    expect(page.locator("#request_facts")).to_contain_text("1.8 MB in 12 copies")
    page.get_by_role("region", name="Table of legs").get_by_role("link", name="e1").click()
    expect(page.locator("h1")).to_contain_text("e1 ready")


def test_one_request_is_whole_without_javascript(open_page: Opened) -> None:
    page = open_page("busy", live=False, path=LEFT, java_script_enabled=False)
    expect(page.locator("h1")).to_contain_text("Cancelled after")
    expect(page.get_by_role("region", name="Table of stages").locator("tbody tr")).to_have_count(3)


def test_a_request_that_is_no_longer_kept_is_said_in_the_frame(open_page: Opened, complaints: list[str]) -> None:
    page = open_page("busy", live=False, path="/requests/none")
    expect(page.locator("main")).to_contain_text("There is no request 'none', or it is no longer kept.")
    complaints.clear()
