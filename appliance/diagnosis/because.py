"""One sentence on one request: what held it up, and why. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.diagnosis.finding import ms
from appliance.diagnosis.why import DECODE, TOGETHER_S, Findings, Part, examine, place
from appliance.records import Lately, Timeline, Verdict

_SPENT: Final = {
    "queue": "it waited {time} in the queue",
    "prefill_wait": "it waited {time} for {first} to begin with its prompt",
    "prefill_compute": "computing its prompt on {first} took {time}",
    "handoff_wait": "its KV waited on {first} for {second} to fetch it, {time}",
    "transfer": "moving its KV from {first} to {second} took {time}",
    "decode_wait": "it waited {time} for {second} to begin with its answer",
    "first_step": "its first step on {second} took {time}",
}
_THEN: Final = {
    "queue": "it waited in the queue",
    "prefill_wait": "it waited for {first} to begin with its prompt",
    "prefill_compute": "{first} computed its prompt",
    "handoff_wait": "its KV waited on {first} for {second} to fetch it",
    "transfer": "its KV was on its way from {first} to {second}",
    "decode_wait": "it waited for {second} to begin with its answer",
    "first_step": "{second} made its first step",
    DECODE: "{second} was saying its answer",
}
_WAS: Final = {
    "prefill_saturated": "{who} {were} prefilling all of the time",
    "decode_saturated": "{who} had more to decode than they can within the target",
    "pool_imbalance": "{who} had all that they can do, and engines of the other role little",
    "prefill_budget_small": "steps of {who} were kept too small",
    "prefill_straggler_gpu": "{who} {were} slowed down by {its} GPU",
    "decode_straggler_gpu": "{who} {were} slowed down by {its} GPU",
    "prefill_straggler_cpu": "{who} {were} slow for want of CPU time",
    "decode_straggler_cpu": "{who} {were} slow for want of CPU time",
    "cache_miss_storm": "the prefix cache of {who} missed",
    "long_prompt_blocking": "{who} {were} busy with long prompts",
    "handoff_link_slow": "the link from {producer} to {consumer} was slow",
    "handoff_decode_admission": "{who} had no free place",
    "prefill_kv_pinned": "the KV of {who} was full of prompts that nobody fetched",
    "decode_kv_full": "the KV of {who} was full",
    "frontend_bound": "the API process of {who} was too busy",
    "engine_hung": "{who} hung",
    "engine_crashed": "{who} had ended",
    "engine_starting": "{who} {were} still starting",
    "routing_skew": "{who} got more of the work than {its} like",
}
_LARGE: Final = 2.0  # times the usual prompt
_SOME: Final = 3  # that have something in common


class Why(Findings, frozen=True, kw_only=True):
    """The explanation of one request: ``sentence`` is the answer, and what it is found by."""

    sentence: str
    notes: tuple[str, ...]  # what was not as it mostly is


def explain(
    timeline: Timeline,
    others: Sequence[Timeline],
    *,
    now: float,
    ttft_target_s: float,
    itl_target_s: float,
    verdict: Verdict | None = None,
    lately: Lately | None = None,
) -> Why:
    """Where a request's time went.

    Args:
        timeline: its own; it may still run.
        others: timelines that are kept; its own among them does no harm.
        now: Unix seconds, by the node's clock.
        ttft_target_s: for the time to the first token.
        itl_target_s: from one token to the next.
        verdict: what held the node back then, or does now: one that began after the request had ended is left out.
        lately: what is usual where no other like it is kept.
    """
    found = examine(
        timeline,
        others,
        now=now,
        ttft_target_s=ttft_target_s,
        itl_target_s=itl_target_s,
        verdict=verdict,
        lately=lately,
    )
    return Why(**msgspec.structs.asdict(found), sentence=sentence(found), notes=notes(timeline))


def sentence(found: Findings) -> str:
    """How it ended, and what held it up."""
    said = [_outcome(found)] if found.timeline.outcome != "ok" else []
    if said and len(found.parts) == 1 and found.held_by == found.parts[0].stage:  # how long, and in what, has been said
        said += filter(None, [_beyond(found)])
    elif found.held_by is not None:
        said.append(_held(found, found.held_by, because=True))
    elif found.timeline.outcome == "ok":
        said.append(_well(found))
    if found.also is not None:
        said.append(f"besides, {_held(found, found.also, because=False)}")
    return " ".join(f"{_capital(part)}." for part in said)


def _capital(said: str) -> str:
    """Engines' names stay as they are."""
    return said if said[1:2].isdigit() else said[:1].upper() + said[1:]


def _outcome(found: Findings) -> str:
    timeline, took = found.timeline, ms(found.elapsed_s)
    then = _named(_THEN[_last(timeline)], timeline)
    if timeline.outcome == "running":
        return f"it has run for {took}; when it was asked about, {then}"
    if timeline.outcome == "cancelled":
        return f"its client left after {took}, while {then}"
    status = f" with {timeline.status}" if timeline.status else ""
    error = f": {timeline.error.rstrip('.')}" if timeline.error else ""
    return f"it failed{status} after {took}, while {then}{error}"


def _last(timeline: Timeline) -> str:
    if timeline.ttft_s is not None:
        return DECODE
    return timeline.stages[-1].name if timeline.stages else "queue"


def _well(found: Findings) -> str:
    usual = "" if found.usual_first_s is None else f"{ms(found.usual_first_s)} is usual, "
    said = f"nothing held it up: its first token came after {ms(found.first_s)} ({usual}the target is {ms(found.target_ttft_s)})"
    if found.pace is None:
        return said
    return f"{said}, and the others every {_fine(found.pace.each_s)} (target {_fine(found.pace.target_s)})"


def _held(found: Findings, stage: str, *, because: bool) -> str:
    said = _slow(found) if stage == DECODE else _waited(found, stage)
    reason = _reason(found, stage) if because else None
    return f"{said}: {reason}" if reason else said


def _beyond(found: Findings) -> str | None:
    """What is usual there, and why it took longer."""
    part = found.parts[0]
    usual = None if part.usual_s is None else f"{_fine(part.usual_s)} is usual"
    return ": ".join(filter(None, (usual, _reason(found, part.stage)))) or None


def _waited(found: Findings, stage: str) -> str:
    part = next(part for part in found.parts if part.stage == stage)
    whole = f"the {ms(found.first_s)} to its first token" if found.timeline.ttft_s is not None else ms(found.first_s)
    took = ms(part.duration_s) if len(found.parts) == 1 else f"{ms(part.duration_s)} of {whole}"
    return _named(_SPENT[stage], found.timeline, took) + _against(part)


def _against(part: Part) -> str:
    if part.usual_s is None:
        return ""
    if part.duration_s > 1.5 * part.usual_s:
        return f", where {_fine(part.usual_s)} is usual"
    return f", as others did then ({_fine(part.usual_s)})"


def _slow(found: Findings) -> str:
    pace = found.pace
    if pace is None:
        return "its answer came slowly"
    usual = "" if pace.usual_s is None else f", {_fine(pace.usual_s)} usual"
    where = place(found.timeline, DECODE) or "its engine"
    return f"{where} took {_fine(pace.each_s)} from one piece of its answer to the next (target {_fine(pace.target_s)}{usual})"


def _reason(found: Findings, stage: str) -> str | None:
    """The first that holds: its own history, the verdict of that time, its engine against the others, its size, its company."""
    timeline = found.timeline
    failed = [leg for leg in timeline.legs if leg.outcome in ("error", "unreachable")]
    if stage == "queue" and timeline.attempts > 1 and failed:
        names = ", ".join(dict.fromkeys(leg.engine for leg in failed))
        return f"that is the time of the tries before, which failed on {names}"
    if found.verdict is not None and found.fits:
        return _was(found.verdict)
    if found.slower is not None:
        return f"{found.slower.engine} took {found.slower.ratio:.1f} times as long for as much as the others did then"
    usual, own = found.usual_prompt_tokens, timeline.prompt_tokens
    if stage in ("prefill_wait", "prefill_compute", "transfer") and usual and own and own > _LARGE * usual:
        return f"its prompt of {own:,} tokens is {own / usual:.1f} times the usual one"
    return _company(found, stage)


def _was(verdict: Verdict) -> str:
    """A verdict in the past tense, with its name and since when it stands."""
    names = verdict.engines or ((verdict.engine,) if verdict.engine else ())
    who = "the node" if not names else " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    producer, consumer = verdict.link or (who, "its peer")
    text = _WAS.get(verdict.cause or "", "{who} held the node back")
    were, its = ("was", "its") if len(names) < 2 else ("were", "their")
    said = text.format(who=who, were=were, its=its, producer=producer, consumer=consumer)
    return f"{said} ({verdict.cause or 'a bottleneck'} since {clock(verdict.since)})"


def _company(found: Findings, stage: str) -> str | None:
    if found.together.held >= max(_SOME, found.together.came / 2):
        together = found.together
        return f"{together.held} of the {together.came} others that came within {TOGETHER_S:g} s of it were held up there, too"
    if not found.beside:
        return None
    others = "1 other" if found.beside == 1 else f"{found.beside:,} others"
    where = place(found.timeline, stage)
    if where is None:
        return f"{others} waited there in that time"
    return f"{others} {'was' if found.beside == 1 else 'were'} on {where} in that time"


def _named(text: str, timeline: Timeline, took: str = "") -> str:
    first = timeline.prefill_engine or "an engine"
    return text.format(time=took, first=first, second=timeline.decode_engine or first)


def notes(timeline: Timeline) -> tuple[str, ...]:
    """What was not as it mostly is."""
    found = []
    if timeline.attempts > 1:
        found.append(f"{timeline.attempts} tries; the time of those that failed counts as queue.")
    if timeline.continued:
        found.append("Its engine was lost in mid-answer; the stream went on on another one.")
    if timeline.recomputed:
        where = timeline.decode_engine or "the decode engine"
        found.append(f"Its KV could not be had, and {where} computed the prompt again.")
    if timeline.unsplit_reason:
        found.append(f"It ran whole on one engine: {timeline.unsplit_reason}.")
    return tuple(found)


def clock(unix_s: float) -> str:
    """The time of day, here."""
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def _fine(seconds: float) -> str:
    """Times between tokens: 4.1 ms, 52 ms."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.00995 else ms(seconds)
