"""Standard output and standard error, for all commands alike.

Whoever has read enough and left (``| head -1``) changes nothing: what is written then goes nowhere, and a command ends with the code
that it would have had. Whatever else keeps standard output from being written is an ``Unwritable``, of which ``main`` makes one line.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ENCODING: Final = "utf-8"


class Unwritable(OSError):
    """Standard output can't be written to. Says why."""


class _Stream(io.RawIOBase):
    """``descriptor``: None where there is none. ``needed``: what can't be written is an error."""

    def __init__(self, descriptor: int | None, *, needed: bool) -> None:
        self.needed = needed
        self.left = False
        self._descriptor = descriptor

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            if self._descriptor is None:
                raise Unwritable("standard output is closed; open it, or send it to /dev/null")
            return os.write(self._descriptor, data)
        except BrokenPipeError:
            self.left = True
        except Unwritable:
            if self.needed:
                raise
        except OSError as error:
            if self.needed:
                raise Unwritable(f"standard output can't be written to ({error.strerror})") from error
        return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._descriptor is not None and os.isatty(self._descriptor)

    def fileno(self) -> int:
        return super().fileno() if self._descriptor is None else self._descriptor


_out: _Stream | None = None  # before prepare(), and in tests


def prepare() -> None:
    """Where the locale has no dash and no bar, a question mark stands for it."""
    global _out
    _out, sys.stdout = _taken(sys.stdout, needed=True)
    _, sys.stderr = _taken(sys.stderr, needed=False)


def _taken(stream: TextIO | None, *, needed: bool) -> tuple[_Stream, TextIO]:
    """``stream`` is None where a process was started without one."""
    known = stream if isinstance(stream, io.TextIOWrapper) else None
    raw = _Stream(known.fileno() if known else None, needed=needed)
    text = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=known.encoding if known else _ENCODING,
        errors="replace",
        newline="\n",
        line_buffering=known is not None and (known.line_buffering or known.write_through),
    )
    return raw, text


def give_up() -> None:
    """Nothing depends on standard output from now on, and nobody hears that it can't be written."""
    if _out is not None:
        _out.needed = False


def unheard() -> bool:
    """Whether whoever read standard output has left."""
    return _out is not None and _out.left
