"""What to do about a finding: an order where one helps and harms nobody, else what to set or to mend. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from appliance.diagnosis.finding import load
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, Order, OrderKind, Role
from appliance.remedies.catalogue import advise

_LEAST_WEIGHT: Final = 0.05
_ROOM: Final = 0.6  # loaded so much or more, an engine has no time for another role


def less_work(engine: Engine, signs: Signs, times: float, until: str) -> Action:
    """Of an engine that takes so many times as long as it should."""
    like = _like(engine, signs)
    if not like:
        return _without(engine, until)
    weight = max(_LEAST_WEIGHT, round(_usual_weight(like) / times, 2))
    if engine.now.weight <= 1.1 * weight:
        return Action(sentence=f"{until[:1].upper()}{until[1:]}: {engine.name} has less of the work already.")
    return advise(
        f"Give {engine.name} less of the work, and {until}.",
        Order(kind=OrderKind.WEIGHT, engine=engine.name, weight=weight),
    )


def no_work(engine: Engine, signs: Signs, until: str) -> Action:
    """For an engine that others can do without."""
    if not _like(engine, signs):
        return _without(engine, until)
    return advise(f"Take new work off {engine.name}, and {until}.", Order(kind=OrderKind.DRAIN, engine=engine.name))


def even_out(engine: Engine, pool: Sequence[Engine], times: float) -> Action:
    """The weights of engines of one role, one of which has so many times the work of the others."""
    usual = _usual_weight([other for other in pool if other is not engine])
    if engine.now.weight > usual:
        return advise(
            "Give engines of one role equal weights.",
            Order(kind=OrderKind.WEIGHT, engine=engine.name, weight=usual),
        )
    weight = max(_LEAST_WEIGHT, round(engine.now.weight / times, 2))
    return advise(
        f"Give {engine.name} a lower weight until the work is even.",
        Order(kind=OrderKind.WEIGHT, engine=engine.name, weight=weight),
    )


def re_role(signs: Signs, stage: str) -> Action | None:
    """Another engine for a stage that has too few: of those of the other role the one with the least to do, if it can be spared."""
    others = signs.decode if stage == "prefill" else signs.prefill
    spare = [engine for engine in others if not (engine.prefills and engine.decodes)]
    other_stage = "decode" if stage == "prefill" else "prefill"
    if len(spare) < 2:
        return None
    least = min(spare, key=lambda engine: load(engine, other_stage))
    after = sum(load(engine, other_stage) for engine in spare) / (len(spare) - 1)
    if after >= _ROOM or least.kv * len(spare) / (len(spare) - 1) >= _ROOM:
        return None
    role = Role.PREFILL if stage == "prefill" else Role.DECODE
    return advise(
        f"Let {least.name} {role.value} instead of {other_stage}: it has little to do.",
        Order(kind=OrderKind.ROLE, engine=least.name, role=role),
    )


def _without(engine: Engine, until: str) -> Action:
    return Action(sentence=f"{until[:1].upper()}{until[1:]}: no other engine can take the work of {engine.name}.")


def _usual_weight(engines: Sequence[Engine]) -> float:
    return statistics.median(engine.now.weight for engine in engines)


def _like(engine: Engine, signs: Signs) -> list[Engine]:
    """Others that can take all of its work."""
    return [
        other
        for other in signs.engines
        if other is not engine
        and other.serves
        and (other.prefills or not engine.prefills)
        and (other.decodes or not engine.decodes)
    ]
