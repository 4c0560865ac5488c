"""What a browser is shown in the place of a page that there is not: in the frame of all pages, or alone where that can't be had."""

from __future__ import annotations

import math
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from appliance.errors import RequestError
from web import assets, errors, views
from web.contexts import Context
from web.ports import NodeView
from web.render import render
from web.views import Asked, View

_OF_PROGRAMS: Final = (
    "/v1",
    "/tokenize",
    "/detokenize",
    "/api",
    "/events",
    "/live",
    "/metrics",
    "/health",
    "/ready",
    "/static",
)
_TITLES: Final = {
    403: "Not by this name",
    404: "Not here",
    405: "Not in this way",
    500: "A fault of the appliance",
    503: "Not now",
}
_OTHER_TITLE: Final = "That can't be shown"
_STEPS: Final = {
    400: "Correct the address, or begin anew from a page that there is.",
    403: "Open it by the address on which it listens, or have whoever runs it allow this name.",
    404: "Look at the address. What has ended is kept for a while only; the pages above list what there is now.",
    500: "Reload the page. If it comes again, what was wrong is in that log.",
    503: "Reload the page in a moment.",
}
_OTHER_STEP: Final = "Go back, or begin anew from a page that there is."


class RefusedContext(Context, frozen=True, kw_only=True):
    """``refused.html``."""

    title: str
    sentence: str  # what is wrong
    step: str  # what to do about it
    overview: bool  # it is there to go to


class AloneContext(RefusedContext, frozen=True, kw_only=True):
    """``refused_alone.html``: the same without the frame, which would tell of the node."""

    build: str


class Refused:
    """A page's refusal, as a page."""

    path = ""
    query: tuple[str, ...] = ()
    template = "refused"

    def __init__(self, error: RequestError, place: str = "") -> None:
        self._error = error
        self.place = place

    def view(self, asked: Asked) -> View:
        context = refused(self._error)
        return View(
            title=lambda snapshot: context.title, parts=lambda snapshot: {}, body=lambda snapshot, parts: context
        )


def refused(error: RequestError) -> RefusedContext:
    """The error, for somebody who looks."""
    step = _STEPS.get(error.status, _OTHER_STEP)
    if error.retry_after_s is not None:
        step = f"Reload the page in {math.ceil(error.retry_after_s)} s."
    title = _TITLES.get(error.status, _OTHER_TITLE)
    return RefusedContext(title=title, sentence=str(error), step=step, overview=error.status != 403)


def looks(scope: Scope) -> bool:
    """A person asks, by a browser's address line or a link. What programs and scripts ask is answered as they can read it."""
    path, headers = scope["path"], Headers(scope=scope)
    if any(path == root or path.startswith(f"{root}/") for root in _OF_PROGRAMS):
        return False
    return "text/html" in headers.get("accept", "") and "hx-request" not in headers


class Refusals:
    """Errors as answers: pages for those who look, OpenAI's shape for all others."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    def answer(self, scope: Scope, error: RequestError) -> Response:
        """In the frame. Where the frame itself fails, alone."""
        if not looks(scope):
            return errors.answer(error)
        page = Refused(error)
        try:
            html = views.paint(page, page.view(Asked()), self._node.latest(), None)
        except Exception:  # the fault that is told of may be that of the frame
            return self.alone(scope, error)
        return _page(html, error)

    def alone(self, scope: Scope, error: RequestError) -> Response:
        """Without a word of the node, for those who may not know of it."""
        if not looks(scope):
            return errors.answer(error)
        context = refused(error)
        shown = {name: getattr(context, name) for name in context.__struct_fields__}
        return _page(render("refused_alone", AloneContext(**shown, build=assets.fingerprint())), error)


def _page(html: str, error: RequestError) -> HTMLResponse:
    headers = {"cache-control": "no-store"}
    if error.retry_after_s is not None:
        headers["retry-after"] = errors.retry_after(error.retry_after_s)
    return HTMLResponse(html, error.status, headers)
