"""Cases played on one real node, one after the other, with its own diagnosis looked at over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from appliance.records import NodeSnapshot, Verdict
from bench import servers
from bench.diagnosis.baselines import RULES
from bench.diagnosis.goodput import Clients
from bench.diagnosis.play import Said, changed, told
from bench.diagnosis.real.capacity import Capacity
from bench.diagnosis.real.cases import AFTER_S, FAULT_S, USUAL, Case, Setup, Stream
from bench.diagnosis.real.injections import injected
from bench.diagnosis.real.traffic import Traffic
from bench.integrity import is_whole
from bench.servers import Server, Serving

_LOOK_S: Final = 0.5
_RULES_EVERY: Final = 3  # looks
_WELL_S: Final = 3.0
_SETTLES_S: Final = 90.0
_DRAINS_S: Final = 30.0
_WARM_S: Final = 30.0
_KV_BYTES: Final = 256 << 20


class Unsettled(Exception):
    """A node has not become well in time; it says so in words."""


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a case; see ``score.Seen``. ``end_s``: of the injection, or when the engine that was gone was back."""

    case: Case
    capacity: Capacity
    did: str
    made: bool
    end_s: float
    said: tuple[Said, ...]
    good: tuple[int, ...]
    asked: tuple[int, ...]
    impact_s: float | None = None
    named: dict[str, str | None] = {}


class Look:
    """What the node says, as seen by whoever asks for it every half second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began_s = time.monotonic()
        self._looks = 0
        self.said: list[Said] = []
        self.named: dict[str, Counter[str]] = {rule: Counter() for rule in RULES}
        self.asks_others = False
        self.well_since_s: float | None = None

    def begin(self) -> None:
        """From now on, for another case."""
        self._began_s, last = time.monotonic(), self.said[-1:]
        self.said = [msgspec.structs.replace(one, at_s=0.0) for one in last]
        self.named = {rule: Counter() for rule in RULES}

    async def run(self) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError):
                await self._look()
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        verdict = msgspec.json.decode(await self._read("/api/diagnosis"), type=Verdict)
        at_s = time.monotonic() - self._began_s
        if verdict.state != "ok":
            self.well_since_s = None
        elif self.well_since_s is None:
            self.well_since_s = time.monotonic()
        if not self.said or changed(self.said[-1], verdict):
            self.said.append(told(at_s, verdict))
        self._looks += 1
        if self.asks_others and self._looks % _RULES_EVERY == 0:
            node = msgspec.json.decode(await self._read("/api/node"), type=NodeSnapshot)
            for rule, found in self.named.items():
                if (engine := RULES[rule](node)) is not None:
                    found[engine] += 1

    async def _read(self, path: str) -> bytes:
        async with asyncio.timeout(5.0), self._server.target.session.get(self._server.target.url(path)) as answer:
            return await answer.read()

    @property
    def well_s(self) -> float:
        return 0.0 if self.well_since_s is None else time.monotonic() - self.well_since_s


class Node:
    """A node that serves. Made by ``started``."""

    def __init__(self, server: Server, traffic: Traffic, look: Look, capacity: Capacity) -> None:
        self._server, self._traffic, self._look, self._capacity = server, traffic, look, capacity
        self._told_of: set[tuple[str, int]] = set()  # incidents, each with how much had been said of it

    async def warm(self) -> None:
        """Usual traffic, until it is known what steps take. What was kept of earlier nodes is not this one's."""
        await self.incidents()
        clients = self._clients(_WARM_S)
        async with _meanwhile(self._ask(USUAL, "warm", time.monotonic(), clients)):
            await asyncio.sleep(_WARM_S)

    async def play(self, case: Case) -> Played:
        """One injection: before, while it lasts, and until it is over. Raises ``Unsettled``, ``ServerError`` and ``NotMade``."""
        await self._settled()
        seconds = case.onset_s + FAULT_S + AFTER_S + _DRAINS_S
        self._look.begin()
        began_s, clients = time.monotonic(), self._clients(seconds)
        async with _meanwhile(self._ask(case.traffic, f"{case.seed} usual", began_s, clients)):
            await asyncio.sleep(case.onset_s)
            self._look.asks_others = True
            try:
                did = await self._injure(case, began_s, clients)
            finally:
                self._look.asks_others = False
            end_s = time.monotonic() - began_s
            await self._over()
        said = tuple(self._look.said)
        await self._drained()
        return self._played(case, did, end_s, said, clients)

    async def incidents(self) -> list[bytes]:
        """The bundles of those that were opened since the last time, or went on, for whoever wants to see what the node saw."""
        found = [(one["id"], len(one["verdicts"])) for one in await self._server.json("/api/incidents")]
        new = [one for one in found if one not in self._told_of]
        self._told_of.update(new)
        return [await self._server.read(f"/api/incidents/{id}/bundle") for id, _ in reversed(new)]

    async def watch(self, case: Case) -> Played:
        """Nothing is done, for as long as the case says."""
        await self._settled()
        self._look.begin()
        began_s, clients = time.monotonic(), self._clients(case.onset_s + _DRAINS_S)
        async with _meanwhile(self._ask(case.traffic, f"{case.seed} calm", began_s, clients)):
            await asyncio.sleep(case.onset_s)
        said = tuple(self._look.said)
        await self._drained()
        return self._played(case, "nothing", case.onset_s, said, clients)

    async def _injure(self, case: Case, began_s: float, clients: Clients) -> str:
        before = await self._engine(case.engine)
        async with injected(self._server, case) as did:
            if case.surge is not None:
                async with _meanwhile(self._ask(case.surge, f"{case.seed} surge", began_s, clients)):
                    await asyncio.sleep(FAULT_S)
            elif "stopped" in case.name or "killed" in case.name:
                await self._back(case.engine, before["epoch"])
            else:
                await asyncio.sleep(FAULT_S)
        return did

    async def _back(self, name: str, epoch: int) -> None:
        """Until another life of the engine serves, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAULT_S):
                while True:
                    engine = await self._engine(name)
                    if engine["epoch"] > epoch and engine["state"] == "ready":
                        return
                    await asyncio.sleep(_LOOK_S)

    async def _over(self) -> None:
        until_s = time.monotonic() + AFTER_S
        while self._look.well_s < _WELL_S and time.monotonic() < until_s:
            await asyncio.sleep(_LOOK_S)

    async def _settled(self) -> None:
        """Every engine serves, and nothing is said."""
        until_s = time.monotonic() + _SETTLES_S
        while self._look.well_s < _WELL_S or not is_whole(await self._server.json("/api/node")):
            if time.monotonic() > until_s or self._server.returncode is not None:
                last = self._look.said[-1].summary if self._look.said else "it says nothing"
                raise Unsettled(f"the node was not well after {_SETTLES_S:.0f} s: {last}")
            await asyncio.sleep(_LOOK_S)

    async def _drained(self) -> None:
        until_s = time.monotonic() + _DRAINS_S
        while self._traffic.open and time.monotonic() < until_s:
            await asyncio.sleep(_LOOK_S / 5)

    async def _engine(self, name: str) -> dict[str, Any]:
        node = await self._server.json("/api/node")
        found: dict[str, Any] = next(engine for engine in node["engines"] if engine["name"] == name)
        return found

    def _clients(self, seconds: float) -> Clients:
        return Clients(self._capacity.ttft_s, self._capacity.itl_s, int(seconds))

    def _ask(self, stream: Stream, seed: str, began_s: float, clients: Clients) -> Coroutine[Any, Any, None]:
        rate = self._capacity.rate(stream)
        return self._traffic.run(stream, rate, seed, began_s, clients.come, clients.answered)

    def _played(self, case: Case, did: str, end_s: float, said: tuple[Said, ...], clients: Clients) -> Played:
        return Played(
            case=case,
            capacity=self._capacity,
            did=did,
            made=True,
            end_s=end_s,
            said=said,
            good=tuple(clients.good),
            asked=tuple(clients.asked),
            impact_s=clients.impact_s(case.onset_s),
            named={rule: max(found, key=found.__getitem__, default=None) for rule, found in self._look.named.items()},
        )


@asynccontextmanager
async def started(directory: Path, model: Path, number: int, setup: Setup, capacity: Capacity) -> AsyncIterator[Node]:
    """The appliance over real engines, and clients. Ends it in any case."""
    settings = {
        "slo": f"ttft_s = {capacity.ttft_s}\nitl_s = {capacity.itl_s}",
        "engine.prefill": f"args = {msgspec.json.encode(setup.prefill).decode()}",
        "engine.decode": f"args = {msgspec.json.encode(setup.decode).decode()}",
    }
    serving = Serving(layout=setup.layout, arguments=(), kv_cache_bytes=_KV_BYTES, settings=settings)
    async with (
        servers.appliance(directory, model, number, serving) as (server, _),
        Traffic(server.target.url("")) as traffic,
    ):
        look = Look(server)
        async with _meanwhile(look.run()):
            yield Node(server, traffic, look, capacity)


@asynccontextmanager
async def bare(directory: Path, model: Path, number: int, setup: Setup) -> AsyncIterator[Traffic]:
    """A node that has no targets yet, to be measured."""
    serving = Serving(layout=setup.layout, arguments=(), kv_cache_bytes=_KV_BYTES)
    async with (
        servers.appliance(directory, model, number, serving) as (server, _),
        Traffic(server.target.url("")) as traffic,
    ):
        yield traffic


@asynccontextmanager
async def _meanwhile(doing: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Until the end of the block. If it fails, so does that."""
    task = asyncio.create_task(doing)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(task, return_exceptions=True)
