"""One product over real engines for the whole suite, its fault-free answers, and a load that is judged while faults happen."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bench import chaos, faults, integrity, pool, servers
from bench.chaos import Expected, Load
from bench.checker import DEFECTS, Case, Kind, essence
from bench.clients import Clients
from bench.faults import Ground
from bench.outcomes import Outcome
from bench.schedule import Planned

CLIENTS = 5
REQUESTS = 22


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)


class Scene:
    """The product, and what it answers when nothing is wrong."""

    def __init__(self, ground: Ground, cases: list[Case], expected: Expected) -> None:
        self.ground = ground
        self.cases = cases
        self.expected = expected

    async def node(self) -> dict[str, Any]:
        node: dict[str, Any] = await self.ground.server.json("/api/node")
        return node

    async def whole(self, patience_s: float = 60.0) -> None:
        """Until all engines are ready and know each other."""
        async with asyncio.timeout(patience_s):
            while not integrity.is_whole(await self.node()):
                await asyncio.sleep(0.1)

    async def again(self, name: str, epoch: int, patience_s: float = 60.0) -> dict[str, Any]:
        """Until an engine has a later life than that, and everything is whole."""
        async with asyncio.timeout(patience_s):
            while (await self.ground.engine(name))["epoch"] <= epoch:
                await asyncio.sleep(0.1)
        await self.whole(patience_s)
        return await self.ground.engine(name)

    async def apply(self, group: str, variant: str, victim: str = "e1") -> str:
        """What was done. It must have been made."""
        done = await faults.apply(self.ground, Planned(at_s=0.0, group=group, variant=variant, victim=victim))
        assert done.made, done.did
        return done.did

    async def under_load(self, happens: Callable[[], Awaitable[object]], *, drops: bool = False) -> list[Outcome]:
        """Every answer that ended while it happened and in the second after; none of them may be a defect.

        ``drops``: the supervisor has no descriptors, and may drop connections.
        """
        load = Load(self.ground.clients, self.cases, self.expected)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(load.run(CLIENTS, seed=3))
            try:
                await asyncio.sleep(0.5)
                await happens()
                await asyncio.sleep(1.0)
            finally:
                load.stop()
            await running
        assert len(load.outcomes) > CLIENTS, f"hardly any answers in {time.monotonic() - began_s:.0f} s"
        excused = (Kind.DROPPED,) if drops else ()
        wrong = [one for one in load.outcomes if one.verdict.kind in DEFECTS and one.verdict.kind not in excused]
        assert not wrong, wrong
        return load.outcomes

    async def idle(self) -> None:
        """Nothing is under way or held any more."""
        async with asyncio.timeout(30):
            while found := integrity.held(await self.node()):
                await asyncio.sleep(0.2)
        assert not found


def failed(outcomes: list[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one.verdict.kind in (Kind.FAILED, Kind.REFUSED, Kind.DROPPED)]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scene() -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        directory = Path(name)
        runtime_parent = directory / "run-1"
        model = await chaos.make_model(directory / "model")
        with faults.small(runtime_parent):
            async with servers.appliance(directory, model, 1, chaos.serving("1p1d")) as (server, _):
                [runtime] = list(runtime_parent.glob("pd-appliance-*"))
                async with Clients(server.target.url("")) as clients:
                    yield await _scene(server, runtime, clients)
            assert server.returncode == 0, server.log[-3000:]
            assert not list(runtime_parent.glob("*"))


async def _scene(server: servers.Server, runtime: Path, clients: Clients) -> Scene:
    """Plain vLLM's answers are the same (``tests/engine/test_identity.py``)."""
    cases = pool.cases(7, REQUESTS)
    expected = {case.name: essence(case, await clients.ask(case)) for case in cases}
    return Scene(Ground(server, runtime, clients, tuple(cases)), cases, expected)
