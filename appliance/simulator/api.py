"""The OpenAI surface of a simulated engine, as far as the router and ordinary clients need it. Starlette over the core in ``live``."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.engine.kv.params import Offer, read, ticket_params
from appliance.errors import RequestError
from appliance.simulator import text
from appliance.simulator.stream import Stream

_NOT_SIMULATED: Final = (
    *("tools", "tool_choice", "response_format", "structured_outputs", "logprobs", "top_logprobs", "prompt_logprobs"),
    *("echo", "use_beam_search", "return_token_ids"),
)
_NOTHING: Final[tuple[Any, ...]] = (None, False, [], "none", 0, {"type": "text"})
_DEFAULT_TOKENS: Final = 16  # of a completion, as OpenAI has it
_MOST_SEQUENCES: Final = 128
_IDS: Final = 1 << 32  # token ids are below it
_DONE: Final = b"data: [DONE]\n\n"


class Core(Protocol):
    """What is behind the API."""

    model: str
    max_model_len: int

    def submit(self, stream: Stream) -> None: ...
    def leave(self, stream: Stream) -> None: ...


class Message(msgspec.Struct):
    role: str
    content: Any = None


class Body(msgspec.Struct):
    """What is understood of a request; what is not simulated is refused, and the rest makes no difference here."""

    model: str | None = None
    prompt: str | list[int | str | list[int]] | None = None
    messages: list[Message] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int | None = 1
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    kv_transfer_params: dict[str, Any] | None = None


class Api:
    """Routes of one engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", _health),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completion, methods=["POST"]),
                Route("/v1/chat/completions", self._completion, methods=["POST"]),
            ],
            exception_handlers={RequestError: _refused},
        )

    async def _models(self, request: Request) -> Response:
        core = self._core
        model = {"id": core.model, "object": "model", "owned_by": "simulated", "max_model_len": core.max_model_len}
        return JSONResponse({"object": "list", "data": [model]})

    async def _completion(self, request: Request) -> Response:
        body = _parsed(await request.body())
        chat = request.url.path.endswith("/chat/completions")
        stream, usage = self._stream(body, chat), bool((body.stream_options or {}).get("include_usage"))
        voice = Voice(self._core.model, request.headers.get("x-request-id") or uuid.uuid4().hex, stream, chat, usage)
        self._core.submit(stream)
        if body.stream:
            return StreamingResponse(self._events(stream, voice), media_type="text/event-stream; charset=utf-8")
        try:
            await _until_over(stream, request)
        finally:
            self._core.leave(stream)
        return Response(voice.whole(), media_type="application/json")

    async def _events(self, stream: Stream, voice: Voice) -> AsyncIterator[bytes]:
        try:
            while not stream.over:
                await stream.news()
                said = voice.rest()
                if said:
                    yield said
            yield voice.rest() + voice.end()
        finally:
            self._core.leave(stream)

    def _stream(self, body: Body, chat: bool) -> Stream:
        """Raises ``RequestError`` for what can't be answered."""
        core = self._core
        if body.model not in (None, "", core.model):
            raise RequestError(404, f"The model `{body.model}` does not exist.", kind="NotFoundError", param="model")
        prompt = _prompt(body, chat)
        params = read(body.kv_transfer_params)
        count = 1 if body.n is None else body.n
        limit = self._limit(body, len(prompt), chat)
        if not 0 < count <= _MOST_SEQUENCES:
            raise RequestError(400, f"n must be from 1 to {_MOST_SEQUENCES} here, got {count}.", param="n")
        if isinstance(params, Offer):
            return Stream(prompt, [text.answer(prompt, 0, 1)], 1, params)
        return Stream(prompt, [_answer(body, prompt, number, limit) for number in range(count)], limit, params)

    def _limit(self, body: Body, prompt_tokens: int, chat: bool) -> int:
        """The most that may be said: as vLLM has it, what does not fit any more is cut off."""
        room = self._core.max_model_len - prompt_tokens
        if room < 1:
            raise RequestError(
                400,
                f"This model's maximum context length is {self._core.max_model_len} tokens. "
                f"However, your request has {prompt_tokens} input tokens. Please reduce the length of the input.",
                param="prompt",
            )
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if asked is not None and asked < 1:
            raise RequestError(400, f"max_tokens must be at least 1, got {asked}.", param="max_tokens")
        return min(room, asked or (room if chat else _DEFAULT_TOKENS))


class Voice:
    """Says a stream's tokens in OpenAI's words."""

    def __init__(self, model: str, name: str, stream: Stream, chat: bool, usage: bool) -> None:
        self._stream = stream
        self._chat = chat
        self._usage_wanted = usage
        self._said = [0] * len(stream.answers)
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{name}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._event_head = {**self._head, "object": "chat.completion.chunk" if chat else "text_completion"}

    def rest(self) -> bytes:
        """The events of what is new."""
        found = []
        for number, answer in enumerate(self._stream.answers):
            while self._said[number] < self._stream.made[number]:
                if self._chat and not self._said[number]:
                    found.append(self._event(number, {"delta": {"role": "assistant", "content": ""}}, None))
                found.append(self._token(number, answer))
        return b"".join(found)

    def _token(self, number: int, answer: Sequence[int]) -> bytes:
        at = self._said[number]
        self._said[number] = at + 1
        said = text.word(answer[at]) if at else text.word(answer[at])[1:]
        last = self._reason(number) if at + 1 == len(answer) else None
        return self._event(number, {"delta": {"content": said}} if self._chat else {"text": said}, last)

    def end(self) -> bytes:
        """What comes after the last token."""
        usage: dict[str, Any] = {**self._event_head, "choices": [], "usage": self._usage()}
        return (_event(usage) if self._usage_wanted else b"") + _DONE

    def whole(self) -> bytes:
        """The answer in one piece."""
        choices = [self._choice(number) for number in range(len(self._stream.answers))]
        answer: dict[str, Any] = {**self._head, "choices": choices, "usage": self._usage()}
        if self._stream.params is not None:
            ticket = self._stream.ticket
            answer["kv_transfer_params"] = None if ticket is None else ticket_params(ticket)
        return msgspec.json.encode(answer)

    def _choice(self, number: int) -> dict[str, Any]:
        said = "".join(map(text.word, self._stream.answers[number])).strip()
        content = {"message": {"role": "assistant", "content": said}} if self._chat else {"text": said}
        return {
            "index": number,
            **content,
            "logprobs": None,
            "finish_reason": self._reason(number),
            "stop_reason": None,
        }

    def _reason(self, number: int) -> str:
        return "length" if len(self._stream.answers[number]) == self._stream.limit else "stop"

    def _usage(self) -> dict[str, int]:
        prompt, said = len(self._stream.prompt), sum(self._stream.made)
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}

    def _event(self, number: int, content: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": number, **content, "logprobs": None, "finish_reason": reason, "stop_reason": None}
        return _event({**self._event_head, "choices": [choice]})


async def _health(request: Request) -> Response:
    return Response()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), error.status)


async def _until_over(stream: Stream, request: Request) -> None:
    """Or until the client has left, which ends this task's answer, too."""
    ending = asyncio.ensure_future(stream.end())
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _parsed(data: bytes) -> Body:
    try:
        fields = json.loads(data)
        body = msgspec.convert(fields, Body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body can't be read: {error}") from error
    for name in _NOT_SIMULATED:
        if fields.get(name) not in _NOTHING:
            raise RequestError(
                400,
                f"{name} is not simulated: a simulated engine has no model. Leave it out.",
                param=name,
                code="not_simulated",
            )
    return body


def _prompt(body: Body, chat: bool) -> list[int]:
    if chat:
        if not body.messages:
            raise RequestError(400, "messages must be a list with at least one message", param="messages")
        return text.tokens_of(json.dumps([[one.role, one.content] for one in body.messages], ensure_ascii=False))
    prompt: Any = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return text.tokens_of(prompt)
    if isinstance(prompt, list) and prompt and all(type(token) is int and 0 <= token < _IDS for token in prompt):
        return list(prompt)
    raise RequestError(400, "prompt must be one text or one list of token ids, and not empty", param="prompt")


def _answer(body: Body, prompt: Sequence[int], number: int, limit: int) -> list[int]:
    count = limit if body.ignore_eos else max(min(text.length(prompt, number), limit), min(body.min_tokens, limit))
    tokens = text.answer(prompt, number, count)
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if not stops:
        return tokens
    said = ""
    for place, token in enumerate(tokens):
        said += text.word(token)
        if any(stop and stop in said for stop in stops):
            return tokens[: place + 1]
    return tokens
