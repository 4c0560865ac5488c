"""The page in a real browser: each condition of the node, light and dark, wide and narrow, live and cut off."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import page_kept as kept
import page_states as made
import pytest
from conftest import Served
from playwright.sync_api import Browser, Page, Route, expect

from appliance.records import STAGES
from bench.first_paint import PARTS, Part
from web.views import PLACES

pytestmark = pytest.mark.browser
Opened = Callable[..., Page]

SAYS = {
    "loading": "Loading: e0",
    "empty": "Nothing has been asked yet",
    "idle": "Ready, and idle",
    "busy": "Serving 21 requests",
    "failed": "Not serving: e1 has failed",
    "whole": "e1 is still starting",
    "large": "Serving",
    "bottleneck": "Bottleneck: slow GPU on e1",
}

ROWS = "#request_rows tbody tr"
FIRST_ROW = f"document.querySelector('{ROWS}').id"

# Every element with text of its own, against the first opaque ground behind it (WCAG 2.2, contrast minimum).
CONTRASTS = """() => {
  const lum = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.nodeValue.trim());
    if (!own || !e.checkVisibility() || e.closest("script, .unseen, svg")) continue;
    const [a, b] = [lum(rgb(getComputedStyle(e).color)), lum(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push(`${e.className || e.tagName}: ${e.textContent.trim().slice(0, 30)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("state", SAYS)
def test_each_state_says_what_it_is(open_page: Opened, state: str) -> None:
    page = open_page(state)
    expect(page.locator("h1")).to_contain_text(SAYS[state])


@pytest.mark.parametrize("state", ["loading", "busy", "failed"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(open_page: Opened, state: str, scheme: str) -> None:
    page = open_page(state, color_scheme=scheme)
    assert page.evaluate(CONTRASTS) == []


@pytest.mark.parametrize("state", SAYS)
def test_nothing_scrolls_sideways_on_the_narrowest_phone(open_page: Opened, state: str) -> None:
    page = open_page(state, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_is_complete_without_javascript(open_page: Opened) -> None:
    page = open_page("busy", live=False, java_script_enabled=False)
    expect(page.locator("h1")).to_contain_text("Serving 21 requests")
    expect(page.locator(".card")).to_have_count(2)
    expect(page.locator(ROWS)).to_have_count(6)
    expect(page.locator("#theme")).to_be_hidden()


def test_the_page_follows_the_node_without_reloading(open_page: Opened, served: Served) -> None:
    page = open_page("loading")
    page.evaluate("window.loadedOnce = true")
    for state in ("empty", "busy", "failed", "idle"):
        served.node.show(state)
        expect(page.locator("h1")).to_contain_text(SAYS[state])
    assert page.evaluate("window.loadedOnce") is True


def test_an_update_keeps_focus_and_scroll_and_moves_rows_down(open_page: Opened, served: Served) -> None:
    served.node.tick_s = 0.2  # a new row every 0.8 s: ours stays in the list for some seconds
    page = open_page("busy")
    page.locator('.card a[href*="e1"]').focus()
    page.evaluate("window.scrollTo(0, 150)")
    first = page.evaluate(FIRST_ROW)
    page.wait_for_function(f"first => {FIRST_ROW} !== first", arg=first)
    assert page.locator(f"#{first}").count() == 1, "a newer one has pushed it down"
    assert page.evaluate("document.activeElement.getAttribute('href')") == "/engines/e1"
    assert page.evaluate("window.scrollY") == 150


def test_screen_readers_hear_the_condition_and_no_numbers(open_page: Opened, served: Served) -> None:
    page = open_page("busy")
    page.evaluate("""() => {
      window.heard = 0;
      const all = {childList: true, characterData: true, subtree: true};
      for (const region of document.querySelectorAll('[role=status], [aria-live], output'))
        new MutationObserver(() => window.heard++).observe(region, all);
    }""")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.heard") == 0
    served.node.show("failed")
    expect(page.locator("#announcement")).to_contain_text("e1 has failed")
    assert page.evaluate("window.heard") > 0


def test_a_cut_stream_is_said_and_mended(open_page: Opened, served: Served, complaints: list[str]) -> None:
    page = open_page("busy")
    page.evaluate("window.loadedOnce = true")
    served.stop()
    expect(page.locator("#link")).to_contain_text("Connection lost", timeout=10_000)
    assert page.locator("main").evaluate("e => getComputedStyle(e).filter") != "none"
    served.node.show("idle")
    served.start()
    expect(page.locator("#link")).to_have_text("Live", timeout=15_000)
    expect(page.locator("h1")).to_contain_text("Ready, and idle")
    assert page.evaluate("window.loadedOnce") is True
    of_the_cut = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "htmx:sse:error")
    assert all(any(part in complaint for part in of_the_cut) for complaint in complaints)
    complaints.clear()


def test_a_stream_that_fails_at_first_is_tried_again(open_page: Opened, complaints: list[str]) -> None:
    page = open_page("busy", live=False)
    tries: list[str] = []

    def refuse_once(route: Route) -> None:
        tries.append(route.request.url)
        route.fulfill(status=503) if len(tries) == 1 else route.continue_()

    page.route("**/live/", refuse_once)
    page.reload()
    page.locator('html[data-link="lost"]').wait_for()
    page.locator('html[data-link="live"]').wait_for(timeout=10_000)
    assert len(tries) == 2
    assert all("503" in complaint for complaint in complaints)
    complaints.clear()


def test_what_is_no_longer_kept_is_said_and_not_asked_for_again(
    open_page: Opened, served: Served, complaints: list[str]
) -> None:
    page = open_page("busy", live=False, path="/engines/e1")
    tries: list[str] = []

    def none(route: Route) -> None:
        tries.append(route.request.url)
        route.fulfill(status=404)

    page.route("**/live/**", none)
    page.reload()
    expect(page.locator("#link")).to_contain_text("No longer kept: all this is as it was at ")
    page.wait_for_timeout(3000)
    assert len(tries) == 1
    complaints.clear()


def test_the_tab_says_that_something_is_wrong(open_page: Opened, served: Served) -> None:
    page = open_page("idle")
    expect(page).to_have_title(re.compile("^(?!▲|✕)"))
    served.node.show("bottleneck")
    expect(page).to_have_title(re.compile("^[▲✕] "))


def test_until_the_first_update_it_says_what_is_waited_for(open_page: Opened) -> None:
    page = open_page("busy", live=False, path="/engines/e1")
    page.route("**/live/**", lambda route: None)  # never answered
    page.route("**/api/history**", lambda route: None)
    page.reload()
    expect(page.locator("#link")).to_have_text("Connecting…")
    expect(page.locator("#chart-requests")).to_have_text("The first values are being waited for…")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("h1")).to_contain_text("Serving 21 requests")
    expect(page.locator("#charts-none")).to_have_text("The history is being read…")


def test_the_theme_is_toggled_and_remembered(open_page: Opened) -> None:
    page = open_page("idle", color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme").click()
    expect(page.get_by_role("button", name="Theme")).to_have_text("Theme: dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark


def test_a_browser_that_keeps_nothing_has_its_themes_all_the_same(browser: Browser, served: Served) -> None:
    served.node.show("idle")
    page = browser.new_page(color_scheme="light")
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused'); }})")
    page.goto(served.url)
    page.locator('html[data-link="live"]').wait_for(timeout=10_000)
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    page.close()
    assert faults == []


def test_two_requests_of_one_id_are_two_rows(open_page: Opened, served: Served) -> None:
    snapshot = served.node.latest()
    twice = tuple(msgspec.structs.replace(timeline, id="same") for timeline in made.idle(0).recent)
    served.node.latest = lambda: msgspec.structs.replace(snapshot, recent=twice)  # type: ignore[method-assign]
    page = open_page("idle")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    assert sum(name.startswith("request-same-") for name in ids) == len(twice)


def test_the_keyboard_reaches_everything_in_reading_order(open_page: Opened) -> None:
    page = open_page("empty")
    reached = []
    for _ in range(27 + len(PLACES)):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)")
        )
    assert reached.pop(0) == "Skip to the page"
    assert [reached.pop(0) for _ in PLACES] == list(PLACES)
    assert reached[:4] == ["theme", "Send a request", "curl", "copy"]
    assert reached[4:11] == ["e0", "e1", "5 min", "1 h", "6 h", "24 h", "7 d"]
    assert reached[11:16] == ["←", "→", "−", "+", "charts-plots"]
    assert reached[16:18] == ["No incident and no c", "The same in numbers"]
    assert reached[18:23] == ["all that are kept", "node", "requests", "metrics", "models"]


def test_the_curl_names_this_host_and_is_copied(open_page: Opened, served: Served) -> None:
    page = open_page("empty")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith(f"curl -N {served.url}/v1/chat/completions")


def test_the_remedy_is_asked_for_applied_and_taken_back(open_page: Opened, served: Served) -> None:
    page = open_page("bottleneck")
    expect(page.locator("h1")).to_contain_text("Bottleneck: slow GPU on e1")
    expect(page.get_by_role("article", name="Bottleneck: Engine e1, prefill, ready")).to_be_visible()
    page.get_by_role("button", name="Do it…").click()
    asked = page.get_by_role("dialog")
    expect(asked).to_contain_text("Give e1 less of the work")
    expect(asked).to_contain_text('POST /api/engines/e1/weight {"weight": 0.53}')
    asked.get_by_role("button", name="Leave it").click()
    assert served.node.asked == []
    page.get_by_role("button", name="Do it…").click()
    asked.get_by_role("button", name="Do it", exact=True).click()
    expect(page.locator("#remedies")).to_contain_text("e1's weight in routing: 1 → 0.53")
    expect(page.locator("#remedies")).to_contain_text("what it brings is not known yet")
    expect(asked).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    asked.get_by_role("button", name="Do it", exact=True).click()
    expect(page.locator("#remedies")).to_contain_text("taken back")
    assert served.node.asked == ["weight 0.53 e1", "weight 1 e1"]


def sent(page: Page, held: list[Route]) -> Route:
    """The order that is held, once the page has sent one; a test ends in time if it never does."""
    while not held:
        page.wait_for_timeout(20)
    return held.pop()


def test_what_is_confirmed_is_what_is_shown_whatever_was_asked_before(open_page: Opened, served: Served) -> None:
    page = open_page("bottleneck", path="/engines/e1")
    asked = page.get_by_role("dialog")
    held: list[Route] = []
    page.route("**/api/remedies", lambda route: held.append(route))
    page.get_by_role("button", name="Drain…").click()
    asked.get_by_role("button", name="Do it", exact=True).click()
    expect(asked).to_contain_text("Being done…")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Use it for decode…").click()
    expect(asked).not_to_contain_text("Being done…")
    sent(page, held).continue_()  # the answer about the first one comes while the second is asked for
    expect(page.locator("#given")).to_contain_text("Done: e1 takes no new work")
    expect(asked).to_be_visible()
    expect(asked).to_contain_text('POST /api/engines/e1/role {"role": "decode"}')
    asked.get_by_role("button", name="Do it", exact=True).click()
    page.wait_for_function("() => document.querySelector('#order').open")
    sent(page, held).continue_()
    expect(asked).to_be_hidden()
    assert served.node.asked == ["drain e1", "role decode e1"]


def test_what_failed_behind_a_closed_dialog_is_said_all_the_same(
    open_page: Opened, served: Served, complaints: list[str]
) -> None:
    page = open_page("bottleneck")
    held: list[Route] = []
    page.route("**/api/remedies", lambda route: held.append(route))
    page.get_by_role("button", name="Do it…").click()
    page.get_by_role("dialog").get_by_role("button", name="Do it", exact=True).click()
    order = sent(page, held)
    page.keyboard.press("Escape")
    order.abort()
    expect(page.locator("#given")).to_have_text("Not done: the appliance does not answer.")
    expect(page.locator("#given")).to_have_class("note")
    complaints.clear()


def test_an_order_that_is_refused_says_why(open_page: Opened, served: Served, complaints: list[str]) -> None:
    page = open_page("bottleneck")
    page.get_by_role("button", name="Do it…").click()
    served.node.show("loading")  # e1 starts again meanwhile
    page.get_by_role("dialog").get_by_role("button", name="Do it", exact=True).click()
    expect(page.get_by_role("dialog")).to_contain_text("Not done: e1 is starting")
    assert all("409" in complaint for complaint in complaints)
    complaints.clear()


@pytest.mark.parametrize("path", ["/", "/engines/e1", "/requests", f"/incidents/{kept.OPEN.id}", "/plan", "/try"])
def test_no_page_weighs_more_than_it_may(open_page: Opened, served: Served, path: str) -> None:
    """Of a node of eight engines, two of which hold it back, uncompressed."""
    node = made.bottleneck(0)
    engines = [msgspec.structs.replace(node.engines[0 if n < 4 else 3], name=f"e{n}") for n in range(8)]
    assert node.verdict is not None
    held = msgspec.structs.replace(node.verdict, engines=("e1", "e2"))
    large = msgspec.structs.replace(node, engines=tuple(engines), verdict=held)
    served.node.latest = lambda: large  # type: ignore[method-assign]
    page = open_page("bottleneck", path=path)
    parts = msgspec.convert(page.evaluate(PARTS), list[Part], strict=False)
    assert sum(part.bytes for part in parts) <= 200_000
    assert sum(part.transferred_bytes for part in parts) <= 100_000
    assert len(parts) > 3


def test_an_address_that_leads_nowhere_is_a_page_of_the_house(open_page: Opened, complaints: list[str]) -> None:
    page = open_page("busy", live=False, path="/nowhere")
    expect(page.locator("h1")).to_have_text("Not here")
    expect(page.locator("main")).to_contain_text("There is nothing at /nowhere.")
    expect(page.locator("#strip")).to_contain_text("Serving 21 requests")
    page.get_by_role("link", name="To the overview").click()
    expect(page.locator("h1")).to_contain_text("Serving 21 requests")
    assert all("404" in complaint for complaint in complaints)
    complaints.clear()


def test_scripts_have_the_stages_that_requests_have(open_page: Opened) -> None:
    page = open_page("busy", path="/engines/e1")
    assert page.evaluate("import('/static/charts/ink.js').then(ink => ink.STAGES)") == list(STAGES)


def test_no_request_leaves_this_host(open_page: Opened, served: Served) -> None:
    asked: list[str] = []
    page = open_page("busy")
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.locator('html[data-link="live"]').wait_for()
    assert asked
    assert all(url.startswith(served.url) for url in asked)


def test_nobody_looks_nothing_is_read(open_page: Opened, served: Served) -> None:
    page = open_page("busy")
    assert served.node.readers == 1
    page.goto("about:blank")
    for _ in range(50):
        if served.node.readers == 0:
            return
        page.wait_for_timeout(100)
    pytest.fail("the feed is still read although nobody looks")
