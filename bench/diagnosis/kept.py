"""What has been played is kept, and not played again, unless those who judge are others by now."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final, TypeVar

import msgspec

_TOP: Final = Path(__file__).parents[2]
T = TypeVar("T")


@functools.cache
def judges(rooms: tuple[str, ...]) -> str:
    """A digest of the sources in these directories: what was played is played again by whoever has others."""
    sources = sorted(path for room in rooms for path in (_TOP / room).rglob("*.py"))
    return hashlib.blake2b(b"".join(path.read_bytes() for path in sources)).hexdigest()


def read(kept: Path | None, name: str, kind: type[T]) -> T | None:
    """None for what has not been played, or is not to be kept."""
    path = kept / name if kept else None
    return msgspec.json.decode(path.read_bytes(), type=kind) if path and path.is_file() else None


def keep(kept: Path | None, name: str, what: object) -> None:
    """All of it or nothing."""
    if kept is not None:
        partial = kept / f"{name}.partial"
        partial.write_bytes(msgspec.json.encode(what))
        partial.rename(kept / name)
