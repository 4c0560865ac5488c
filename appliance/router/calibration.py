"""A few seconds of steps of known sizes, as soon as an engine is ready: so that what steps take is known before anybody waits for them.

Prompts of growing size, and a few sequences that decode together, round after round, straight to the engine: nobody's requests. They run
while nobody is served, and whoever comes interrupts them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from appliance.records import EngineState, EngineView
from appliance.router import wire
from appliance.router.client import Engines, Unreachable

Told = Callable[[str, int, bool], None]
_PATH: Final = "/v1/completions"
_TICK_S: Final = 0.1
_WORD_S: Final = 0.1  # between an answer and the word of its steps, which come by different ways
_IDS: Final = (5, 250)  # that every vocabulary has; at random, so that no prefix cache knows them
_LEAST: Final = 32  # tokens of a prompt
_MOST: Final = 8192
_SHARE: Final = 1 / 24  # of the time, that one prompt may take
_TOGETHER: Final = 8  # sequences
_DECODED: Final = 64  # tokens of each of them
_DECODE_PROMPT: Final = 64

_log = logging.getLogger(__name__)


class Life(NamedTuple):
    """One of an engine."""

    engine: str
    epoch: int


class Refused(Exception):
    """The engine does not do what it is asked."""


class Calibration:
    """One for the router."""

    def __init__(
        self,
        model: str,
        views: Callable[[], Sequence[EngineView]],
        engines: Engines,
        budget_s: float,
        idle: Callable[[], bool],
    ) -> None:
        """``budget_s``: for each life of an engine; 0: there is none. ``idle``: nobody's request waits or runs."""
        self._model = model
        self._views = views
        self._engines = engines
        self._budget_s = budget_s
        self._idle = idle
        self._left: dict[Life, float] = {}  # seconds
        self._running: dict[Life, asyncio.Task[None]] = {}
        self._random = random.Random()
        self.told: Told = lambda engine, epoch, under_way: None
        """Called when one begins, and when all of its steps have been said."""

    async def run(self) -> None:
        """For ever."""
        try:
            while self._budget_s > 0:
                self._begin_due()
                await asyncio.sleep(_TICK_S)
        finally:
            self.interrupt()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def interrupt(self) -> None:
        """Somebody has come."""
        for task in self._running.values():
            task.cancel()

    def _begin_due(self) -> None:
        self._running = {life: task for life, task in self._running.items() if not task.done()}
        ready = {Life(view.name, view.epoch): view for view in self._views() if view.state is EngineState.READY}
        self._left = {life: self._left.get(life, self._budget_s) for life in ready}
        for life, view in ready.items():
            if self._left[life] > 0 and life not in self._running and self._idle():
                self._running[life] = asyncio.create_task(self._spend(life, view), name=f"calibration {view.name}")

    async def _spend(self, life: Life, view: EngineView) -> None:
        """What is left of its time. Whatever goes wrong ends it for this life, and is no reason to think ill of the engine."""
        began_s = time.monotonic()
        self.told(*life, True)
        try:
            async with asyncio.timeout(self._left[life]):
                await self._rounds(view)
        except (TimeoutError, Unreachable):
            self._left[life] = 0.0
        except Refused as error:
            self._left[life] = 0.0
            _log.warning("%s can't be calibrated: %s", view.name, error)
        finally:
            self._left[life] = max(0.0, self._left.get(life, 0.0) - (time.monotonic() - began_s))
            asyncio.get_running_loop().call_later(_WORD_S, self._end, life)

    def _end(self, life: Life) -> None:
        """All has been said, unless it has begun again."""
        task = self._running.get(life)
        if task is None or task.done():
            self.told(*life, False)

    async def _rounds(self, view: EngineView) -> None:
        """Until it is cancelled."""
        most = max(_LEAST, min(view.max_batched_tokens, _MOST, (view.max_model_len or _MOST) - 1))
        while True:
            size = _LEAST
            while size <= most and await self._prompt(view, size, 1) <= _SHARE * self._budget_s:
                size *= 2
            await self._together(view)

    async def _together(self, view: EngineView) -> None:
        prompts = (self._prompt(view, _DECODE_PROMPT, _DECODED) for _ in range(_TOGETHER))
        for one in await asyncio.gather(*prompts, return_exceptions=True):
            if isinstance(one, BaseException):
                raise one

    async def _prompt(self, view: EngineView, tokens: int, answer_tokens: int) -> float:
        """How long it took."""
        began_s = time.monotonic()
        prompt = self._random.choices(range(*_IDS), k=tokens)
        body = {"model": self._model, "prompt": prompt, "max_tokens": answer_tokens, "temperature": 0}
        headers = wire.engine_headers({"content-type": "application/json"}, "calibration")
        encoded = msgspec.json.encode({**body, "ignore_eos": True})
        response = await self._engines.send(view, "POST", _PATH, headers, encoded)
        try:
            answer = await response.all()
        finally:
            response.close()
        if response.status != 200:
            raise Refused(wire.error_message(answer) or f"it answered {response.status}")
        return time.monotonic() - began_s
