"""Where one request's time went, and what held it up. Pure: a timeline, others of its time, and the verdict that stood.

What is usual is the median of the requests that came within half a minute of it, or of all that are kept where these are few. A request
of a saturated node took as long as the others; then the targets say that it was late, and the verdict why.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from appliance.records import STAGES, Lately, Stage, Timeline, Verdict

DECODE: Final = "decode"  # what comes after the stages
_NEAR_S: Final = 30.0
TOGETHER_S: Final = 2.0
_FEW: Final = 5  # others, by which nothing is usual
_OF_A_SIZE: Final = 2.0
_UNUSUAL: Final = 1.5  # times what is usual
_MATERIAL_S: Final = 0.05  # what nobody notices holds nobody up
_MATERIAL_PIECES: Final = 5


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One stage before the first token, in order."""

    stage: str  # one of records.STAGES
    duration_s: float
    share: float | None  # of the time to the first token, or of all there was without one
    usual_s: float | None  # median of the others that had this stage


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """A stream after its first piece. A piece is a token, as a rule."""

    pieces: int
    each_s: float  # from one to the next, mean
    usual_s: float | None
    target_s: float


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """The KV on its way. ``bytes_s``: over the transfer stage."""

    bytes: int
    copies: int | None
    bytes_s: float | None
    usual_bytes_s: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that a request was on, against engines that did the same for others then: medians, for equal amounts of work."""

    engine: str
    ratio: float  # time that it took, of what the others took


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """Others that came at nearly the same time, and how many of them were held up in the same stage."""

    came: int
    held: int


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All that can be told of one request."""

    id: str
    held_by: str | None  # what held it up most: a stage, or "decode"; None if nothing did
    held_s: float | None  # by how long, against what is usual or else the target
    also: str | None  # what did so besides
    elapsed_s: float  # from its arrival to its end, or until now
    first_s: float  # to the first token, or of all the stages there were without one
    usual_first_s: float | None
    target_ttft_s: float
    parts: tuple[Part, ...]
    pace: Pace | None
    transfer: Transfer | None
    usual_prompt_tokens: float | None
    compared: int  # others that say what is usual
    together: Together
    beside: int  # others that were at the same place while it was held up
    slower: Comparison | None  # of its engine, where it was
    verdict: Verdict | None  # that stood then
    fits: bool  # it explains what held the request up
    timeline: Timeline


def examine(
    timeline: Timeline,
    others: Sequence[Timeline],
    *,
    now: float,
    ttft_target_s: float,
    itl_target_s: float,
    verdict: Verdict | None = None,
    lately: Lately | None = None,
) -> Findings:
    """What there is to be found; see ``because.explain``."""
    rest = [other for other in others if (other.id, other.arrived) != (timeline.id, timeline.arrived)]
    alike = peers(timeline, rest)
    means = lately if lately is not None and lately.first_tokens >= _FEW and not alike else None  # not itself alone
    found, first_s = parts(timeline, alike, means), first(timeline)
    usual_first_s = means.ttft_s if means is not None else _median(other.ttft_s for other in alike)
    pace = _pace(timeline, alike, now, itl_target_s)
    held_by, also = _held(found, first_s, usual_first_s, ttft_target_s, pace)
    stood = verdict if verdict is not None and verdict.since <= _end(timeline, now) + _SOON_S else None
    return Findings(
        id=timeline.id,
        held_by=held_by,
        held_s=_held_s(found, held_by, pace),
        also=also,
        elapsed_s=elapsed(timeline, now),
        first_s=first_s,
        usual_first_s=usual_first_s,
        target_ttft_s=ttft_target_s,
        parts=found,
        pace=pace,
        transfer=_transfer(timeline, alike),
        usual_prompt_tokens=_median(other.prompt_tokens for other in alike),
        compared=len(alike),
        together=_together(timeline, held_by, rest, found),
        beside=_beside(timeline, held_by, rest, now),
        slower=_slower(timeline, held_by, [timeline, *alike]),
        verdict=stood,
        fits=stood is not None and fits(timeline, held_by, stood, now),
        timeline=timeline,
    )


# ---- what is usual


def peers(timeline: Timeline, others: Sequence[Timeline]) -> list[Timeline]:
    """Those that were answered, in the same way if it was and there are such; those of its time, if there are some."""
    answered = [other for other in others if other.outcome == "ok" and other.ttft_s is not None]
    if timeline.ttft_s is not None:
        answered = [other for other in answered if other.split == timeline.split] or answered
    near = [other for other in answered if abs(other.arrived - timeline.arrived) <= _NEAR_S]
    return near if len(near) >= _FEW else answered


def parts(timeline: Timeline, alike: Sequence[Timeline], means: Lately | None = None) -> tuple[Part, ...]:
    """Its stages, each with its share and what is usual: medians of those alike, or else means."""
    whole_s = first(timeline)
    usual = {stage.name: stage.duration_s for stage in means.stages} if means is not None else _usual(alike)
    return tuple(
        Part(
            stage=stage.name,
            duration_s=stage.duration_s,
            share=stage.duration_s / whole_s if whole_s > 0 else None,
            usual_s=usual.get(stage.name),
        )
        for stage in timeline.stages
    )


def _usual(alike: Sequence[Timeline]) -> dict[str, float]:
    found = ((name, _median(duration(other.stages, name) for other in alike)) for name in STAGES)
    return {name: seconds for name, seconds in found if seconds is not None}


def duration(stages: Sequence[Stage], name: str) -> float | None:
    return next((stage.duration_s for stage in stages if stage.name == name), None)


def first(timeline: Timeline) -> float:
    """Time to the first token, or all of it without one."""
    return sum(stage.duration_s for stage in timeline.stages) if timeline.ttft_s is None else timeline.ttft_s


def elapsed(timeline: Timeline, now: float) -> float:
    return max(first(timeline), now - timeline.arrived) if timeline.total_s is None else timeline.total_s


def each(timeline: Timeline, now: float) -> float | None:
    """Seconds from one piece of a stream to the next; None of an answer in one piece."""
    gaps = timeline.output_chunks - 1
    if not timeline.stream or timeline.ttft_s is None or gaps < 1:
        return None
    return max(0.0, elapsed(timeline, now) - timeline.ttft_s) / gaps


def _pace(timeline: Timeline, alike: Sequence[Timeline], now: float, target_s: float) -> Pace | None:
    found = each(timeline, now)
    if found is None:
        return None
    usual_s = _median(each(other, now) for other in alike)
    return Pace(pieces=timeline.output_chunks, each_s=found, usual_s=usual_s, target_s=target_s)


def _transfer(timeline: Timeline, alike: Sequence[Timeline]) -> Transfer | None:
    if timeline.transfer_bytes is None:
        return None
    return Transfer(
        bytes=timeline.transfer_bytes,
        copies=timeline.transfer_copies,
        bytes_s=_rate(timeline),
        usual_bytes_s=_median(_rate(other) for other in alike if _of_a_size(timeline, other)),
    )


def _rate(timeline: Timeline) -> float | None:
    """Bytes per second, while they were copied."""
    seconds = duration(timeline.stages, "transfer")
    return timeline.transfer_bytes / seconds if timeline.transfer_bytes and seconds else None


def _of_a_size(one: Timeline, other: Timeline) -> bool:
    """Small copies have low rates, whatever the link."""
    moved, against = one.transfer_bytes or 0, other.transfer_bytes or 0
    return against / _OF_A_SIZE <= moved <= against * _OF_A_SIZE


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# ---- what held it up


def _held(
    found: Sequence[Part], first_s: float, usual_s: float | None, target_s: float, pace: Pace | None
) -> tuple[str | None, str | None]:
    """What held it up most, and what did so besides."""
    late_s = _excess(first_s, usual_s, target_s, _MATERIAL_S)
    slow_s = None
    if pace is not None and pace.pieces >= _MATERIAL_PIECES:
        slow_s = _behind(pace) if _excess(pace.each_s, pace.usual_s, pace.target_s, 0.0) is not None else None
    stage = None if late_s is None else _longest(found, unusual=_unusual(first_s, usual_s))
    if slow_s is None or (late_s or 0.0) >= slow_s:
        return stage, None if slow_s is None else DECODE
    return DECODE, stage


def _excess(value: float, usual: float | None, target: float, material: float) -> float | None:
    """By how much it is beyond the target or what is usual; None if it is not."""
    if value <= target and not (_unusual(value, usual) and value - (usual or 0.0) > material):
        return None
    return value - min(target, target if usual is None else usual)


def _behind(pace: Pace) -> float:
    """Seconds by which a whole answer came later than at the pace that is usual, or at the target."""
    return max(0.0, pace.each_s - min(pace.target_s, pace.usual_s or pace.target_s)) * (pace.pieces - 1)


def _held_s(found: Sequence[Part], held_by: str | None, pace: Pace | None) -> float | None:
    if held_by == DECODE and pace is not None:
        return _behind(pace)
    part = next((part for part in found if part.stage == held_by), None)
    return None if part is None else max(0.0, part.duration_s - (part.usual_s or 0.0))


def _unusual(value: float, usual: float | None) -> bool:
    return usual is not None and value > _UNUSUAL * usual


def _longest(found: Sequence[Part], *, unusual: bool) -> str | None:
    """The stage that took most, or where it is unlike others, the one that took most beyond what is usual."""
    longest = max(found, key=lambda part: part.duration_s - ((part.usual_s or 0.0) if unusual else 0.0), default=None)
    return None if longest is None else longest.stage


# ---- what else there was then

_PREFILLING: Final = ("prefill_wait", "prefill_compute")
_TAKEN_OVER: Final = ("handoff_wait", "transfer", "decode_wait", "first_step", DECODE)
_SOON_S: Final = 10.0  # a verdict may come after the first who were hurt
_EXPLAINS: Final = {
    "prefill": ("queue", *_PREFILLING),
    "handoff": ("queue", "prefill_wait", "handoff_wait", "transfer", "decode_wait"),
    "decode": ("queue", "prefill_wait", *_TAKEN_OVER),
    "frontend": ("prefill_wait", "decode_wait", "first_step", DECODE),
}
"""By a verdict's stage: what it makes requests wait in. All queues end in the router's."""


def fits(timeline: Timeline, held_by: str | None, verdict: Verdict, now: float) -> bool:
    """Whether a verdict explains what held a request up: it is about that stage, stood by then, and is about an engine that it was on."""
    if held_by is None or verdict.state != "bottleneck" or held_by not in _EXPLAINS.get(verdict.stage or "", ()):
        return False
    if verdict.since > _span(timeline, (held_by,), now)[1] + _SOON_S:
        return False
    engines = {*verdict.engines, *(verdict.link or ())}
    on = {timeline.prefill_engine, timeline.decode_engine}
    return held_by == "queue" or not engines or bool(engines & on)


def place(timeline: Timeline, stage: str | None) -> str | None:
    """The engine that a stage is on."""
    if stage is None or stage == "queue":
        return None
    return timeline.prefill_engine if stage in _PREFILLING else timeline.decode_engine or timeline.prefill_engine


def _beside(timeline: Timeline, held_by: str | None, others: Sequence[Timeline], now: float) -> int:
    """Others that were in the queue, or prefilling or decoding on that engine, at some time while it was held up."""
    if held_by is None:
        return 0
    group = ("queue",) if held_by == "queue" else _PREFILLING if held_by in _PREFILLING else _TAKEN_OVER
    mine = _span(timeline, (held_by,), now)
    engine = place(timeline, held_by)
    there = [other for other in others if engine is None or place(other, group[0]) == engine]
    return sum(_overlap(mine, _span(other, group, now)) for other in there)


def _together(timeline: Timeline, held_by: str | None, others: Sequence[Timeline], found: Sequence[Part]) -> Together:
    usual_s = next((part.usual_s for part in found if part.stage == held_by), None)
    near = [other for other in others if abs(other.arrived - timeline.arrived) <= TOGETHER_S]
    if held_by is None or usual_s is None:
        return Together(came=len(near), held=0)
    took = [duration(other.stages, held_by) or 0.0 for other in near]
    held = sum(_unusual(took_s, usual_s) and took_s - usual_s > _MATERIAL_S for took_s in took)
    return Together(came=len(near), held=held)


def _span(timeline: Timeline, names: Sequence[str], now: float) -> tuple[float, float]:
    """From when to when it was in any of these, in Unix seconds; an empty span if it never was."""
    at, spans = timeline.arrived, []
    for stage in timeline.stages:
        if stage.name in names and stage.duration_s > 0:
            spans.append((at, at + stage.duration_s))
        at += stage.duration_s
    end = _end(timeline, now)
    if DECODE in names and timeline.ttft_s is not None and end > at:
        spans.append((at, end))
    return (spans[0][0], spans[-1][1]) if spans else (at, at)


def _end(timeline: Timeline, now: float) -> float:
    return timeline.arrived + elapsed(timeline, now)


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _slower(timeline: Timeline, held_by: str | None, answered: Sequence[Timeline]) -> Comparison | None:
    """Whether its engine took longer than others did for as much."""
    engine = place(timeline, held_by)
    if engine is None or held_by not in ("prefill_compute", "first_step", DECODE):
        return None
    costs = [(place(other, held_by), _cost(other, held_by)) for other in answered]
    here = [cost for name, cost in costs if name == engine and cost is not None]
    there = [cost for name, cost in costs if name not in (engine, None) and cost is not None]
    if min(len(here), len(there)) < _FEW:
        return None
    ratio = statistics.median(here) / max(statistics.median(there), 1e-9)
    return Comparison(engine=engine, ratio=ratio) if ratio >= _UNUSUAL else None


def _cost(timeline: Timeline, stage: str) -> float | None:
    """Seconds for an amount of work that is the same for all."""
    if stage == DECODE:
        return each(timeline, timeline.arrived) if timeline.total_s is not None else None
    seconds = duration(timeline.stages, stage)
    if stage == "prefill_compute" and seconds is not None:
        return seconds / timeline.prompt_tokens if timeline.prompt_tokens else None
    return seconds
