"""The pages of engines in a real browser: drawn without a script, live, searched, and told what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from conftest import Served
from playwright.sync_api import Page, expect
from test_page import CONTRASTS

pytestmark = pytest.mark.browser
Opened = Callable[..., Page]
STATES = ["loading", "empty", "busy", "failed", "bottleneck"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_each_state_and_theme(open_page: Opened, state: str, scheme: str) -> None:
    page = open_page(state, path="/engines/e1", color_scheme=scheme)
    expect(page.locator("h1")).to_contain_text("e1")
    assert page.evaluate(CONTRASTS) == []


@pytest.mark.parametrize("path", ["/engines", "/engines/e0", "/engines/e1"])
@pytest.mark.parametrize("state", ["loading", "busy", "failed", "bottleneck"])
def test_nothing_scrolls_sideways_on_the_narrowest_phone(open_page: Opened, path: str, state: str) -> None:
    page = open_page(state, path=path, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_is_whole_without_javascript(open_page: Opened) -> None:
    page = open_page("busy", live=False, path="/engines/e0", java_script_enabled=False)
    expect(page.locator(".plot-plane")).to_have_count(2)
    expect(page.get_by_role("img", name="Duration of steps by their tokens")).to_be_visible()
    expect(page.locator(".lines li").last).to_contain_text("it goes on")
    expect(page.get_by_role("button", name="Drain…")).to_be_hidden()
    expect(page.get_by_text("pd-appliance remedy drain e0")).to_be_visible()


def test_engines_lead_to_each_other(open_page: Opened) -> None:
    page = open_page("busy")
    page.get_by_role("article", name="Engine e0").get_by_role("link", name="e0").click()
    expect(page.locator("h1")).to_have_text("●e0 ready")
    page.get_by_role("navigation", name="Engines").get_by_role("link", name="e1").click()
    expect(page.locator("h1")).to_contain_text("e1 ready")
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Engines").click()
    expect(page.locator("h1")).to_have_text("●2 engines, all ready.")


def test_prompt_and_decode_steps_are_told_apart_by_shape(open_page: Opened) -> None:
    page = open_page("busy", path="/engines/e1")
    assert "v8" in (page.locator(".steps-prompt").first.get_attribute("d") or "")
    assert "h0" in (page.locator(".steps-decode").first.get_attribute("d") or "")
    dashes = "e => getComputedStyle(e).strokeDasharray"
    assert page.locator(".expected-decode").evaluate(dashes) != page.locator(".expected-prompt").evaluate(dashes)


def test_the_knee_is_found_and_drawn_while_somebody_looks(open_page: Opened) -> None:
    page = open_page("busy", path="/engines/e0")
    expect(page.locator("#engine_steps")).to_contain_text(
        "Prompt steps of 1,394 tokens saturate it (951 to 1,769, 95 %)"
    )
    expect(page.locator(".band")).to_have_count(1)


def test_the_bottleneck_is_told_on_the_engine_that_it_is(open_page: Opened, served: Served) -> None:
    page = open_page("large", path="/engines/e1")
    expect(page.locator("h1")).to_contain_text("e1 ready")
    served.node.show("bottleneck")
    expect(page.locator("h1")).to_contain_text("Bottleneck: slow GPU on e1", timeout=5000)
    expect(page.locator("#engine_steps")).to_contain_text("in the middle 1.9")
    expect(page.locator("#gpus")).to_contain_text("too hot")
    expect(page.locator("#gpus tbody tr")).to_have_count(2)  # its own


def test_the_page_follows_an_engine_that_fails(open_page: Opened, served: Served) -> None:
    page = open_page("busy", path="/engines/e1")
    served.node.show("failed")
    expect(page.locator("h1")).to_contain_text("e1 failed")
    expect(page.locator("#engine_head")).to_contain_text("probably out of memory")
    expect(page.get_by_role("button", name="Resume…")).to_be_visible()


def test_the_last_five_minutes_are_drawn(open_page: Opened) -> None:
    page = open_page("busy", path="/engines/e1")
    expect(page.locator("#lately canvas")).to_have_count(2)
    expect(page.locator("#chart-slowdown")).to_have_text("It tells nothing of this now.")
    expect(page.locator("#now-running")).to_have_text("14")
    expect(page.locator("#now-kv_usage")).to_have_text("41 %")


def history(now: float) -> dict[str, Any]:
    """Of the last five minutes, but for half a minute in which it was off."""
    begin = [now - 300 + second for second in range(300)]
    running = [None if 100 <= second < 130 else 3.0 for second in range(300)]
    series = {"e1.running": running, "e1.kv_usage": [0.4] * 300, "e1.memory_bytes": [1.0] * 300}
    return {"history": {"time": begin, "step_s": 1.0, "series": series}}


def columns(page: Page) -> list[list[float | None]]:
    """What the first of the charts has drawn."""
    return page.evaluate("window.plots[0].data.map(column => [...column])")  # type: ignore[no-any-return]


KEEP_PLOTS = """
  let made; window.plots = [];
  Object.defineProperty(window, 'uPlot', {get: () => made, set: (found) => {
    made = new Proxy(found, {construct: (of, by) => {
      const plot = Reflect.construct(of, by);
      window.plots = window.plots.filter((one) => one.root.isConnected && one.root.parentNode !== plot.root.parentNode).concat(plot);
      return plot;
    }});
  }});"""


def test_a_reload_keeps_what_was_and_a_gap_in_it(open_page: Opened, served: Served) -> None:
    page = open_page("busy", live=False, path="/engines")
    page.add_init_script(KEEP_PLOTS)
    page.route("**/api/history**", lambda route: route.fulfill(json=history(served.node.latest().time)))
    page.goto(f"{served.url}/engines/e1")
    expect(page.locator("#lately canvas")).to_have_count(2)
    page.wait_for_function("() => window.plots[0].data[1].at(-1) === 14")  # what is told now comes after it
    times, running, *_ = columns(page)
    assert len(times) > 250
    assert times == sorted(times)
    assert running.count(None) == 30


def test_a_clock_that_is_set_back_leaves_no_chart_standing(open_page: Opened, served: Served) -> None:
    page = open_page("busy", live=False, path="/engines")
    page.add_init_script(KEEP_PLOTS)
    page.goto(f"{served.url}/engines/e1")
    expect(page.locator("#lately canvas")).to_have_count(2)
    latest = served.node.latest
    served.node.latest = lambda: msgspec.structs.replace(latest(), time=latest().time - 3600)  # type: ignore[method-assign]
    page.wait_for_function("before => window.plots[0].data[0].at(-1) < before - 3000", arg=latest().time)
    page.wait_for_function("() => window.plots[0].data[0].length > 3")
    times = columns(page)[0]
    assert times == sorted(times)
    expect(page.locator(".steps-prompt").first).to_be_visible()
    expect(page.locator("#engine_log li").first).to_be_visible()


def test_the_log_by_level_searched_and_followed(open_page: Opened) -> None:
    page = open_page("busy", path="/engines/e0")
    log = page.locator("#engine_log")
    assert log.evaluate("e => e.scrollTop + e.clientHeight >= e.scrollHeight - 2")  # at its end
    page.get_by_label("Find").fill("preempted")
    expect(log.locator("li:visible")).to_have_count(1)
    page.wait_for_timeout(300)  # some updates later
    expect(log.locator("li:visible")).to_have_count(1)
    page.get_by_role("link", name="errors", exact=True).click()
    expect(log.locator("li")).to_have_count(3)  # with the stack
    expect(log.locator("li").first).to_contain_text("<b>EngineCore</b> met an error")
    page.get_by_label("Find").fill("valueerror")
    page.get_by_label("Find").press("Enter")
    page.wait_for_url("**/engines/e0?level=error&find=valueerror#log")
    expect(log).to_contain_text("1 of 406 lines.")
    expect(log.locator("li")).to_have_count(1)


def test_an_order_is_asked_for_first_and_what_came_of_it_is_shown(open_page: Opened, served: Served) -> None:
    page = open_page("busy", path="/engines/e0")
    asked = page.get_by_role("dialog")
    page.get_by_role("button", name="Drain…").click()
    expect(asked).to_contain_text("No other engine prefills: this is refused unless it is forced")
    asked.get_by_role("button", name="Leave it").click()
    assert served.node.asked == []
    page.get_by_role("button", name="Use it for decode…").click()
    expect(asked).to_contain_text('POST /api/engines/e0/role {"role": "decode"}')
    asked.get_by_role("button", name="Do it", exact=True).click()
    expect(page.locator("#remedies")).to_contain_text("e0 prefills → decodes; nothing restarts")
    assert served.node.asked == ["role decode e0"]


def test_a_weight_is_an_order_and_nonsense_is_none(open_page: Opened, served: Served) -> None:
    page = open_page("busy", path="/engines/e0")
    page.get_by_label("Weight").fill("0.5")
    page.get_by_role("button", name="Change it…").click()
    page.get_by_role("dialog").get_by_role("button", name="Do it", exact=True).click()
    expect(page.locator("#remedies")).to_contain_text("e0's weight in routing: 1 → 0.5")
    assert served.node.asked == ["weight 0.5 e0"]
    for nonsense in ("", "-1", "1000"):
        page.get_by_label("Weight").fill(nonsense)
        expect(page.get_by_role("button", name="Change it…")).to_be_disabled()


def test_an_update_keeps_focus_and_what_was_opened(open_page: Opened) -> None:
    page = open_page("busy", path="/engines/e0")
    page.get_by_text("The same as a table").click()
    page.get_by_role("button", name="Drain…").focus()
    page.wait_for_timeout(700)  # several updates, one drawing
    assert page.evaluate("document.activeElement.textContent") == "Drain…"
    expect(page.get_by_role("region", name="Table of steps")).to_be_visible()


def test_an_engine_that_is_not_there_is_said_in_the_frame(open_page: Opened, complaints: list[str]) -> None:
    page = open_page("busy", live=False, path="/engines/e9")
    expect(page.locator("h1")).to_have_text("Not here")
    expect(page.locator("main")).to_contain_text("There is no engine 'e9' on this node. It has e0 and e1.")
    expect(page.get_by_role("navigation", name="Pages")).to_be_visible()
    assert all("404" in complaint for complaint in complaints)
    complaints.clear()
