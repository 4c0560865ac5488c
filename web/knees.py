"""What saturates each engine, for pages: looked for beside the loop, now and then, while somebody looks at one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from appliance.records import KneeReading
from web.ports import NodeView

_EVERY_S: Final = 5.0  # the node finds it anew less often
_log = logging.getLogger(__name__)


class Knees:
    """To be asked from the event loop."""

    def __init__(self, node: NodeView, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._clock = clock
        self._known: dict[str, KneeReading | None] = {}
        self._asked: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def latest(self, engine: str) -> KneeReading | None:
        """As it was found last; None before the first time. Has it looked for again where that is a while ago."""
        due = self._clock() >= self._asked.get(engine, -_EVERY_S) + _EVERY_S
        if due and engine not in self._asking:
            self._asked[engine] = self._clock()
            self._asking[engine] = asyncio.get_running_loop().create_task(self._ask(engine), name=f"knee of {engine}")
        return self._known.get(engine)

    async def _ask(self, engine: str) -> None:
        try:
            self._known[engine] = await self._node.knee(engine)
        except Exception:  # nobody waits for it
            _log.exception("what saturates %s was not found", engine)
        finally:
            self._asking.pop(engine, None)
