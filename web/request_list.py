"""The page of requests: the newest ones, each a waterfall on one scale, and links that show only some of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from markupsafe import Markup

from appliance.errors import RequestError
from appliance.records import STAGES, NodeSnapshot, Role, Timeline
from web import assets, waterfall, words
from web.contexts import ChoiceContext, ChoicesContext, Context
from web.paced import Paced
from web.ports import NodeView
from web.render import compact
from web.views import Asked, Parts, View
from web.waterfall import LegendContext

_LOOKED_AT: Final = 1000  # timelines
_ROWS: Final = (50, 200)
_EVERY_S: Final = 1.0
_WITHIN: Final = 0.98  # of the rows lie within the scale; the others go beyond it
_SHORT: Final = 7  # characters of an id
_PATH: Final = "/requests"


class StretchContext(Context, frozen=True, kw_only=True):
    """A stage in a row; positions in percent of the scale. (Rows are many: they are said in one piece, not stage by stage.)"""

    stage: str
    x: str
    width: str


class LineContext(Context, frozen=True, kw_only=True):
    """``request_line.html``: one row."""

    key: str
    id: str
    short: str
    clock: str
    path: str
    bars: tuple[StretchContext, ...]
    spoken: str
    beyond: bool  # it is longer than the scale
    target_x: str | None
    ttft: str
    late: bool
    mostly: str | None
    total: str
    outcome: str
    tone: str
    glyph: str
    marks: tuple[str, ...]
    error: str | None


class RowsContext(Context, frozen=True, kw_only=True):
    """``request_rows.html``."""

    sentence: str
    rows: Markup
    empty: str | None  # why there are none
    scale: str
    target: str
    target_x: str | None


class RequestListContext(Context, frozen=True, kw_only=True):
    """``request_list.html``."""

    parts: Mapping[str, Markup]
    groups: tuple[ChoicesContext, ...]
    legend: tuple[LegendContext, ...]
    build: str


class Wanted(Context, frozen=True, kw_only=True):
    """Which ones are asked for."""

    show: str = "all"
    engine: str = ""
    route: str = ""
    limit: int = _ROWS[0]


def _slow(timeline: Timeline, target_s: float) -> bool:
    return waterfall.seconds(timeline) > target_s


SHOWN: Final[Mapping[str, tuple[str, Callable[[Timeline, float], bool]]]] = {
    "all": ("all", lambda timeline, target_s: True),
    "slow": ("slow", _slow),
    "failed": ("failed", lambda timeline, target_s: timeline.outcome == "failed"),
    "cancelled": ("cancelled", lambda timeline, target_s: timeline.outcome == "cancelled"),
    "running": ("running", lambda timeline, target_s: timeline.outcome == "running"),
}
"""By what ``?show=`` says: in words, and which ones. Slow: the first token came later than the target, or is later already."""


class RequestList:
    """``/requests``; ``?show=``, ``?engine=``, ``?route=`` and ``?limit=`` choose among them."""

    path = _PATH
    query: tuple[str, ...] = ("show", "engine", "route", "limit")
    template = "request_list"
    place = "Requests"

    def __init__(self, node: NodeView) -> None:
        self._node = node

    def view(self, asked: Asked) -> View:
        wanted = _wanted(asked.query)
        drawn = Paced[RowsContext](_EVERY_S)

        def parts(snapshot: NodeSnapshot) -> Parts:
            return {
                "request_rows": drawn.get(
                    snapshot.time, lambda: rows(self._node.timelines(_LOOKED_AT), wanted, snapshot)
                )
            }

        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            return RequestListContext(
                parts=painted,
                groups=_groups(wanted, snapshot, self._node.timelines(_LOOKED_AT)),
                legend=tuple(LegendContext(stage=stage, label=waterfall.LABELS[stage]) for stage in STAGES),
                build=assets.fingerprint(),
            )

        return View(title=lambda snapshot: "Requests", parts=parts, body=body)


def _wanted(query: Mapping[str, str]) -> Wanted:
    show, limit = query.get("show", "all"), query.get("limit", str(_ROWS[0]))
    if show not in SHOWN:
        raise RequestError(400, f"show must be one of {', '.join(SHOWN)}.", param="show")
    if limit not in map(str, _ROWS):
        raise RequestError(
            400, f"limit must be {words.listing([*map(str, _ROWS)]).replace(' and ', ' or ')}.", param="limit"
        )
    return Wanted(show=show, engine=query.get("engine", ""), route=query.get("route", ""), limit=int(limit))


def chosen(timelines: Sequence[Timeline], wanted: Wanted, target_s: float) -> list[Timeline]:
    """Newest first, as they come."""
    _, shown = SHOWN[wanted.show]
    return [
        one
        for one in timelines
        if shown(one, target_s)
        and (not wanted.engine or wanted.engine in (one.prefill_engine, one.decode_engine))
        and (not wanted.route or one.route == wanted.route)
    ]


def rows(timelines: Sequence[Timeline], wanted: Wanted, snapshot: NodeSnapshot) -> RowsContext:
    """The table."""
    target_s = snapshot.slo_ttft_s
    found = chosen(timelines, wanted, target_s)
    shown = found[: wanted.limit]
    scale_s = waterfall.scale(_most(shown))
    target_x = f"{100 * target_s / scale_s:.2f}%" if target_s <= scale_s else None
    splits = any(engine.role is not Role.BOTH for engine in snapshot.engines)
    return RowsContext(
        sentence=_sentence(len(shown), len(found), len(timelines), wanted, target_s),
        rows=Markup("\n").join(_row(one, scale_s, target_s, target_x, splits) for one in shown),
        empty=None if shown else _empty(len(timelines), wanted),
        scale=words.setting(scale_s),
        target=words.setting(target_s),
        target_x=target_x,
    )


def _most(timelines: Sequence[Timeline]) -> list[float]:
    """How long nearly all of them are: one that waited for a minute must not make all others invisible."""
    lengths = sorted(map(waterfall.seconds, timelines))
    return lengths[: max(1, round(_WITHIN * len(lengths)))]


@functools.lru_cache(maxsize=2048)
def _row(timeline: Timeline, scale_s: float, target_s: float, target_x: str | None, splits: bool) -> Markup:
    """What is over does not change any more, and is asked for again and again."""
    return Markup(compact("request_line", line(timeline, scale_s, target_s, target_x, splits)))


def line(timeline: Timeline, scale_s: float, target_s: float, target_x: str | None, splits: bool) -> LineContext:
    """One row on a scale of ``scale_s`` seconds."""
    row = waterfall.row(timeline, scale_s, splits)
    return LineContext(
        key=row.key,
        id=row.id,
        short=_short(row.id),
        clock=row.clock,
        path=row.path,
        bars=tuple(StretchContext(stage=bar.stage, x=bar.x, width=bar.width) for bar in row.bars),
        spoken=row.spoken,
        beyond=waterfall.seconds(timeline) > scale_s,
        target_x=target_x,
        ttft=row.ttft,
        late=_slow(timeline, target_s),
        mostly=row.mostly,
        total=words.duration(timeline.total_s),
        outcome=row.outcome,
        tone=row.tone,
        glyph=row.glyph,
        marks=row.marks,
        error=row.error,
    )


def _short(id: str) -> str:
    """Its end: those that clients number begin alike."""
    return id if len(id) <= _SHORT else f"…{id[1 - _SHORT :]}"


def _sentence(shown: int, found: int, kept: int, wanted: Wanted, target_s: float) -> str:
    what = words.several(found, "request") if wanted.show == "all" else f"{words.count(found)} {wanted.show}"
    late = f" (over {words.setting(target_s)} to the first token)" if wanted.show == "slow" else ""
    where = f" on {wanted.engine}" if wanted.engine else ""
    of = f", of {words.count(kept)} kept" if found < kept else " kept"
    newest = f"; the newest {shown:,} are shown" if shown < found else ""
    return f"{what}{where}{late}{of}{newest}"


def _empty(kept: int, wanted: Wanted) -> str:
    if not kept:
        return "None yet. Each request will leave a line here that shows where its time went."
    return "None is like that now. Those that come will stand here."


def _groups(wanted: Wanted, snapshot: NodeSnapshot, timelines: Sequence[Timeline]) -> tuple[ChoicesContext, ...]:
    def choice(label: str, **changed: str) -> ChoiceContext:
        query = {"show": wanted.show, "engine": wanted.engine, "route": wanted.route, "limit": str(wanted.limit)}
        here = all(query[name] == value for name, value in changed.items())
        query |= changed
        defaults = {"show": "all", "limit": str(_ROWS[0])}
        said = {name: value for name, value in query.items() if value != defaults.get(name)}
        return ChoiceContext(label=label, href=words.address(_PATH, **said), here=here)

    engines = [engine.name for engine in snapshot.engines]
    routes = sorted({one.route for one in timelines} | ({wanted.route} - {""}))
    found = [
        ChoicesContext(label="Show", choices=tuple(choice(label, show=show) for show, (label, _) in SHOWN.items())),
        ChoicesContext(
            label="Engine", choices=(choice("any", engine=""), *(choice(name, engine=name) for name in engines))
        ),
    ]
    if len(routes) > 1:
        named = (choice(route.removeprefix("/v1/"), route=route) for route in routes)
        found.append(ChoicesContext(label="Route", choices=(choice("any", route=""), *named)))
    found.append(ChoicesContext(label="Rows", choices=tuple(choice(str(limit), limit=str(limit)) for limit in _ROWS)))
    return tuple(found)
