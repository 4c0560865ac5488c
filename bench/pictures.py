"""``make pictures``: a contact sheet of every page in each state, light and dark, on a desk and on a phone.

    python -m bench.pictures --out pictures --states healthy,bottleneck --pages overview,engine

Nodes are made up (``tests/browser``), so that each state can be looked at whenever the page has changed. ``index.html`` has them all. The
command fails where a page scrolls sideways on the narrowest phone, has a text that is cut off without a way to read it, or where the
browser's console complains.
"""

from __future__ import annotations

import argparse
import html
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Route, TimeoutError
from playwright.sync_api import Page as Tab

from bench.browsing import chromium, made_up, served

_THEMES: Final = ("light", "dark")
_WIDTHS: Final = (1400, 390)
_NARROWEST: Final = 360
_HEIGHT: Final = 900
_HOURS: Final = 7.0  # of history
_APART_S: Final = 10.0
_HURT_S: Final = 140.0  # as long as the made-up incident has been open
_HELD: Final = ("**/live/**", "**/api/history**", "**/plan/curves")  # where nothing answers
_RESIZED_MS: Final = 300
_FITS_MS: Final = 3000  # charts follow the width of the page
_SETTLE_MS: Final = 900  # after the first update: charts ask for their history


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A state of a node, and what there is of its past."""

    node: str  # in ``page_states.STATES``
    incidents: tuple[str, ...] = ()  # in ``page_kept``
    history: bool = False
    hurt: bool = False  # and its end was bad
    answers: bool = True  # else nothing but first paints comes from it


SCENES: Final = {
    "empty": Scene(node="empty"),
    "loading": Scene(node="loading"),
    "healthy": Scene(node="healthy", incidents=("LINK", "CLOSED"), history=True),
    "bottleneck": Scene(node="bottleneck", incidents=("OPEN", "LINK", "CLOSED"), history=True, hurt=True),
    "failed": Scene(node="failed", incidents=("CRASHED",)),
    "unanswered": Scene(node="healthy", incidents=("LINK", "CLOSED"), answers=False),
    "busy": Scene(node="busy", incidents=("CLOSED",)),
    "whole": Scene(node="whole"),
    "broken": Scene(node="broken"),
    "large": Scene(node="large", incidents=("LINK",)),
    "leaking": Scene(node="leaking"),
}
"""By name. The first six are on the sheet unless others are asked for; ``unanswered`` is what there is before the first update."""
_USUAL: Final = tuple(SCENES)[:6]

Prepare = Callable[[Tab], None]


def _as_it_is(tab: Tab) -> None:
    """Nothing is done."""


def _ask(tab: Tab) -> None:
    """The dialog of the first order that there is."""
    tab.locator("[data-order]:visible").first.click()


def _answer(tab: Tab) -> None:
    """A prompt is answered, as the made-up node can't."""
    pieces = ["Once", " upon", " a time", ", a lighthouse", " stood", " by the sea."]
    events = [f'data: {{"choices": [{{"delta": {{"content": "{text}"}}}}]}}\n\n' for text in pieces]
    known = tab.evaluate("fetch('/api/requests?limit=4').then(a => a.json()).then(all => all.at(-1)?.id ?? '')")
    headers = {"content-type": "text/event-stream", "x-request-id": str(known)}
    body = "".join(events) + "data: [DONE]\n\n"
    tab.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, headers=headers, body=body))
    tab.locator("#send").click()
    tab.locator("#stop").wait_for(state="hidden")


class Shot(msgspec.Struct, frozen=True, kw_only=True):
    """A page, and what is done on it before it is pictured."""

    path: str  # ``{id}``: of the slowest request, or of the newest incident
    prepare: Prepare = _as_it_is
    scenes: tuple[str, ...] = tuple(SCENES)  # those in which there is something to be seen


SHOTS: Final = {
    "overview": Shot(path="/"),
    "engines": Shot(path="/engines"),
    "engine": Shot(path="/engines/e1"),
    "requests": Shot(path="/requests"),
    "request": Shot(path="/requests/{id}"),
    "incidents": Shot(path="/incidents"),
    "incident": Shot(path="/incidents/{id}"),
    "kv": Shot(path="/kv"),
    "plan": Shot(path="/plan"),
    "try": Shot(path="/try"),
    "answered": Shot(path="/try", prepare=_answer, scenes=("healthy", "bottleneck", "busy")),
    "remedy": Shot(path="/", prepare=_ask, scenes=("bottleneck",)),
    "order": Shot(path="/engines/e1", prepare=_ask, scenes=("empty", "healthy", "bottleneck", "failed", "busy")),
}


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """One of the sheet."""

    page: str
    state: str
    theme: Literal["light", "dark"]
    width: int

    @property
    def file(self) -> str:
        return f"{self.page}-{self.state}-{self.theme}-{self.width}.png"


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """One that the documentation shows, from the top down to ``height`` px."""

    picture: Picture
    height: int


_BEST: Final = {
    "page.png": Best(picture=Picture(page="overview", state="bottleneck", theme="light", width=1400), height=985),
    "page-engine.png": Best(picture=Picture(page="engine", state="bottleneck", theme="dark", width=1400), height=760),
    "page-request.png": Best(
        picture=Picture(page="request", state="bottleneck", theme="light", width=1400), height=760
    ),
    "page-incident.png": Best(
        picture=Picture(page="incident", state="bottleneck", theme="light", width=1400), height=880
    ),
    "page-phone.png": Best(picture=Picture(page="overview", state="bottleneck", theme="dark", width=390), height=844),
}


def main() -> int:
    """Exit code 1: something is wrong with a page that a picture need not show."""
    parser = argparse.ArgumentParser(prog="bench.pictures", description="A contact sheet of the pages.")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--states", type=_names(SCENES), default=_USUAL, help=f"of {', '.join(SCENES)}")
    parser.add_argument("--pages", type=_names(SHOTS), default=tuple(SHOTS), help=f"of {', '.join(SHOTS)}")
    parser.add_argument("--themes", type=_names(_THEMES), default=_THEMES)
    parser.add_argument("--widths", type=_names(map(str, _WIDTHS)), default=tuple(map(str, _WIDTHS)))
    parser.add_argument("--best", type=Path, help="take those alone that the documentation shows, to there")
    options = parser.parse_args()
    if options.best:
        with chromium() as browser, _node(SCENES["bottleneck"]) as url:
            for name, best in _BEST.items():
                list(_take(browser, url, best.picture, options.best / name, best.height))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [
        Picture(page=page, state=state, theme=theme, width=int(width))
        for state in options.states
        for page in options.pages
        if state in SHOTS[page].scenes
        for width in options.widths
        for theme in options.themes
    ]
    wrong = list(_taken(wanted, options.out))
    (options.out / "index.html").write_text(sheet(wanted))
    sys.stdout.write("".join(f"{one}\n" for one in wrong))
    sys.stdout.write(f"{len(wanted)} pictures, {len(wrong)} complaints: {options.out / 'index.html'}\n")
    return 1 if wrong else 0


def _names(known: Any) -> Callable[[str], tuple[str, ...]]:
    allowed = tuple(known)

    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        unknown = [name for name in found if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(allowed)}")
        return found

    return names


# ---- taking them


def _taken(wanted: Sequence[Picture], out: Path) -> Iterator[str]:
    """Takes them, state by state; yields what is wrong."""
    with chromium() as browser:
        for state in dict.fromkeys(one.state for one in wanted):
            with _node(SCENES[state]) as url:
                for picture in wanted:
                    if picture.state == state:
                        yield from _take(browser, url, picture, out / picture.file)


@contextmanager
def _node(scene: Scene) -> Iterator[str]:
    """A made-up node in that state; its address."""
    states, kept, past = made_up("page_states"), made_up("page_kept"), made_up("page_history")
    incidents = [getattr(kept, name) for name in scene.incidents]
    marks = past.Marks(states.NOON)
    marks.incidents = incidents
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if scene.history:
            crushes = (*past.CRUSHES, (_HURT_S, -1.0)) if scene.hurt else past.CRUSHES
            past.write(directory, states.NOON, _HOURS, _APART_S, engines=4, crushes=crushes)
        demo = made_up("demo_server").Demo(
            made_up("made_up").FullNode(scene.node),
            past.history(directory if scene.history else None, states.NOON),
            marks if scene.history else None,
            kept.FakeIncidents(*incidents, none=not incidents),
        )
        with served(demo) as url:
            yield url


def _take(browser: Browser, url: str, picture: Picture, to: Path, height: int | None = None) -> Iterator[str]:
    """``height``: no further down than that, in px; else all of the page."""
    scene, shot, said = SCENES[picture.state], SHOTS[picture.page], []
    unanswered: list[Route] = []

    def hold(route: Route) -> None:
        unanswered.append(route)

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    tab = browser.new_page(
        viewport={"width": picture.width, "height": _HEIGHT}, color_scheme=picture.theme, reduced_motion="reduce"
    )
    try:
        tab.on("console", heard)
        tab.on("pageerror", lambda error: said.append(str(error)))
        for address in () if scene.answers else _HELD:
            tab.route(address, hold)
        found = tab.goto(url + _address(tab, url, shot.path))
        if scene.answers and found is not None and found.ok:
            tab.locator('html[data-link="live"]').wait_for()
        shot.prepare(tab)
        tab.wait_for_timeout(_SETTLE_MS)
        if height is None:
            tab.screenshot(path=to, full_page=shot.prepare is not _ask)
        else:
            tab.set_viewport_size({"width": picture.width, "height": height})
            tab.wait_for_timeout(_RESIZED_MS)
            tab.screenshot(path=to)
            _shrink(to)
        missing = found is not None and found.status == 404  # a page that there is not has a console that says so
        yield from (f"{picture.file}: {text}" for text in said if not missing)
        yield from (f"{picture.file}: {text}" for text in _wrong(tab, picture.width))
    finally:
        for route in unanswered:
            route.abort()
        tab.close()


def _shrink(path: Path) -> None:
    """To 256 colours, rare ones too: a third of the bytes, and nobody sees it. (Pillow comes with vLLM.)"""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)


def _address(tab: Tab, url: str, path: str) -> str:
    """With the id of something that there is, or else of nothing."""
    if "{id}" not in path:
        return path
    kind = path.split("/")[1]
    found = tab.request.get(f"{url}/api/{kind}?limit=12").json()
    if kind == "requests":  # the slowest
        found = sorted((one for one in found if one["ttft_s"]), key=lambda one: -one["ttft_s"])
    return path.replace("{id}", found[0]["id"] if found else "none")


_CUT_OFF: Final = """() => [...document.querySelectorAll("main *, header *, dialog *")].filter((e) => {
  const style = getComputedStyle(e);
  if (!e.checkVisibility() || e.closest("svg, .unseen, [title]") || !e.textContent.trim()) return false;
  return style.overflowX === "hidden" && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1;
}).map((e) => `${e.className || e.tagName}: ${e.textContent.trim().slice(0, 60)}`)"""
"""Texts that end in an ellipsis, or nowhere, and that no title tells in full."""


def _wrong(tab: Tab, width: int) -> Iterator[str]:
    """What a picture need not show."""
    for text in dict.fromkeys(tab.evaluate(_CUT_OFF)):
        yield f"cut off: {text}"
    for narrow in (width, *([_NARROWEST] if width == min(_WIDTHS) else [])):
        tab.set_viewport_size({"width": narrow, "height": _HEIGHT})
        try:
            tab.wait_for_function(
                "width => document.documentElement.scrollWidth <= width", arg=narrow, timeout=_FITS_MS
            )
        except TimeoutError:
            wide = tab.evaluate("document.documentElement.scrollWidth")
            yield f"scrolls sideways at {narrow} px: {wide}"


# ---- the sheet


def sheet(pictures: Sequence[Picture]) -> str:
    """All of them as one document: a line of states for each page, theme and width."""
    lines: dict[tuple[str, str, int], list[Picture]] = {}
    for one in pictures:
        lines.setdefault((one.page, one.theme, one.width), []).append(one)
    return _HEAD + "".join(_line(*name, lines[name]) for name in sorted(lines))


def _line(page: str, theme: str, width: int, states: Sequence[Picture]) -> str:
    return f"<h2>{html.escape(page)}, {theme}, {width} px</h2>\n<div>{''.join(map(_figure, states))}</div>\n"


def _figure(one: Picture) -> str:
    picture = f'<img src="{one.file}" alt="" loading="lazy">'
    return f'<figure><figcaption>{one.state}</figcaption><a href="{one.file}">{picture}</a></figure>'


_HEAD: Final = """<!doctype html>
<meta charset="utf-8">
<title>The pages</title>
<style>
body { font: 14px system-ui; margin: 1rem; background: #888; }
h2 { font-size: 1rem; }
div { display: flex; gap: 1rem; overflow-x: auto; }
figure { margin: 0; flex: none; }
img { width: 22rem; display: block; }
figcaption { padding: .2rem 0; }
</style>
"""


if __name__ == "__main__":
    raise SystemExit(main())
