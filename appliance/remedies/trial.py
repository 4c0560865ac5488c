"""What an order brings: how requests fared before it was given, and how they fare once it has settled. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.records import Condition, EngineState, NodeSnapshot, Remedy

BEFORE_S: Final = 10.0  # looked at, until the order is given
AFTER_S: Final = 10.0  # looked at, once it has settled
SETTLES_S: Final = 20.0  # from the order, or from the return of what it starts again, until that begins
GIVEN_UP_S: Final = 900.0  # for what it starts again to be back
_DIFFERS: Final = 0.02  # of requests or tokens: less is no difference
_QUEUE_DIFFERS: Final = 2.0  # requests


def condition(snapshots: Sequence[NodeSnapshot]) -> Condition | None:
    """Of snapshots, oldest first; None of fewer than two."""
    if len(snapshots) < 2:
        return None
    lately = [one.lately for one in snapshots if one.lately is not None and one.lately.first_tokens]
    tokens = [(engine.itl_late, engine.output_tokens_s or 0.0) for one in snapshots for engine in one.engines]
    timed = [(late, rate) for late, rate in tokens if late is not None and rate]
    total = sum(rate for _, rate in timed)
    return Condition(
        seconds=snapshots[-1].time - snapshots[0].time,
        ttft_late=_mean([one.ttft_late for one in lately if one.ttft_late is not None]),
        itl_late=sum(late * rate for late, rate in timed) / total if total else None,
        ttft_s=_mean([one.ttft_s for one in lately if one.ttft_s is not None]),
        output_tokens_s=sum(rate for _, rate in tokens) / len(snapshots),
        queue=_mean([float(one.queue.depth) for one in snapshots]),
        failed=max(0, snapshots[-1].requests.failed - snapshots[0].requests.failed),
    )


def settled_from(remedy: Remedy, snapshots: Sequence[NodeSnapshot]) -> float | None:
    """When what the order does had been done for long enough, in Unix seconds; None if it has not been yet."""
    away = [one.time for one in snapshots if one.time >= remedy.time and not _is_there(remedy, one)]
    begun = max([remedy.time, *away])
    return begun + SETTLES_S if snapshots and _is_there(remedy, snapshots[-1]) else None


def _is_there(remedy: Remedy, snapshot: NodeSnapshot) -> bool:
    """Whether what it starts again is back."""
    states = {engine.name: engine.state for engine in snapshot.engines}
    return all(states.get(name) is EngineState.READY for name in remedy.restarts)


def brought(before: Condition | None, after: Condition | None, slo_ttft_s: float, slo_itl_s: float) -> str:
    """In words: ``first tokens later than 2 s: 43 % → 2 %``; what has not changed is left out."""
    if before is None or after is None:
        return "nothing to compare: nobody asked for anything"
    said = [
        _share(f"first tokens later than {slo_ttft_s:g} s", before.ttft_late, after.ttft_late),
        _share(f"tokens later than {slo_itl_s * 1e3:g} ms", before.itl_late, after.itl_late),
        _queue(before.queue, after.queue),
    ]
    found = [one for one in said if one]
    if after.failed:
        found.append(f"{after.failed} requests failed")
    return "; ".join(found) or "no difference that is larger than what comes and goes by itself"


def _share(what: str, before: float | None, after: float | None) -> str | None:
    if before is None or after is None or abs(after - before) < _DIFFERS:
        return None
    return f"{what}: {before:.0%} → {after:.0%}"


def _queue(before: float | None, after: float | None) -> str | None:
    if before is None or after is None or abs(after - before) < _QUEUE_DIFFERS:
        return None
    return f"requests in the queue: {before:.0f} → {after:.0f}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
