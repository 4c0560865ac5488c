"""A router over two fake engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from router_fakes import House, house, until

from appliance.router import request as request_module


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for an engine that failed to be known as lost."""
    monkeypatch.setattr(request_module, "_GONE_S", 0.2)


@pytest.fixture
async def pair(short: Path) -> AsyncIterator[House]:
    async with house(short) as built:
        yield built
        await until(built.idle)
