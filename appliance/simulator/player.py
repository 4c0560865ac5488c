"""Plays a scenario at a live node, as its clients and its bad luck: a process of its own, over the API, like anybody else.

python -m appliance.simulator.player --url URL --scenario FILE --layout LAYOUT --model NAME --parent PID
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from appliance.channel import Fault
from appliance.engine.life import die_with, entitle
from appliance.simulator.request import Asked
from appliance.simulator.scenario import BLOCK_TOKENS, Loaded, load, misfortunes
from appliance.simulator.text import VOCABULARY
from appliance.simulator.traffic import arrivals

_LOOK_S: Final = 0.5
_TIMEOUT_S: Final = 600.0
_FAILURES: Final = (aiohttp.ClientError, OSError, TimeoutError)


class Player:
    """One scenario, again and again, each time with other requests."""

    def __init__(self, url: str, loaded: Loaded, layout: str, model: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._loaded = loaded
        self._faults = misfortunes(loaded, layout)
        self._model = model
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        scenario = self._loaded.scenario
        for turn in itertools.count():
            await self._until_ready()
            await self._mend()
            began_s = time.monotonic()
            for fault in self._faults:
                if fault.at_s < scenario.duration_s:
                    self._later(began_s + fault.at_s, self._fault(fault.engine, fault.begins))
                if fault.until_s is not None and fault.until_s < scenario.duration_s:
                    self._later(began_s + fault.until_s, self._fault(fault.engine, fault.ends))
            coming = arrivals(
                scenario.traffic, scenario.seed + turn, scenario.duration_s, BLOCK_TOKENS, self._loaded.directory
            )
            for number, (at_s, asked) in enumerate(coming):
                await asyncio.sleep(began_s + at_s - time.monotonic())
                self._later(0.0, self._ask(asked, (turn << 32) + number))
            await asyncio.sleep(began_s + scenario.duration_s - time.monotonic())

    def _later(self, when_s: float, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(_at(when_s, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, asked: Asked, number: int) -> None:
        """One request, read to its end. That it fails is the node's affair, which counts it."""
        body = {
            "model": self._model,
            "prompt": prompt(asked, number),
            "max_tokens": asked.output_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        with contextlib.suppress(*_FAILURES):
            async with self._session.post(f"{self._url}/v1/completions", data=msgspec.json.encode(body)) as response:
                async for _ in response.content.iter_any():
                    pass

    async def _fault(self, engine: str, fault: Fault) -> None:
        body = {"kind": fault.kind, "severity": fault.severity, "peer": fault.peer}
        with contextlib.suppress(*_FAILURES):
            async with self._session.post(
                f"{self._url}/api/sim/engines/{engine}/fault", data=msgspec.json.encode(body)
            ) as response:
                if response.status >= 400:
                    sys.stderr.write(f"scenario: fault {fault.kind} of {engine}: {await response.text()}\n")

    async def _mend(self) -> None:
        """What the last turn has left: each begins with a node that is well."""
        for engine in {fault.engine for fault in self._faults}:
            with contextlib.suppress(*_FAILURES):
                async with self._session.delete(f"{self._url}/api/sim/engines/{engine}/fault"):
                    pass

    async def _until_ready(self) -> None:
        while True:
            with contextlib.suppress(*_FAILURES):
                async with self._session.get(f"{self._url}/ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(_LOOK_S)


def prompt(asked: Asked, number: int) -> list[int]:
    """Token ids: those of blocks with the same digest are the same, and all others are this request's own."""
    own = range(len(asked.digests), -(-asked.prompt_tokens // BLOCK_TOKENS))
    found = [token for digest in asked.digests for token in _block(f"shared {digest}")]
    found += [token for block in own for token in _block(f"{number} {block}")]
    return found[: asked.prompt_tokens]


def _block(name: str) -> Iterator[int]:
    """Its tokens. Hashed: were they anything simpler, blocks of different names would soon be alike, and found in prefix caches."""
    hashed = hashlib.blake2b(name.encode(), digest_size=2 * BLOCK_TOKENS).digest()
    return (token % VOCABULARY for token in memoryview(hashed).cast("H"))


async def _at(when_s: float, what: Coroutine[Any, Any, None]) -> None:
    await asyncio.sleep(when_s - time.monotonic())
    await what


async def play(options: argparse.Namespace) -> None:
    """Until ended."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await Player(options.url, load(Path(options.scenario)), options.layout, options.model, session).run()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="appliance.simulator.player")
    for name in ("--url", "--scenario", "--layout", "--model"):
        parser.add_argument(name, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    die_with(options.parent)
    entitle("simulated clients")
    asyncio.run(play(options))


if __name__ == "__main__":
    main()
