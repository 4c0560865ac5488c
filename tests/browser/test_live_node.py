"""The page over a real appliance whose engines are simulated: what happens to the node, the page shows, and what the page orders, happens.

One node for all of it, which serves eight requests a second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from relay import Relay
from simulated_node import MODEL, Node, node

from web.views import PLACES

pytestmark = pytest.mark.browser
Look = Callable[..., Page]

TARGET_S = 0.4
SCENARIO = f"""
layout = "2p1d"
compare = []
duration_s = 3600
[hardware]
gpus = 3
[model]
config = "{MODEL}"
[traffic]
rate = 8
prompt = {{ median = 3000, sigma = 0.2 }}
output = {{ median = 8, sigma = 0.1 }}
[slo]
ttft_s = {TARGET_S}
itl_s = 0.5
share = 0.99
"""
HOT = {"kind": "clocks", "severity": 0.85}  # a prompt takes half a second instead of a tenth
NAMED_S = 5.0
TRIES = 3
"""A machine that does other things may have no time for the node just then."""
LEARNT_S = 10.0
"""After so long the node knows what its steps take."""

REMEMBER = """selector => {
  window.loadedOnce = true;
  window.said = [];
  const note = () => {
    const words = document.querySelector(selector).textContent.trim();
    if (window.said.at(-1)?.words !== words) window.said.push({words, at: Date.now() / 1e3});
  };
  note();
  new MutationObserver(note).observe(document.getElementById('main'), {childList: true, characterData: true, subtree: true});
}"""
CAME_BACK = """() => {
  const words = window.said.map(one => one.words);
  return words.some(some => /, (backoff|starting) for/.test(some)) && /, ready for/.test(words.at(-1));
}"""
FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
  const seen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
  const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return {
    name: one.ariaLabel || one.id || one.textContent.trim().slice(0, 40), tag: one.tagName,
    href: one.getAttribute('href'), shown: seen && inside && box.width > 0,
  };
}"""


class Serving:
    """The node, and what it says of itself."""

    def __init__(self, there: Node) -> None:
        self._there = there
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.url = there.url

    def told(self, path: str) -> Any:
        with self._opener.open(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def order(self, path: str, body: object = None, method: str = "POST") -> None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        self._opener.open(request, timeout=30).close()

    def engine(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.told("/api/node")["engines"] if one["name"] == name)
        return found

    def until(self, condition: Callable[[], object], timeout_s: float) -> None:
        self._there.until(condition, timeout_s)

    def first_hurt(self, since: float) -> float:
        """When the first one who came since then had waited for as long as it may take."""
        requests = self.told("/api/requests?limit=200")
        late = [one for one in requests if one["arrived"] > since and (one["ttft_s"] or TARGET_S) > TARGET_S]
        return float(min(one["arrived"] for one in late)) + TARGET_S


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(prefix="pd-", dir="/tmp") as name:
        directory = Path(name)
        (directory / "scenario.toml").write_text(SCENARIO)
        program = (str(Path(__file__).parent / "soon_settled.py"),)
        with node(directory, "--scenario", str(directory / "scenario.toml"), program=program) as there:
            began = time.monotonic()
            found = Serving(there)
            there.until(lambda: time.monotonic() - began > LEARNT_S and found.engine("e0")["slowdown"], 60)
            yield found


@pytest.fixture
def look(browser: Browser, serving: Serving, complaints: list[str]) -> Iterator[Look]:
    """Opens a page of the node, live. The console must stay silent to the end, and nobody else be asked for anything."""
    pages: list[Page] = []
    hosts: set[str] = set()

    def opened(path: str = "/", url: str = serving.url, **options: object) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 900}, **options})  # type: ignore[arg-type]
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        pages.append(page)
        page.goto(url + path)
        page.locator('html[data-link="live"]').wait_for(timeout=10_000)
        assert hosts == {urlsplit(url).netloc}
        return page

    yield opened
    for page in pages:
        page.close()
    assert len(hosts) <= 1
    assert complaints == []


# ---- what happens to the node is shown


@pytest.mark.timeout(240)
def test_a_bottleneck_is_named_and_its_remedy_applied_and_taken_back(look: Look, serving: Serving) -> None:
    page = look()
    page.evaluate(REMEMBER, "h1")
    took = [named_after_s(page, serving)]
    while took[-1] > NAMED_S and len(took) < TRIES:
        mend(serving)
        took.append(named_after_s(page, serving))
    assert took[-1] <= NAMED_S, took
    expect(page.get_by_role("article", name="Bottleneck: Engine e0, prefill, ready")).to_be_visible()
    order_by_keyboard(page, page.get_by_role("button", name="Do it…"))
    done = page.locator("#remedies li").first
    expect(done).to_contain_text("e0")
    expect(page.locator("#given")).to_contain_text("Done: e0")
    expect(done).to_contain_text(re.compile(r"brought: [^—]"), timeout=30_000)
    assert serving.engine("e0")["weight"] < 1 or serving.engine("e0")["state"] == "draining"
    order_by_keyboard(page, done.get_by_role("button", name="Undo"))
    expect(page.locator("#remedies")).to_contain_text("it was taken back")
    serving.until(lambda: serving.engine("e0")["weight"] == 1 and serving.engine("e0")["state"] == "ready", 10)
    assert page.evaluate("window.loadedOnce") is True
    mend(serving)
    looked_back_through(page, serving)


def looked_back_through(page: Page, serving: Serving) -> None:
    """By keyboard, the incident that came of it."""
    page.locator(".places").get_by_role("link", name="Incidents").press("Enter")
    page.locator("#incident_list tbody th a").first.press("Enter")
    expect(page.locator("h1")).to_contain_text("slow GPU on e0")
    page.locator("#scrub").focus()
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile(r"\?at=[\d.]+$"))
    expect(page.locator("#seen .card")).to_have_count(3)


def named_after_s(page: Page, serving: Serving) -> float:
    """Seconds from when the first one was hurt until the page named the engine whose GPU gets too hot now."""
    since = time.time()
    serving.order("/api/sim/engines/e0/fault", HOT)
    expect(page.locator("h1")).to_contain_text("slow GPU on e0", timeout=30_000)
    said = [one for one in page.evaluate("window.said") if one["at"] > since and "Bottleneck" in one["words"]]
    right = "slow GPU on e0|busy (supervisor|API process)"
    wrong = [one["words"] for one in said if not re.search(right, one["words"])]
    assert not wrong, "the first that is said is right, unless the machine keeps the node's own processes from running"
    named = next(one for one in said if "slow GPU on e0" in one["words"])
    return float(named["at"]) - serving.first_hurt(since)


def mend(serving: Serving) -> None:
    serving.order("/api/sim/engines/e0/fault", method="DELETE")
    serving.until(lambda: serving.told("/api/diagnosis")["state"] == "ok", 60)


def order_by_keyboard(page: Page, opener: Locator) -> None:
    opener.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Tab")
    expect(dialog.get_by_role("button", name="Do it", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()


def test_an_engine_that_is_killed_is_shown_gone_and_back(look: Look, serving: Serving) -> None:
    """On the way from gone to back, a state that lasts for less than the page takes on a busy machine need not be seen."""
    page = look("/engines/e1")
    page.evaluate(REMEMBER, "#engine_head .detail")
    before = serving.engine("e1")
    os.killpg(before["pid"], signal.SIGKILL)
    page.wait_for_function(CAME_BACK, timeout=30_000)
    states = [re.findall(r", (\w+) for ", one["words"])[0] for one in page.evaluate("window.said")]
    seen = [state for state in dict.fromkeys(states) if state != "suspect"]
    assert seen in (["ready", "backoff", "starting"], ["ready", "backoff"], ["ready", "starting"])
    expect(page.locator("#engine_head")).to_contain_text("1 restart")
    assert page.evaluate("window.loadedOnce") is True
    assert serving.engine("e1")["pid"] != before["pid"]


# ---- the way to the node is cut


@pytest.fixture
def relay(serving: Serving) -> Iterator[Relay]:
    made = Relay(int(serving.url.rpartition(":")[2]))
    yield made
    made.close()


@pytest.mark.parametrize("how", ["cut", "stop"])
def test_what_is_stale_is_said_and_it_goes_on_by_itself(
    relay: Relay, look: Look, complaints: list[str], how: str
) -> None:
    page = look(url=relay.url)
    page.evaluate(REMEMBER, "h1")
    getattr(relay, how)()
    expect(page.locator("#link")).to_have_text(re.compile(r"as it was at \d\d:\d\d:\d\d\. Retrying"), timeout=15_000)
    said = page.locator("footer").text_content()
    relay.mend()
    expect(page.locator("#link")).to_have_text("Live", timeout=15_000)
    expect(page.locator("footer")).not_to_have_text(said or "")
    assert page.evaluate("window.loadedOnce") is True
    of_the_cut = (
        "ERR_CONNECTION",
        "ERR_SOCKET_NOT_CONNECTED",
        "ERR_EMPTY_RESPONSE",
        "ERR_INCOMPLETE",
        "htmx:sse:error",
    )
    assert [one for one in complaints if not any(part in one for part in of_the_cut)] == []
    complaints.clear()


# ---- every page, by keyboard alone


@pytest.mark.timeout(240)
def test_each_page_of_a_real_node_can_be_walked_through_by_keyboard(look: Look, serving: Serving) -> None:
    page = look()
    for place, href in PLACES.items():
        link = page.get_by_role("navigation", name="Pages").get_by_role("link", name=place, exact=True)
        link.press("Enter")
        page.wait_for_url(f"**{href}")
        page.locator('html[data-link="live"]').wait_for(timeout=10_000)
        expect(page.locator("h1")).to_have_count(1)
        reached = walked(page)
        assert reached[0]["name"] == "Skip to the page"
        assert [one["name"] for one in reached[1 : 1 + len(PLACES)]] == list(PLACES)
        assert [one["name"] for one in reached if not one["shown"]] == []


def walked(page: Page) -> list[dict[str, Any]]:
    """Where Tab leads to, from the top to the end."""
    page.locator(".skip").focus()
    found = [page.evaluate(FOCUSED)]
    while len(found) < 400:
        page.keyboard.press("Tab")
        here = page.evaluate(FOCUSED)
        if here["tag"] == "BODY" or here["name"] == found[0]["name"]:
            return found
        found.append(here)
    raise AssertionError("no end was reached")


def test_the_skip_link_filters_charts_and_an_engine_are_reached_and_used_by_keyboard(
    look: Look, serving: Serving
) -> None:
    page = look()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(page.locator("#charts canvas")).to_have_count(6)
    page.locator("#charts-plots").focus()
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile(r"\?from=\d+&to=\d+"))
    page.keyboard.press("Escape")
    expect(page).not_to_have_url(re.compile("from="))
    page.locator('.card a[href="/engines/e2"]').press("Enter")
    expect(page.locator("h1")).to_contain_text("e2 ready")
    page.goto(f"{serving.url}/requests")
    page.get_by_role("link", name="e2", exact=True).press("Enter")
    expect(page).to_have_url(re.compile(r"/requests\?engine=e2"))
    page.locator("#request_rows tbody th a").first.press("Enter")
    expect(page.locator("h1")).to_contain_text("First token after")
