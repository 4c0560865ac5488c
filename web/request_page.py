"""The page of one request: what held it up, where its time went on which engine, and its answer as it left.

What was asked and what was answered is nowhere kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from markupsafe import Markup

from appliance.errors import RequestError
from appliance.records import Leg, NodeSnapshot, Timeline
from web import times, waterfall, words
from web.contexts import TONES, Context, FactContext
from web.paced import Paced
from web.ports import Explain, Explained, NodeView
from web.request_answer import tokens
from web.views import Asked, Parts, View
from web.waterfall import Stretch

_COMPARED: Final = 1000  # timelines that say what is usual
_EVERY_S: Final = 1.0
_SETTLED_S: Final = 10.0  # after its end; a verdict that explains it may come that late
_FIRST: Final = ("prefill_wait", "prefill_compute")
_BETWEEN: Final = ("handoff_wait", "transfer")


class RequestHeadContext(Context, frozen=True, kw_only=True):
    """``request_head.html``."""

    id: str
    tone: str
    glyph: str
    title: str
    sentence: str | None  # what held it up
    notes: tuple[str, ...]
    error: str | None


class StretchContext(Context, frozen=True, kw_only=True):
    """One stage as a bar; in percent of the scale."""

    stage: str
    title: str
    x: str
    width: str


class WayContext(Context, frozen=True, kw_only=True):
    """Where it was: the queue, an engine, or the way to one."""

    label: str
    href: str | None
    bars: tuple[StretchContext, ...]
    spoken: str


class StageContext(Context, frozen=True, kw_only=True):
    """One stage."""

    stage: str
    label: str
    on: str
    began: str
    took: str
    share: str
    usual: str
    held: bool


class StagesContext(Context, frozen=True, kw_only=True):
    """``request_stages.html``."""

    ways: tuple[WayContext, ...]
    stages: tuple[StageContext, ...]
    scale: str
    target_x: str | None
    target: str
    whole: str
    usual: str
    title: str
    compared: str


class LegContext(Context, frozen=True, kw_only=True):
    """One call to one engine."""

    kind: str
    engine: str
    outcome: str
    tone: str
    glyph: str
    status: str
    took: str
    error: str | None


class RequestFactsContext(Context, frozen=True, kw_only=True):
    """``request_facts.html``."""

    facts: tuple[FactContext, ...]
    legs: tuple[LegContext, ...]


class RequestPageContext(Context, frozen=True, kw_only=True):
    """``request_page.html``."""

    id: str
    parts: Mapping[str, Markup]


class RequestPage:
    """``/requests/{id}``."""

    path = "/requests/{id}"
    query: tuple[str, ...] = ()
    template = "request_page"
    place = "Requests"

    def __init__(self, node: NodeView, explain: Explain | None) -> None:
        self._node = node
        self._explain = explain

    def view(self, asked: Asked) -> View:
        id = asked.names["id"]
        last = _Last(self._node, id)
        drawn = Paced[Parts](_EVERY_S)

        def parts(snapshot: NodeSnapshot) -> Parts:
            return last.settled or drawn.get(snapshot.time, lambda: self._parts(last, snapshot))

        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            return RequestPageContext(id=id, parts=painted)

        return View(title=lambda snapshot: f"Request {id[:8]}", parts=parts, body=body)

    def _parts(self, last: _Last, snapshot: NodeSnapshot) -> Parts:
        timeline = last.latest()
        explained = None
        if self._explain is not None:
            explained = self._explain(timeline, self._node.timelines(_COMPARED), snapshot)
        found: Parts = {
            "request_head": head(timeline, explained, snapshot),
            "request_stages": stages(timeline, explained, snapshot),
            "request_tokens": tokens(timeline, explained, snapshot),
            "request_facts": facts(timeline, explained),
        }
        last.keep(found, snapshot.time)
        return found


class _Last:
    """A request as it was seen last: it may be forgotten while somebody looks at it.

    ``settled``: what there is to be shown of it, some time after its end.
    """

    def __init__(self, node: NodeView, id: str) -> None:
        found = node.timeline(id)
        if found is None:
            raise RequestError(404, f"There is no request {id!r}, or it is no longer kept.", code="not_found")
        self._node = node
        self._seen = found
        self.settled: Parts | None = None

    def latest(self) -> Timeline:
        found = self._node.timeline(self._seen.id)
        if found is not None and found.arrived == self._seen.arrived:  # a client may use one id twice
            self._seen = found
        return self._seen

    def keep(self, parts: Parts, now: float) -> None:
        total_s = self._seen.total_s
        if total_s is not None and now > self._seen.arrived + total_s + _SETTLED_S:
            self.settled = parts


# ---- what held it up


def head(timeline: Timeline, explained: Explained | None, snapshot: NodeSnapshot) -> RequestHeadContext:
    pace = explained.pace if explained else None
    late = waterfall.seconds(timeline) > snapshot.slo_ttft_s or (pace is not None and pace.each_s > snapshot.slo_itl_s)
    tone = "warn" if timeline.outcome == "ok" and late else waterfall.tone(timeline)
    return RequestHeadContext(
        id=timeline.id,
        tone=tone,
        glyph=TONES[tone],
        title=_title(timeline, snapshot.slo_ttft_s),
        sentence=explained.sentence if explained else None,
        notes=tuple(explained.notes) if explained else (),
        error=timeline.error if explained is None or timeline.outcome == "ok" else None,  # else the sentence says it
    )


def _title(timeline: Timeline, target_s: float) -> str:
    outcome = waterfall.outcome(timeline)
    if timeline.ttft_s is None:
        verb = {"running": "Has run for", "failed": outcome.capitalize() + " after"}.get(
            timeline.outcome, "Cancelled after"
        )
        return f"{verb} {words.duration(timeline.total_s or waterfall.seconds(timeline))}, without a token"
    first = f"First token after {words.duration(timeline.ttft_s)}"
    if timeline.ttft_s > target_s:
        first += f", {words.duration(timeline.ttft_s - target_s)} late"
    return first if timeline.outcome == "ok" else f"{first}; {outcome}"


# ---- where its time went


def stages(timeline: Timeline, explained: Explained | None, snapshot: NodeSnapshot) -> StagesContext:
    whole_s = waterfall.seconds(timeline)
    scale_s = waterfall.scale([whole_s]) if whole_s > 0 else 0.1
    target_s = snapshot.slo_ttft_s
    return StagesContext(
        ways=_ways(timeline, scale_s),
        stages=_stages(timeline, explained),
        scale=words.setting(scale_s),
        target_x=waterfall.target_x(target_s, scale_s),
        target=words.setting(target_s),
        whole=words.duration(whole_s),
        usual=words.duration(explained.usual_first_s if explained else None),
        title=_until(timeline),
        compared=_compared(explained),
    )


def _until(timeline: Timeline) -> str:
    if timeline.ttft_s is not None:
        return "To the first token"
    return "So far" if timeline.outcome == "running" else "Until it ended"


def _compared(explained: Explained | None) -> str:
    if explained is None or (not explained.compared and explained.usual_first_s is None):
        return "Nothing is known of what is usual: no other request like it is kept."
    if not explained.compared:
        return "Usual: the means of those whose first token came in the last seconds."
    return f"Usual: the medians of {words.several(explained.compared, 'other request')} of that time."


def _ways(timeline: Timeline, scale_s: float) -> tuple[WayContext, ...]:
    """The queue, and where it went from there, in the order of its way."""
    found: dict[str, list[Stretch]] = {}
    for one in waterfall.stretches(timeline):
        if one.lasts_s > 0:
            found.setdefault(_where(one.stage, timeline), []).append(one)
    engines = {timeline.prefill_engine, timeline.decode_engine}
    return tuple(
        WayContext(
            label=where,
            href=f"/engines/{where}" if where in engines else None,
            bars=tuple(_bar(one, scale_s) for one in there),
            spoken=", ".join(one.said for one in there),
        )
        for where, there in found.items()
    )


def _bar(one: Stretch, scale_s: float) -> StretchContext:
    x, width = waterfall.share(one.begins_s, scale_s), waterfall.share(one.lasts_s, scale_s)
    return StretchContext(stage=one.stage, title=one.said, x=x, width=width)


def _where(stage: str, timeline: Timeline) -> str:
    first = timeline.prefill_engine or words.DASH
    second = timeline.decode_engine or first
    if stage == "queue":
        return "queue"
    if stage in _BETWEEN:
        return f"{first} → {second}"
    return first if stage in _FIRST or not timeline.split else second


def _stages(timeline: Timeline, explained: Explained | None) -> tuple[StageContext, ...]:
    usual = {part.stage: part.usual_s for part in explained.parts} if explained else {}
    held = (explained.held_by, explained.also) if explained else ()
    whole_s = waterfall.seconds(timeline)
    return tuple(
        StageContext(
            stage=one.stage,
            label=one.label,
            on=_where(one.stage, timeline),
            began=words.duration(one.begins_s),
            took=words.duration(one.lasts_s),
            share=words.percent(one.lasts_s / whole_s if whole_s > 0 else None),
            usual=words.duration(usual.get(one.stage)),
            held=one.stage in held,
        )
        for one in waterfall.stretches(timeline)
    )


# ---- the rest


def facts(timeline: Timeline, explained: Explained | None) -> RequestFactsContext:
    moved = explained.transfer if explained else None
    usual = (
        "" if moved is None or moved.usual_bytes_s is None else f" (usual {words.traffic_rate(moved.usual_bytes_s)})"
    )
    found = [
        ("came", times.clock(timeline.arrived)),
        ("route", timeline.route),
        ("prompt tokens", words.count(timeline.prompt_tokens)),
        ("answer", "streamed" if timeline.stream else "in one piece"),
        ("pieces sent", words.count(timeline.output_chunks)),
        ("handed over", _handed_over(timeline)),
        ("rate, while copied", words.traffic_rate(moved.bytes_s if moved else None) + usual),
        ("tries", words.count(timeline.attempts)),
        ("whole time", words.duration(timeline.total_s)),
    ]
    if timeline.unsplit_reason:
        found.append(("not split", timeline.unsplit_reason))
    return RequestFactsContext(
        facts=tuple(FactContext(label=label, value=value) for label, value in found),
        legs=tuple(map(_leg, timeline.legs)),
    )


def _handed_over(timeline: Timeline) -> str:
    """Its KV: how much, and in how many copies."""
    copies = timeline.transfer_copies
    if timeline.transfer_bytes is None or not copies:
        return words.traffic(timeline.transfer_bytes)
    return f"{words.traffic(timeline.transfer_bytes)} in {'1 copy' if copies == 1 else f'{copies:,} copies'}"


_LEG_TONES: Final = {"ok": "ok", "cancelled": "off"}


def _leg(leg: Leg) -> LegContext:
    tone = _LEG_TONES.get(leg.outcome, "bad")
    return LegContext(
        kind=leg.kind,
        engine=leg.engine,
        outcome=leg.outcome,
        tone=tone,
        glyph=TONES[tone],
        status=words.DASH if leg.status is None else str(leg.status),
        took=words.duration(leg.duration_s),
        error=leg.error,
    )
