"""When ``serve`` ends: at a signal, or with its last engine; and what is still waited for then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from appliance.cli.announce import say
from appliance.records import EngineState, EngineView
from appliance.router.router import Router
from appliance.supervisor import notify
from appliance.supervisor.node import Node

_GIVING_UP_S: Final = 2.0


class Stopping:
    """A first signal asks for it, and a second one for haste."""

    def __init__(self, grace_s: float) -> None:
        """``grace_s``: for answers that are under way."""
        self.hurry = asyncio.Event()
        self._grace_s = grace_s
        self._asked = asyncio.Event()
        self._served = False

    def note(self, view: EngineView) -> None:
        self._served = self._served or view.state is EngineState.READY

    def watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        # A terminal that is closed ends what runs in it. A service manager would take a death by SIGHUP for a stop on purpose.
        loop.add_signal_handler(signal.SIGHUP, _nothing if notify.is_service(os.environ) else self._signalled)

    def _signalled(self) -> None:
        (self.hurry if self._asked.is_set() else self._asked).set()

    async def asked_for(self, node: Node) -> str | None:
        """Until a signal, or until no engine can start any more: the reason then."""
        while not self._asked.is_set():
            views = node.views()
            if all(view.state is EngineState.FAILED for view in views):
                return ("every engine has been given up: " if self._served else "no engine can start: ") + _causes(
                    views
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await self._asked.wait()
        return None

    async def finish(self, router: Router) -> None:
        """Let answers that are under way end, for the grace period or until a second signal."""
        if waiting := unfinished(router):
            say(f"pd-appliance: stopping; {waiting} answers have {self._grace_s:.0f} s to end")
        await _ended(router, self._grace_s, self.hurry.is_set)
        if left := unfinished(router):
            say(f"pd-appliance: {left} answers are given up")
            router.abandon()
        await _ended(router, _GIVING_UP_S)  # their clients are being told


async def _ended(router: Router, patience_s: float, enough: Callable[[], bool] = lambda: False) -> None:
    deadline = time.monotonic() + patience_s
    while unfinished(router) and time.monotonic() < deadline and not enough():
        await asyncio.sleep(0.02)


def unfinished(router: Router) -> int:
    queue = router.queue_snapshot(time.monotonic_ns())
    return queue.depth + queue.in_flight


def _causes(views: Sequence[EngineView]) -> str:
    """``e0, e1: out of memory; e2: …``"""
    named: dict[str, list[str]] = {}
    for view in views:
        named.setdefault(view.cause or "no reason given", []).append(view.name)
    return "; ".join(f"{', '.join(names)}: {cause}" for cause, names in named.items())


def _nothing() -> None:
    """There is no configuration that could be read again while it runs."""
