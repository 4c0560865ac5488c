"""What a client has got of a stream, and what of another engine's answer to the same request is new to it. Pure.

The other engine begins from the beginning. Its events are cut differently, and have other ids; what counts is each choice's text, and
how many entries its lists have. What the client has is taken off, and held against what comes: the continuation of another answer is
never sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from appliance.router.wire import EVENT_END

_DATA: Final = b"data: "
_DONE: Final = b"[DONE]"
_KEPT_BYTES: Final = 8 << 20  # of one stream; a longer one can't be continued
_OF_THE_EVENT: Final = ("id", "created")  # stay what they were at first
_NOT_CONTENT: Final = ("index", "finish_reason", "stop_reason")
_MADE_UP: Final = ("id",)  # of tool calls: random, so not compared

Path = tuple[str | int, ...]


class Diverged(Exception):
    """The other engine answers something else."""


class Passage:
    """The way of one stream's bytes from the engine to the client, in whole events."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._continuation: Continuation | None = None

    @property
    def resumable(self) -> bool:
        return self._kept_bytes <= _KEPT_BYTES

    @property
    def continues(self) -> bool:
        """True where another engine has taken the stream over: not all that it says is new."""
        return self._continuation is not None

    def take(self, data: bytes) -> bytes:
        """What of whole events goes to the client. Raises ``Diverged``."""
        if self._continuation is not None:
            data = self._continuation.rest(data)
        self.keep(data)
        return data

    def keep(self, data: bytes) -> None:
        """That the client has it."""
        if not self.resumable:
            return
        self._kept.append(data)
        self._kept_bytes += len(data)
        if not self.resumable:
            self._kept.clear()

    def begin_again(self) -> None:
        """What comes now is another engine's answer, from the beginning."""
        self._continuation = Continuation(b"".join(self._kept))


class Continuation:
    """Takes off another engine's events what a client already has."""

    def __init__(self, delivered: bytes) -> None:
        self._same: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._usage_sent = False
        for event in _events(delivered):
            self._remember(event)

    def _remember(self, event: dict[str, Any]) -> None:
        self._same = self._same or {name: event[name] for name in _OF_THE_EVENT if name in event}
        self._usage_sent = self._usage_sent or not event.get("choices")
        for choice in event.get("choices") or ():
            self._choice(choice).remember(choice)

    def rest(self, data: bytes) -> bytes:
        """Of whole events those parts that are new. Raises ``Diverged``."""
        return b"".join(self._new(event) for event in data.split(EVENT_END) if event)

    def _new(self, raw: bytes) -> bytes:
        if not raw.startswith(_DATA):
            return raw + EVENT_END  # a comment
        if raw[len(_DATA) :] == _DONE:
            self._check_complete()
            return raw + EVENT_END
        event = self._without_old(json.loads(raw[len(_DATA) :]))
        return (
            b""
            if event is None
            else _DATA + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + EVENT_END
        )

    def _without_old(self, event: dict[str, Any]) -> dict[str, Any] | None:
        event |= self._same
        choices = event.get("choices")
        if not choices:
            return None if self._usage_sent and "choices" in event else event
        new = [rest for choice in choices if (rest := self._choice(choice).take_off(choice)) is not None]
        return {**event, "choices": new} if new else None

    def _choice(self, choice: dict[str, Any]) -> _Choice:
        return self._choices.setdefault(choice.get("index", 0), _Choice())

    def _check_complete(self) -> None:
        if any(choice.more_to_come for choice in self._choices.values()):
            raise Diverged("the other engine's answer is shorter than what was already sent")


class _Choice:
    """What is delivered of one choice, by the way to each string and list in it."""

    def __init__(self) -> None:
        self._texts: dict[Path, str] = {}
        self._counts: dict[Path, int] = {}
        self._finished = False

    @property
    def more_to_come(self) -> bool:
        return any(self._texts.values()) or any(self._counts.values())

    def remember(self, choice: dict[str, Any]) -> None:
        self._finished = self._finished or choice.get("finish_reason") is not None
        for path, value in _leaves(choice, ()):
            if isinstance(value, str):
                self._texts[path] = self._texts.get(path, "") + value
            else:
                self._counts[path] = self._counts.get(path, 0) + len(value)

    def take_off(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """The choice without what is delivered; None if nothing is left of it."""
        content = {name: self._rest(value, (name,)) for name, value in choice.items() if name not in _NOT_CONTENT}
        ends = choice.get("finish_reason") is not None and not self._finished
        if not ends and not any(map(_says_something, content.values())):
            return None
        kept = {name: _nothing_left(choice[name]) if value in (None, {}) else value for name, value in content.items()}
        return {**{name: choice[name] for name in _NOT_CONTENT if name in choice}, **kept}

    def _rest(self, value: Any, path: Path) -> Any:
        """None for what is delivered wholly."""
        if isinstance(value, str):
            return self._rest_of_text(value, path)
        if isinstance(value, dict):
            rest = {name: self._rest(inner, (*path, name)) for name, inner in value.items()}
            return {name: inner for name, inner in rest.items() if inner is not None or value[name] is None}
        if isinstance(value, list) and _is_indexed(value):
            return [new for one in value if (new := self._rest_of_entry(one, path)) is not None] or None
        return self._rest_of_list(value, path) if isinstance(value, list) else value

    def _rest_of_entry(self, entry: dict[str, Any], path: Path) -> dict[str, Any] | None:
        """Of a tool call's delta what is new; None if nothing is, and the client need not hear of it."""
        content = {name: value for name, value in entry.items() if name != "index"}
        rest = self._rest(content, (*path, entry["index"]))
        return {"index": entry["index"], **rest} if _says_something(rest) else None

    def _rest_of_text(self, text: str, path: Path) -> str | None:
        old = self._texts.get(path, "")
        if not old:
            return text
        length = min(len(old), len(text))
        if path[-1] not in _MADE_UP and old[:length] != text[:length]:
            raise Diverged(f"the other engine says {text[:40]!r} where {old[:40]!r} was already sent")
        self._texts[path] = old[length:]
        return text[length:] or None

    def _rest_of_list(self, entries: list[Any], path: Path) -> list[Any] | None:
        old = self._counts.get(path, 0)
        if not old:
            return entries
        self._counts[path] = max(0, old - len(entries))
        return entries[old:] or None


def _nothing_left(value: Any) -> Any:
    """What stands for a field of a choice whose content is delivered: the field itself is promised."""
    if isinstance(value, str):
        return ""
    return {} if isinstance(value, dict) and not any(isinstance(inner, list) for inner in value.values()) else None


def _leaves(node: dict[str, Any], path: Path) -> Iterator[tuple[Path, str | list[Any]]]:
    """Strings and lists below a choice, with the way to them. Lists whose entries have an ``index`` are gone into."""
    for name, value in node.items():
        if not path and name in _NOT_CONTENT:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        elif isinstance(value, list) and _is_indexed(value):
            for one in value:
                inner = {key: entry for key, entry in one.items() if key != "index"}
                yield from _leaves(inner, (*path, name, one["index"]))
        elif isinstance(value, str | list):
            yield (*path, name), value


def _is_indexed(entries: list[Any]) -> bool:
    return bool(entries) and all(isinstance(entry, dict) and "index" in entry for entry in entries)


def _says_something(value: Any) -> bool:
    """True if there is a text, a list or a number in it."""
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    return value is not None and value != "" and value != []


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for raw in data.split(EVENT_END):
        if raw.startswith(_DATA) and raw[len(_DATA) :] != _DONE:
            yield json.loads(raw[len(_DATA) :])
