"""What was made is kept for as long as somebody needs it, however much that is. Pure but for its memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
_BACK_S: Final = 60.0  # an earlier moment than that is another node's


class Lasting(Generic[K, T]):
    """By what it is made of. What was asked for neither at this tick nor at the one before is forgotten."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._now: dict[K, T] = {}
        self._before: dict[K, T] = {}

    def get(self, at_s: float, key: K, make: Callable[[], T]) -> T:
        """``at_s``: the tick, by the node's uptime. Who is late with an earlier one gets what there is now."""
        if at_s > self._at_s or at_s < self._at_s - _BACK_S:
            self._at_s, self._before, self._now = at_s, self._now, {}
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else make()
        return self._now[key]

    def clear(self) -> None:
        """Nothing of it is needed any more."""
        self._now, self._before = {}, {}
