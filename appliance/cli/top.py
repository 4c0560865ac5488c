"""``pd-appliance top``: a node, live in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from typing import Annotated, Final

import aiohttp
import msgspec
import typer
from rich.console import Console

from appliance.cli.ask import URL, read, target
from appliance.cli.live.frame import frame, printable
from appliance.cli.live.terminal import Screen
from appliance.cli.live.view import Watch
from appliance.records import NodeSnapshot

_WIDTH: Final = 120  # of what is piped
_REDRAWN_S: Final = 1.0  # how long something has lasted grows while nothing is heard
_PATH: Final = ("api", "node")


def top(
    url: Annotated[str, typer.Option(help="Of the node.")] = URL,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, as where the output is no terminal that can be drawn on.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=60.0, help="Seconds from one look to the next.")] = 1.0,
) -> None:
    """Show a node live: what holds it back, its engines, links and GPUs. q or Ctrl-C ends it."""
    target(url, *_PATH)  # an address that can't be is refused before the screen is taken
    console = Console(highlight=False, soft_wrap=True)
    if once or not console.is_terminal or console.is_dumb_terminal:
        _print(console, url)
        return
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_Top(console, url, interval).run())


def _print(console: Console, url: str) -> None:
    """Raises ``ActionError`` if the node does not answer."""
    watch = Watch(url, _REDRAWN_S)
    watch.heard(read(url, NodeSnapshot, *_PATH), 0.0)
    lines = frame(watch.view(0.0, time.time()), shutil.get_terminal_size((_WIDTH, 0)).columns)
    for line in printable(lines, console.encoding):
        line.rstrip()
        console.print(line)


class _Top:
    """Asks the node in one task, and draws in another whenever there is something to draw."""

    def __init__(self, console: Console, url: str, interval_s: float) -> None:
        self._url = url
        self._interval_s = interval_s
        self._watch = Watch(url, interval_s)
        self._news = asyncio.Event()
        self._screen = Screen(console, self._news.set)

    async def run(self) -> None:
        with self._screen.shown():
            asking = asyncio.create_task(self._ask(), name="ask the node")
            try:
                await self._draw(asking)
            finally:
                asking.cancel()
                await asyncio.wait({asking})

    async def _draw(self, asking: asyncio.Task[None]) -> None:
        while not self._screen.ended and not asking.done():
            self._news.clear()
            self._screen.draw(self._watch.view(time.monotonic(), time.time()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REDRAWN_S):
                    await self._news.wait()
        if asking.done():
            asking.result()

    async def _ask(self) -> None:
        timeout = aiohttp.ClientTimeout(total=max(5.0, self._interval_s))
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                began = time.monotonic()
                await self._look(session)
                self._news.set()
                await asyncio.sleep(max(0.0, began + self._interval_s - time.monotonic()))

    async def _look(self, session: aiohttp.ClientSession) -> None:
        """Whatever comes of it is shown; nothing ends the display but its reader."""
        try:
            async with session.get(target(self._url, *_PATH)) as answer:
                answer.raise_for_status()
                snapshot = msgspec.json.decode(await answer.read(), type=NodeSnapshot)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._watch.failed(_said(error), time.time())
        else:
            self._watch.heard(snapshot, time.monotonic())


def _said(error: Exception) -> str:
    """Why a node did not answer, in few words."""
    if isinstance(error, TimeoutError):
        return "it takes too long"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error)
    if isinstance(error, aiohttp.ClientResponseError):
        return f"it answers with {error.status}, as no node does"
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.InvalidURL):
        return "it answers, but not as a node of this version does"
    return str(error) or type(error).__name__
