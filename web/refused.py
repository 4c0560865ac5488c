"""What stands in the frame in the place of a page that there is not."""

from __future__ import annotations

from typing import Final

from appliance.errors import RequestError
from web.contexts import Context
from web.views import Asked, View

_TITLES: Final = {400: "That can't be shown", 404: "Not here", 503: "Not now"}


class RefusedContext(Context, frozen=True, kw_only=True):
    """``refused.html``."""

    title: str
    sentence: str


class Refused:
    """A page's refusal, as a page."""

    path = ""
    query: tuple[str, ...] = ()
    template = "refused"

    def __init__(self, error: RequestError, place: str) -> None:
        self._error = error
        self.place = place

    def view(self, asked: Asked) -> View:
        title = _TITLES.get(self._error.status, "That can't be shown")
        return View(
            title=lambda snapshot: title,
            parts=lambda snapshot: {},
            body=lambda snapshot, parts: RefusedContext(title=title, sentence=str(self._error)),
        )
