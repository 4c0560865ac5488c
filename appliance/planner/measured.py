"""A running node as the planner sees it: what is asked of it lately, and what was learnt of its engines. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from appliance.planner import split
from appliance.planner.node import Chunk, CopyTime, Engines, Estimate, Settings, StepTime, Targets
from appliance.records import Demand, EngineSnapshot, NodeSnapshot, Plan, Plans, Role

_SIZE: Final = re.compile(r"@tp(\d+)$")
_UNEQUAL: Final = "engines differ in what they are: only layouts of equal ones are compared"


class LearntSteps(Protocol):
    """``costs.fitted.StepModel``"""

    def estimate(self, chunks: Sequence[Chunk], sequences: float, context: float) -> tuple[float, float] | None: ...


class LearntCopies(Protocol):
    """``costs.fitted.CopyModel``"""

    def estimate(self, size_bytes: float) -> tuple[float, float] | None: ...


def measured(window: Sequence[NodeSnapshot], steps: LearntSteps, copies: LearntCopies, share: float) -> Plans:
    """All layouts for what is asked now, of snapshots of the last minute or so, the newest last. ``share``: ``[slo]``'s."""
    now = window[-1]
    demand, engines = demand_of(window), engines_of(now, steps, copies)
    if demand is None or isinstance(engines, str):
        reason = (
            engines if isinstance(engines, str) else "too little is asked of the node to say what would serve it best"
        )
        return Plans(time=now.time, now=now.topology, reason=reason)
    targets = Targets(ttft_s=now.slo_ttft_s, itl_s=now.slo_itl_s, share=share)
    found = split.plans(demand, engines, targets)
    best = split.choose(found)
    return Plans(time=now.time, now=now.topology, demand=demand, best=best.layout if best else None, layouts=found)


def present(plans: Plans) -> Plan | None:
    """The plan of the layout that there is."""
    return next((plan for plan in plans.layouts if plan.layout == plans.now), None)


def demand_of(window: Sequence[NodeSnapshot]) -> Demand | None:
    """What is asked, with the share of prompts that is found in caches; None where too little is."""
    demand = window[-1].demand
    if demand is None:
        return None
    computed = found = 0.0
    for snapshot in window:
        for engine in snapshot.engines:
            if engine.role.prefills and engine.prefix_hit_rate is not None and engine.prompt_tokens_s:
                hits = min(0.99, engine.prefix_hit_rate)
                computed += engine.prompt_tokens_s
                found += engine.prompt_tokens_s * hits / (1 - hits)
    return msgspec.structs.replace(demand, hit_share=found / (found + computed) if found else 0.0)


def engines_of(node: NodeSnapshot, steps: LearntSteps, copies: LearntCopies) -> Engines | str:
    """The node's engines, or why nothing can be said of them."""
    kv = [
        engine.kv_blocks_total * engine.block_tokens
        for engine in node.engines
        if engine.kv_blocks_total and engine.block_tokens
    ]
    size = _SIZE.search(node.topology)
    if ":" in node.topology:
        return _UNEQUAL
    if not kv or len(kv) < len(node.engines):
        return "not all engines are there, and what they have room for is known of those only that are"
    return Engines(
        count=len(node.engines),
        step=_step(steps),
        copy=_copy(node, copies),
        kv_tokens=min(kv),
        settings={role: _settings(node.engines, role) for role in Role},
        tensor_parallel=int(size[1]) if size else 1,
    )


def _settings(engines: Sequence[EngineSnapshot], role: Role) -> Settings:
    """As engines of that role have them now; of a role that none has: the least, as any engine may get it."""
    having = [engine for engine in engines if engine.role is role] or engines
    return Settings(
        token_budget=min(engine.token_budget or 2048 for engine in having),
        places=min(engine.max_running or 256 for engine in having),
    )


def _step(steps: LearntSteps) -> StepTime:
    def step(chunks: Sequence[Chunk], sequences: float, context: float) -> Estimate | None:
        found = steps.estimate(chunks, sequences, context)
        return None if found is None else Estimate(*found)

    return step


def _copy(node: NodeSnapshot, copies: LearntCopies) -> CopyTime | None:
    """By the bytes that a prompt has had so far; None where nothing was handed over yet."""
    handoffs, demand = node.handoffs, node.demand
    if demand is None or not handoffs.count or not handoffs.bytes:
        return None
    prompt = sum(demand.prompt_tokens) / len(demand.prompt_tokens)
    token_bytes = handoffs.bytes / handoffs.count / prompt

    def copy(tokens: float) -> Estimate | None:
        found = copies.estimate(tokens * token_bytes)
        return None if found is None else Estimate(*found)

    return copy
