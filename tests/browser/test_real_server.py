"""What only a real HTTP server shows: refusals that reach a client still sending, and answers that break off."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from page_states import FakeNode

from appliance.remedies.apply import Remedies
from web.app import create_app
from web.ports import InferenceRequest, Reply

_LIMIT_BYTES = 100_000


class Router:
    """Echoes; or breaks off, or waits, where the path says so."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        await reply.start(200, [(b"content-type", b"text/plain")])
        await reply.send(request.body)
        if request.path == "/v1/breaks":
            raise ValueError("in mid-answer")
        if request.path == "/v1/waits":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        await reply.end()


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def port(router: Router) -> Iterator[int]:
    site = create_app(
        inference=router,
        node=FakeNode(),
        actions=Remedies(FakeNode(), FakeNode().latest),
        max_body_bytes=_LIMIT_BYTES,
        max_held_bytes=10 * _LIMIT_BYTES,
        metrics=lambda snapshot: b"",
        bound_to="127.0.0.1",
    )
    server = uvicorn.Server(uvicorn.Config(site, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_client_that_sends_far_too_much_gets_to_read_the_413(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/echo", body=b"x" * 20_000_000)
    answer = connection.getresponse()
    assert (answer.status, b"request_too_large" in answer.read()) == (413, True)
    connection.request("POST", "/v1/echo", body=b"small")
    assert connection.getresponse().read() == b"small"
    connection.close()


def test_a_chunked_body_without_end_is_refused_at_the_limit(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/echo", body=(b"x" * 65_536 for _ in range(200)), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_client_that_asks_first_is_not_asked_to_send(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900000\r\nexpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_large_request_of_another_sites_page_gets_to_read_the_403(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/echo", body=b"x" * 20_000_000, headers={"Origin": "https://evil.example"})
    answer = connection.getresponse()
    assert (answer.status, b"allowed_hosts" in answer.read()) == (403, True)
    connection.close()


def test_an_answer_that_breaks_off_can_be_told_from_one_that_ended(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/breaks", body=b"half")
    with pytest.raises(http.client.IncompleteRead) as broken:
        connection.getresponse().read()
    assert broken.value.partial == b"half"
    connection.close()


def test_a_client_that_hangs_up_cancels_its_request(port: int, router: Router) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/waits", body=b"x")
    assert connection.getresponse().read(1) == b"x"
    connection.close()
    assert router.cancelled.wait(2)
