"""Judges an answer that was given under faults by the fault-free answer to the same request. Pure, and none of the appliance's code.

There are three good ends: right, failed clearly, and left by the client itself; a refused connection is told apart. Everything else is
a defect, and whatever can't be judged is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final

import msgspec

_DATA: Final = b"data: "
_DONE: Final = b"[DONE]"
_MESSAGE_CHARS: Final = 12  # a shorter one explains nothing
_RETRIED: Final = (408, 429)  # the only client errors that a valid request may meet
_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_TOLERANCE: Final = (
    0.01  # of a log probability, plus _RELATIVE of it: float32 in another batch is far nearer, another token is not
)
_RELATIVE: Final = 1e-3
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
    REFUSED = "refused"  # there never was a connection
    DROPPED = "dropped"  # it was accepted, and ended before the end of a head
    GARBLED = "garbled"  # what came is not HTTP
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
    LEFT = "left"  # the client went first; what it had until then was right
    REFUSED = "refused"  # never connected
    DROPPED = "dropped"  # accepted, then ended before the first byte: a lost request
    WRONG = "wrong"  # says something else, or breaks the protocol
    SHORT = "silently short"  # something is missing, and nothing says so
    HUNG = "hung"  # neither an answer nor an end to it


DEFECTS: Final = (Kind.WRONG, Kind.SHORT, Kind.HUNG, Kind.DROPPED)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``reason``: the code of an error, or what is wrong."""

    kind: Kind
    status: int | None = None
    reason: str = ""


Said = dict[str, Any]
"""Everything that an answer says, by the way to it: ``{"0.text": "…", "usage.prompt_tokens": 7}``; pieces are put together."""


_Events = list[dict[str, Any]]


class Broken(Exception):
    """An answer that can't be one, whatever it says."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def essence(case: Case, heard: Heard) -> Said:
    """What a whole and well-formed answer says. Raises ``Broken``."""
    if heard.status != 200 or heard.ending is not Ending.COMPLETE:
        raise Broken(Kind.WRONG, f"status {heard.status}, {heard.ending}: {heard.body[:200]!r}")
    try:
        return _whole(case, heard)
    except Broken:
        raise
    except Exception as error:
        raise _unjudged(error) from error


def judge(case: Case, expected: Said, heard: Heard) -> Verdict:
    """What an answer is worth. Never raises."""
    try:
        return _judge(case, expected, heard)
    except Broken as broken:
        return Verdict(kind=broken.kind, status=heard.status, reason=str(broken))
    except Exception as error:
        return Verdict(kind=Kind.WRONG, status=heard.status, reason=str(_unjudged(error)))


def same(expected: Said, said: Said) -> bool:
    """Both say the same, as two runs of one request do: numbers within a tolerance."""
    return _same(expected, said)


def _unjudged(error: Exception) -> Broken:
    return Broken(Kind.WRONG, f"it can't be judged: {type(error).__name__}: {error}"[:200])


def _judge(case: Case, expected: Said, heard: Heard) -> Verdict:
    if (silent := _silent(heard)) is not None:
        return silent
    if heard.status != 200:
        return _failed(heard)
    if not case.streams:
        return _in_one_piece(case, expected, heard)
    return _streamed(case, expected, heard)


def _silent(heard: Heard) -> Verdict | None:
    """Of what is no answer at all."""
    if heard.ending in (Ending.REFUSED, Ending.DROPPED):
        return Verdict(kind=Kind(heard.ending.value), reason=heard.detail)
    if heard.ending is Ending.GARBLED:
        raise Broken(Kind.WRONG, f"no HTTP: {heard.detail}")
    if heard.ending is Ending.TIMEOUT:
        return Verdict(kind=Kind.HUNG, status=heard.status, reason=f"{heard.detail} after {len(heard.body)} bytes")
    if heard.ending is Ending.LEFT and heard.status is None:
        return Verdict(kind=Kind.LEFT)
    return None


def _in_one_piece(case: Case, expected: Said, heard: Heard) -> Verdict:
    if heard.ending is Ending.CUT:
        raise _cut(heard)
    if heard.ending is Ending.LEFT and not _is_json(heard.body):
        if heard.body and not heard.body.lstrip().startswith(b"{"):
            raise Broken(Kind.WRONG, f"no JSON: {heard.body[:100]!r}")
        return Verdict(kind=Kind.LEFT, status=200)
    _equal(expected, _whole(case, heard))
    return Verdict(kind=Kind.RIGHT, status=200)


def _streamed(case: Case, expected: Said, heard: Heard) -> Verdict:
    events, ended, error = _stream(heard)
    if error is not None:
        return Verdict(kind=Kind.FAILED, status=200, reason=_failed_stream(expected, heard, events, ended, error))
    if heard.ending is Ending.CUT or (heard.ending is Ending.LEFT and not ended):
        _prefix(expected, events)
    if heard.ending is Ending.CUT:
        raise _cut(heard)
    if heard.ending is Ending.LEFT and not ended:
        return Verdict(kind=Kind.LEFT, status=200)
    _equal(expected, _whole(case, heard))
    return Verdict(kind=Kind.RIGHT, status=200)


def _whole(case: Case, heard: Heard) -> Said:
    """What a whole body says."""
    if not case.streams:
        return _complete(case, _flat([_object(heard.body)]))
    events, ended, error = _stream(heard)
    if error is not None or not ended:
        raise Broken(Kind.SHORT, f"no [DONE] at its end: {heard.body[-100:]!r}")
    _one_answer(events)
    return _complete(case, _flat(events))


def _cut(heard: Heard) -> Broken:
    return Broken(Kind.SHORT, f"the connection ended within the answer, after {len(heard.body)} bytes: {heard.detail}")


# ---- failures


def _failed(heard: Heard) -> Verdict:
    if heard.status is None or heard.status < 400:
        raise Broken(Kind.WRONG, f"status {heard.status}")
    if heard.status < 500 and heard.status not in _RETRIED:
        raise Broken(Kind.WRONG, f"a valid request was refused with {heard.status}: {heard.body[:200]!r}")
    if heard.ending is Ending.CUT:
        raise Broken(Kind.SHORT, f"the connection ended within an error: {heard.body[:100]!r}")
    if heard.ending is Ending.LEFT and not _is_json(heard.body):
        return Verdict(kind=Kind.LEFT, status=heard.status)
    return Verdict(kind=Kind.FAILED, status=heard.status, reason=_error_code(_object(heard.body)))


def _failed_stream(expected: Said, heard: Heard, events: _Events, ended: bool, error: dict[str, Any]) -> str:
    """The code of the error that ends it."""
    if ended:
        raise Broken(Kind.WRONG, "a stream that failed ends with [DONE], as if it were whole")
    if heard.ending is Ending.CUT:
        raise Broken(Kind.SHORT, "the connection was cut after an error in the stream")
    _prefix(expected, events)
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


def _stream(heard: Heard) -> tuple[_Events, bool, dict[str, Any] | None]:
    """Its whole events, whether ``[DONE]`` ends it, and the error that is its last event. Raises ``Broken``."""
    *blocks, rest = heard.body.split(b"\n\n")
    events: _Events = []
    ended = False
    for data in filter(None, map(_data, blocks)):
        if ended or (events and "error" in events[-1]):
            raise Broken(Kind.WRONG, f"more after the end of a stream: {data[:100]!r}")
        ended = data == _DONE
        if not ended:
            events.append(_object(data))
    failed = bool(events) and "error" in events[-1]
    _nothing_more(rest, ended or failed, heard.ending)
    return (events[:-1], ended, events[-1]) if failed else (events, ended, None)


def _data(block: bytes) -> bytes:
    """An event's; none of a comment. A comment line within an event hides nothing of it. Raises ``Broken``."""
    lines = [line for line in block.split(b"\n") if not line.startswith(b":")]
    if len(lines) > 1 or (lines and (not lines[0].startswith(_DATA) or lines[0] == _DATA)):
        raise Broken(Kind.WRONG, f"no event: {block[:100]!r}")
    return lines[0][len(_DATA) :] if lines else b""


def _nothing_more(rest: bytes, over: bool, ending: Ending) -> None:
    """After the last blank line comes nothing, or the beginning of an event that has not come whole. Raises ``Broken``."""
    if not rest:
        return
    if over:
        raise Broken(Kind.WRONG, f"more after the end of a stream: {rest[:100]!r}")
    if not rest.startswith((b":", _DATA)) and not _DATA.startswith(rest):
        raise Broken(Kind.WRONG, f"no event: {rest[:100]!r}")
    if ending is Ending.COMPLETE:
        raise Broken(Kind.SHORT, f"it ends within an event: {rest[:100]!r}")


def _one_answer(events: _Events) -> None:
    """All events are of one answer, no choice goes on after it has finished, and usage comes last. Raises ``Broken``."""
    if len(ids := {event.get("id") for event in events}) > 1 or not all(isinstance(one, str) and one for one in ids):
        raise Broken(Kind.WRONG, f"events of several answers in one stream, or of none: {sorted(map(str, ids))}")
    if any(event.get("usage") and (event is not events[-1] or event.get("choices")) for event in events):
        raise Broken(Kind.WRONG, "the usage comes before the end, or twice")
    finished: set[int] = set()
    for choice in (choice for event in events for choice in _choices(event)):
        if choice["index"] in finished:
            raise Broken(Kind.WRONG, f"choice {choice['index']} goes on after its finish_reason")
        if choice.get("finish_reason") is not None:
            finished.add(choice["index"])


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    """Raises ``Broken`` for what is none."""
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        raise Broken(Kind.WRONG, f"no choices: {str(choices)[:100]}")
    if any(type(one.get("index")) is not int for one in choices):
        raise Broken(Kind.WRONG, f"a choice without index: {str(choices)[:100]}")
    return choices


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


def _flat(events: _Events) -> Said:
    """All that events say, pieces of one text or list put together. An answer in one piece is one event."""
    said: Said = {}
    for event in events:
        for choice in _choices(event):
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
        if name in _MADE_UP or value in (None, "", [], {}):
            continue
        place = f"{path}.{'message' if name == 'delta' else name}"
        if isinstance(value, dict):
            yield from _leaves(value, place)
        elif isinstance(value, list) and name == "tool_calls":
            for number, one in enumerate(value):
                yield from _leaves(one, f"{place}.{one.get('index', number)}")
        else:
            yield place, value


def _same(expected: Any, said: Any) -> bool:
    """Numbers within the tolerance, and as many; of probabilities also whose they are."""
    if float in (kinds := {type(expected), type(said)}) and kinds <= {float, int}:
        return math.isclose(expected, said, rel_tol=_RELATIVE, abs_tol=_TOLERANCE)
    if isinstance(expected, list) and isinstance(said, list):
        return len(expected) == len(said) and all(map(_same, expected, said))
    if isinstance(expected, dict) and isinstance(said, dict):
        return expected.keys() == said.keys() and all(_same(expected[name], said[name]) for name in expected)
    return bool(expected == said)


def _equal(expected: Said, said: Said) -> None:
    different = _different(expected, said)
    if not different:
        return
    short = all(_begins(expected.get(path), said.get(path)) for path in different)
    path = different[0]
    what = f"{path} is {_around(expected.get(path), said.get(path))}"
    raise Broken(Kind.SHORT if short else Kind.WRONG, f"{what} (and {len(different) - 1} more)")


def _different(expected: Said, said: Said) -> list[str]:
    return [path for path in sorted(expected.keys() | said.keys()) if not _same(expected.get(path), said.get(path))]


def _around(expected: Any, said: Any) -> str:
    """Where two values part."""
    if not isinstance(expected, str | list) or not isinstance(said, str | list):
        return f"{str(said)[:80]!r} instead of {str(expected)[:80]!r}"
    pairs = zip(expected, said, strict=False)
    same = next(
        (number for number, (one, other) in enumerate(pairs) if not _same(one, other)), min(len(expected), len(said))
    )
    begin = max(0, same - 10)
    return (
        f"{said[begin : same + 20]!r} instead of {expected[begin : same + 20]!r}"
        f" (from {begin} on, of {len(said)} and {len(expected)})"
    )


def _prefix(expected: Said, events: _Events) -> None:
    """What came before an answer's early end was right as far as it went, and whole where it said so. Raises ``Broken``."""
    _one_answer(events)
    said = _flat(events)
    for path, value in said.items():
        if not _begins(expected.get(path), value):
            raise Broken(Kind.WRONG, f"before its early end, {path} is {_around(expected.get(path), value)}")
    finished = {path.partition(".")[0] for path in said if path.endswith(".finish_reason")}
    if missing := [path for path in _different(expected, said) if path.partition(".")[0] in finished]:
        path = missing[0]
        raise Broken(Kind.SHORT, f"it has finished, but {path} is {_around(expected.get(path), said.get(path))}")


def _begins(expected: Any, said: Any) -> bool:
    if said is None or _same(expected, said):
        return True
    return isinstance(said, str | list) and type(said) is type(expected) and _same(expected[: len(said)], said)


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode())
    except ValueError as error:
        raise Broken(Kind.WRONG, f"no JSON: {text[:100]!r}: {error}") from error
    if not isinstance(value, dict):
        raise Broken(Kind.WRONG, f"no JSON object: {text[:100]!r}")
    return value


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
