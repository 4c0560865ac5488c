"""What takes a while to make is not made anew with every tick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Paced(Generic[T]):
    """The last one that was made, until it is so old."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._made: tuple[float, T] | None = None

    def get(self, now: float, make: Callable[[], T]) -> T:
        """``now``: of the snapshot. A clock that was put back makes it anew, too."""
        if self._made is None or not 0 <= now - self._made[0] < self._every_s:
            self._made = (now, make())
        return self._made[1]
