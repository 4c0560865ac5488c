"""What is asked of the node: how often, how evenly, and how long prompts and answers are. Pure but for its memory."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Final

from appliance.records import Demand

_WINDOW_NS: Final = 60 * 1_000_000_000
_KEPT: Final = 4_000  # the newest: of more, lengths are known well enough
_PARTS: Final = 20
_FEWEST: Final = 10  # answers and requests, to say anything of what will come
_ANEW_NS: Final = 1_000_000_000  # after which it is worked out again


class Wanted:
    """Told of each request when it comes and when it has been answered, in order of time."""

    def __init__(self) -> None:
        self._came_ns: deque[int] = deque(maxlen=_KEPT)
        self._answered: deque[tuple[int, int, int]] = deque(maxlen=_KEPT)  # when, prompt and output tokens
        self._latest: tuple[int, Demand | None] = (-_ANEW_NS, None)

    def came(self, now_ns: int) -> None:
        """A request."""
        self._came_ns.append(now_ns)

    def answered(self, prompt_tokens: int | None, output_tokens: int, now_ns: int) -> None:
        """One to its end. Those that came to nothing tell nothing of lengths."""
        if prompt_tokens and output_tokens > 0:
            self._answered.append((now_ns, prompt_tokens, output_tokens))

    def demand(self, now_ns: int) -> Demand | None:
        """Of the last minute; None where too little was asked. It is at most a second old."""
        if now_ns - self._latest[0] >= _ANEW_NS:
            self._latest = now_ns, self._demand(now_ns)
        return self._latest[1]

    def _demand(self, now_ns: int) -> Demand | None:
        while self._came_ns and now_ns - self._came_ns[0] > _WINDOW_NS:
            self._came_ns.popleft()
        while self._answered and now_ns - self._answered[0][0] > _WINDOW_NS:
            self._answered.popleft()
        if min(len(self._came_ns), len(self._answered)) < _FEWEST:
            return None
        came = list(self._came_ns)
        return Demand(
            rate_s=(len(came) - 1) / max(1e-3, (now_ns - came[0]) * 1e-9),
            prompt_tokens=quantiles([prompt for _, prompt, _ in self._answered]),
            output_tokens=quantiles([output for _, _, output in self._answered]),
            burstiness=_variation([later - earlier for earlier, later in itertools.pairwise(came)]),
        )


def quantiles(values: Sequence[int], parts: int = _PARTS) -> tuple[float, ...]:
    """Means of equal parts of them, the least first."""
    ordered, count = sorted(values), len(values)
    cut = [ordered[number * count // parts : (number + 1) * count // parts] for number in range(parts)]
    return tuple(statistics.fmean(part) for part in cut if part)


def _variation(gaps: Sequence[int]) -> float:
    mean = statistics.fmean(gaps)
    square = statistics.fmean((gap - mean) ** 2 for gap in gaps)  # pstdev is exact, and takes thirty times as long
    return math.sqrt(square) / mean if mean > 0 else 1.0
