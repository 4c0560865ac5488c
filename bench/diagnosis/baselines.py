"""What is done elsewhere to find the engine that holds a node back, to be scored beside the diagnoser. Pure, of one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from appliance.records import EngineSnapshot, NodeSnapshot

Rule = Callable[[NodeSnapshot], "str | None"]
_WVA_KV: Final = 0.8
_WVA_QUEUE: Final = 5


def longest_queue(node: NodeSnapshot) -> str | None:
    """The engine for which most requests wait."""
    return _most(node.engines, lambda engine: float((engine.waiting or 0) + (engine.fetching or 0)))


def fullest_kv(node: NodeSnapshot) -> str | None:
    return _most(node.engines, lambda engine: engine.kv_usage or 0.0)


def slowest(node: NodeSnapshot) -> str | None:
    """The engine whose steps take longest."""
    return _most(node.engines, lambda engine: engine.step_ms or 0.0)


def busiest(node: NodeSnapshot) -> str | None:
    return _most(node.engines, lambda engine: engine.busy or 0.0)


def wva(node: NodeSnapshot) -> str | None:
    """llm-d's workload variant autoscaler: saturated from 80 % of KV or five waiting requests on."""

    def over(engine: EngineSnapshot) -> float:
        return max((engine.kv_usage or 0.0) / _WVA_KV, (engine.waiting or 0) / _WVA_QUEUE)

    return _most([engine for engine in node.engines if over(engine) >= 1], over)


def dynamo(node: NodeSnapshot) -> str | None:
    """Dynamo's rule for loads: as many prompt tokens queued as fit into a batch, or more."""

    def over(engine: EngineSnapshot) -> float:
        return engine.outstanding_prompt_tokens / (engine.token_budget or 1)

    return _most([engine for engine in node.engines if over(engine) >= 1], over)


def _most(engines: Sequence[EngineSnapshot], figure: Callable[[EngineSnapshot], float]) -> str | None:
    found = max(engines, key=figure, default=None)
    return found.name if found is not None and figure(found) > 0 else None


RULES: Final[dict[str, Rule]] = {
    "longest queue": longest_queue,
    "fullest KV": fullest_kv,
    "longest steps": slowest,
    "busiest": busiest,
    "llm-d WVA's thresholds": wva,
    "Dynamo's load rule": dynamo,
}
