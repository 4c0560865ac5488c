"""A simulated node's engine as its node sees it: what it is given, and what lasts from one life to the next."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.channel import Fault
from appliance.costs.gpus import gpu
from appliance.records import EngineState, EngineView
from appliance.simulator.clock import VirtualClock
from appliance.simulator.engine import Engine
from appliance.simulator.frontend import Frontend
from appliance.simulator.gpus import VirtualGpus, uuid
from appliance.simulator.host import VirtualHost
from appliance.simulator.physics import Physics
from appliance.simulator.plan import EnginePlan


class EnginePlace:
    """One engine of the node, through all of its lives; and what lives are given."""

    def __init__(self, plan: EnginePlan, clock: VirtualClock) -> None:
        self.plan = plan
        self._clock = clock
        self.epoch = 1
        self.role = plan.role  # in routing, and its weight there
        self.weight = 1.0
        self.faults: dict[tuple[str, str | None], Fault] = {}  # that last
        self.gpus = VirtualGpus(
            gpu(plan.gpu), plan.first_gpu, plan.tensor_parallel, plan.memory_bytes, plan.name, clock
        )
        self.frontend = Frontend(clock, quiet=not plan.noise)
        self.host = VirtualHost(clock, self.frontend)
        self.physics = Physics(plan.cost(), plan.chance, noise=plan.noise, gpus=self.gpus, host=self.host)
        self.engine: Engine
        self.view: EngineView

    def view_of_life(self, epoch: int, others: Iterable[str]) -> EngineView:
        """As it begins, ready. ``others``: all engines of the node."""
        plan, settings = self.plan, self.plan.settings
        return EngineView(
            name=plan.name,
            role=self.role,
            weight=self.weight,
            state=EngineState.READY,
            epoch=epoch,
            socket="",
            gpus=tuple(map(uuid, plan.indexes)),
            since_ns=self._clock.now_ns,
            restarts=epoch - 1,
            peers=tuple(other for other in others if other != plan.name),
            max_batched_tokens=settings.max_batched_tokens,
            max_running=settings.max_running,
            max_model_len=settings.max_model_len,
            block_tokens=settings.block_tokens,
            kv_blocks=settings.kv_blocks,
        )
