"""Steps of an engine's last seconds, and what such steps should have taken. Pure but for its memory."""

from __future__ import annotations

from collections import deque
from typing import Final

LATELY_NS: Final = 2 * 1_000_000_000  # what diagnosis looks at: long enough for a mean, short enough to be quick
WELL: Final = 1.12  # times what steps are expected to take: beyond it, a model must not learn from them
_LEAST_KNOWN_S: Final = 0.2  # that steps should have taken, for the ratio to mean something
_LEAST_TOOK_S: Final = 1.0  # that they took, for the same: the slower an engine is, the less it does
_LEAST_SLOW: Final = 3  # of them that took longer than they should: one alone is no slowness


class Compared:
    """``took_s``, ``should_s``: sums over the last ``LATELY_NS``."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float, float]] = deque()  # when, what it took, what it should have taken
        self.took_s = self.should_s = 0.0

    def add(self, now_ns: int, took_s: float, should_s: float) -> None:
        self._steps.append((now_ns, took_s, should_s))
        self.took_s += took_s
        self.should_s += should_s

    def forget(self, now_ns: int) -> None:
        """What is older."""
        while self._steps and now_ns - self._steps[0][0] > LATELY_NS:
            _, took_s, should_s = self._steps.popleft()
            self.took_s -= took_s
            self.should_s -= should_s
        if not self._steps:
            self.took_s = self.should_s = 0.0  # or what rounding has left

    @property
    def known(self) -> bool:
        """It is enough to say how slow the engine is."""
        return self.should_s >= _LEAST_KNOWN_S or self._is_very_slow()

    @property
    def is_well(self) -> bool:
        return self.took_s <= WELL * self.should_s

    def _is_very_slow(self) -> bool:
        """Time has passed in steps that should have taken next to nothing."""
        if self.took_s < _LEAST_TOOK_S or self.should_s <= 0:
            return False
        return sum(took_s > WELL * should_s for _, took_s, should_s in self._steps) >= _LEAST_SLOW
