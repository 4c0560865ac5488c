"""The pages of incidents, the ledger, the plan and the playground in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import page_kept as kept
import pytest
from conftest import Served
from demo_server import Demo
from playwright.sync_api import Page, Route, expect
from test_page import CONTRASTS

from appliance.records import Moment
from web import incident_page

pytestmark = pytest.mark.browser
Opened = Callable[..., Page]

INCIDENT = f"/incidents/{kept.OPEN.id}"
PAGES = {"/incidents": "bottleneck", INCIDENT: "bottleneck", "/kv": "leaking", "/plan": "large", "/try": "large"}
STREAM = (
    'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    'data: {"choices": [{"delta": {"content": "Once <b>upon"}}]}\n\n'
    'data: {"choices": [{"delta": {"content": " a time."}}]}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(open_page: Opened, served: Served, path: str, scheme: str) -> None:
    page = open_page(PAGES[path], color_scheme=scheme, path=path)
    if path == "/plan":
        page.locator("#curve-e0").wait_for()
    assert page.evaluate(CONTRASTS) == []


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("state", ["loading", "empty", "failed", "of its own"])
def test_nothing_scrolls_sideways_on_the_narrowest_phone(open_page: Opened, path: str, state: str) -> None:
    shown = PAGES[path] if state == "of its own" else state
    page = open_page(shown, path=path, viewport={"width": 360, "height": 740})
    expect(page.locator("h1")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("path", PAGES)
def test_each_page_is_complete_without_javascript(open_page: Opened, path: str) -> None:
    page = open_page(PAGES[path], live=False, path=path, java_script_enabled=False)
    says = {
        "/incidents": "slow link from e0 to e3",
        INCIDENT: "Bottleneck: slow GPU on e1",
        "/kv": "Leak:",
        "/plan": "2p2d@tp2",
        "/try": "kept nowhere",
    }
    expect(page.locator("main")).to_contain_text(says[path])
    here = page.locator(".places [aria-current]")
    expect(here).to_have_count(1)


@pytest.mark.parametrize("path", PAGES)
def test_tables_have_headers_and_pictures_have_words(open_page: Opened, path: str) -> None:
    page = open_page(PAGES[path], path=path)
    assert page.evaluate("[...document.querySelectorAll('td')].every(cell => cell.closest('table').tHead)")
    unnamed = (
        "[...document.querySelectorAll('main svg[role=img]')].filter(svg => !svg.ariaLabel && svg.checkVisibility())"
    )
    assert page.evaluate(f"{unnamed}.map(svg => svg.id || svg.className.baseVal)") == []
    loose = "[...document.querySelectorAll('main svg')].filter(svg => !svg.closest('[aria-hidden=true], [role=img]'))"
    assert page.evaluate(f"{loose}.map(svg => svg.outerHTML.slice(0, 80))") == []


# ---- incidents


def test_what_is_open_is_on_top_and_leads_to_what_was_seen(open_page: Opened) -> None:
    page = open_page("bottleneck", path="/incidents")
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("open")
    first.get_by_role("link").click()
    expect(page.locator("h1")).to_contain_text("Incident: slow GPU on e1")
    expect(page.locator("#seen")).to_contain_text("Bottleneck: slow GPU on e1")


def test_filters_are_links(open_page: Opened) -> None:
    page = open_page("bottleneck", path="/incidents")
    page.get_by_role("navigation", name="Narrow").get_by_role("link", name="slow link").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    assert page.url.endswith("?cause=handoff_link_slow")


def test_keys_scrub_through_what_was_seen_and_the_address_says_where(open_page: Opened, served: Served) -> None:
    page = open_page("bottleneck", path=INCIDENT)
    scrub = page.locator("#scrub")
    scrub.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#scrub-words")).to_contain_text("−2 s")
    expect(page.locator("#seen")).to_contain_text("No bottleneck.")
    assert page.url.endswith("?at=858")
    assert "−2 s" in (scrub.get_attribute("aria-valuetext") or "").replace("\u00a0", " ")
    page.keyboard.press("End")
    expect(page.locator("#seen")).to_contain_text("Bottleneck: slow GPU on e1")
    assert page.locator("#cursor").get_attribute("x1") == "100%"
    page.reload()
    expect(page.locator("#scrub-words")).to_contain_text("+2 min")


def test_a_line_of_what_happened_leads_to_its_moment(open_page: Opened) -> None:
    page = open_page("bottleneck", path=INCIDENT)
    page.locator(".events a").first.click()
    expect(page.locator("#scrub-words")).to_contain_text("−1 min")
    expect(page.locator("#seen")).to_contain_text("No bottleneck.")
    expect(page.locator("#scrub")).to_be_focused()


def test_beyond_the_first_and_the_last_moment_nothing_leads(open_page: Opened) -> None:
    page = open_page("bottleneck", path=f"{INCIDENT}?at=740")
    earlier, later = page.locator("#earlier"), page.locator("#later")
    assert (earlier.get_attribute("href"), later.get_attribute("href")) == (None, f"{INCIDENT}?at=742#seen")
    later.click()
    expect(earlier).to_have_attribute("href", f"{INCIDENT}?at=740#seen")
    page.locator("#scrub").focus()
    page.keyboard.press("PageDown")
    expect(earlier).not_to_have_attribute("href", re.compile("."))
    page.goto(page.url.split("?")[0] + "?at=998")
    later.focus()
    page.keyboard.press("Enter")
    expect(later).not_to_have_attribute("href", re.compile("."))
    expect(page.locator("#scrub")).to_be_focused()  # not lost with the link


def test_an_incident_that_is_open_is_followed_on_its_axis(
    open_page: Opened, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incident_page, "_COURSE_FRESH_S", 0.2)
    going = Going()
    served.stop()
    served._site = lambda node: Demo(node, incidents=going)
    served.start()
    page = open_page("bottleneck", path=f"{INCIDENT}?at=900")
    moments = "JSON.parse(document.querySelector('#moments').value).length"
    before = page.evaluate(moments)
    opened = page.locator(".edge").first.get_attribute("x1")
    page.wait_for_function(f"before => {moments} > before + 10", arg=before)
    assert page.locator(".edge").first.get_attribute("x1") != opened, "the axis has become longer"
    expect(page.locator("#scrub-words")).to_contain_text("+40")  # what is read stays
    at = page.locator("#cursor").get_attribute("x1")
    page.wait_for_function("at => document.querySelector('#cursor').getAttribute('x1') !== at", arg=at)
    page.locator("#scrub").focus()
    page.keyboard.press("End")
    at_end = page.url
    page.wait_for_url(lambda url: url not in (at_end, f"{INCIDENT}?at=900"))
    expect(page.locator("#cursor")).to_have_attribute("x1", "100%")  # who looks at the newest moment goes on with it


class Going(kept.FakeIncidents):
    """The open one; a moment more is kept with each look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.until = 0

    async def moments(self, id: str, limit: int) -> Sequence[Moment] | None:
        self.until += 2
        return [kept._moment(second) for second in range(-260, self.until, 2)]


# ---- the plan


def test_a_layout_is_applied_after_a_question_and_can_be_taken_back(open_page: Opened, served: Served) -> None:
    page = open_page("large", path="/plan")
    page.get_by_role("button", name="Apply 2p2d@tp2").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("1 engine more for decode")
    expect(dialog).to_contain_text("Predicted:")
    assert served.node.asked == []
    dialog.get_by_role("button", name="Do it").click()
    expect(page.locator(".remedies")).to_contain_text("what it brings is not known yet")
    assert served.node.asked == ["topology 2p2d@tp2"]
    page.get_by_role("button", name="Undo").click()
    dialog.get_by_role("button", name="Do it").click()
    expect(dialog).to_be_hidden()
    assert served.node.asked[-1] == "topology 3p1d@tp2"


def test_the_batch_curves_come_with_the_knee_and_what_to_set(open_page: Opened) -> None:
    page = open_page("large", path="/plan")
    curve = page.locator("#curve-e0")
    expect(curve).to_contain_text('"--max-num-batched-tokens", "1408"')
    expect(page.locator("#curves [aria-busy]")).to_have_count(0)
    expect(curve.locator(".band, .as-expected[d], .budget")).to_have_count(3)


# ---- the playground


def test_a_prompt_is_answered_as_text_with_where_its_time_went(open_page: Opened) -> None:
    page = open_page("busy", path="/try")
    asked = []

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        headers = {"content-type": "text/event-stream", "x-request-id": f"{100:032x}"}
        route.fulfill(status=200, headers=headers, body=STREAM)

    page.route("**/v1/chat/completions", answer)
    page.locator("#seed").fill("7")
    page.locator("#prompt").focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#try-state")).to_have_text("The answer is complete.")
    expect(page.locator("#answer")).to_have_text("Once <b>upon a time.")
    expect(page.locator("#saw-pieces")).to_have_text("2")
    assert (asked[0]["seed"], asked[0]["max_tokens"], asked[0]["stream"]) == (7, 200, True)


def test_the_nodes_own_timeline_follows(open_page: Opened, served: Served) -> None:
    page = open_page("busy", path="/try")
    known = served.node.latest().recent[3].id
    headers = {"content-type": "text/event-stream", "x-request-id": known}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, headers=headers, body=STREAM))
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#server")).to_be_visible()
    assert "queue" in (page.locator("#server-bar").get_attribute("aria-label") or "")
    assert page.locator("#server-link").get_attribute("href") == f"/requests/{known}"


def test_stages_that_a_request_never_had_are_not_in_its_legend(open_page: Opened, served: Served) -> None:
    page = open_page("busy", path="/try")
    whole = next(one for one in served.node.latest().recent if "prompt_logprobs" in (one.unsplit_reason or ""))
    headers = {"content-type": "text/event-stream", "x-request-id": whole.id}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, headers=headers, body=STREAM))
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#server-facts")).to_contain_text("e0")
    expect(page.locator("#server [data-stage]:visible")).to_have_count(3)
    assert "hand-off" not in (page.locator("#server-bar").get_attribute("aria-label") or "")


def test_errors_are_said_in_words(open_page: Opened, complaints: list[str]) -> None:
    page = open_page("busy", path="/try")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#try-state")).to_have_text("This is a demonstration of the page. Try again in 1 s.")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#try-state")).to_have_text("The node can't be reached.")
    assert all("503" in said or "ERR_FAILED" in said for said in complaints)
    complaints.clear()


def test_a_stream_can_be_stopped(open_page: Opened) -> None:
    page = open_page("busy", path="/try")
    page.route("**/v1/completions", lambda route: None)  # never answered
    page.locator("#kind").select_option("completion")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#try-state")).to_have_text("Stopped. The node has let go of it.")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


# ---- the ledger


def test_a_leak_is_named_with_what_to_do(open_page: Opened, served: Served) -> None:
    page = open_page("busy", path="/kv")
    expect(page.locator("h1")).to_contain_text("no leak")
    served.node.show("leaking")
    expect(page.locator("h1")).to_contain_text("Leak: e0 still holds 212 blocks")
    expect(page.locator(".leak")).to_have_count(2)
    expect(page.locator("#announcement")).to_contain_text("e0 and e1 leak KV blocks")
