"""What ``web/connection.py`` relies on in uvicorn: a method that is called otherwise one day would be a time that nobody has."""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from web import connection
from web.connection import Connection

OWN = ("__init__", "give_up")


@pytest.mark.parametrize(
    "name", [name for name, what in vars(Connection).items() if inspect.isfunction(what) and not name.startswith("_")]
)
def test_what_is_overridden_is_there(name: str) -> None:
    assert name in OWN or name in vars(HttpToolsProtocol)


def test_it_is_called_when_a_request_is_there_and_when_it_was_answered() -> None:
    assert "on_response=self.on_response_complete" in inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "self.on_response()" in inspect.getsource(RequestResponseCycle.send)
    source = inspect.getsource(HttpToolsProtocol)
    assert all(used in source for used in ("self.pipeline", "self.connections.add(self)", "self.transport"))


@pytest.mark.parametrize("method", ["POST", "HEAD"])
async def test_a_piece_that_is_sent_at_once_is_what_uvicorn_would_have_sent(method: str) -> None:
    written: list[bytes] = []
    transport = SimpleNamespace(write=written.append, close=lambda: None, is_closing=lambda: False)
    cycle = RequestResponseCycle(
        scope={"method": method},  # type: ignore[arg-type,typeddict-item]
        transport=transport,  # type: ignore[arg-type]
        flow=FlowControl(transport),  # type: ignore[arg-type]
        logger=logging.getLogger(),
        access_logger=logging.getLogger(),
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )
    now = partial(connection._send_now, weakref.ref(cycle))
    assert not now(b"before its head"), "there is no answer yet"
    await cycle.send({"type": "http.response.start", "status": 200, "headers": []})
    del written[:]
    if method == "HEAD":
        assert not now(b"to one that wants no body")
        return
    await cycle.send({"type": "http.response.body", "body": b"some word", "more_body": True})
    assert now(b"some word")
    assert written[0] == written[1]
    cycle.flow.pause_writing()
    assert not now(b"to one that is behind")
    cycle.flow.resume_writing()
    cycle.disconnected = True
    assert not now(b"to one that has gone")
    cycle.disconnected = False
    await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})
    assert not now(b"after its end")
    assert written[2:] == [b"0\r\n\r\n"]
