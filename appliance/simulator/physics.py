"""How long things take on a simulated node: the cost model, and what no cost model has.

The diagnoser compares what it sees with the cost model. Were steps to take exactly as long as that says, it would be marked by its own
answer sheet. So they are also noisy, drift slowly, now and then stumble, and are disturbed by hand-offs and by prompts that share a step
with decoding. None of that has the form of a term of the model.
"""

from __future__ import annotations

import math
import random
from typing import Final, Protocol

from appliance.costs.roofline import Batch, Roofline
from appliance.simulator.leg import Work

_NOISE: Final = 0.02  # standard deviation of a step's logarithm
_DRIFT: Final = 0.015
_DRIFT_PERIOD_S: Final = 431.0
_STUMBLE: Final = 0.0005  # of steps
_STUMBLE_S: Final = (0.002, 0.015)
_MIXED: Final = 0.04  # more, for a step half of whose tokens decode
_PULLING: Final = 0.03  # more, for each hand-off that copies from or to this engine


class Cost(Protocol):
    """What a step would take, were the world as the cost model has it."""

    def step_s(self, work: Work) -> float: ...


class RooflineCost:
    """A model on GPUs, as ``costs.roofline`` sees it."""

    def __init__(self, roofline: Roofline) -> None:
        self._step = roofline.step

    def step_s(self, work: Work) -> float:
        return self._step(Batch(work.chunks, work.decodes, work.decode_context)).total_s


class Physics:
    """Of one engine. Faults change ``slow`` and ``stall_s``; the fabric counts ``pulls``."""

    def __init__(self, cost: Cost, seed: str, *, quiet: bool = False) -> None:
        """``quiet``: nothing but the cost model."""
        self._cost = cost
        self._random = random.Random(seed)
        self._quiet = quiet
        self._phase = self._random.uniform(0, 2 * math.pi)
        self.slow = 1.0  # a fault's factor
        self.stall_s = 0.0  # a fault's delay of each step
        self.pulls = 0  # hand-offs that copy now

    def step_ns(self, work: Work, now_ns: int) -> int:
        seconds = self._cost.step_s(work)
        if not self._quiet:
            seconds = self._lifelike(seconds, work, now_ns)
        return max(1, int((seconds * self.slow + self.stall_s) * 1e9))

    def _lifelike(self, seconds: float, work: Work, now_ns: int) -> float:
        chance = self._random
        drift = 1 + _DRIFT * math.sin(2 * math.pi * now_ns * 1e-9 / _DRIFT_PERIOD_S + self._phase)
        tokens = work.prompt_tokens + work.decodes
        mixed = 4 * work.prompt_tokens * work.decodes / (tokens * tokens) if tokens else 0.0
        seconds *= chance.lognormvariate(0, _NOISE) * drift * (1 + _MIXED * mixed) * (1 + _PULLING * self.pulls)
        if chance.random() < _STUMBLE:
            seconds += chance.uniform(*_STUMBLE_S)
        return seconds
