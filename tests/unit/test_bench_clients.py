"""Clients that go, and a server that ends first: who ended it is told, and what had come by then is judged."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bench import clients
from bench.checker import Case, Ending, Heard, Kind, essence, judge
from bench.clients import GONE, Clients, Manner

STREAM = Case(name="s", path="/v1/completions", body={"stream": True})
PLAIN = Case(name="w", path="/v1/completions", body={})
USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
PIECES = [("x" * 400, None), ("y" * 400, None), ("z" * 400, "length")]
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LATE = (Manner.STALLS, Manner.LEAVES_LATE)


def chunks(pieces: list[tuple[str, str | None]]) -> list[bytes]:
    choices = [{"index": 0, "text": text, "finish_reason": finish} for text, finish in pieces]
    events = [f"data: {json.dumps({'id': 'a', 'choices': [one]})}\n\n" for one in choices] + ["data: [DONE]\n\n"]
    return [f"{len(event):x}\r\n{event}\r\n".encode() for event in events] + [b"0\r\n\r\n"]


def answer(text: str, status: str = "200 OK") -> bytes:
    body = {"id": "b", "choices": [{"index": 0, "text": text, "finish_reason": "length"}], "usage": USAGE}
    return with_length(json.dumps(body).encode(), status)


def with_length(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


STREAMED = essence(
    STREAM, Heard(ending=Ending.COMPLETE, status=200, body=b"".join(one.split(b"\r\n")[1] for one in chunks(PIECES)))
)
EXPECTED = essence(PLAIN, Heard(ending=Ending.COMPLETE, status=200, body=answer("Once").partition(b"\r\n\r\n")[2]))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_STALL_S", 0.0)
    monkeypatch.setattr(clients, "_PROMPT_S", 0.3)  # so that what a server does at once is seen


async def heard(place: Path, case: Case, manner: Manner, said: bytes, *, stays: bool = False) -> Heard:
    """From a server that says this, and then ends the connection, or stays."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        if stays:
            await over.wait()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(place / "s"))
    async with Clients("http://engine", str(place / "s"), patience_s=5) as some:
        found = await some.ask(case, manner)
    over.set()
    server.close()
    await asyncio.sleep(0)
    return found


@pytest.mark.parametrize("manner", [*LATE, Manner.LEAVES_EARLY, Manner.SLOW, Manner.PLAIN])
async def test_a_stream_that_the_server_cuts_is_cut_whoever_listens(tmp_path: Path, manner: Manner) -> None:
    found = await heard(tmp_path, STREAM, manner, (HEAD + b"".join(chunks(PIECES)))[:250])
    assert found.ending is Ending.CUT
    assert judge(STREAM, STREAMED, found).kind is Kind.SHORT


@pytest.mark.parametrize("manner", [*LATE, Manner.LEAVES_EARLY, Manner.SLOW, Manner.PLAIN])
async def test_accepted_and_dropped_is_not_never_connected(tmp_path: Path, manner: Manner) -> None:
    found = await heard(tmp_path, STREAM, manner, b"")
    assert judge(STREAM, STREAMED, found).kind is Kind.DROPPED
    async with Clients("http://engine", str(tmp_path / "nobody")) as some:
        found = await some.ask(STREAM, manner)
    assert judge(STREAM, STREAMED, found).kind is Kind.REFUSED


async def test_nobody_at_a_port_is_never_connected(unused_port: int) -> None:
    async with Clients(f"http://127.0.0.1:{unused_port}") as some:
        for manner in Manner:
            assert (await some.ask(STREAM, manner)).ending is Ending.REFUSED


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


@pytest.mark.parametrize("manner", GONE)
async def test_whoever_goes_has_heard_the_status(tmp_path: Path, manner: Manner) -> None:
    found = await heard(tmp_path, STREAM, manner, with_length(b"<html>Bad Request</html>", "400 Bad Request"))
    assert found.status == 400
    assert judge(STREAM, STREAMED, found).kind is Kind.WRONG


@pytest.mark.parametrize("manner", [*GONE, Manner.PLAIN])
async def test_a_whole_answer_is_judged_whoever_has_it(tmp_path: Path, manner: Manner) -> None:
    right = await heard(tmp_path, PLAIN, manner, answer("Once"))
    assert (right.ending, judge(PLAIN, EXPECTED, right).kind) == (Ending.COMPLETE, Kind.RIGHT)
    wrong = await heard(tmp_path, PLAIN, manner, answer("Onze"))
    assert judge(PLAIN, EXPECTED, wrong).kind is Kind.WRONG


@pytest.mark.parametrize("manner", GONE)
async def test_a_short_stream_that_came_whole_has_its_last_token(tmp_path: Path, manner: Manner) -> None:
    few = [("x", None), ("y", None), ("z", "length")]
    body = b"".join(one.split(b"\r\n")[1] for one in chunks(few))
    expected = essence(STREAM, Heard(ending=Ending.COMPLETE, status=200, body=body))
    right = await heard(tmp_path, STREAM, manner, HEAD + b"".join(chunks(few)))
    assert judge(STREAM, expected, right).kind is Kind.RIGHT
    short = await heard(tmp_path, STREAM, manner, HEAD + b"".join(chunks([*few[:2], ("", "length")])))
    assert judge(STREAM, expected, short).kind is Kind.SHORT


@pytest.mark.parametrize("manner", [*LATE, Manner.LEAVES_EARLY])
async def test_a_client_that_goes_first_has_left(tmp_path: Path, manner: Manner) -> None:
    for pieces, verdict in ((PIECES, Kind.LEFT), ([("X" * 400, None), *PIECES[1:]], Kind.WRONG)):
        found = await heard(tmp_path, STREAM, manner, HEAD + b"".join(chunks(pieces)[:3]), stays=True)
        assert found.ending is Ending.LEFT
        assert judge(STREAM, STREAMED, found).kind is verdict


async def test_a_server_may_take_whoever_closes_its_side_for_gone(tmp_path: Path) -> None:
    said = HEAD + b"".join(chunks(PIECES)[:1])
    found = await heard(tmp_path, STREAM, Manner.HALF_CLOSES, said)
    assert judge(STREAM, STREAMED, found).kind is Kind.LEFT
    wrong = HEAD + b"".join(chunks([("X", None)])[:1])
    assert judge(STREAM, STREAMED, await heard(tmp_path, STREAM, Manner.HALF_CLOSES, wrong)).kind is Kind.WRONG


@pytest.mark.parametrize("said", [b"HTTP/1.1\r\n\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 two OK\r\n\r\n"])
@pytest.mark.parametrize("manner", [*LATE, Manner.PLAIN, Manner.SLOW])
async def test_what_is_not_http_is_wrong(tmp_path: Path, manner: Manner, said: bytes) -> None:
    found = await heard(tmp_path, STREAM, manner, said)
    assert judge(STREAM, STREAMED, found).kind is Kind.WRONG, found


async def test_a_redirection_is_no_answer(tmp_path: Path) -> None:
    said = b"HTTP/1.1 307 Elsewhere\r\nlocation: /v1/completions\r\ncontent-length: 0\r\n\r\n"
    found = await heard(tmp_path, STREAM, Manner.PLAIN, said)
    assert found.status == 307
    assert judge(STREAM, STREAMED, found).kind is Kind.WRONG
