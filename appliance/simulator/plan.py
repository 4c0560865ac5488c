"""One engine to be simulated, described wholly: what a process needs to be it."""

from __future__ import annotations

import msgspec

from appliance.costs.gpus import gpu
from appliance.costs.roofline import DEFAULT, Efficiency, Roofline
from appliance.costs.shape import ModelShape
from appliance.records import Role
from appliance.simulator.leg import Settings
from appliance.simulator.physics import RooflineCost, Speed, slowed


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True):
    """``first_gpu``: the index of the first of its GPUs, which lie side by side. ``link_bytes_s``: to every other engine."""

    name: str
    role: Role
    settings: Settings
    shape: ModelShape
    gpu: str  # costs.gpus' names
    tensor_parallel: int = 1
    memory_fraction: float = 0.92  # of each GPU's memory
    first_gpu: int = 0
    link_bytes_s: float
    seed: int = 1
    sharers: int = 1  # engines on each of its GPUs, itself included: each has its part of memory and speed
    efficiency: Efficiency = DEFAULT
    noise: float = (
        1.0  # and drift and interference: times what is usual; with 0, steps take exactly what the cost model says
    )

    def cost(self) -> RooflineCost:
        part = slowed(gpu(self.gpu), Speed(clock=1 / self.sharers, memory=1 / self.sharers))
        return RooflineCost(Roofline(self.shape, part, self.tensor_parallel, self.efficiency))

    @property
    def indexes(self) -> range:
        """Of its GPUs."""
        return range(self.first_gpu, self.first_gpu + self.tensor_parallel)

    @property
    def kind(self) -> str:
        """Engines of one kind take as long for the same batch."""
        shared = f", shared by {self.sharers}" if self.sharers > 1 else ""
        return f"{self.shape.name} on {self.tensor_parallel} {self.gpu}{shared}"

    @property
    def chance(self) -> str:
        """What its randomness begins with."""
        return f"{self.seed}/{self.name}"

    @property
    def memory_bytes(self) -> int:
        """Used on each GPU: an engine takes for KV whatever weights and steps leave of its share."""
        return int(self.memory_fraction * gpu(self.gpu).usable_bytes)
