"""Whether what was said is still there, though nobody is hurt for a moment. Pure.

Less than what it takes to be said: a slow engine is slow also while nothing waits for it.
"""

from __future__ import annotations

from typing import Final

from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Verdict

_SLOW: Final = 1.08  # as in ``slow``
_SLOW_LINK: Final = 1.5
_NEARLY_FULL: Final = 0.9  # of KV
_BUSY: Final = 0.9  # of the time
_UNEVEN: Final = 1.5


def lasts(verdict: Verdict, signs: Signs) -> bool:
    """Of a bottleneck, by what can be measured of its engines."""
    engines = [engine for engine in signs.engines if engine.name in verdict.engines]
    if verdict.cause == "handoff_link_slow":
        return any((link.slowdown or 0.0) > _SLOW_LINK for link in signs.now.links)
    return any(_is_so(verdict.cause or "", engine, signs) for engine in engines)


def _is_so(cause: str, engine: Engine, signs: Signs) -> bool:
    match cause:
        case "engine_hung" | "engine_crashed" | "engine_starting":
            return not engine.serves
        case "prefill_straggler_gpu" | "prefill_straggler_cpu" | "decode_straggler_gpu" | "decode_straggler_cpu":
            return engine.slowdown > _SLOW
        case "frontend_bound":
            return engine.api_full
        case "decode_kv_full" | "prefill_kv_pinned":
            return engine.kv >= _NEARLY_FULL
        case "handoff_decode_admission":
            return engine.full
        case "routing_skew":
            return any(engine.now.weight >= _UNEVEN * other.now.weight for other in signs.engines)
        case "prefill_budget_small" | "prefill_saturated":
            return engine.busy >= _BUSY and not engine.decodes  # who decodes as well is never idle
        case _:
            return False
