"""Tests of the pairs that nobody uses: a request of a few tokens through both legs.

So a broken pair is known before a user finds it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliance.channel import CANARY, HandoffEnded
from appliance.records import EngineView
from appliance.router import legs, routes, wire
from appliance.router.client import Engines, Unreachable
from appliance.router.pairs import Pairs
from appliance.router.ports import Ledger

_ROUTE: Final = routes.find("POST", "/v1/completions")
_PROMPT: Final = list(range(1, 9))  # ids that every vocabulary has; too few to stay in a prefix cache
_TOKENS: Final = 2
_TICK_S: Final = 0.5
_PATIENCE_S: Final = 15.0  # an engine's first request may have something to compile
_WORD_S: Final = 2.0  # between an answer and the word of its hand-off, which come by different ways
_TTL_S: Final = 30.0
_log = logging.getLogger(__name__)


class Broken(Exception):
    """KV does not get from one engine to the other."""


class Inconclusive(Exception):
    """It could not be tested."""


class Canary:
    """One for the router."""

    def __init__(
        self,
        model: str,
        views: Callable[[], Sequence[EngineView]],
        engines: Engines,
        ledger: Ledger,
        pairs: Pairs,
        idle: Callable[[], bool],
    ) -> None:
        """``views``: as the node says them. ``idle``: nobody's request waits or runs."""
        body = {"model": model, "prompt": _PROMPT, "max_tokens": _TOKENS, "temperature": 0}
        self._plan = legs.plan(_ROUTE, msgspec.json.encode(body))
        self._views = views
        self._engines = engines
        self._ledger = ledger
        self._pairs = pairs
        self._idle = idle
        self._number = itertools.count(1)
        self._told: dict[str, asyncio.Future[HandoffEnded]] = {}  # by key

    async def run(self) -> None:
        """For ever. Each pair is tested beside the others: one that does not answer must not hold them up."""
        testing: dict[tuple[str, str], asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(_TICK_S)
                views = self._views()
                self._pairs.see(views)
                testing = {names: task for names, task in testing.items() if not task.done()}
                for prefill, decode in self._pairs.due(views, time.monotonic_ns(), idle=self._idle()):
                    names = (prefill.name, decode.name)
                    if names not in testing:
                        testing[names] = asyncio.create_task(self.test(prefill, decode), name=f"canary {names}")
        finally:
            for task in testing.values():
                task.cancel()
            await asyncio.gather(*testing.values(), return_exceptions=True)

    def fold(self, message: HandoffEnded) -> None:
        """Take what a decode engine says of a hand-off of ours."""
        told = self._told.get(message.lease)
        if told is not None and not told.done():
            told.set_result(message)

    async def test(self, prefill: EngineView, decode: EngineView) -> None:
        """Send one, and note what came of it."""
        key = f"{CANARY}{prefill.name}.{decode.name}.{next(self._number)}"
        began_ns = time.monotonic_ns()
        self._told[key] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._both_legs(prefill, decode, key)
            now_ns = time.monotonic_ns()
            self._pairs.passed(prefill, decode, (now_ns - began_ns) * 1e-9, now_ns)
        except Broken as error:
            _log.warning("%s to %s: %s", prefill.name, decode.name, error)
            self._pairs.failed(prefill, decode, str(error), time.monotonic_ns())
        except (Inconclusive, Unreachable) as error:  # what has ended is the node's affair
            self._pairs.untold(prefill, decode, str(error), time.monotonic_ns())
        except TimeoutError:
            self._pairs.untold(prefill, decode, f"no answer within {_PATIENCE_S:.0f} s", time.monotonic_ns())
        except Exception:  # a fault in testing must not end the tests
            _log.exception("the test of %s to %s", prefill.name, decode.name)
            self._pairs.untold(prefill, decode, "the test itself failed: see the log", time.monotonic_ns())
        finally:
            del self._told[key]
            self._ledger.cancel(key)

    async def _both_legs(self, prefill: EngineView, decode: EngineView, key: str) -> None:
        kept = legs.kept(await self._ask(prefill, legs.prefill_body(self._plan, key, _TTL_S), f"{key}-prefill"))
        if not kept.any:
            raise Inconclusive(f"{prefill.name} has kept no KV")  # all leases may be taken
        await self._ask(decode, legs.decode_body(self._plan, kept), key)
        told = self._told[key]
        await asyncio.wait({told}, timeout=_WORD_S)
        await asyncio.sleep(0)  # after a pause of this process timers come first, and what was said in it then
        if not told.done():
            raise Broken(f"{decode.name} answers, and does not say that it has fetched the KV")
        handoff = told.result()
        if not handoff.ok:
            raise Broken(handoff.error or "the KV was not handed over, and no reason given")

    async def _ask(self, view: EngineView, body: bytes, name: str) -> bytes:
        headers = wire.engine_headers({"content-type": "application/json"}, name)
        response = await self._engines.send(view, "POST", _ROUTE.path, headers, body)
        try:
            answer = await response.all()
        finally:
            response.close()
        if response.status != 200:
            reason = wire.error_message(answer) or "no reason given"
            raise Inconclusive(f"{view.name} answered {response.status} to a test of the hand-off: {reason}")
        return answer
