"""Who gets what is long compressed: whoever takes gzip, and nobody else."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from web.packed import PACKED, takes_gzip

LONG = "long " * 1000


@pytest.mark.parametrize(
    ("said", "takes"),
    [
        (["gzip"], True),
        (["GZIP"], True),
        (["deflate, gzip;q=0.5, br"], True),
        (["x-gzip"], True),
        (["*"], True),
        (["br", "gzip"], True),
        (["gzip;q=0.001"], True),
        ([], False),
        ([""], False),
        (["identity"], False),
        (["br, deflate"], False),
        (["xgzipx"], False),
        (["gzip;q=0"], False),
        (["gzip; q=0.0"], False),
        (["gzip ; Q=0.000, br"], False),
        (["*;q=0"], False),
        (["gzip;q=0, *"], False),
        (["*;q=0, gzip"], True),
    ],
)
def test_gzip_is_taken_by_whoever_says_so(said: list[str], takes: bool) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(LONG)

    assert takes_gzip(said) is takes
    client = TestClient(Starlette(routes=[Route("/", answer, middleware=PACKED)]))
    client.headers.pop("accept-encoding")
    found = client.get("/", headers=[("accept-encoding", one) for one in said])
    assert found.headers.get("content-encoding") == ("gzip" if takes else None)
    assert found.headers["vary"] == "Accept-Encoding", "for whoever keeps it for others"
    assert found.text == LONG
