"""The page of the plan: this layout beside the others for the traffic seen, and the batches that saturate the prefill engines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from appliance.records import (
    Demand,
    EngineSnapshot,
    NodeSnapshot,
    Order,
    OrderKind,
    Plan,
    Plans,
    Remedy,
    Role,
)
from web import batch_curve, remedies, words
from web.batch_curve import CurvesContext
from web.contexts import TONES, Context
from web.fresh import Fresh
from web.ports import Actions, NodeView, Planning
from web.remedies import RemedyContext
from web.render import compact
from web.views import Asked, Parts, View

_LAYOUT: Final = re.compile(r"(?:(\d+)p(\d+)d|(\d+)b)(?:@.*)?")
_CURVES_FRESH_S: Final = 5.0
_STEPS: Final = 1000
_OF_ROLES: Final = (OrderKind.TOPOLOGY, OrderKind.ROLE)


class LoadContext(Context, frozen=True, kw_only=True):
    """A predicted load as a small bar; 1 is all that can be done."""

    value: str
    width: str
    over: bool


class LayoutContext(Context, frozen=True, kw_only=True):
    """One layout in the table."""

    layout: str
    now: bool
    best: bool
    marks: tuple[str, ...]  # the same in words
    aggregated: bool
    loads: tuple[LoadContext, ...]  # of prefill, decode and KV
    good: str
    good_percent: int
    ttft: str
    itl: str
    most: str
    error: str
    reason: str | None  # why the targets are not met
    what: str | None  # what applying it would do; None where it can't be
    order: str  # as JSON
    call: str
    gain: str | None  # predicted


class PlansContext(Context, frozen=True, kw_only=True):
    """``plans.html``: the live part."""

    tone: str
    glyph: str
    sentence: str
    why: str | None
    demand: str | None
    rows: tuple[LayoutContext, ...]
    remedies: tuple[RemedyContext, ...]  # that changed roles


class PlanContext(Context, frozen=True, kw_only=True):
    """``plan.html``."""

    parts: Mapping[str, Markup]
    prefills: bool  # there are engines with a batch curve


class PlanPage:
    """``/plan``."""

    path = "/plan"
    query: tuple[str, ...] = ()
    template = "plan"
    place = "Plan"

    def __init__(self, node: NodeView, planning: Planning | None, actions: Actions) -> None:
        self._node = node
        self._planning = planning
        self._actions = actions
        self._curves = Fresh(self._drawn, _CURVES_FRESH_S)

    def routes(self) -> list[BaseRoute]:
        """Besides the page: the curves, which take their time."""
        return [Route(f"{self.path}/curves", self.curves)]

    def view(self, asked: Asked) -> View:
        def parts(snapshot: NodeSnapshot) -> Parts:
            found = self._planning.plans() if self._planning is not None else None
            return {"plans": plans(snapshot, found, self._actions.remedies(), planned=self._planning is not None)}

        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            prefills = any(engine.role.prefills for engine in snapshot.engines)
            return PlanContext(parts=painted, prefills=prefills)

        return View(title=lambda snapshot: "Plan", parts=parts, body=body)

    async def curves(self, request: Request) -> Response:
        """The batch curve of each engine that prefills, as a part of the page: drawn once for all who look."""
        return HTMLResponse(await self._curves.get(()), headers={"cache-control": "no-store"})

    async def _drawn(self, nothing: tuple[()]) -> str:
        found = []
        for engine in self._node.latest().engines:
            if engine.role.prefills and (knee := await self._node.knee(engine.name)) is not None:
                steps = self._node.steps(engine.name, 0, _STEPS) or ()
                found.append(batch_curve.curve(engine, knee, steps))
        return compact("curves", CurvesContext(curves=tuple(found)))


def plans(snapshot: NodeSnapshot, found: Plans | None, given: Sequence[Remedy], *, planned: bool) -> PlansContext:
    """Layouts as they were predicted last. ``given``: remedies, newest first."""
    tone, sentence, why = _verdict(snapshot, found, planned)
    return PlansContext(
        tone=tone,
        glyph=TONES[tone],
        sentence=sentence,
        why=why,
        demand=_demand(found.demand) if found and found.demand else None,
        rows=tuple(_row(plan, found, snapshot.engines) for plan in found.layouts) if found else (),
        remedies=remedies.remedies([one for one in given if one.order.kind in _OF_ROLES], snapshot).remedies,
    )


def _verdict(snapshot: NodeSnapshot, found: Plans | None, planned: bool) -> tuple[str, str, str | None]:
    """Tone, sentence, and why."""
    if not planned:
        return "off", "Nobody plans on this node.", None
    if found is None:
        return "wait", "Nothing is predicted yet.", "The first prediction comes some seconds after the start."
    if found.reason is not None or not found.layouts:
        return "wait", f"Nothing is predicted: {(found.reason or 'no layout can be judged').rstrip('.')}.", None
    better = snapshot.better
    if better is not None:
        return "warn", f"{better.layout} would serve this traffic better than {found.now}.", _gains(snapshot)
    if found.best is None or not any(one.feasible for one in found.layouts):
        return "warn", "No layout of these engines meets the targets for this traffic.", _least_bad(found)
    if found.best == found.now:
        return "ok", f"{found.now} is the best of these layouts for this traffic.", _leads(found)
    now = _of(found, found.now)
    if now is not None and not now.feasible:
        return "warn", f"{found.now} misses the targets; {found.best} would be better, but not clearly.", _close(found)
    return "ok", f"{found.now} does: {found.best} would be better, but not clearly.", _close(found)


def _gains(snapshot: NodeSnapshot) -> str | None:
    better = snapshot.better
    if better is None:
        return None
    found = [
        (better.load_falls, "its highest load would be {} lower"),
        (better.good_rises, "{} more of the requests would meet both targets"),
    ]
    said = [text.format(words.percent(gain)) for gain, text in found if gain >= 0.005]
    if better.rate_grows is not None and better.rate_grows >= 0.005:
        said.append(f"it would carry {words.percent(better.rate_grows)} more")
    aggregated = " It does without hand-offs." if better.aggregated else ""
    return f"Predicted: {words.listing(said)}.{aggregated}" if said else aggregated.strip() or None


def _of(found: Plans, layout: str | None) -> Plan | None:
    return next((plan for plan in found.layouts if plan.layout == layout), None)


def _leads(found: Plans) -> str | None:
    """Beside the next best."""
    now = _of(found, found.now)
    others = [one.predicted.most_rate_s for one in found.layouts if one.predicted and one.layout != found.now]
    if now is None or now.predicted is None or not others:
        return None
    rate, next_best = words.number(now.predicted.most_rate_s), words.number(max(others))
    return f"Predicted to carry {rate} requests/s within the targets; the next best {next_best}."


def _close(found: Plans) -> str | None:
    now, best = _of(found, found.now), _of(found, found.best)
    if now is None or best is None or now.predicted is None or best.predicted is None:
        return None
    return (
        f"Predicted to carry {words.number(now.predicted.most_rate_s)} requests/s within the targets, "
        f"{best.layout} {words.number(best.predicted.most_rate_s)}: a change is advised where it is worth one."
    )


def _least_bad(found: Plans) -> str | None:
    known = [one for one in found.layouts if one.predicted is not None]
    if not known:
        return None
    best = max(known, key=lambda one: one.predicted.most_rate_s if one.predicted else 0.0)
    assert best.predicted is not None
    asked = words.number(found.demand.rate_s) if found.demand else words.DASH
    return f"{asked} requests/s are asked; the most is carried by {best.layout}: {words.number(best.predicted.most_rate_s)}, predicted."


def _demand(demand: Demand) -> str:
    hits = f", {words.percent(demand.hit_share)} of them found in a prefix cache" if demand.hit_share >= 0.005 else ""
    return (
        f"{words.number(demand.rate_s)} requests/s over the last minute, prompts of {_lengths(demand.prompt_tokens)}{hits}, "
        f"answers of {_lengths(demand.output_tokens)}"
    )


def _lengths(quantiles: Sequence[float]) -> str:
    """Median and the longest that are told."""
    middle, high = quantiles[len(quantiles) // 2], quantiles[-1]
    return f"{words.number(round(middle))} tokens (up to {words.number(round(high))})"


def _row(plan: Plan, found: Plans, engines: Sequence[EngineSnapshot]) -> LayoutContext:
    now, best, predicted = plan.layout == found.now, plan.layout == found.best, plan.predicted
    error = predicted.error if predicted else None
    loads = (predicted.prefill_load, predicted.decode_load, predicted.kv_load) if predicted else (None, None, None)
    return LayoutContext(
        layout=plan.layout,
        now=now,
        best=best,
        marks=tuple(mark for holds, mark in ((now, "now"), (best, "best")) if holds),
        aggregated=_aggregated(plan.layout),
        loads=tuple(map(_load, loads)),
        good=words.percent(predicted.good if predicted else None),
        good_percent=round(100 * predicted.good) if predicted else 0,
        ttft=words.duration(predicted.ttft_s if predicted else None),
        itl=words.duration(predicted.itl_s if predicted else None),
        most=words.number(predicted.most_rate_s if predicted else None),
        error=words.DASH if error is None else f"± {words.percent(error)}",
        reason=plan.reason,
        what=None if now else _changes(plan.layout, engines),
        order=msgspec.json.encode(Order(kind=OrderKind.TOPOLOGY, topology=plan.layout)).decode(),
        call=f'POST /api/topology {{"topology": "{plan.layout}"}}',
        gain=_gain(plan, found),
    )


def _gain(plan: Plan, found: Plans) -> str | None:
    """Beside the layout that there is."""
    now = _of(found, found.now)
    if now is None or now.predicted is None or plan.predicted is None:
        return None
    before, after = now.predicted, plan.predicted
    return (
        f"Predicted: {words.percent(after.good)} of the requests within both targets, {words.percent(before.good)} now; "
        f"up to {words.number(after.most_rate_s)} requests/s, {words.number(before.most_rate_s)} now."
    )


def _load(load: float | None) -> LoadContext:
    over = load is not None and load > 1
    return LoadContext(
        value=words.percent(load), width="0%" if load is None else f"{100 * min(1.0, load):.1f}%", over=over
    )


def _aggregated(layout: str) -> bool:
    match = _LAYOUT.fullmatch(layout)
    return match is not None and match[3] is not None


def _changes(layout: str, engines: Sequence[EngineSnapshot]) -> str | None:
    """How many engines get another role."""
    match = _LAYOUT.fullmatch(layout)
    if match is None:
        return None
    prefill, decode, both = (int(count or 0) for count in match.groups())
    if prefill + decode + both != len(engines):
        return None
    wanted = Counter({Role.PREFILL: prefill, Role.DECODE: decode, Role.BOTH: both})
    there = Counter(engine.role for engine in engines)
    said = [f"{words.several(count, 'engine')} more for {_role(role)}" for role, count in (wanted - there).items()]
    fewer = [f"{count} fewer for {_role(role)}" for role, count in (there - wanted).items()]
    how = "Roles change at once, nothing is restarted, and requests under way end where they are."
    return f"Use {layout}: {words.listing([*said, *fewer])}. {how}"


def _role(role: Role) -> str:
    return "prefill and decode" if role is Role.BOTH else role.value
