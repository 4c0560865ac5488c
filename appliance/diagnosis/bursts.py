"""Whether what hurts is a burst of seconds that is over, or costs no more than targets allow. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

from appliance.diagnosis.finding import Finding
from appliance.diagnosis.signs import ALLOWED, AT, Signs
from appliance.records import LATELY_S, NodeSnapshot, Role

_OF_LOAD: Final = (
    "prefill_saturated",
    "decode_saturated",
    "pool_imbalance",
    "routing_skew",
    "disaggregation_not_worth_it",
)
"""With these nothing is wrong with any engine: there is much to do, and traffic comes and goes."""
_LONG_S: Final = 10.0
_PLAINLY: Final = 1.5  # times the share that may miss the targets, over that time
_ANSWER_S: Final = 20.0  # over which paces are looked at, about as long as many answers take
_MORE: Final = 1.2  # times the target, where they also prefill: their pace comes and goes, and evens out over an answer
_Part: TypeAlias = tuple[float, float]  # so many, of so many


def is_slight(
    window: Sequence[NodeSnapshot], read: Signs, found: Sequence[Finding], share: float, over_s: float = -math.inf
) -> bool:
    """Nothing is known but that there is much to do, and who comes now is served in time, or few of those of the last ten seconds were not.

    Args:
        window: snapshots, oldest first.
        read: what they tell.
        share: of requests that must meet the targets.
        over_s: ``uptime_s`` when the last verdict ended: who was late before then was told of, and is not told of twice.
    """
    allowed = max(ALLOWED, 1 - share)
    if read.failing > allowed or (found and found[0].cause not in _OF_LOAD):
        return False
    lately, for_long = _missed_lately(window[-1]), _missed_for_long(window, over_s)
    over = _is_empty(window[-1]) if lately is None else lately <= allowed
    return over or (for_long is not None and for_long <= _PLAINLY * allowed)


def _is_empty(now: NodeSnapshot) -> bool:
    return not now.queue.depth and not any(engine.running or engine.waiting for engine in now.engines)


def _missed_lately(now: NodeSnapshot) -> float | None:
    """Share of the last seconds' first tokens, of tokens, or of answers that had come just before; the largest."""
    lately = now.lately
    brief = (lately.brief * (lately.brief_missed or 0.0), float(lately.brief)) if lately else (0.0, 0.0)
    return _largest(_late(now, [now]), _slow(now, [now], 1.0), brief)


def _missed_for_long(window: Sequence[NodeSnapshot], over_s: float) -> float | None:
    """The same of the last ten seconds, of the pace of twenty, and of all answers. Late are those after ``over_s``."""
    now, spells = window[-1], _apart(window)
    told = [(one, one.lately) for one in spells if one.lately is not None and one.lately.good is not None]
    missed = sum(lately.ended * (1 - (lately.good or 0.0)) for one, lately in told if _is_after(one, over_s))
    answers = missed, float(sum(lately.ended for _, lately in told))
    paces = [one for one in window if one.uptime_s >= max(over_s, now.uptime_s - _ANSWER_S)]
    return _largest(_late(now, spells, over_s), _slow(now, paces, _MORE), answers)


def _late(now: NodeSnapshot, spells: Sequence[NodeSnapshot], over_s: float = -math.inf) -> _Part:
    """Of first tokens: those that still are to come and are late already count, too."""
    told = [(one, one.lately) for one in spells if one.lately is not None]
    overdue = float(now.overdue or 0)
    late = sum(lately.first_tokens * (lately.ttft_late or 0.0) for one, lately in told if _is_after(one, over_s))
    return overdue + late, overdue + sum(lately.first_tokens for _, lately in told)


def _is_after(spell: NodeSnapshot, over_s: float) -> bool:
    return spell.uptime_s - LATELY_S >= over_s


def _slow(now: NodeSnapshot, snapshots: Sequence[NodeSnapshot], more: float) -> _Part:
    """Of tokens: those of engines whose mean pace is slower than the target, or than ``more`` times it where they also prefill."""
    paces: dict[str, list[tuple[float, float]]] = {}  # tokens, and how far apart
    limits: dict[str, float] = {}
    for engine in (engine for one in snapshots for engine in one.engines):
        if engine.output_tokens_s and engine.itl_s is not None:
            paces.setdefault(engine.name, []).append((engine.output_tokens_s, engine.itl_s))
            limits[engine.name] = (more if engine.role is Role.BOTH else AT) * now.slo_itl_s
    tokens = {name: sum(count for count, _ in told) for name, told in paces.items()}
    slow = [name for name, told in paces.items() if sum(count * s for count, s in told) > limits[name] * tokens[name]]
    return sum(tokens[name] for name in slow), sum(tokens.values())


def _largest(*parts: _Part) -> float | None:
    return max((part / whole for part, whole in parts if whole), default=None)


def _apart(window: Sequence[NodeSnapshot]) -> list[NodeSnapshot]:
    """Those of the last ten seconds or so between which requests are not told of twice; the latest first."""
    found: list[NodeSnapshot] = []
    for one in reversed(window):
        if window[-1].uptime_s - one.uptime_s > _LONG_S - LATELY_S:
            break
        if not found or found[-1].uptime_s - one.uptime_s >= LATELY_S:
            found.append(one)
    return found
