"""What axe-core finds, and what somebody hears and reaches who works without a picture or without a mouse."""

from __future__ import annotations

import re
from collections.abc import Callable

import page_kept as kept
import pytest
from axe import in_both_themes, violations
from conftest import Served
from playwright.sync_api import Page, expect

from web.views import PLACES

pytestmark = pytest.mark.browser
Opened = Callable[..., Page]

STATES = {"large": "Serving 21 requests", "bottleneck": "Bottleneck: slow GPU on e1", "failed": "Not serving: e1"}
ANSWERED, FAILED = (f"/requests/{number:032x}" for number in (80, 71))
PAGES = {path: tuple(STATES) for path in PLACES.values()} | {
    "/engines/e1": tuple(STATES),
    ANSWERED: ("large", "bottleneck"),  # a node that has failed keeps only what came last
    FAILED: ("large", "bottleneck"),
    f"/incidents/{kept.OPEN.id}": tuple(STATES),
}
ORDERS = {"/": "Do it…", "/plan": "Apply 2p2d@tp2", "/engines/e1": "Drain…"}
"""Buttons that ask first."""

UNFOLD = "document.querySelectorAll('details').forEach(one => one.open = true)"
# What a screen reader is told of a live region: its text, once for each time that it changes.
LISTEN = """() => {
  window.heard = [];
  for (const region of document.querySelectorAll('[role=status], [aria-live], output'))
    new MutationObserver(() => window.heard.push(region.textContent.trim()))
      .observe(region, {childList: true, characterData: true, subtree: true});
}"""
MOVING = """() => [...document.querySelectorAll('body, body *')].filter(one => {
  const style = getComputedStyle(one);
  return parseFloat(style.transitionDuration) > 0 || style.animationName !== 'none';
}).map(one => one.tagName)"""


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing(open_page: Opened, served: Served, path: str) -> None:
    served.node.tick_s = 0.3
    page = open_page(PAGES[path][0], path=path)
    whole(page, path)
    found = {}
    for state in PAGES[path]:
        served.node.show(state)
        expect(page.locator("#strip")).to_contain_text(STATES[state])
        page.evaluate(UNFOLD)
        found[state] = in_both_themes(page)
    assert found == {state: {} for state in PAGES[path]}


@pytest.mark.parametrize("path", ORDERS)
def test_axe_finds_nothing_in_a_dialog(open_page: Opened, path: str) -> None:
    page = open_page("bottleneck", path=path)
    page.get_by_role("button", name=ORDERS[path]).click()
    assert in_both_themes(page) == {}


def test_axe_finds_nothing_on_a_page_that_is_not_there(open_page: Opened, complaints: list[str]) -> None:
    page = open_page("bottleneck", live=False, path="/engines/e9")
    assert violations(page) == []
    assert all("404" in complaint for complaint in complaints)
    complaints.clear()


def test_what_is_stale_can_still_be_read(open_page: Opened, served: Served, complaints: list[str]) -> None:
    page = open_page("bottleneck")
    served.stop()
    expect(page.locator("#link")).to_have_text(re.compile(r"as it was at \d\d:\d\d:\d\d"), timeout=10_000)
    found = in_both_themes(page)
    page.close()
    served.start()
    complaints.clear()
    assert found == {}


def test_axe_would_find_something(open_page: Opened) -> None:
    page = open_page("bottleneck")
    page.locator("#diagnosis").evaluate("e => e.insertAdjacentHTML('beforeend', '<button></button>')")
    assert any(said.startswith("button-name") for said in violations(page))


# ---- heard


def test_a_verdict_is_heard_once_when_it_changes_and_not_with_each_tick(open_page: Opened, served: Served) -> None:
    page = open_page("large")
    page.evaluate(LISTEN)
    served.node.show("bottleneck")
    expect(page.locator("h1")).to_contain_text(STATES["bottleneck"])
    page.wait_for_timeout(800)  # eight more
    assert page.evaluate("window.heard") == ["The node serves requests. Bottleneck: slow GPU on e1."]


def test_a_dialog_says_what_it_asks_and_nothing_is_done_by_a_held_key(open_page: Opened, served: Served) -> None:
    page = open_page("bottleneck")
    opener = page.get_by_role("button", name="Do it…")
    opener.press("Enter")
    dialog = page.get_by_role("dialog", name="Do this now?")
    expect(dialog).to_have_accessible_description(re.compile("Give e1 less of the work"))
    page.keyboard.press("Enter")  # the key that opened it, repeating
    expect(dialog).to_be_visible()
    assert served.node.asked == []


def test_the_keyboard_stays_in_a_dialog_and_comes_back_from_it(open_page: Opened) -> None:
    page = open_page("bottleneck")
    opener = page.get_by_role("button", name="Do it…")
    opener.press("Enter")
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('dialog, body').tagName"))
        if reached[-1] == "DIALOG":
            assert page.evaluate("document.activeElement.matches(':focus-visible')")
    assert reached[:2] == ["DIALOG", "DIALOG"]
    outside = "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
    assert page.evaluate(outside)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(opener).to_be_focused()


def test_what_was_done_is_heard(open_page: Opened) -> None:
    page = open_page("bottleneck")
    page.evaluate(LISTEN)
    page.get_by_role("button", name="Do it…").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#given")).to_have_text("Done: e1's weight in routing: 1 → 0.53")
    assert page.evaluate("window.heard.at(-1)") == page.locator("#given").text_content()


def test_what_a_chart_is_said_to_show_keeps_up_with_it(open_page: Opened, served: Served) -> None:
    page = open_page("idle", path="/?last=5m")
    tokens = page.locator('[data-chart="tokens"]').get_by_role("img")
    expect(tokens).to_have_attribute("aria-label", re.compile("output: newest"))
    before = tokens.get_attribute("aria-label")
    served.node.show("large")
    expect(page.locator('[data-series="output_tokens_s"] b')).not_to_have_text("0")
    expect(tokens).not_to_have_attribute("aria-label", before or "")


def test_curves_that_have_come_are_not_said_to_be_busy(open_page: Opened) -> None:
    page = open_page("large", path="/plan")
    expect(page.get_by_role("img", name=re.compile("e0"))).to_be_visible()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)


def test_rows_stand_still_while_the_keyboard_is_in_them(open_page: Opened, served: Served) -> None:
    served.node.tick_s = 0.3  # a row more every 1.2 s
    page = open_page("busy")
    newest = page.locator("#request_rows tbody tr").first
    id = page.locator("#request_rows tbody tr").nth(1).get_attribute("id")
    page.locator(f"#{id} a").focus()
    page.keyboard.press("Shift")  # the keyboard, not a pointer, is what is used
    before = newest.get_attribute("id")
    page.wait_for_timeout(2000)
    assert newest.get_attribute("id") == before
    expect(page.locator(f"#{id} a")).to_be_focused()
    served.node.stand_still()  # what was left out must come all the same
    page.wait_for_timeout(500)
    page.locator("#theme").focus()
    expect(newest).not_to_have_attribute("id", before or "")
    expect(page.locator("#link")).to_have_text("Live")


# ---- seen


def test_nothing_moves_for_those_who_asked_for_that(open_page: Opened) -> None:
    page = open_page("large", reduced_motion="no-preference")
    assert page.evaluate(MOVING)
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(MOVING) == []


def whole(page: Page, path: str) -> None:
    """What comes after the first paint is there."""
    if path == "/":
        expect(page.locator("#charts canvas")).to_have_count(6)
    elif path == "/plan":
        page.locator("#curve-e0").wait_for()
