"""The latest steps of one life of an engine, one by one: for whoever looks at them, and for what is learnt of all sizes that come."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from appliance.channel import Step
from appliance.costs import knee
from appliance.costs.knee import StepSeen
from appliance.records import KneeReading, StepReading

_PROMPTS: Final = 1024  # kept, of steps with prompt tokens
_DECODES: Final = 512  # of the others, which are many and much alike
_OF_A_SIZE: Final = 48  # so that a size that is rare is not lost among those that are not
_PER_OCTAVE: Final = 4
_POINTS: Final = 40  # of a line that is told


class Steps:
    """Bounded."""

    def __init__(self) -> None:
        self.usable = 0  # that a knee can be found from
        self._number = 0
        self._prompts: deque[tuple[int, Step, float | None]] = deque(maxlen=_PROMPTS)
        self._decodes: deque[tuple[int, Step, float | None]] = deque(maxlen=_DECODES)
        self._sizes: dict[int, deque[StepSeen]] = {}

    def add(self, step: Step, seconds: float, expected_s: float | None) -> None:
        """One with tokens."""
        self._number += 1
        (self._prompts if step.prompt_tokens else self._decodes).append((self._number, step, expected_s))
        seen = StepSeen(step.prompt_tokens, step.decode_tokens, step.context_tokens, seconds)
        if knee.usable(seen):
            self.usable += 1
            size = int(_PER_OCTAVE * math.log2(step.prompt_tokens))
            self._sizes.setdefault(size, deque(maxlen=_OF_A_SIZE)).append(seen)

    def since(self, number: int, limit: int, unix_s: Callable[[int], float]) -> tuple[StepReading, ...]:
        """Those after that one, oldest first; of too many the latest. ``unix_s``: when a nanosecond of the node's clock was."""
        found = [one for one in (*self._prompts, *self._decodes) if one[0] > number]
        latest = sorted(found, key=lambda one: one[0])[-limit:]
        return tuple(_reading(*one, unix_s(one[1].end_ns)) for one in latest)

    def of_all_sizes(self) -> list[StepSeen]:
        """What the knee is found from."""
        return [seen for sized in self._sizes.values() for seen in sized]


def reading(found: knee.Knee | None, missing: str | None) -> KneeReading:
    """As it is told."""
    if found is None:
        return KneeReading(missing=missing)
    return KneeReading(
        tokens=found.tokens,
        low=found.low,
        high=found.high,
        tokens_s=found.tokens_s,
        best_tokens_s=found.best_tokens_s,
        limit_tokens=found.limit_tokens,
        steps=found.steps,
        curve=tuple((tokens, found.curve.rate(tokens)) for tokens in _sizes(found.curve)),
    )


def _sizes(curve: knee.Curve) -> list[int]:
    """Evenly spread over the octaves that were seen."""
    octaves = math.log2(curve.most / curve.least)
    return sorted({round(curve.least * 2 ** (octaves * number / _POINTS)) for number in range(_POINTS + 1)})


def _reading(number: int, step: Step, expected_s: float | None, time: float) -> StepReading:
    return StepReading(
        number=number,
        prompt_tokens=step.prompt_tokens,
        decode_tokens=step.decode_tokens,
        context_tokens=step.context_tokens,
        seconds=(step.end_ns - step.start_ns) * 1e-9,
        expected_s=expected_s,
        time=time,
    )
