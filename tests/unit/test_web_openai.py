"""/v1/*: bounded bodies, errors in OpenAI's shape, and a client's leaving that cancels at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message, Scope

from appliance.errors import RequestError
from web import bodies
from web.openai import OpenAI
from web.ports import InferenceRequest, Reply

Serve = Callable[[InferenceRequest, Reply], Awaitable[None]]


class Router:
    """An ``Inference`` that does what it is given and remembers what it was asked."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.requests: list[InferenceRequest] = []

    async def serve(self, request: InferenceRequest, reply: Reply) -> None:
        self.requests.append(request)
        await self._serve(request, reply)


class Client:
    """One connection: says ``incoming``, then waits until ``leave``."""

    def __init__(self, *incoming: bytes, headers: dict[str, str] | None = None) -> None:
        chunks = incoming or (b"",)
        last = len(chunks) - 1
        self._incoming: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": number < last} for number, chunk in enumerate(chunks)
        ]
        self._left = asyncio.Event()
        self.answered = asyncio.Event()
        self.sent: list[Message] = []
        self.received = 0
        raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"a=1",
            "headers": raw,
        }

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        if self._incoming:
            self.received += 1
            return self._incoming.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.answered.set()

    async def ask(self, serve: Serve, limit_bytes: int = 100) -> Router:
        router = Router(serve)
        await self.come_to(OpenAI(router, limit_bytes, 10 * limit_bytes))
        return router

    async def come_to(self, app: OpenAI) -> None:
        await app(self.scope, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def error(self) -> dict[str, object]:
        found = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return dict(found)


async def echo(request: InferenceRequest, reply: Reply) -> None:
    await reply.start(200, [(b"content-type", b"text/plain")])
    await reply.send(request.body)
    await reply.end()


async def never(request: InferenceRequest, reply: Reply) -> None:
    raise AssertionError("must not be asked")


async def test_the_request_arrives_whole_and_the_bytes_go_out_unchanged() -> None:
    client = Client(b"ab", b"", b"cd", headers={"X-Thing": "1", "content-length": "4"})
    router = await client.ask(echo)
    assert (client.status, client.body) == (200, b"abcd")
    assert client.sent[-1]["more_body"] is False
    (request,) = router.requests
    assert (request.method, request.path, request.query) == ("POST", "/v1/chat/completions", b"a=1")
    assert request.headers == {"x-thing": "1", "content-length": "4"}


async def test_a_clients_request_id_is_kept_even_on_errors() -> None:
    client = Client(b"x" * 101, headers={"x-request-id": "abc-1"})
    await client.ask(never)
    assert (client.status, client.headers["x-request-id"]) == (413, "abc-1")


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "\xe9", "a\r\nb: c", ".", ".."])
async def test_a_bad_request_id_is_replaced_by_one_of_our_own(bad: str) -> None:
    clients = [Client(b"x", headers={"x-request-id": bad}) for _ in range(2)]
    ids = [(await client.ask(echo)).requests[0].id for client in clients]
    assert len({*ids, bad}) == 3


async def test_a_declared_size_over_the_limit_is_refused_before_anything_is_read() -> None:
    client = Client(b"x" * 10, headers={"content-length": "101"})
    await client.ask(never)
    assert client.status == 413
    assert client.error["code"] == "request_too_large"
    assert client.received == 0


@pytest.mark.parametrize("headers", [{}, {"content-length": "3"}, {"content-length": "nonsense"}])
async def test_a_body_over_the_limit_is_refused_whatever_was_declared(headers: dict[str, str]) -> None:
    client = Client(*[b"x" * 40] * 10, headers=headers)
    await client.ask(never)
    assert client.status == 413
    assert client.received == 3, "the rest must not be read"


async def test_a_body_of_exactly_the_limit_is_served() -> None:
    client = Client(b"x" * 60, b"x" * 40)
    await client.ask(echo)
    assert (client.status, len(client.body)) == (200, 100)


async def test_a_body_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_PAUSE_S", 0.01)
    client = Client(b"x", b"never comes")
    client._incoming.pop()
    await client.ask(never)
    assert client.status == 408


async def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_WHOLE_S", 0.01)
    client = Client(b"x", b"never comes")
    client._incoming.pop()
    await client.ask(never)
    assert (client.status, client.error["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("name", ["...", ".a", "a..", "..:"])
async def test_dots_in_an_id_are_no_harm(name: str) -> None:
    client = Client(b"x", headers={"x-request-id": name})
    assert (await client.ask(echo)).requests[0].id == name


# ---- all bodies together


class Waiting:
    """An app with room for 100 bytes, and requests that hold 60 of them until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.app = OpenAI(Router(self._serve), 100, 100)

    async def _serve(self, request: InferenceRequest, reply: Reply) -> None:
        await reply.start(200, [])
        await self.go.wait()
        await reply.end()

    async def hold(self) -> tuple[Client, asyncio.Task[None]]:
        client = Client(b"x" * 30, b"x" * 30)
        asking = asyncio.create_task(client.come_to(self.app))
        await client.answered.wait()
        return client, asking

    async def ask(self) -> Client:
        client = Client(b"x" * 41)
        await client.come_to(self.app)
        return client


async def test_bodies_that_would_be_too_large_together_are_refused_with_a_hint_to_come_back() -> None:
    waiting = Waiting()
    _, asking = await waiting.hold()
    refused = await waiting.ask()
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.error["code"] == "bodies_full"
    assert "max_held_bytes" in str(refused.error["message"])
    waiting.go.set()
    await asking
    assert (await waiting.ask()).status == 200


async def test_a_clients_leaving_gives_its_room_back() -> None:
    waiting = Waiting()
    client, asking = await waiting.hold()
    client.leave()
    await asking
    waiting.go.set()
    assert (await waiting.ask()).status == 200


async def test_a_cancelled_request_gives_its_room_back() -> None:
    waiting = Waiting()
    _, asking = await waiting.hold()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    waiting.go.set()
    assert (await waiting.ask()).status == 200


async def test_what_was_read_of_a_refused_or_unfinished_body_is_given_back() -> None:
    waiting = Waiting()
    waiting.go.set()
    large = Client(b"x" * 60, b"x" * 60)
    unfinished = Client(b"x" * 60, b"y")
    unfinished._incoming.pop()
    unfinished.leave()
    for client in (large, unfinished):
        await client.come_to(waiting.app)
    assert large.status == 413
    assert (await waiting.ask()).status == 200


async def test_a_client_that_leaves_in_mid_body_is_not_answered() -> None:
    client = Client(b"x", b"y")
    client._incoming.pop()
    client.leave()
    await client.ask(never)
    assert client.sent == []


async def test_a_refusal_has_its_status_shape_and_retry_after() -> None:
    async def full(request: InferenceRequest, reply: Reply) -> None:
        raise RequestError(
            429, "The queue is full.", kind="overloaded", param=None, code="queue_full", retry_after_s=1.2
        )

    client = Client(b"x")
    router = await client.ask(full)
    assert client.status == 429
    assert client.error == {"message": "The queue is full.", "type": "overloaded", "param": None, "code": "queue_full"}
    assert client.headers["retry-after"] == "2"
    assert client.headers["x-request-id"] == router.requests[0].id
    assert int(client.headers["content-length"]) == len(client.body)


async def test_a_fault_of_ours_is_a_500_that_tells_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: InferenceRequest, reply: Reply) -> None:
        raise ValueError("secret")

    client = Client(b"x")
    await client.ask(broken)
    assert client.status == 500
    assert "secret" not in client.body.decode()
    assert "secret" in caplog.text


@pytest.mark.parametrize("error", [ValueError("late"), RequestError(502, "late")])
async def test_an_answer_that_breaks_off_is_left_without_an_end(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(request: InferenceRequest, reply: Reply) -> None:
        await reply.start(200, [])
        await reply.send(b"half")
        raise error

    client = Client(b"x")
    await client.ask(breaks)
    assert [message.get("more_body") for message in client.sent] == [None, True]
    assert "broke off" in caplog.text


async def test_a_client_that_leaves_cancels_the_request_and_waits_for_its_end() -> None:
    ended = []

    async def slow(request: InferenceRequest, reply: Reply) -> None:
        await reply.start(200, [])
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # releasing takes a while
            ended.append(request.id)

    client = Client(b"x")
    asking = asyncio.create_task(client.ask(slow))
    await client.answered.wait()
    client.leave()
    router = await asyncio.wait_for(asking, 1)
    assert ended == [router.requests[0].id]
    assert len(asyncio.all_tasks()) == 1, "no task may be left"


async def test_a_server_that_gives_up_cancels_the_request_too() -> None:
    cancelled = asyncio.Event()

    async def slow(request: InferenceRequest, reply: Reply) -> None:
        await reply.start(200, [])
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    client = Client(b"x")
    asking = asyncio.create_task(client.ask(slow))
    await client.answered.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert cancelled.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_a_fault_while_being_cancelled_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    async def clumsy(request: InferenceRequest, reply: Reply) -> None:
        await reply.start(200, [])
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while leaving")

    client = Client(b"x")
    asking = asyncio.create_task(client.ask(clumsy))
    await client.answered.wait()
    client.leave()
    await asyncio.wait_for(asking, 1)
    assert "while leaving" in caplog.text
