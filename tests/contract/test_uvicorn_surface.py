"""What ``web/connection.py`` relies on in uvicorn: a method that is called otherwise one day would be a time that nobody has."""

from __future__ import annotations

import inspect

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

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
