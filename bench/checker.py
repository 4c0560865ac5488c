"""Judges an answer that was given under faults by the fault-free answer to the same request. Pure, and none of the appliance's code.

There are three good ends: right, failed clearly, and left by the client itself. Everything else is a defect.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final

import msgspec

_DATA: Final = "data: "
_DONE: Final = "[DONE]"
_MESSAGE_CHARS: Final = 12  # a shorter one explains nothing
_RETRIED: Final = (408, 429)  # the only client errors that a valid request may meet
_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_NUMBERS: Final = ("logprob", "token_logprobs")  # rounded otherwise in another batch
_MADE_UP: Final = ("id", "index", "matched_stop")
_NO_TEXT: Final = ("finish_reason", "stop_reason", "role", "type")  # said as a whole, if need be again


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a pool."""

    name: str
    path: str
    body: dict[str, Any]

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))


class Ending(StrEnum):
    """How an answer ended, as far as the connection tells."""

    COMPLETE = "complete"  # HTTP says that the body is whole
    CUT = "cut"  # the connection ended within the body
    REFUSED = "refused"  # no connection, or it ended before a status line
    TIMEOUT = "timeout"  # the client's patience was at its end
    LEFT = "left"  # the client went, on purpose


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What a client has got."""

    ending: Ending
    status: int | None = None
    headers: dict[str, str] = {}
    body: bytes = b""
    detail: str = ""


class Kind(StrEnum):
    """What an answer was worth."""

    RIGHT = "right"  # in every respect what it is without faults
    FAILED = "failed clearly"  # an error in OpenAI's shape, or a stream that ends with one
    LEFT = "left"  # the client went; what it had until then was right
    REFUSED = "refused"  # no connection, or reset before the first byte
    WRONG = "wrong"  # says something else, or breaks the protocol
    SHORT = "silently short"  # something is missing, and nothing says so
    HUNG = "hung"  # neither an answer nor an end to it


DEFECTS: Final = (Kind.WRONG, Kind.SHORT, Kind.HUNG)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``reason``: the code of an error, or what is wrong."""

    kind: Kind
    status: int | None = None
    reason: str = ""


Said = dict[str, Any]
"""Everything that an answer says, by the way to it: ``{"0.text": "…", "0.finish_reason": "stop", "usage.prompt_tokens": 7}``."""


class Broken(Exception):
    """An answer that can't be one, whatever it says."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def essence(case: Case, heard: Heard) -> Said:
    """What a whole and well-formed answer says. Raises ``Broken``."""
    if heard.status != 200 or heard.ending is not Ending.COMPLETE:
        raise Broken(Kind.WRONG, f"status {heard.status}, {heard.ending}: {heard.body[:200]!r}")
    if not case.streams:
        return _complete(case, _flat([_object(heard.body.decode())]))
    events, ended, error = _stream(heard.body)
    if error is not None or not ended:
        raise Broken(Kind.SHORT, f"no [DONE] at its end: {heard.body[-100:]!r}")
    _one_answer(events)
    return _complete(case, _flat(events))


def judge(case: Case, expected: Said, heard: Heard) -> Verdict:
    """What an answer is worth."""
    try:
        return _judge(case, expected, heard)
    except Broken as broken:
        return Verdict(kind=broken.kind, status=heard.status, reason=str(broken))


def _judge(case: Case, expected: Said, heard: Heard) -> Verdict:
    if heard.ending is Ending.REFUSED:
        return Verdict(kind=Kind.REFUSED, reason=heard.detail)
    if heard.ending is Ending.TIMEOUT:
        return Verdict(kind=Kind.HUNG, status=heard.status, reason=f"{heard.detail} after {len(heard.body)} bytes")
    if heard.ending is Ending.LEFT:
        _prefix(case, expected, heard)
        return Verdict(kind=Kind.LEFT, status=heard.status)
    if heard.status != 200:
        return _failed(heard)
    if case.streams and (code := _failed_stream(case, expected, heard)) is not None:
        return Verdict(kind=Kind.FAILED, status=200, reason=code)
    if heard.ending is Ending.CUT:
        raise Broken(
            Kind.SHORT, f"the connection ended within the answer, after {len(heard.body)} bytes: {heard.detail}"
        )
    _equal(expected, essence(case, heard))
    return Verdict(kind=Kind.RIGHT, status=200)


# ---- failures


def _failed(heard: Heard) -> Verdict:
    if heard.status is None or heard.status < 400:
        raise Broken(Kind.WRONG, f"status {heard.status}")
    if heard.ending is Ending.CUT:
        raise Broken(Kind.SHORT, f"the connection ended within an error: {heard.body[:100]!r}")
    code = _error_code(_object(heard.body.decode(errors="replace")))
    if heard.status < 500 and heard.status not in _RETRIED:
        raise Broken(Kind.WRONG, f"a valid request was refused with {heard.status} {code}: {heard.body[:200]!r}")
    return Verdict(kind=Kind.FAILED, status=heard.status, reason=code)


def _failed_stream(case: Case, expected: Said, heard: Heard) -> str | None:
    """The code of the error that ends it; None if there is none."""
    _, ended, error = _stream(heard.body)
    if error is None:
        return None
    if ended:
        raise Broken(Kind.WRONG, "a stream that failed ends with [DONE], as if it were whole")
    if heard.ending is not Ending.COMPLETE:
        raise Broken(Kind.SHORT, "the connection was cut after an error in the stream")
    _prefix(case, expected, heard)
    return _error_code(error)


def _error_code(answer: dict[str, Any]) -> str:
    """Of an error in OpenAI's shape with a message that says something."""
    error = answer.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("type"), str) or "code" not in error:
        raise Broken(Kind.WRONG, f"an error, but not in OpenAI's shape: {str(answer)[:200]}")
    message = error.get("message")
    if not isinstance(message, str) or len(message) < _MESSAGE_CHARS or "Traceback" in message:
        raise Broken(Kind.WRONG, f"an error that does not say what it is: {str(answer)[:200]}")
    return str(error["code"] or error["type"])


# ---- streams


def _stream(body: bytes) -> tuple[list[dict[str, Any]], bool, dict[str, Any] | None]:
    """Its whole events, whether ``[DONE]`` ends it, and the error that is its last event. Raises ``Broken``."""
    *blocks, _ = body.decode(errors="replace").split("\n\n")
    events: list[dict[str, Any]] = []
    ended = False
    for block in blocks:
        if block.startswith(":"):
            continue
        if ended or (events and "error" in events[-1]):
            raise Broken(Kind.WRONG, f"more after the end of a stream: {block[:100]!r}")
        if not block.startswith(_DATA):
            raise Broken(Kind.WRONG, f"no event: {block[:100]!r}")
        ended = block == _DATA + _DONE
        if not ended:
            events.append(_object(block[len(_DATA) :]))
    if events and "error" in events[-1]:
        return events[:-1], ended, events[-1]
    return events, ended, None


def _one_answer(events: list[dict[str, Any]]) -> None:
    """All events are of one answer, and no choice goes on after it has finished. Raises ``Broken``."""
    if len(ids := {event.get("id") for event in events}) != 1:
        raise Broken(Kind.WRONG, f"events of several answers in one stream: {sorted(map(str, ids))}")
    finished: set[int] = set()
    for event in events:
        for choice in event.get("choices") or ():
            if choice["index"] in finished:
                raise Broken(Kind.WRONG, f"choice {choice['index']} goes on after its finish_reason")
            if choice.get("finish_reason") is not None:
                finished.add(choice["index"])


def _complete(case: Case, said: Said) -> Said:
    """Raises ``Broken`` where a choice, its finish_reason or the usage is missing."""
    for index in range(case.body.get("n") or 1):
        if said.get(f"{index}.finish_reason") is None:
            raise Broken(Kind.SHORT, f"choice {index} has no finish_reason")
    wanted = not case.streams or (case.body.get("stream_options") or {}).get("include_usage")
    if wanted and any(f"usage.{name}" not in said for name in _USAGE):
        raise Broken(Kind.SHORT, "the usage is missing")
    return said


# ---- what is said


def _flat(events: list[dict[str, Any]]) -> Said:
    """All that events say, pieces of one text or list put together. An answer in one piece is one event."""
    said: Said = {}
    for event in events:
        for choice in event.get("choices") or ():
            for path, value in _leaves(choice, str(choice["index"])):
                _add(said, path, value)
        for name in _USAGE:
            if name in (event.get("usage") or {}):
                said[f"usage.{name}"] = event["usage"][name]
    return said


def _add(said: Said, path: str, value: Any) -> None:
    whole = isinstance(value, str) and path.rpartition(".")[2] not in _NO_TEXT
    said[path] = said[path] + value if path in said and (whole or isinstance(value, list)) else value


def _leaves(node: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """A message's delta is a piece of it; a list whose entries have an index is one of pieces, too."""
    for name, value in node.items():
        if name in (*_NUMBERS, *_MADE_UP) or value in (None, "", [], {}):
            continue
        place = f"{path}.{'message' if name == 'delta' else name}"
        if isinstance(value, dict):
            yield from _leaves(value, place)
        elif isinstance(value, list) and name == "tool_calls":
            for number, one in enumerate(value):
                yield from _leaves(one, f"{place}.{one.get('index', number)}")
        else:
            yield place, _without_numbers(value)


def _without_numbers(value: Any) -> Any:
    """Of probabilities only whose they are."""
    if isinstance(value, list):
        return [_without_numbers(one) for one in value]
    if isinstance(value, dict):
        if value and all(isinstance(number, float) for number in value.values()):  # tokens → log probability
            return sorted(value)
        return {name: _without_numbers(one) for name, one in value.items() if name not in _NUMBERS}
    return value


def _equal(expected: Said, said: Said) -> None:
    different = [path for path in sorted(expected.keys() | said.keys()) if expected.get(path) != said.get(path)]
    if not different:
        return
    short = all(_begins(expected.get(path), said.get(path)) for path in different)
    path = different[0]
    what = f"{path} is {_around(expected.get(path), said.get(path))}"
    raise Broken(Kind.SHORT if short else Kind.WRONG, f"{what} (and {len(different) - 1} more)")


def _around(expected: Any, said: Any) -> str:
    """Where two values part."""
    if not isinstance(expected, str | list) or not isinstance(said, str | list):
        return f"{str(said)[:80]!r} instead of {str(expected)[:80]!r}"
    pairs = zip(expected, said, strict=False)
    same = next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(said)))
    begin = max(0, same - 10)
    return (
        f"{said[begin : same + 20]!r} instead of {expected[begin : same + 20]!r}"
        f" (from {begin} on, of {len(said)} and {len(expected)})"
    )


def _prefix(case: Case, expected: Said, heard: Heard) -> None:
    """What came before an answer's early end was right as far as it went. Raises ``Broken``."""
    if heard.status != 200 or not case.streams:
        return
    said = _flat(_stream(heard.body)[0])
    for path, value in said.items():
        if not _begins(expected.get(path), value):
            raise Broken(Kind.WRONG, f"before its early end, {path} is {_around(expected.get(path), value)}")


def _begins(expected: Any, said: Any) -> bool:
    if said is None or expected == said:
        return True
    return isinstance(said, str | list) and type(said) is type(expected) and expected[: len(said)] == said


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Broken(Kind.WRONG, f"no JSON: {text[:100]!r}") from error
    if not isinstance(value, dict):
        raise Broken(Kind.WRONG, f"no JSON object: {text[:100]!r}")
    return value
