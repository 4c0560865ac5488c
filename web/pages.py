"""The page and its live parts: the same templates make the first paint and every update."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable
from typing import Final

import jinja2
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from appliance.records import NodeSnapshot
from web import assets, contexts, diagnosis, flow, gpus, waterfall
from web.contexts import Context
from web.ports import NodeView
from web.stream import Feed, event, stream

SECTIONS: Final[dict[str, Callable[[NodeSnapshot], Context]]] = {
    "headline": contexts.headline,
    "announcement": contexts.announcement,
    "diagnosis": diagnosis.diagnosis,
    "flow": flow.flow,
    "gpus": gpus.gpus,
    "requests": waterfall.requests,
    "footer": contexts.footer,
}
"""Live sections: each is ``<name>.html``, shown in the element with that id."""

_HOST: Final = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?")
_SCHEMES: Final = ("http", "https")


class PageContext(Context, frozen=True, kw_only=True):
    """``page.html``: the whole page."""

    title: str
    parts: dict[str, Markup]  # the sections, rendered
    curl: str  # a first request, to be copied
    empty: bool  # nothing has been asked yet
    live: bool  # the browser libraries are there
    simulated: bool
    build: str  # fingerprint of the static files


def environment() -> jinja2.Environment:
    """Strict: a variable that a context lacks is an error, not a blank."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(assets.directory("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


@functools.cache
def _template(name: str) -> jinja2.Template:
    return _environment().get_template(f"{name}.html")


_environment = functools.cache(environment)


def render(name: str, context: Context) -> str:
    """A template over a context's fields."""
    return _template(name).render({field: getattr(context, field) for field in context.__struct_fields__})


def sections(snapshot: NodeSnapshot) -> dict[str, str]:
    """The live sections' HTML, without blank lines and indentation: it is sent again and again."""
    return {name: _compact(render(name, context(snapshot))) for name, context in SECTIONS.items()}


def _compact(html: str) -> str:
    return "\n".join(line for line in map(str.strip, html.splitlines()) if line)


def fragments(snapshot: NodeSnapshot) -> dict[str, bytes]:
    """The sections as server-sent events for htmx, and a sample for the charts."""
    parts = {
        name: event(f'<hx-partial hx-target="#{name}" hx-swap="innerMorph">\n{html}\n</hx-partial>')
        for name, html in sections(snapshot).items()
    }
    point = contexts.sample(snapshot) | {"build": assets.fingerprint()}
    return parts | {"sample": event(json.dumps(point), "sample")}


def page(snapshot: NodeSnapshot, host: str, scheme: str = "http") -> PageContext:
    """The first paint, complete without any script."""
    return PageContext(
        title=f"{'simulated: ' if snapshot.simulated else ''}{snapshot.model} · pd-appliance",
        parts={name: Markup(html) for name, html in sections(snapshot).items()},  # rendered: escaped
        curl=curl(snapshot.model, host, scheme),
        empty=not snapshot.requests.total,
        live=assets.vendor_present(),
        simulated=snapshot.simulated,
        build=assets.fingerprint(),
    )


def curl(model: str, host: str, scheme: str) -> str:
    """A first request to this node. ``scheme`` and ``host`` are the browser's; anything odd is replaced."""
    where = f"{scheme}://{host}" if _HOST.fullmatch(host) and scheme in _SCHEMES else "http://127.0.0.1:8000"
    body = {"model": model, "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}
    return "\n".join(
        (
            f"curl -N {where}/v1/chat/completions \\",
            "  -H 'content-type: application/json' \\",
            f"  -d {shlex.quote(json.dumps(body))}",
        )
    )


class Pages:
    """Routes of the page."""

    def __init__(self, node: NodeView) -> None:
        self._node = node
        self.feed = Feed(node, fragments)

    def routes(self) -> list[BaseRoute]:
        return [Route("/", self.page), Route("/live/node", self.live)]

    async def page(self, request: Request) -> Response:
        html = render("page", page(self._node.latest(), request.headers.get("host", ""), request.url.scheme))
        return HTMLResponse(html, headers={"cache-control": "no-store"})

    async def live(self, request: Request) -> Response:
        return await stream(request, self.feed)
