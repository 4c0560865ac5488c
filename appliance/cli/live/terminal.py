"""The terminal: single keys, the alternate screen, and both put back whatever ends the program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live

from appliance.cli.live.frame import frame, printable
from appliance.cli.live.view import View

_ENDS: Final = b"qQ\x04\x1b"  # q, Ctrl-D, Escape
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Screen:
    """Draws views on the alternate screen. ``wake`` is called when something has happened that wants a new drawing."""

    def __init__(self, console: Console, wake: Callable[[], None]) -> None:
        self.ended = False
        self._console = console
        self._wake = wake
        self._keys = sys.stdin.isatty()
        self._before: list[Any] | None = None  # the terminal's modes, while they are ours
        self._live = Live(console=console, screen=True, auto_refresh=False)

    def draw(self, view: View) -> None:
        size = self._console.size
        lines = frame(view, size.width, size.height, keys=self._keys)
        self._live.update(Group(*printable(lines, self._console.encoding)), refresh=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Between the terminal as it was and as it was; keys and signals set ``ended``."""
        loop = asyncio.get_running_loop()
        handlers: dict[int, Callable[[], Any]] = dict.fromkeys(_ENDING, self._end)
        handlers |= {signal.SIGWINCH: self._wake, signal.SIGTSTP: self._stop}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        with self._single_keys() as listening, self._live:
            if listening:
                loop.add_reader(sys.stdin.fileno(), self._key)
            try:
                yield
            finally:
                if listening:
                    loop.remove_reader(sys.stdin.fileno())
                for number in handlers:
                    loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _single_keys(self) -> Iterator[bool]:
        """Keys come one by one, and unseen. Ctrl-C stays a signal."""
        if not self._keys:
            yield False
            return
        self._before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        try:
            yield True
        finally:
            self._put_back()

    def _put_back(self) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def _key(self) -> None:
        typed = os.read(sys.stdin.fileno(), 64)
        alone = typed if len(typed) == 1 else b""  # arrows and the like begin with an Escape
        if not typed or typed in (b"q", b"Q") or (alone and alone in _ENDS):
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._wake()

    def _stop(self) -> None:
        """Ctrl-Z: the shell gets its terminal back as it was, and ``fg`` goes on here."""
        self._live.stop()
        self._put_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        if self._before is not None:
            tty.setcbreak(sys.stdin)
        self._live.start()
        self._wake()
