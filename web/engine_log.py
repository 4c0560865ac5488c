"""The last lines of an engine's log: by level, by what they contain. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from web import words
from web.contexts import Context

SHOWN: Final = 150  # lines: what is sent again whenever there is a new one
_LEVELS: Final = ("debug", "info", "warning", "error")
_SAID: Final = re.compile(r"\b(DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b")
_LONGEST: Final = 2000  # characters of a line; the whole of it is in the log as text
_LOOKED_AT: Final = 80  # characters of a line: the level stands near its beginning
_NAMES: Final = {"WARN": "warning", "CRITICAL": "error", "FATAL": "error"}
LEVELS: Final = {"all": "all lines", "warning": "warnings and errors", "error": "errors"}
"""What can be asked for."""


class LineContext(Context, frozen=True, kw_only=True):
    """One line."""

    level: str
    text: str


class LogContext(Context, frozen=True, kw_only=True):
    """``engine_log.html``: oldest first."""

    lines: tuple[LineContext, ...]
    said: str  # how many these are, of how many


def levels(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each line with its level; one that says none belongs to the line before it, as in a stack."""
    level = "info"
    for line in lines:
        found = _SAID.search(line, 0, _LOOKED_AT)
        if found:
            level = _NAMES.get(found[1], found[1].lower())
        elif line.startswith("--- life "):
            level = "info"
        yield level, line


def log(lines: Sequence[str], least: str = "all", containing: str = "") -> LogContext:
    """The last lines that are at least so grave and contain that, whatever its case."""
    from_level = 0 if least == "all" else _LEVELS.index(least)
    sought = containing.lower()
    found = [
        (level, line) for level, line in levels(lines) if _LEVELS.index(level) >= from_level and sought in line.lower()
    ]
    shown = found[-SHOWN:]
    return LogContext(
        lines=tuple(LineContext(level=level, text=_cut(line)) for level, line in shown),
        said=_said(len(shown), len(found), len(lines), filtered=least != "all" or bool(containing)),
    )


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _said(shown: int, found: int, kept: int, *, filtered: bool) -> str:
    if not kept:
        return "It has said nothing yet."
    if not filtered:
        return f"The last {words.several(shown, 'line')}." if shown < kept else f"{words.several(kept, 'line')}."
    if not found:
        return f"None of {words.several(kept, 'line')}."
    return f"{words.count(found)} of {words.several(kept, 'line')}{f', the last {shown:,} are shown' if shown < found else ''}."
