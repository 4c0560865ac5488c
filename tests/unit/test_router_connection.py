"""Connections to an engine: what it may answer, and how, over a real Unix socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from appliance.records import EngineState, EngineView, Role
from appliance.router import connection
from appliance.router.client import Engines, Response, Unreachable

OK = b"HTTP/1.1 200 OK\r\n"
SAID = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"
Answers = Callable[["Caller"], Awaitable[None]]


class Caller:
    """One connection, as an engine sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        return head, await self._reader.readexactly(sum(lengths))

    def say(self, *pieces: bytes) -> None:
        self.writer.writelines(pieces)

    async def end(self) -> bytes:
        """Until the router hangs up."""
        return await self._reader.read()


class Engine:
    """``answers`` has a connection from its beginning to its end."""

    def __init__(self, directory: Path) -> None:
        self.view = EngineView(
            name="e0", role=Role.BOTH, state=EngineState.READY, epoch=1, socket=str(directory / "engine")
        )
        self.callers: list[Caller] = []
        self.engines = Engines()
        self.answers: Answers = self._empty

    async def _empty(self, caller: Caller) -> None:
        while True:
            await caller.request()
            caller.say(EMPTY)

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = Caller(reader, writer)
        self.callers.append(caller)
        try:
            await self.answers(caller)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._called, self.view.socket)

    async def ask(self, method: str = "POST", body: bytes = b"{}") -> Response:
        async with asyncio.timeout(10):
            return await self.engines.send(self.view, method, "/v1/x?y=z", {"X-Request-Id": "r"}, body)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        found = Engine(Path(name))
        server = await found.listen()
        yield found
        await found.engines.close()
        server.close()


def once(*pieces: bytes, hang_up: bool = False) -> Answers:
    """To one request; then it is silent, or hangs up."""

    async def answer(caller: Caller) -> None:
        await caller.request()
        caller.say(b"".join(pieces))
        if not hang_up:
            await caller.end()

    return answer


async def test_what_it_is_asked_is_a_request(engine: Engine) -> None:
    asked: list[tuple[bytes, bytes]] = []

    async def answer(caller: Caller) -> None:
        while True:
            asked.append(await caller.request())
            caller.say(EMPTY)

    engine.answers = answer
    for method, body in (("POST", b'{"a": 1}'), ("GET", b""), ("POST", b"")):
        assert await (await engine.ask(method, body)).all() == b""
    [(first, body), (second, _), (third, _)] = asked
    assert first == b"POST /v1/x?y=z HTTP/1.1\r\nhost: e0\r\nX-Request-Id: r\r\ncontent-length: 8\r\n\r\n"
    assert body == b'{"a": 1}'
    assert b"content-length" not in second
    assert b"content-length: 0" in third
    assert len(engine.callers) == 1, "one connection, used again"


async def test_pieces_come_as_they_are_sent(engine: Engine) -> None:
    go_on = asyncio.Event()

    async def answer(caller: Caller) -> None:
        await caller.request()
        caller.say(SAID, b"5\r\nfirst\r\n")
        await go_on.wait()
        caller.say(b"6\r\nsecond\r\n", b"0\r\n\r\n")
        await caller.end()

    engine.answers = answer
    response = await engine.ask()
    assert (response.status, response.streams) == (200, True)
    assert await response.some() == b"first"
    go_on.set()
    assert await response.some() == b"second"
    assert [await response.some(), await response.some()] == [b"", b""], "the end stays the end"


async def test_what_comes_while_a_task_waits_may_be_taken_without_waking_it(engine: Engine) -> None:
    """Until something is declined: that, and all that comes after it, is the task's, in order."""
    said: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(caller: Caller) -> None:
        await caller.request()
        caller.say(SAID)
        while piece := await said.get():
            caller.say(piece)
        await caller.end()

    taken: list[bytes] = []

    def taker(piece: bytes) -> bool:
        if piece.endswith(b"!"):
            return False
        taken.append(piece)
        return True

    engine.answers = answer
    response = await engine.ask()
    reading = asyncio.create_task(response.some(taker))
    for piece in (b"3\r\none\r\n", b"3\r\ntwo\r\n3\r\nsix\r\n", b"5\r\nth", b"ree\r\n", b"4\r\nfou"):
        said.put_nowait(piece)
        await asyncio.sleep(0.02)
    assert taken == [b"one", b"twosix", b"th", b"ree", b"fou"]
    assert not reading.done()
    said.put_nowait(b"r\r\n3\r\nno!\r\n")
    assert await reading == b"rno!"
    said.put_nowait(b"4\r\nmore\r\n")
    await asyncio.sleep(0.02)
    assert await response.some(taker) == b"more", "nothing is offered that came while nobody waited"

    leaving = asyncio.create_task(response.some(taker))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    said.put_nowait(b"4\r\nleft\r\n")
    await asyncio.sleep(0.02)
    assert len(taken) == 5, "nor to a task that was cancelled"
    assert await response.some() == b"left"

    last = asyncio.create_task(response.some(taker))
    await asyncio.sleep(0)
    said.put_nowait(b"3\r\nend\r\n0\r\n\r\n")
    assert await last == b""
    assert taken[5:] == [b"end"], "what comes with the end is offered, and the end is told"


async def test_what_a_taker_raises_is_its_readers(engine: Engine) -> None:
    """Not the engine's: its connection goes on, and ends in order."""
    go_on = asyncio.Event()

    async def answer(caller: Caller) -> None:
        await caller.request()
        caller.say(SAID)
        await go_on.wait()
        caller.say(b"4\r\nword\r\n", b"0\r\n\r\n")
        await caller.request()
        caller.say(EMPTY)
        await caller.end()

    def taker(piece: bytes) -> bool:
        raise RuntimeError(f"can't take {piece!r}")

    engine.answers = answer
    response = await engine.ask()
    reading = asyncio.create_task(response.some(taker))
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(RuntimeError, match="can't take b'word'"):
        await asyncio.wait_for(reading, 5)
    await engine.ask()
    assert len(engine.callers) == 1, "the same connection, used again"


async def test_an_answer_that_is_taken_is_never_too_much(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MOST_HELD_BYTES", 1000)
    engine.answers = once(SAID, *[b"1f4\r\n" + b"x" * 500 + b"\r\n"] * 400, b"0\r\n\r\n")
    response = await engine.ask()
    taken: list[int] = []
    async with asyncio.timeout(5):
        while piece := await response.some(lambda piece: taken.append(len(piece)) is None):
            taken.append(len(piece))
    assert sum(taken) == 200_000


async def test_what_comes_before_the_answer_is_none(engine: Engine) -> None:
    engine.answers = once(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nhi")
    response = await engine.ask()
    assert (response.status, response.content_type, await response.all()) == (201, "application/json", b"hi")


@pytest.mark.parametrize(
    "said",
    [b"", OK[:9], SAID, SAID + b"5\r\nfir", OK + b"content-length: 9\r\n\r\nfour", b"\x00\x01\x02 nothing\r\n\r\n"],
)
async def test_an_answer_that_ends_too_soon_is_no_answer(engine: Engine, said: bytes) -> None:
    engine.answers = once(said, hang_up=True)
    with pytest.raises(Unreachable) as told:
        await (await engine.ask()).all()
    assert told.value.had_it, "it may have begun"


async def test_what_has_come_before_it_ended_can_be_read(engine: Engine) -> None:
    engine.answers = once(SAID, b"4\r\nword\r\n", hang_up=True)
    response = await engine.ask()
    await asyncio.sleep(0.05)
    assert await response.some() == b"word"
    with pytest.raises(Unreachable, match="in the middle of its answer"):
        await response.some()


async def test_nobody_there(engine: Engine) -> None:
    Path(engine.view.socket).unlink()
    with pytest.raises(Unreachable, match="can't be reached") as told:
        await engine.ask()
    assert not told.value.had_it


async def test_a_connection_that_it_closes_is_not_used_again(engine: Engine) -> None:
    async def answer(caller: Caller) -> None:
        await caller.request()
        caller.say(EMPTY)

    engine.answers = answer
    for _ in range(3):
        assert (await engine.ask()).status == 200
        await asyncio.sleep(0.05)
    assert len(engine.callers) == 3


async def test_it_may_say_that_it_will_close_it(engine: Engine) -> None:
    engine.answers = once(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi")
    for number in (1, 2):
        assert await (await engine.ask()).all() == b"hi"
        assert len(engine.callers) == number


async def test_one_that_has_rested_for_too_long_is_not_used_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.router.client._KEEP_ALIVE_S", 0.05)
    await engine.ask()
    await asyncio.sleep(0.1)
    await engine.ask()
    assert len(engine.callers) == 2
    assert await engine.callers[0].end() == b"", "and is closed"


async def test_one_that_the_engine_closes_just_when_it_is_used_has_not_brought_the_request(engine: Engine) -> None:
    """It is asked again on a new one, and only once."""
    answers = 0

    async def answer(caller: Caller) -> None:
        nonlocal answers
        await caller.request()
        answers += 1
        if answers in (1, 3):
            caller.say(EMPTY)
            await caller.request()  # and hangs up without a word

    engine.answers = answer
    assert (await engine.ask()).status == 200
    with pytest.raises(Unreachable) as told:
        await engine.ask()
    assert told.value.had_it
    assert (answers, len(engine.callers)) == (2, 2)
    assert (await engine.ask()).status == 200
    engine.answers = once(EMPTY)
    assert (await engine.ask()).status == 200
    assert len(engine.callers) == 4


async def test_one_on_which_it_has_failed_is_not_used_again(engine: Engine) -> None:
    """uvicorn closes it, and does not say so."""
    engine.answers = once(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\nno")
    for number in (1, 2):
        response = await engine.ask()
        assert (response.status, await response.all()) == (500, b"no")
        assert len(engine.callers) == number


async def test_whoever_has_an_old_view_does_not_reach_the_life_that_has_come_since(engine: Engine) -> None:
    """Both have the same socket."""
    old = engine.view
    engine.view = msgspec.structs.replace(old, epoch=2)
    engine.answers = once(SAID, b"4\r\nword\r\n")
    response = await engine.ask()
    for _ in range(2):
        with pytest.raises(Unreachable) as told:
            await engine.engines.send(old, "POST", "/", {}, b"")
        assert not told.value.had_it
        engine.engines.lost("e0", 1)  # neither does hearing of the old one's end
    assert await response.some() == b"word"


async def test_two_at_once_have_two(engine: Engine) -> None:
    await asyncio.gather(engine.ask(), engine.ask())
    assert len(engine.callers) == 2
    await asyncio.gather(engine.ask(), engine.ask())
    assert len(engine.callers) == 2


async def test_an_answer_that_is_given_up_closes_its_connection(engine: Engine) -> None:
    closed = asyncio.Event()

    async def answer(caller: Caller) -> None:
        await caller.request()
        caller.say(SAID, b"4\r\nword\r\n")
        assert await caller.end() == b""
        closed.set()

    engine.answers = answer
    response = await engine.ask()
    response.close()
    async with asyncio.timeout(5):
        await closed.wait()


async def test_so_does_a_client_that_leaves_before_it(engine: Engine) -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def answer(caller: Caller) -> None:
        await caller.request()
        asked.set()
        assert await caller.end() == b""
        closed.set()

    engine.answers = answer
    asking = asyncio.create_task(engine.ask())
    async with asyncio.timeout(5):
        await asked.wait()
        asking.cancel()
        await closed.wait()
    [outcome] = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)


async def test_whoever_waits_is_told_that_the_engine_is_gone(engine: Engine) -> None:
    engine.answers = once(SAID)
    begun = await engine.ask()
    reading = asyncio.create_task(begun.some())
    engine.answers = once()
    asking = asyncio.create_task(engine.ask())
    await asyncio.sleep(0.05)
    engine.engines.lost("e0", 1)
    for task in (reading, asking):
        with pytest.raises(Unreachable):
            await asyncio.wait_for(task, 1)


@pytest.mark.parametrize("end", [1, None])
async def test_so_is_whoever_is_about_to_be_connected(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, end: int | None
) -> None:
    """Event loops make the protocol before there is a connection. ``end``: of that life, or of all."""
    loop = asyncio.get_running_loop()
    connect = loop.create_unix_connection

    async def slowly(make: Callable[[], asyncio.Protocol], path: str) -> object:
        made = make()
        await asyncio.sleep(0.05)
        return await connect(lambda: made, path)

    monkeypatch.setattr(loop, "create_unix_connection", slowly)
    asking = asyncio.create_task(engine.ask())
    await asyncio.sleep(0.01)
    if end is None:
        await engine.engines.close()
    else:
        engine.engines.lost("e0", end)
    with pytest.raises(Unreachable, match="can't be reached") as told:
        await asyncio.wait_for(asking, 1)
    assert not told.value.had_it


async def test_one_that_is_closed_before_it_is_used_is_no_connection(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_unix_connection

    async def hung_up_on(make: Callable[[], asyncio.Protocol], path: str) -> object:
        transport, made = await connect(make, path)
        transport.abort()
        await asyncio.sleep(0.01)
        return transport, made

    monkeypatch.setattr(loop, "create_unix_connection", hung_up_on)
    with pytest.raises(Unreachable, match="can't be reached"):
        await asyncio.wait_for(engine.ask(), 1)


async def test_an_answer_that_nobody_reads_is_not_taken(engine: Engine) -> None:
    """What the kernel does not hold stays with the engine, and all of it comes in the end."""
    size = 40 * connection._MOST_HELD_BYTES
    whole = bytes(range(256)) * (size // 256)

    async def answer(caller: Caller) -> None:
        await caller.request()
        caller.say(OK + b"content-length: %d\r\n\r\n" % size, whole)
        await caller.writer.drain()
        await caller.end()

    engine.answers = answer
    response = await engine.ask()
    await asyncio.sleep(0.2)
    assert response._answering._held_bytes < size / 4
    assert await response.all() == whole
    assert engine.engines._life(engine.view).rested() is not None, "and can be used again"


@pytest.mark.parametrize("surplus", [OK + b"content-length: 3\r\n\r\nwho", OK[:9], b"who"])
async def test_what_nobody_has_asked_for_closes_it(engine: Engine, surplus: bytes) -> None:
    engine.answers = once(EMPTY, surplus)
    assert await (await engine.ask()).all() == b""
    await asyncio.sleep(0.05)
    assert (await engine.ask()).status == 200
    assert len(engine.callers) == 2


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\0b"])
async def test_a_header_is_one_line(engine: Engine, value: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        await engine.engines.send(engine.view, "POST", "/v1/x", {"X-Request-Id": value}, b"")
    assert not engine.callers
