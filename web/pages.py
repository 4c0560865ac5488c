"""The pages' routes: first paints, and live streams of what has changed since."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from web import views, words
from web.audience import Audience, gives_way
from web.packed import PACKED
from web.ports import NodeView
from web.refused import Refused
from web.stream import Feed, client_of, stream
from web.views import Asked, Page

_STREAMS: Final = "/live"
_FEEDS_MAX: Final = 64  # different ones: each is rendered twice a second
_RETRY_S: Final = 10.0


class Pages:
    """Whoever looks at the same parts shares their feed."""

    def __init__(self, node: NodeView, pages: Sequence[Page], audience: Audience) -> None:
        self._node = node
        self._audience = audience
        self._pages = pages
        self._feeds = weakref.WeakValueDictionary[str, Feed]()  # each lives as long as somebody follows it
        self._turn = asyncio.Lock()  # a snapshot wakes all feeds at once
        self._closed = False

    def routes(self) -> list[BaseRoute]:
        return [route for page in self._pages for route in self._routes(page)]

    def _routes(self, page: Page) -> tuple[Route, Route]:
        return (
            Route(page.path, self._with(self._paint, page), middleware=PACKED),
            Route(_STREAMS + page.path, self._with(self._follow, page)),
        )

    @staticmethod
    def _with(
        answer: Callable[[Page, Request], Awaitable[Response]], page: Page
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await answer(page, request)

        return endpoint

    async def _paint(self, page: Page, request: Request) -> Response:
        try:
            view, status, stream = await views.of(page, _asked(request)), 200, _STREAMS + _address(page, request)
        except RequestError as error:
            page, status, stream = Refused(error, page.place), error.status, None
            view = await views.of(page, _asked(request))
        html = views.paint(page, view, self._node.latest(), stream)
        return HTMLResponse(html, status, headers={"cache-control": "no-store"})

    async def _follow(self, page: Page, request: Request) -> Response:
        return await stream(request, await self._feed(page, request), self._audience)

    async def _feed(self, page: Page, request: Request) -> Feed:
        address = _address(page, request)
        feed = self._feeds.get(address)
        if feed is not None:
            return feed
        if len(self._feeds) >= _FEEDS_MAX:
            self._make_room(client_of(request))
        asked = replace(_asked(request), query=_live(page, request), following=True)
        feed = Feed(self._node, await views.followed(page, asked), self._turn)
        if self._closed:
            feed.close()
        return self._feeds.setdefault(address, feed)  # somebody may have come meanwhile

    def _make_room(self, client: str) -> None:
        """Whoever follows the most different ones gives one up. Raises ``RequestError`` 503 where that is nobody else."""
        address = gives_way({address: feed.clients for address, feed in self._feeds.items()}, client)
        if address is None:
            message = "Too many different pages are looked at; close some."
            raise RequestError(503, message, kind="service_unavailable", code="busy", retry_after_s=_RETRY_S)
        if (feed := self._feeds.pop(address, None)) is not None:
            feed.close()

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        for feed in list(self._feeds.values()):
            feed.close()


def _address(page: Page, request: Request) -> str:
    """The same for all that share a feed."""
    return words.address(request.url.path, **_live(page, request))


def _live(page: Page, request: Request) -> dict[str, str]:
    """What its live parts depend on of the query."""
    asked = request.query_params
    return {name: asked[name] for name in page.query if name in asked}


def _asked(request: Request) -> Asked:
    return Asked(
        names=dict(request.path_params),
        query=dict(request.query_params),
        origin=f"{request.url.scheme}://{request.headers.get('host', '')}",
    )
