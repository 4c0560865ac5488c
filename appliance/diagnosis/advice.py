"""What to do about a finding: an order where one helps and harms nobody, else what to set or to mend. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from appliance.diagnosis.finding import load, names
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, Order, OrderKind, Role
from appliance.remedies.catalogue import advise

_LEAST_WEIGHT: Final = 0.05
_NOTHING: Final = 0.15  # of its work: an engine that can do no more can as well do nothing
_SOME: Final = 0.1  # of its work: less is not worth an order
_MOST: Final = 2.0  # times what it decodes that an engine is trusted with
_ROOM: Final = 0.75  # of its capacity, that an engine should be loaded at most
_KV: Final = 0.8  # of KV, beyond which requests wait for room or are preempted before long
_MORE: Final = 1.3  # times what its weight is for: an engine that has so much has it from before
_SETTLED_S: Final = 40.0  # until then a node has only begun: caches are cold, and nothing is usual


def less_work(engine: Engine, signs: Signs, stage: str, times: float, until: str) -> Action:
    """Of an engine that takes so many times as long as it should, which is late with a stage: as much as others have room for, and of
    prompts by its speed.

    Where others have no room for all of that, an engine of the other role that can be spared helps more.
    """
    like = _like(engine, signs) if engine.takes else []
    in_time = engine.room_now if stage == "decode" else None
    bears = 1 / times if in_time is None else min(1.0, in_time)
    spare = _spare(engine, like)
    if engine.takes and spare < 1 - bears and (more := re_role(signs, stage)) is not None:
        return replace(more, sentence=f"{_upper(until)}, and {more.sentence[:1].lower()}{more.sentence[1:]}")
    if not like:
        return _without(engine, until)
    if any(one.decodes for one in (engine, *like)):  # prompts alone are done soonest by speed, however many there are
        if spare < _SOME:
            return _no_room(engine, f"{until}, or send fewer requests")
        bears = max(bears, 1 - spare)
    if bears < _NOTHING and spare >= 1:
        return no_work(engine, signs, until)
    if engine.now.weight < _usual_weight(like) and _has_more(engine, like):
        return Action(
            sentence=f"{_upper(until)}: {engine.name} gets less of the work already, and works off what it has."
        )
    weight = max(_LEAST_WEIGHT, round(_weight(engine, like, bears, in_time is not None), 2))
    if engine.now.weight <= 1.1 * weight:
        return Action(sentence=f"{_upper(until)}: {engine.name} has as little of the work as it can do in time.")
    return advise(
        f"Give {engine.name} less of the work, and {until}.",
        Order(kind=OrderKind.WEIGHT, engine=engine.name, weight=weight),
    )


def _weight(engine: Engine, like: Sequence[Engine], bears: float, of_what_it_has: bool) -> float:
    """Beside that of others. What it can do in time is told of the work that it has, of which others get the rest; else it is its speed."""
    usual = _usual_weight(like)
    if not of_what_it_has:
        return usual * bears
    has = engine.now.weight / usual
    return usual * has * bears / (1 + has * (1 - bears) / len(like))


def _has_more(engine: Engine, like: Sequence[Engine]) -> bool:
    """Than its weight is for, by how much others have: new work goes to these, and what it has begun it keeps."""
    others = statistics.median(_inside(one) / one.now.weight for one in like)
    return engine.decodes and _inside(engine) / engine.now.weight > _MORE * others


def no_work(engine: Engine, signs: Signs, until: str) -> Action:
    """For an engine that others can do without."""
    like = _like(engine, signs)
    if not like or not engine.takes:
        return _without(engine, until)
    if _spare(engine, like) < 1:
        return _no_room(engine, until)
    return advise(f"Take new work off {engine.name}, and {until}.", Order(kind=OrderKind.DRAIN, engine=engine.name))


def _spare(engine: Engine, others: Sequence[Engine]) -> float:
    """How much of an engine's work others could take on, all together."""
    return sum(max(0.0, _takes_on(one, engine)) for one in others)


def _takes_on(other: Engine, engine: Engine) -> float:
    """How many times an engine's work another one could do besides its own. Of decoding that is predicted; what is not known may do."""
    if not other.decodes:
        used, work = max(load(other, "prefill"), other.kv), load(engine, "prefill") / max(1.0, engine.slowdown)
        return (_ROOM - used) / work if work > 0 else _MOST
    if other.prefills and other.outstanding >= (other.now.token_budget or 1):
        return 0.0  # more prompts wait there than fit into a step
    in_kv = _KV / max(other.kv, other.kv_most) if other.kv_most > 0 else _MOST
    if other.room is None:
        return min(_MOST, in_kv) - 1
    in_time = min(other.room, other.room_now or 0.0)
    return (min(_MOST, in_time, in_kv) - 1) * _inside(other) / max(1.0, _inside(engine))


def _inside(engine: Engine) -> float:
    """Requests that it works on, or that wait there."""
    return engine.running + engine.waiting + engine.fetching


def off_link(ends: Sequence[Engine], signs: Signs) -> Action:
    """No hand-offs over a link, by doing without one of its ends."""
    until = "see to the link"
    if resting := [end for end in ends if not end.takes]:
        return _without(resting[0], until)
    found = [no_work(end, signs, until) for end in ends]
    return next(
        (one for one in found if one.order is not None), found[0] if found else Action(sentence="See to the link.")
    )


def resume(signs: Signs, stage: str) -> Action | None:
    """An engine that rests, and is missed. One that waits to be started again comes back by itself, and an ill GPU helps nobody."""
    for engine in signs.resting:
        if engine.now.restarting or engine.gpu_trouble:
            continue
        if engine.prefills if stage == "prefill" else engine.decodes:
            return advise(
                f"Let {engine.name} take work again: it was told not to, and is missed.",
                Order(kind=OrderKind.RESUME, engine=engine.name),
            )
    return None


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


def spread(full: Engine, signs: Signs) -> Action | None:
    """Where the KV of one decode engine is full because it holds fewer requests than others, who have room for the rest."""
    others = [engine for engine in signs.decode if engine is not full]
    if not others:
        return None
    if _has_more(full, others) and max(engine.kv_most for engine in others) < _KV:
        return Action(sentence=f"Wait: what comes goes to {names(others)}, and {full.name} works off what it has.")
    usual, have = _usual_weight(others), statistics.median(map(_inside, others))
    holds = full.running / max(have, full.running, 1.0)
    weight = max(_LEAST_WEIGHT, round(usual * holds, 2))
    if full.now.weight <= 1.1 * weight or _spare(full, others) < 1 - holds:
        return None
    return advise(
        f"Give {full.name} less of the work: its KV holds fewer requests than {names(others)} {'has' if len(others) == 1 else 'have'}.",
        Order(kind=OrderKind.WEIGHT, engine=full.name, weight=weight),
    )


def re_role(signs: Signs, stage: str) -> Action | None:
    """Another engine for a stage that has too few: of those of the other role the one with the least to do, if it can be spared."""
    others = signs.decode if stage == "prefill" else signs.prefill
    spare = [engine for engine in others if not (engine.prefills and engine.decodes)]
    if len(spare) < 2 or signs.now.uptime_s < _SETTLED_S:
        return None
    other_stage, more = "decode" if stage == "prefill" else "prefill", len(spare) / (len(spare) - 1)
    if not all(_takes_more(engine, other_stage, more) for engine in spare):
        return None
    least = min(spare, key=lambda engine: load(engine, other_stage))
    role = Role.PREFILL if stage == "prefill" else Role.DECODE
    return advise(
        f"Let {least.name} {role.value} instead of {other_stage}: {least.name} has little to do.",
        Order(kind=OrderKind.ROLE, engine=least.name, role=role),
    )


def _takes_more(engine: Engine, stage: str, times: float) -> bool:
    """So many times what it has to do now, in time. Of decoding that has to be known."""
    if stage == "decode" and (engine.room is None or engine.room < times / _ROOM):
        return engine.running < 1
    return load(engine, stage) * times < _ROOM and engine.kv_most * times < _ROOM


def _without(engine: Engine, until: str) -> Action:
    """Nothing can be ordered."""
    why = (
        f"no other engine can take the work of {engine.name}"
        if engine.takes
        else f"{engine.name} gets no new work any more"
    )
    return Action(sentence=f"{_upper(until)}: {why}.")


def _no_room(engine: Engine, until: str) -> Action:
    return Action(sentence=f"{_upper(until)}: other engines have no room for the work of {engine.name}.")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _usual_weight(engines: Sequence[Engine]) -> float:
    return statistics.median(engine.now.weight for engine in engines)


def _like(engine: Engine, signs: Signs) -> list[Engine]:
    """Others that can take all of its work."""
    return [
        other
        for other in signs.engines
        if other is not engine
        and other.takes
        and (other.prefills or not engine.prefills)
        and (other.decodes or not engine.decodes)
    ]
