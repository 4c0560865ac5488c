"""Causes, as operators say them."""

from __future__ import annotations

from typing import Final

from appliance.records import Incident, Said, Verdict

_CAUSES: Final = {
    "prefill_straggler_gpu": "slow GPU",
    "decode_straggler_gpu": "slow GPU",
    "prefill_straggler_cpu": "no CPU time",
    "decode_straggler_cpu": "no CPU time",
    "frontend_bound": "busy API process",
    "handoff_link_slow": "slow link",
    "decode_kv_full": "KV cache full",
    "handoff_decode_admission": "no free places",
    "routing_skew": "too much work",
    "cache_miss_storm": "prefix cache misses",
    "prefill_budget_small": "steps too small",
    "prefill_kv_pinned": "KV held for others",
    "long_prompt_blocking": "long prompts in the way",
    "disaggregation_not_worth_it": "splitting costs more than it brings",
    "prefill_saturated": "too many prompts",
    "decode_saturated": "too much to decode",
    "pool_imbalance": "roles out of balance",
    "engine_hung": "engine hangs",
    "engine_crashed": "engine has ended",
    "engine_starting": "engine still starting",
}

_OF_AN_ENGINE: Final = {
    "engine_hung": "{} hangs",
    "engine_crashed": "{} has ended",
    "engine_starting": "{} is still starting",
}
"""What is the matter with it is that it does not work."""


def words(verdict: Verdict | Incident | Said) -> str:
    """What holds the node back, with the engine, as operators say it."""
    if verdict.cause is None:
        return "no cause found"
    if verdict.link:
        return f"{plain(verdict.cause)} from {' to '.join(verdict.link)}"
    if verdict.cause in _OF_AN_ENGINE and verdict.engine:
        return _OF_AN_ENGINE[verdict.cause].format(verdict.engine)
    if verdict.cause == "frontend_bound" and verdict.engine is None:
        return "busy supervisor"
    return plain(verdict.cause) + (f" on {verdict.engine}" if verdict.engine else "")


def plain(cause: str) -> str:
    """Without the engine."""
    return _CAUSES.get(cause, cause.replace("_", " "))
