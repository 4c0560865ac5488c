"""What a client may do with a connection: a real server, and sockets that send as they like."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp

from web import audience, pages
from web.connection import HEADER_BYTES, Connection, Crowd
from web.openai import OpenAI
from web.ports import InferenceRequest, Reply

sys.path.append(str(Path(__file__).parents[1] / "browser"))
from demo_server import Demo
from made_up import FullNode

HEADER_S = 0.4


class Server:
    """The site over a made-up node."""

    def __init__(self, port: int, crowd: Crowd, running: uvicorn.Server) -> None:
        self.port, self.crowd, self._running = port, crowd, running

    @property
    def connections(self) -> int:
        return len(self._running.server_state.connections)

    async def client(self, *sent: bytes, of: str = "127.0.0.1") -> Client:
        """One that has sent that."""
        made = Client(*await asyncio.open_connection("127.0.0.1", self.port, local_addr=(of, 0)))
        for piece in sent:
            made.send(piece)
        return made

    async def until(self, connections: int) -> None:
        async with asyncio.timeout(10):
            while self.connections != connections:
                await asyncio.sleep(0.01)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    def send(self, piece: bytes) -> None:
        self._writer.write(piece)

    async def head(self) -> bytes:
        """Of the next answer."""
        async with asyncio.timeout(10):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def all(self) -> bytes:
        """Until the server closes it."""
        async with asyncio.timeout(10):
            with suppress(ConnectionError):  # where it had not read all that was sent
                return await self.reader.read()
            return bytes(self.reader._buffer)  # type: ignore[attr-defined]

    async def trickle(self, piece: bytes = b"x") -> bytes:
        """A little now and then, until the server closes it; what it has said."""
        reading = asyncio.create_task(self.all())
        while not reading.done():
            self.send(piece)
            await asyncio.sleep(0.02)
        return await reading

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def served(most: int = 100, header_s: float = HEADER_S, app: ASGIApp | None = None) -> AsyncIterator[Server]:
    """The site, or ``app``."""
    demo, crowd = Demo(FullNode("busy", tick_s=0.05)), Crowd(most, header_s)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app or demo,
        http=partial(Connection, crowd=crowd),  # type: ignore[arg-type]
        log_level="error",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running._serve([listener]))
    try:
        while not running.started:
            await asyncio.sleep(0.01)
        yield Server(listener.getsockname()[1], crowd, running)
    finally:
        demo.site.close_streams()
        running.should_exit = True
        await serving
        assert not crowd.owing, "nobody is remembered who has gone"


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", *headers, "\r\n")).encode()


async def test_a_header_that_does_not_come_to_its_end_is_given_up_however_it_trickles() -> None:
    async with served() as server:
        slow, still = [await server.client(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ") for _ in range(2)]
        assert b" 200 " not in await slow.trickle()
        said = await still.all()
        assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b'"code":"request_timeout"' in said
        await server.until(0)


async def test_who_says_nothing_at_all_is_hung_up_on() -> None:
    async with served() as server:
        silent = await server.client()
        assert await silent.all() == b""


async def test_what_comes_after_an_answer_has_its_time_too() -> None:
    async with served() as server:
        again = await server.client(get("/health"))
        assert b" 200 " in await again.head()
        await again.reader.readexactly(len(b'{"status":"alive"}'))
        again.send(get("/ready")[:-2])
        assert b" 200 " not in await again.trickle(b"X: y\r\n")
        await server.until(0)


async def test_between_two_requests_there_is_more_time_than_for_a_header() -> None:
    """A client that reuses a connection while the server closes it loses its request: clients should be the ones who close."""
    async with served() as server:
        rests = await server.client(get("/health"))
        assert b" 200 " in await rests.head()
        await rests.reader.readexactly(len(b'{"status":"alive"}'))
        await asyncio.sleep(2 * HEADER_S)
        rests.send(get("/health"))
        assert b" 200 " in await rests.head()
        rests.close()


async def test_the_body_of_what_was_answered_already_may_not_go_on_for_ever() -> None:
    async with served() as server:
        refused = await server.client(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 405 " in await refused.head()
        assert b"HTTP/1.1" not in await refused.trickle(), "it has had its answer"
        await server.until(0)


async def test_a_header_that_never_ends_is_too_large() -> None:
    async with served(header_s=20) as server:
        endless = await server.client(get("/health")[:-2])
        with suppress(ConnectionError):
            for _ in range(2 * HEADER_BYTES // 1000):
                endless.send(b"X: " + b"y" * 995 + b"\r\n")
                await endless._writer.drain()
                await asyncio.sleep(0)
        await server.until(0)
        async with asyncio.timeout(5):
            while not endless.reader.at_eof() and endless.reader.exception() is None:
                await asyncio.sleep(0.01)


async def test_whoever_is_served_is_waited_for() -> None:
    """A live stream, a body that takes its time, and one request after the other over one connection."""
    async with served() as server:
        stream = await server.client(get("/events"))
        body = await server.client(
            b"POST /api/engines/e0/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n"
        )
        busy = await server.client()
        for _ in range(4):
            busy.send(get("/health"))
            assert b" 200 " in await busy.head()
            await busy.reader.readexactly(len(b'{"status":"alive"}'))
            await asyncio.sleep(HEADER_S / 2)
        body.send(b'{"force": true}')
        assert b" 202 " in await body.head()
        assert b" 200 " in await stream.head()
        stream.reader._buffer.clear()  # type: ignore[attr-defined]
        await stream.reader.readuntil(b"data: ")
        for client in (stream, body, busy):
            client.close()


class Talking:
    """``Inference`` that says so many pieces, at once where there is room."""

    def __init__(self, pieces: int) -> None:
        self.pieces = [b"%05d " % number * 2000 for number in range(pieces)]
        self.at_once = self.waited = 0
        self.behind = asyncio.Event()
        self.left = asyncio.Event()

    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        await reply.start(200, [(b"content-type", b"text/event-stream")])
        try:
            for piece in self.pieces:
                if reply.send_now(piece):
                    self.at_once += 1
                else:
                    self.behind.set()
                    self.waited += 1
                    await reply.send(piece)
                    await asyncio.sleep(0)  # to be cancelled, if its client has left
        except asyncio.CancelledError:
            assert not reply.send_now(b"nobody has this")
            self.left.set()
            raise
        await reply.end()
        assert not reply.send_now(b"nor this")


def talk(*headers: str) -> bytes:
    return "\r\n".join(
        ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Length: 2", *headers, "\r\n{}")
    ).encode()


async def test_what_is_sent_at_once_and_what_has_to_wait_come_in_order() -> None:
    talking = Talking(1000)
    async with served(app=OpenAI(talking, 1 << 20, 1 << 20)) as server:
        client = await server.client(talk("Connection: close"))
        await asyncio.wait_for(talking.behind.wait(), 10)  # 12 MB don't fit between them
        said = await client.all()
        head, _, body = said.partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert body == b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in talking.pieces) + b"0\r\n\r\n"
        assert min(talking.at_once, talking.waited) > 0


async def test_the_second_of_two_requests_sent_together_says_nothing_in_the_first_ones_answer() -> None:
    talking = Talking(3)
    async with served(app=OpenAI(talking, 1 << 20, 1 << 20)) as server:
        client = await server.client(talk() + talk("Connection: close"))
        said = await client.all()
        first, second = said.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert first.partition(b"\r\n\r\n")[2] == second.partition(b"\r\n\r\n")[2]
        assert first.endswith(b"0\r\n\r\n")
        assert talking.at_once == 6


def test_nor_to_one_that_left_after_sending_another_request() -> None:
    """uvicorn tells only the last request of a connection that it has gone, and uvloop's transports raise where asyncio's are silent."""
    said: list[bool] = []

    class Late(Talking):
        async def serve(self, request: InferenceRequest, reply: Reply) -> None:
            await reply.start(200, [(b"content-type", b"text/event-stream")])
            said.append(reply.send_now(b"one"))
            self.behind.set()
            await self.left.wait()
            said.append(reply.send_now(b"two"))

    async def scenario() -> None:
        late = Late(0)
        async with served(app=OpenAI(late, 1 << 20, 1 << 20)) as server:
            client = await server.client(talk() + talk())
            await asyncio.wait_for(late.behind.wait(), 10)
            client.close()
            await server.until(0)
            late.left.set()
            await asyncio.sleep(0.05)

    uvloop.run(scenario())
    assert said == [True, False]


async def test_who_asks_for_a_websocket_is_told_that_there_is_none() -> None:
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + "A" * 22 + "==",
    )
    async with served() as server:
        client = await server.client(get("/", *upgrade))
        assert b" 403 " in await client.head()


async def test_nothing_is_sent_at_once_to_a_client_that_has_left() -> None:
    talking = Talking(1000)
    async with served(app=OpenAI(talking, 1 << 20, 1 << 20)) as server:
        client = await server.client(talk())
        await asyncio.wait_for(talking.behind.wait(), 10)
        client.close()
        await asyncio.wait_for(talking.left.wait(), 10)
        await server.until(0)


async def test_after_an_answer_that_came_before_all_of_its_body_a_client_may_rest_as_well() -> None:
    """The rest of a body is not the beginning of a header, and nobody is told that his is late who has sent none."""
    async with served() as server:
        early = await server.client(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n")
        head = await early.head()
        assert b" 405 " in head
        [length] = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        await early.reader.readexactly(length)
        early.send(b"body")
        await asyncio.sleep(2 * HEADER_S)
        early.send(get("/health"))
        assert b" 200 " in await early.head()
        early.close()


async def test_where_there_is_no_room_whoever_owes_his_request_gives_way_the_oldest_first() -> None:
    async with served(most=3, header_s=20) as server:
        stream = await server.client(get("/events"))
        await stream.head()
        old, young = await server.client(b"GET "), await server.client()
        await server.until(3)
        another = await server.client(get("/health"))
        assert b" 200 " in await another.head()
        assert await old.all()
        more = await server.client(get("/health"))
        assert b" 200 " in await more.head()
        assert not young.reader.at_eof() or await young.all() == b""
        stream.reader._buffer.clear()  # type: ignore[attr-defined]
        await stream.reader.readuntil(b"data: ")  # and not whoever is served


async def test_where_all_are_served_one_more_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    async with served(most=2) as server:
        streams = [await server.client(get("/events")) for _ in range(2)]
        for stream in streams:
            await stream.head()
        said = await (await server.client(get("/health"))).all()
        assert said.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b'"code":"connections_full"' in said and b"retry-after: 1" in said
        await server.client()
        assert sum("connections are open" in record.getMessage() for record in caplog.records) == 1


async def test_one_client_can_not_take_the_live_pages_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_FEEDS_MAX", 4)
    async with served() as server:
        greedy = [await server.client(get(f"/live/engines/e0?find={n}")) for n in range(4)]
        assert all([b" 200 " in await client.head() for client in greedy])
        refused = await (await server.client(get("/live/engines/e0?find=x", "Connection: close"))).all()
        assert b" 503 " in refused and b"retry-after" in refused, "it has all of them already"
        other = await server.client(get("/live/engines/e1"), of="127.0.0.2")
        assert b" 200 " in await other.head()
        await greedy[0].all()  # the oldest ends
        assert not greedy[1].reader.at_eof()
        third = await server.client(get("/live/kv"), of="127.0.0.3")
        assert b" 200 " in await third.head()
        await greedy[1].all()
        again = await (await server.client(get("/live/plan", "Connection: close"))).all()
        assert b" 503 " in again, "and does not take back what it gave"
        for client in (*greedy, other, third):
            client.close()


async def test_a_client_has_so_many_streams_and_those_that_end_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience.Audience.__init__, "__defaults__", (3,))
    async with served() as server:
        mine = [await server.client(get(path)) for path in ("/events", "/live/", "/live/")]
        for client in mine:
            await client.head()
        refused = await (await server.client(get("/live/kv", "Connection: close"))).all()
        assert b" 429 " in refused and b'"code":"too_many_streams"' in refused
        other = await server.client(get("/live/kv"), of="127.0.0.2")
        assert b" 200 " in await other.head()
        mine[0].close()
        async with asyncio.timeout(10):
            while b" 200 " not in await (again := await server.client(get("/live/kv"))).head():
                await asyncio.sleep(0.05)
        for client in (*mine, other, again):
            client.close()
