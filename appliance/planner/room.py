"""How much of its GPUs' memory an engine has for KV, and what that holds. Pure.

One way of reckoning for all who ask: layouts that are planned, those that somebody asks for, and simulated engines.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from appliance.planner.node import Settings

_LEAST_BUDGET: Final = (
    2048  # tokens of a step, that a budget is not made smaller than: well beyond the knee (docs/costs.md)
)
_STEPS_IN_FLIGHT: Final = 2  # vLLM schedules a step while the last one runs, and gives blocks back only after it


class Footprint(Protocol):
    """What a model takes on each of ``tp`` GPUs. All may raise ``ConfigError``: it can't be shared out to so many."""

    def weight_bytes(self, tp: int = 1) -> float: ...

    def kv_bytes(self, tokens: int, tp: int = 1, in_flight: int = 0) -> float:
        """Of one request; ``in_flight``: tokens of steps under way, which layers that slide keep besides their window."""
        ...

    def working_bytes(self, tp: int, token_budget: int, places: int) -> float:
        """All that is neither weights nor KV."""
        ...


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """For KV, on each GPU of an engine."""

    settings: Settings  # with which it is there
    kv_bytes: float
    tokens: int  # in requests of the longest kind
    requests: float  # at once, of the usual length


class Short(msgspec.Struct, frozen=True, kw_only=True):
    """There is none, or too little for one request. ``fits``: tokens of the longest one that there would be room for; 0: none."""

    settings: Settings
    weight_bytes: float
    working_bytes: float
    kv_bytes: float  # left, below 0 where even weights and steps take more than there is
    longest_bytes: float
    fits: int


def room(
    model: Footprint, there_bytes: float, size: int, settings: Settings, context: int, length: float
) -> Room | Short:
    """Of an engine that has so many bytes on each of its ``size`` GPUs.

    Args:
        context: the longest request, in tokens: vLLM does not start unless there is room for one.
        length: tokens of a usual request.
    """
    weights, working = model.weight_bytes(size), model.working_bytes(size, settings.token_budget, settings.places)
    kv_bytes, longest = there_bytes - weights - working, model.kv_bytes(context, size, _in_flight(settings))
    if longest > kv_bytes:
        return Short(
            settings=settings,
            weight_bytes=weights,
            working_bytes=working,
            kv_bytes=kv_bytes,
            longest_bytes=longest,
            fits=_fitting(model, kv_bytes, size, settings, context),
        )
    return Room(
        settings=settings,
        kv_bytes=kv_bytes,
        tokens=int(kv_bytes / longest * context),
        requests=kv_bytes / model.kv_bytes(max(1, round(length)), size),
    )


def roomiest(
    model: Footprint, there_bytes: float, size: int, settings: Settings, context: int, length: float
) -> Room | Short:
    """With these settings, or with a smaller budget where only that leaves room for the longest request."""
    found = room(model, there_bytes, size, settings, context, length)
    if isinstance(found, Room) or settings.token_budget // 2 < _LEAST_BUDGET:
        return found
    smaller = msgspec.structs.replace(settings, token_budget=settings.token_budget // 2)
    return roomiest(model, there_bytes, size, smaller, context, length)


def _in_flight(settings: Settings) -> int:
    return _STEPS_IN_FLIGHT * settings.token_budget


def _fitting(model: Footprint, kv_bytes: float, size: int, settings: Settings, context: int) -> int:
    """Below ``context``."""
    low, high = 0, context
    while high - low > 1:
        middle = (low + high) // 2
        fits = model.kv_bytes(middle, size, _in_flight(settings)) <= kv_bytes
        low, high = (middle, high) if fits else (low, middle)
    return low
