"""A window of snapshots, read. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from appliance.diagnosis.gpus import gpu_trouble
from appliance.diagnosis.signs import AT, TREND_S, Engine, Signs, limit_s
from appliance.records import LATELY_S, EngineSnapshot, HostReading, Lately, NodeSnapshot, Role, Stage

WINDOW_S: Final = 90.0
_ANSWER_S: Final = (
    15.0  # in which a pace is told of engines that do both: an answer makes up for the prompts in between
)
_LATELY_S: Final = 1.6  # over which gauges are averaged
_BEFORE_S: Final = 10.0  # ago, and earlier: how it was before what happens now
_USUAL_S: Final = 30.0  # ago, and later: how many come in usual times
_ENOUGH: Final = 20  # first tokens, for a share of them to mean something
_SEVERAL: Final = 3  # readings
_A_FEW: Final = 8  # that are enough to see that it is over
_MANY: Final = 200  # of which a small share tells something, too
_FEW_S: Final = 30.0  # that are looked through for as many
_HARDLY_ANY: Final = 0.5  # requests that wait in an engine, or for KV
_ROOMY: Final = 0.9  # of its KV
_STILL: Final = 0.96  # as ``AT``, to see that it is over


def read(window: Sequence[NodeSnapshot]) -> Signs:
    """Of at least one snapshot, oldest first."""
    now = window[-1]
    lately = [one for one in window if now.uptime_s - one.uptime_s <= _LATELY_S]
    trend = [one for one in window if now.uptime_s - one.uptime_s <= TREND_S]
    before = [one for one in window if now.uptime_s - one.uptime_s >= _BEFORE_S]
    seconds = max(1e-3, now.uptime_s - trend[0].uptime_s)
    told = [one.lately for one in lately if one.lately is not None and one.lately.first_tokens]
    latest = told[-1] if told else None
    firsts, answers = _first_tokens(window), _brief_answers(window)
    ended = _ended(now) - _ended(trend[0])
    failed = now.requests.failed_here - trend[0].requests.failed_here

    def is_late(engine: Engine) -> bool:
        return engine.itl_now_s > limit_s(engine, now, _STILL)

    past = _past(window)
    engines = tuple(_engine(engine, past[engine.name], trend) for engine in now.engines)
    return Signs(
        now=now,
        engines=engines,
        firsts=firsts,
        ttft_late=_share_late(firsts, _ENOUGH),
        ttft_late_now=_share_late(firsts, _A_FEW),
        answers=answers,
        missed=_share_late(answers, _ENOUGH),
        missed_now=_share_late(answers, _A_FEW),
        waits_too_long=(now.queue.oldest_s or 0.0) > now.slo_ttft_s,
        itl_late=_late([(one, one.itl_s > limit_s(one, now, AT) and is_late(one)) for one in engines]),
        itl_late_now=_late([(one, is_late(one)) for one in engines]),
        failing=failed / ended if ended > 0 else 0.0,
        failed=failed,
        ended_s=ended / seconds,
        arrivals_s=(now.requests.total - trend[0].requests.total) / seconds,
        arrivals_before_s=_rate([one for one in before if now.uptime_s - one.uptime_s <= _USUAL_S]),
        queue=_mean([float(one.queue.depth) for one in lately]) or 0.0,
        queue_growth_s=_slope([(one.uptime_s, float(one.queue.depth)) for one in trend]),
        stages=_stages(latest.stages if latest else ()),
        behind_long=_mean([one.behind_long for one in told if one.behind_long is not None]) or 0.0,
        prompt_tokens=latest.prompt_tokens if latest else None,
        prompt_tokens_before=_mean(
            [one.lately.prompt_tokens for one in before if one.lately and one.lately.prompt_tokens]
        ),
        split=any(not (engine.prefills and engine.decodes) for engine in engines),
        supervisor_busy=_mean([one.supervisor.cpu_share or 0.0 for one in lately]) or 0.0,
        loop_delay_s=(_mean([one.supervisor.loop_delay_ms or 0.0 for one in lately]) or 0.0) * 1e-3,
    )


def _first_tokens(window: Sequence[NodeSnapshot]) -> tuple[tuple[int, float], ...]:
    """Those that are still to come and are late already count with them: where nothing comes at all, nobody else would tell."""
    overdue = window[-1].overdue or 0
    found = _spells(window, lambda one: (one.first_tokens, one.ttft_late), overdue)
    return found or (((overdue, 1.0),) if overdue else ())


def _brief_answers(window: Sequence[NodeSnapshot]) -> tuple[tuple[int, float], ...]:
    """What took longer tells of earlier times, too."""
    return _spells(window, lambda one: (one.brief, one.brief_missed))


def _spells(
    window: Sequence[NodeSnapshot], of: Callable[[Lately], tuple[int, float | None]], late_already: int = 0
) -> tuple[tuple[int, float], ...]:
    """How many there were in the last seconds, and the share that was late; then in ever longer spells, until there are many."""
    found: list[tuple[int, float]] = []
    count, late, until_s = late_already, float(late_already), math.inf
    for one in reversed(window):
        if one.uptime_s > until_s or one.lately is None:
            continue
        if (found and count >= _MANY) or window[-1].uptime_s - one.uptime_s > _FEW_S:
            break
        came, share = of(one.lately)
        count += came
        late += came * (share or 0.0)
        until_s = one.uptime_s - LATELY_S
        if count:
            found.append((count, late / count))
    return tuple(found)


def _share_late(firsts: Sequence[tuple[int, float]], enough: int) -> float:
    """Of the shortest spell with so many first tokens, or the longest there is."""
    return next((late for count, late in firsts if count >= enough), firsts[-1][1] if firsts else 0.0)


def _ended(snapshot: NodeSnapshot) -> int:
    return snapshot.requests.ok + snapshot.requests.failed_here


def _past(window: Sequence[NodeSnapshot]) -> dict[str, list[tuple[float, EngineSnapshot]]]:
    """Each engine in its present life, by name: how long ago, and how it was then; oldest first."""
    now = window[-1]
    epochs = {engine.name: engine.epoch for engine in now.engines}
    found: dict[str, list[tuple[float, EngineSnapshot]]] = {name: [] for name in epochs}
    for one in window:
        ago_s = now.uptime_s - one.uptime_s
        for engine in one.engines:
            if epochs.get(engine.name) == engine.epoch:
                found[engine.name].append((ago_s, engine))
    return found


def _engine(now: EngineSnapshot, past: Sequence[tuple[float, EngineSnapshot]], trend: Sequence[NodeSnapshot]) -> Engine:
    mine = [one for ago_s, one in past if ago_s <= _LATELY_S]
    trending = [one for ago_s, one in past if ago_s <= TREND_S]
    pacing = [one for ago_s, one in past if ago_s <= _ANSWER_S] if now.role is Role.BOTH else trending
    usual = [one for ago_s, one in past if ago_s <= _USUAL_S]
    older = [one for ago_s, one in past if ago_s >= _BEFORE_S]
    older_than_few = [one for ago_s, one in past if _BEFORE_S <= ago_s <= _USUAL_S]
    first = trending[0]
    seconds = max(1e-3, trend[-1].uptime_s - trend[0].uptime_s)
    slots = now.max_running
    host = [found.host for found in mine if found.host is not None]
    return Engine(
        now=now,
        busy=_of_all(mine, "busy"),
        busy_before=_of_all([*older_than_few, *mine], "busy"),
        slowdown=now.slowdown if now.slowdown is not None else 1.0,
        slowdown_before=_lasting([one.slowdown for one in trending if one.slowdown is not None]),
        kv=_of_all(mine, "kv_usage"),
        kv_most=-(_low([-one.kv_usage for one in usual if one.kv_usage is not None]) or 0.0),
        waiting=_of_all(mine, "waiting"),
        running=_of_all(mine, "running"),
        fetching=_of_all(mine, "fetching"),
        gathers_s=_slope([(-ago_s, _inside(one)) for ago_s, one in past if ago_s <= TREND_S]),
        full=bool(slots) and _of_all(mine, "running") >= 0.95 * (slots or 1),
        preemptions_s=max(0, (now.preemptions or 0) - (first.preemptions or 0)) / seconds,
        itl_s=_pace(pacing) or 0.0,
        longest_prompt=max((float(found.long_prompt_tokens or 0) for found in pacing), default=0.0),
        itl_now_s=_pace(mine if now.role is not Role.BOTH else trending) or 0.0,
        hits=_mean([value for found in mine if (value := found.prefix_hit_rate) is not None]),
        hits_before=_high([value for found in older if (value := found.prefix_hit_rate) is not None]),
        found_s=_mean([value for found in mine if (value := _found(found)) is not None]),
        found_before_s=_high([value for found in older if (value := _found(found)) is not None]),
        gpu_trouble=gpu_trouble(now, trend),
        core_delay=_mean([_core_delay(one) for one in host]) or 0.0,
        throttled=_mean([one.throttled or 0.0 for one in host]) or 0.0,
        api_delay_s=now.api_delay_s or 0.0,
        intake_s=_intake_s(now, mine),
        api_busy=_mean([one.api_busy or 0.0 for one in host]) or 0.0,
        api_starved=_mean([one.api_starved or 0.0 for one in host]) or 0.0,
        room_now=_mean([one.room for one in pacing if one.room is not None]),
        room=_low([one.room for one in usual if one.room is not None]),
        outstanding=_of_all(mine, "outstanding_prompt_tokens"),
        prompt_tokens_s=now.prompt_tokens_s or 0.0,
        output_tokens_s=now.output_tokens_s or 0.0,
    )


def _intake_s(now: EngineSnapshot, lately: Sequence[EngineSnapshot]) -> float:
    """Who prefills as well is asked between two steps, which may be long; and KV is fetched one after the other."""
    hardly_any = all(_of_all(lately, field) < _HARDLY_ANY for field in ("waiting", "fetching"))
    at_once = hardly_any and _of_all(lately, "kv_usage") < _ROOMY and not now.role.prefills
    waits_s = 2e-3 * (now.step_ms or 0.0)  # for the step under way, and then for its own to begin
    return max(0.0, (now.intake_s or 0.0) - waits_s) if at_once else 0.0


def _core_delay(host: HostReading) -> float:
    """For which others had its core. Where there is only one, its own API process has it now and then, and nothing is wrong with that."""
    own = (host.api_busy or 0.0) - (host.api_starved or 0.0) if host.cores == 1 else 0.0
    return max(0.0, (host.core_delay or 0.0) - max(0.0, own))


def _inside(engine: EngineSnapshot) -> float:
    """Requests that it works on, or that wait there."""
    return float((engine.running or 0) + (engine.waiting or 0) + (engine.fetching or 0))


def _found(engine: EngineSnapshot) -> float | None:
    """Of what it is asked, some is found and the rest is computed."""
    rate, hits = engine.prompt_tokens_s, engine.prefix_hit_rate
    return None if rate is None or hits is None or hits >= 1 else rate * hits / (1 - hits)


def _of_all(engines: Sequence[EngineSnapshot], field: str) -> float:
    return _mean([float(value) for engine in engines if (value := getattr(engine, field)) is not None]) or 0.0


def _pace(engines: Sequence[EngineSnapshot]) -> float | None:
    """Mean seconds per token. By tokens: in a spell in which they come slowly there are few."""
    told = [(one.itl_s, one.output_tokens_s or 0.0) for one in engines if one.itl_s is not None]
    tokens = sum(rate for _, rate in told)
    return sum(itl_s * rate for itl_s, rate in told) / tokens if tokens else None


def _late(engines: Sequence[tuple[Engine, bool]]) -> float:
    """Share of all tokens, of engines that are too slow."""
    tokens = sum(one.output_tokens_s for one, _ in engines)
    return sum(one.output_tokens_s for one, late in engines if late) / tokens if tokens else 0.0


def _rate(snapshots: Sequence[NodeSnapshot]) -> float | None:
    if len(snapshots) < 2 or snapshots[-1].uptime_s - snapshots[0].uptime_s < 5:
        return None
    return (snapshots[-1].requests.total - snapshots[0].requests.total) / (
        snapshots[-1].uptime_s - snapshots[0].uptime_s
    )


def _stages(stages: Sequence[Stage]) -> dict[str, float]:
    return {stage.name: stage.duration_s for stage in stages}


def _lasting(slowdowns: Sequence[float]) -> float:
    """Their mean; 1.0 where they are too few to be more than a moment."""
    return sum(slowdowns) / len(slowdowns) if len(slowdowns) >= _SEVERAL else 1.0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _high(values: Sequence[float]) -> float | None:
    """What nine of ten are below."""
    return sorted(values)[int(0.9 * (len(values) - 1))] if values else None


def _low(values: Sequence[float]) -> float | None:
    """What nine of ten are above; of a few the least."""
    return sorted(values)[int(0.1 * (len(values) - 1))] if values else None


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil's and Sen's: the median of the slopes between pairs of points."""
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, earlier in enumerate(points)
        for later in points[number + 1 :]
        if later[0] > earlier[0]
    )
    return slopes[len(slopes) // 2] if slopes else 0.0
