"""Pages: what each shows, and the frame that they share.

A ``View`` is one page as it was asked for. Its parts are templates over contexts, made of a snapshot: the same make the first paint and
every update, which htmx swaps into the element with the part's name.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec
from markupsafe import Markup

from appliance.records import STAGES, NodeSnapshot
from web import assets, contexts
from web.contexts import ChoiceContext, Context
from web.lasting import Lasting
from web.render import compact, render
from web.stream import Render, event

THEME: Final = "theme.js"
FRAME_STYLE: Final = "app.css"
STYLES: Final = (FRAME_STYLE, "charts.css", "detail.css")
"""All that stand in pages."""

Parts = Mapping[str, Context]
"""Live parts of a page: each is ``<name>.html``, shown in the element with that id."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a page was asked for by."""

    names: Mapping[str, str] = {}  # in its path
    query: Mapping[str, str] = {}
    origin: str = ""  # scheme and host, as the browser has them: not to be trusted
    following: bool = False  # by somebody who has its first paint: its live parts alone are wanted


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One page as it was asked for."""

    title: Callable[[NodeSnapshot], str]
    parts: Callable[[NodeSnapshot], Parts]
    body: Callable[[NodeSnapshot, Mapping[str, Markup]], Context]  # of the page's own template, around its parts
    sample: Callable[[NodeSnapshot], Mapping[str, float | None]] | None = None  # for its charts
    style: str = "detail"  # ``<style>.css``, besides what all pages have


class Page(Protocol):
    """A kind of page. ``view`` raises ``RequestError`` where there is nothing to show, or the query can't be understood.

    What no snapshot has, and must be waited for, it gets first: it is then a coroutine, and asked anew for each snapshot that is shown.
    Any other is asked once for as long as somebody follows it, and its view may remember what it has made.
    """

    path: str  # with names in braces, as Starlette's routes have them
    query: tuple[str, ...]  # what its live parts depend on, of a query: who asks for more shares them
    template: str
    place: str  # in the navigation: one of ``PLACES``

    def view(self, asked: Asked) -> View | Awaitable[View]: ...


class PageContext(Context, frozen=True, kw_only=True):
    """``page.html``: the frame."""

    title: str
    places: tuple[ChoiceContext, ...]
    body: Markup
    shared: dict[str, Markup]  # parts that every page has
    stream: str | None  # where updates come from; None where there are none
    live: bool  # the browser libraries are there
    charts: bool  # its browser draws some
    theme: Markup
    styles: tuple[Markup, ...]
    stages: tuple[str, ...]  # of a request: each has a pattern
    simulated: bool
    build: str  # fingerprint of the static files


PLACES: Final = {
    "Overview": "/",
    "Engines": "/engines",
    "Requests": "/requests",
    "Incidents": "/incidents",
    "KV": "/kv",
    "Plan": "/plan",
    "Try it": "/try",
}
"""The navigation."""


async def of(page: Page, asked: Asked) -> View:
    """The page as it was asked for."""
    found = page.view(asked)
    return found if isinstance(found, View) else await found


def shared(snapshot: NodeSnapshot) -> Parts:
    """What every page has around its body."""
    return {
        "strip": contexts.strip(snapshot),
        "announcement": contexts.announcement(snapshot),
        "footer": contexts.footer(snapshot),
    }


def paint(page: Page, view: View, snapshot: NodeSnapshot, stream: str | None) -> str:
    """The first paint, complete without any script. ``stream``: the address of its updates."""
    body = view.body(snapshot, _painted(view.parts(snapshot)))
    return render(
        "page",
        PageContext(
            title=f"{'simulated: ' if snapshot.simulated else ''}{view.title(snapshot)} · pd-appliance",
            places=tuple(
                ChoiceContext(label=name, href=href, here=name == page.place) for name, href in PLACES.items()
            ),
            body=Markup(render(page.template, body)),
            shared=_painted(shared(snapshot)),
            stream=stream,
            live=assets.vendor_present(),
            charts=view.sample is not None,
            theme=assets.inline(THEME),
            styles=(assets.inline(FRAME_STYLE), assets.inline(f"{view.style}.css")),
            stages=STAGES,
            simulated=snapshot.simulated,
            build=assets.fingerprint(),
        ),
    )


def _painted(parts: Parts) -> dict[str, Markup]:
    return {name: Markup(compact(name, context)) for name, context in parts.items()}


async def followed(page: Page, asked: Asked) -> Render:
    """What its feed sends of each snapshot. Raises ``RequestError`` where there is nothing to follow."""
    found = page.view(asked)
    if isinstance(found, View):
        return functools.partial(fragments, found)
    await found

    async def anew(snapshot: NodeSnapshot) -> dict[str, bytes]:
        return fragments(await of(page, asked), snapshot)

    return anew


def fragments(view: View, snapshot: NodeSnapshot) -> dict[str, bytes]:
    """The parts as server-sent events for htmx, and a sample for the charts and for noticing an upgrade."""
    parts = {
        name: _partials.get(snapshot.uptime_s, (name, context), functools.partial(_partial, name, context))
        for name, context in {**shared(snapshot), **view.parts(snapshot)}.items()
    }
    point = {"time": snapshot.time, **(view.sample(snapshot) if view.sample else {}), "build": assets.fingerprint()}
    return parts | {"sample": event(json.dumps(point), "sample")}


_partials: Final = Lasting[tuple[str, Context], bytes]()
"""A part that has not changed, or is on several pages, is rendered once."""


def _partial(name: str, context: Context) -> bytes:
    """A part for htmx."""
    html = compact(name, context)
    return event(f'<hx-partial hx-target="#{name}" hx-swap="innerMorph">\n{html}\n</hx-partial>')
