"""Asking an engine's API process whether it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import aiohttp

_TIMEOUT_S: Final = 2.0  # while it starts


class Health:
    """``async with`` it; one connection is kept."""

    def __init__(self, socket: Path, timeout_s: float = _TIMEOUT_S) -> None:
        connector = aiohttp.UnixConnector(str(socket))
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout_s))

    async def __aenter__(self) -> Health:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def status(self) -> int | None:
        """The HTTP status of ``/health``; None if there was no answer in time. (200 does not prove that its EngineCore works.)"""
        try:
            async with self._session.get("http://engine/health") as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
