"""How long things take on a simulated node: the cost model, and what no cost model has.

The diagnoser compares what it sees with the cost model. Were steps to take exactly as long as that says, it would be marked by its own
answer sheet. So they are also noisy, drift slowly, now and then stumble, and are disturbed by hand-offs and by prompts that share a step
with decoding. None of that has the form of a term of the model.
"""

from __future__ import annotations

import math
import random
from typing import Final, Protocol

import msgspec

from appliance.costs.gpus import Gpu, Peak
from appliance.costs.roofline import Batch, Roofline, StepCost
from appliance.simulator.leg import Work

_NOISE: Final = 0.02  # standard deviation of a step's logarithm
_DRIFT: Final = 0.015
_DRIFT_PERIOD_S: Final = 431.0
_STUMBLE: Final = 0.0005  # of steps
_STUMBLE_S: Final = (0.002, 0.015)
_MIXED: Final = 0.04  # more, for a step half of whose tokens decode
_PULLING: Final = 0.03  # more, for each hand-off that copies from or to this engine
_SLICE_S: Final = 0.004  # for which a starved main loop waits for a core, while one like it has it


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What is left to an engine of what its hardware can do; faults take from it. 1: all."""

    clock: float = 1.0  # of its slowest GPU's multiprocessors
    memory: float = 1.0  # that GPU's bandwidth
    core: float = 1.0  # the CPU time that its main loop gets


FULL: Final = Speed()


class Cost(Protocol):
    """What a step would take, were the world as the cost model has it."""

    def step(self, work: Work, speed: Speed) -> StepCost: ...


class RooflineCost:
    """A model on GPUs, as ``costs.roofline`` sees it. Ranks run in step: all wait for the slowest."""

    def __init__(self, roofline: Roofline) -> None:
        self._roofline = roofline
        self._slower: dict[Speed, Roofline] = {FULL: roofline}

    def step(self, work: Work, speed: Speed) -> StepCost:
        roofline = self._slower.get(speed) or self._at(speed)
        return roofline.step(Batch(work.chunks, work.decodes, work.decode_context))

    def _at(self, speed: Speed) -> Roofline:
        whole = self._roofline
        self._slower[speed] = Roofline(whole.shape, slowed(whole.gpu, speed), whole.tp, whole.efficiency)
        return self._slower[speed]


class Gpus(Protocol):
    """They see what they do."""

    def ran(self, cost: StepCost, seconds: float, late_s: float) -> None: ...


class Host(Protocol):
    """It sees what the main loop does."""

    def stepped(self, late_s: float) -> None: ...


class Physics:
    """Of one engine. Faults change ``speed``; the fabric counts ``pulls``; ``gpus`` see each step."""

    def __init__(
        self, cost: Cost, seed: str, *, noise: float = 1.0, gpus: Gpus | None = None, host: Host | None = None
    ) -> None:
        """``noise``: times what is usual; with 0 there is nothing but the cost model."""
        self._cost = cost
        self._random = random.Random(seed)
        self._noise = noise
        self._gpus = gpus
        self._host = host
        self._phase = self._random.uniform(0, 2 * math.pi)
        self.speed = FULL
        self.pulls = 0  # hand-offs that copy now

    def step_ns(self, work: Work, now_ns: int) -> int:
        cost = self._cost.step(work, self.speed)
        seconds = cost.total_s if not self._noise else self._lifelike(cost.total_s, work, now_ns)
        late_s = self._starved_s()
        if self._gpus is not None:
            self._gpus.ran(cost, seconds, late_s)
        if self._host is not None:
            self._host.stepped(late_s)
        return max(1, int((seconds + late_s) * 1e9))

    def _lifelike(self, seconds: float, work: Work, now_ns: int) -> float:
        chance, noise = self._random, self._noise
        drift = 1 + noise * _DRIFT * math.sin(2 * math.pi * now_ns * 1e-9 / _DRIFT_PERIOD_S + self._phase)
        tokens = work.prompt_tokens + work.decodes
        mixed = 4 * work.prompt_tokens * work.decodes / (tokens * tokens) if tokens else 0.0
        disturbed = (1 + noise * _MIXED * mixed) * (1 + noise * _PULLING * self.pulls)
        seconds *= math.exp(chance.gauss(0, noise * _NOISE)) * drift * disturbed
        if chance.random() < noise * _STUMBLE:
            seconds += chance.uniform(*_STUMBLE_S)
        return seconds

    def _starved_s(self) -> float:
        """For which the step's beginning is late, for want of a core."""
        if self.speed.core >= 1.0:
            return 0.0
        return self._random.expovariate(self.speed.core / (_SLICE_S * (1 - self.speed.core)))


def slowed(gpu: Gpu, speed: Speed) -> Gpu:
    """As if it were made so."""
    return msgspec.structs.replace(
        gpu,
        bf16=_slower_peak(gpu.bf16, speed.clock),
        fp8=_slower_peak(gpu.fp8, speed.clock) if gpu.fp8 else None,
        fp4=_slower_peak(gpu.fp4, speed.clock) if gpu.fp4 else None,
        memory_bytes_s=gpu.memory_bytes_s * speed.memory,
    )


def _slower_peak(peak: Peak, share: float) -> Peak:
    return msgspec.structs.replace(peak, flops_s=peak.flops_s * share)
