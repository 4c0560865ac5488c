"""Headers and bytes between client, router and engine. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from appliance.errors import RequestError
from appliance.router.routes import Route, Way
from appliance.telemetry.timeline import Trace

_QUERY: Final = re.compile(rb"[!-~]{1,2048}")  # visible ASCII
_TO_ENGINE: Final = ("content-type", "accept", "traceparent", "tracestate", "x-session-id")
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
TIMEOUT_HEADER: Final = "x-request-timeout"
DONE: Final = b"data: [DONE]\n\n"
EVENT_END: Final = b"\n\n"
STREAM_ERROR: Final = b'data: {"error"'
"""How vLLM says in a stream that it failed. Inside JSON's strings quotes are escaped, so these bytes are nowhere else."""
ABORTED: Final = b'"finish_reason":"abort"'
_ENGINE_DIED: Final = "EngineCore encountered an issue"  # vLLM's EngineDeadError
_HEADER_CHARS: Final = 1024


class Answer(msgspec.Struct, frozen=True):
    """An engine's answer, read to its end."""

    status: int
    content_type: str
    body: bytes


def target(path: str, query: bytes) -> str:
    """Path and query for the engine; a query that no client would write is left out."""
    return f"{path}?{query.decode('ascii')}" if _QUERY.fullmatch(query) else path


def engine_headers(headers: Mapping[str, str], request_id: str | None) -> dict[str, str]:
    """What an engine is told of the client's headers: what it needs, and no credentials or routing hints."""
    passed = {name: headers[name] for name in _TO_ENGINE if name in headers}
    return passed if request_id is None else {**passed, "X-Request-Id": request_id}


def timeout_s(headers: Mapping[str, str], longest_s: float) -> float:
    """How long a request may take: as long as its ``x-request-timeout`` says, at the most ``longest_s``. Raises ``RequestError`` 400."""
    said = headers.get(TIMEOUT_HEADER)
    if said is None:
        return longest_s
    if not _SECONDS.fullmatch(said) or float(said) <= 0:
        message = f"{TIMEOUT_HEADER} must be a number of seconds greater than 0, e.g. 30, and is {said[:40]!r}"
        raise RequestError(400, message, param=TIMEOUT_HEADER, code="invalid_timeout")
    return min(float(said), longest_s)


def head(trace: Trace, content_type: str, length: int | None) -> list[tuple[bytes, bytes]]:
    """The answer's headers; ``length`` is None for streams."""
    prefill = trace.prefill_engine or ""
    fields = {
        "content-type": content_type,
        "x-request-id": trace.id,
        "server-timing": trace.server_timing(),
        "x-prefill-engine": prefill,
        "x-decode-engine": trace.decode_engine or prefill,
    }
    if trace.unsplit_reason is not None:
        fields["x-unsplit-reason"] = trace.unsplit_reason
    fields.update({"cache-control": "no-cache"} if length is None else {"content-length": str(length)})
    return [(name.encode(), _printable(value)) for name, value in fields.items()]


def openai_shaped(answer: Answer, route: Route) -> Answer:
    """The answer itself, unless it is an error that isn't told in OpenAI's shape."""
    if answer.status < 400 or error_message(answer.body) is not None:
        return answer
    unknown = answer.status == 404  # vLLM registers a route only if its model can do it
    message = f"the model can't do {route.path}" if unknown else f"the engine answered {answer.status} and no reason"
    kind = "invalid_request_error" if answer.status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": answer.status}
    return Answer(answer.status, "application/json", msgspec.json.encode({"error": error}))


def error_message(body: bytes) -> str | None:
    """The message in an answer of OpenAI's error shape; None if it has another shape."""
    try:
        return msgspec.json.decode(body, type=_Error).error.message
    except (ValueError, RecursionError):
        return None


class _Message(msgspec.Struct):
    message: str


class _Error(msgspec.Struct):
    error: _Message


def engine_died(answer: Answer) -> bool:
    """True where the API process says that its EngineCore is gone: the last that is heard of an engine."""
    return (error_message(answer.body) or "").startswith(_ENGINE_DIED)


def output_tokens(answer: Answer) -> int:
    """As an answer in one piece says itself; 0 where it says nothing of them."""
    try:
        return msgspec.json.decode(answer.body, type=_Used).usage.completion_tokens
    except (ValueError, RecursionError):
        return 0


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Used(msgspec.Struct):
    usage: _Usage


class StreamError(msgspec.Struct, frozen=True):
    """An error in a stream, whose status line was sent before it was known. ``[DONE]`` follows it all the same."""

    before: bytes  # what came before the error's event
    event: bytes
    answer: Answer  # the same error, as an answer of its own


def stream_error(data: bytes) -> StreamError:
    """The error in whole events that have ``STREAM_ERROR`` in them."""
    begin = data.index(STREAM_ERROR)
    end = data.index(EVENT_END, begin)
    body = data[begin:end].removeprefix(b"data: ")
    return StreamError(data[:begin], data[begin:end] + EVENT_END, Answer(_status(body), "application/json", body))


def aborted(data: bytes) -> bool:
    """True where vLLM has ended an answer that its client did not ask it to end: its server was told to end."""
    return ABORTED in data


def fails(data: bytes) -> bool:
    """True where a stream's events tell of a failure, of either kind."""
    return STREAM_ERROR in data or ABORTED in data


def before_abort(data: bytes) -> bytes:
    """Of whole events those before the one that says so."""
    before, end, _ = data[: data.index(ABORTED)].rpartition(EVENT_END)
    return before + end


class Events:
    """Cuts a stream after whole events: no half of one is ever looked at, or is left at a client's when an engine is lost."""

    def __init__(self) -> None:
        self._tail = b""

    def plain(self, chunk: bytes) -> bool:
        """True for whole events of an answer under way: no half of one, no end, no failure."""
        return not self._tail and chunk.endswith(EVENT_END) and not chunk.endswith(DONE) and not fails(chunk)

    def take(self, chunk: bytes) -> bytes:
        """The events that are whole now."""
        if not self._tail and chunk.endswith(EVENT_END):
            return chunk
        whole, end, self._tail = (self._tail + chunk).rpartition(EVENT_END)
        return whole + end


def _status(error: bytes) -> int:
    try:
        code = msgspec.json.decode(error, type=_Coded).error.code
    except (ValueError, RecursionError):
        return 500
    return code if 400 <= code <= 599 else 500


class _Code(msgspec.Struct):
    code: int


class _Coded(msgspec.Struct):
    error: _Code


def broken_off(route: Route, tail: bytes, message: str, code: str = "engine_lost") -> bytes:
    """The event that ends a stream that can't go on. No ``[DONE]`` follows, so it is never taken for whole."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    name = b""
    body: dict[str, object] = {"error": error}
    if route.way is not Way.SPLIT:  # messages and responses: named events, their fields on the outside
        name, body = b"event: error\n", {**error, "type": "error", "error": error}
    parted = b"" if tail.endswith(EVENT_END) else EVENT_END  # an event may have been cut short
    return parted + name + b"data: " + msgspec.json.encode(body) + EVENT_END


def _printable(value: str) -> bytes:
    """A header's value: one line of visible ASCII, of bounded length."""
    return re.sub(r"[^ -~]+", " ", value)[:_HEADER_CHARS].encode("ascii")
