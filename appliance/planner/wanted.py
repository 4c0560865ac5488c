"""What is to be placed on GPUs, and what comes of it. Records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from appliance.planner.node import CopyTime, Settings, StepTime, Targets
from appliance.planner.room import Footprint
from appliance.records import Demand, Plan, Role

SETTINGS: Final[Mapping[Role, Settings]] = {
    Role.PREFILL: Settings(token_budget=8192, places=256),
    Role.DECODE: Settings(token_budget=2048, places=256),
    Role.BOTH: Settings(token_budget=8192, places=256),
}
"""Of vLLM, by role: a prefill engine's steps may be long, as nobody on it waits for the next token. Budgets are smaller where only that
leaves room for the longest request (``room.roomiest``)."""


class Times(msgspec.Struct, frozen=True):
    """How long steps and hand-offs take on engines of one size."""

    step: StepTime
    copy: CopyTime
    far: CopyTime | None = None  # between GPUs that NVLink does not connect; the same, where not told


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be placed."""

    model: Footprint
    context: int  # the longest request, in tokens
    demand: Demand
    targets: Targets
    times: Callable[[int], Times]  # by tensor-parallel size
    settings: Mapping[Role, Settings] = msgspec.field(default_factory=lambda: SETTINGS)
    firm: frozenset[Role] = frozenset()  # whose token budget is not to be made smaller
    share: float | None = None  # of each GPU's memory, that engines are told to take; None: what is good

    @property
    def length(self) -> float:
        """Tokens of a request that decodes, on average."""
        return _mean(self.demand.prompt_tokens) + self.answer / 2

    @property
    def answer(self) -> float:
        return _mean(self.demand.output_tokens)


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """One engine and its GPUs."""

    name: str
    role: Role
    gpus: tuple[str, ...]  # UUIDs
    memory_fraction: float  # of each GPU's memory, as vLLM's --gpu-memory-utilization has it
    settings: Settings
    kv_bytes: int | None = None  # on each GPU; None: whatever vLLM finds to be left
    sees: tuple[str, ...] = ()  # other engines' GPUs, whose memory comes to it by way of the host's


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One layout on the machine. ``reason``: why it is infeasible; ``remarks``: what its owner should know."""

    layout: str
    feasible: bool
    reason: str
    seats: tuple[Seat, ...] = ()
    tensor_parallel: int  # of the largest engines
    kv_tokens: int | None = (
        None  # of an engine that decodes, in requests of the longest kind; of several sizes, of the least
    )
    requests: float | None = None  # that it keeps at once, of the demand's mean length
    plan: Plan | None = None  # predicted
    remarks: tuple[str, ...] = ()
    fits: int = 0  # tokens of the longest request that there would be room for, where only that stands against it
    staged: bool = False  # KV goes through the host's memory between some of its engines

    @property
    def shares(self) -> bool:
        """Two engines are on one GPU."""
        return any(seat.kv_bytes is not None for seat in self.seats)

    @property
    def most_rate_s(self) -> float:
        """Requests per second within the targets; 0 where nothing is predicted."""
        return self.plan.most_rate_s if self.plan else 0.0

    @property
    def good(self) -> float:
        """Share of the demand's requests that meets the targets; 0 where nothing is predicted."""
        return self.plan.predicted.good if self.plan and self.plan.predicted else 0.0


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. ``best`` None: none is feasible."""

    placements: tuple[Placement, ...]
    best: str | None
    why: str
    unused: tuple[str, ...] = ()  # GPUs that no layout uses, and why not


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
