"""Real engines are dear to start: one pair and one model serve the whole session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pair import ENVIRONMENT, Pair
from product import Server, appliance

from appliance.supervisor.forkserver import ForkServer
from appliance.supervisor.process import adopt_orphans
from bench.random_model import write

IMPORT_S = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Short: Unix socket paths have an end at 107 characters."""
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def random_model(directory: Path) -> Path:
    return write(directory / "model")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pair(directory: Path, random_model: Path) -> AsyncIterator[Pair]:
    running = Pair(directory, random_model, inline_bytes=2 << 20)
    await running.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def forks() -> AsyncIterator[ForkServer]:
    """Engines that it forks are this process's children."""
    adopt_orphans()
    running = ForkServer({**os.environ, **ENVIRONMENT}, IMPORT_S)
    yield running
    await running.close()
    adopt_orphans(False)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(random_model: Path) -> AsyncIterator[Server]:
    """The product over the random model, for one file of tests."""
    with tempfile.TemporaryDirectory(prefix="pd-") as name:
        async with appliance(Path(name), random_model) as running:
            yield running
