"""The page of requests: the newest ones, and links that show only some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from markupsafe import Markup

from appliance.errors import RequestError
from appliance.records import NodeSnapshot, Timeline
from web import assets, request_rows, words
from web.contexts import ChoicesContext, Context, choices
from web.paced import Paced
from web.ports import NodeView
from web.request_rows import RowsContext
from web.views import Asked, Parts, View
from web.waterfall import LEGEND, LegendContext

_LOOKED_AT: Final = 1000  # timelines
_ROWS: Final = (50, 200)
_EVERY_S: Final = 1.0
_PATH: Final = "/requests"
_LABELS: Final = {"show": "Show", "engine": "Engine", "route": "Route", "limit": "Rows"}  # of what a query may say
_NONE_LIKE_THAT: Final = "None is like that now. Those that come will stand here."


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


_USUAL: Final = Wanted()


SHOWN: Final[Mapping[str, Callable[[Timeline, float], bool]]] = {
    "all": lambda timeline, target_s: True,
    "slow": request_rows.is_slow,
    "failed": lambda timeline, target_s: timeline.outcome == "failed",
    "cancelled": lambda timeline, target_s: timeline.outcome == "cancelled",
    "running": lambda timeline, target_s: timeline.outcome == "running",
}
"""Which ones, by what ``?show=`` says."""


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
                legend=LEGEND,
                build=assets.fingerprint(),
            )

        return View(title=lambda snapshot: "Requests", parts=parts, body=body)


def _wanted(query: Mapping[str, str]) -> Wanted:
    show, limit = query.get("show", _USUAL.show), query.get("limit", str(_USUAL.limit))
    if show not in SHOWN:
        raise RequestError(400, f"show must be one of {', '.join(SHOWN)}.", param="show")
    if limit not in map(str, _ROWS):
        raise RequestError(
            400, f"limit must be {words.listing([*map(str, _ROWS)]).replace(' and ', ' or ')}.", param="limit"
        )
    return Wanted(show=show, engine=query.get("engine", ""), route=query.get("route", ""), limit=int(limit))


def chosen(timelines: Sequence[Timeline], wanted: Wanted, target_s: float) -> list[Timeline]:
    """Newest first, as they come."""
    shown = SHOWN[wanted.show]
    return [
        one
        for one in timelines
        if shown(one, target_s)
        and (not wanted.engine or wanted.engine in (one.prefill_engine, one.decode_engine))
        and (not wanted.route or one.route == wanted.route)
    ]


def rows(timelines: Sequence[Timeline], wanted: Wanted, snapshot: NodeSnapshot) -> RowsContext:
    """The table: those that are asked for, of all that are kept."""
    found = chosen(timelines, wanted, snapshot.slo_ttft_s)
    shown = found[: wanted.limit]
    sentence = _sentence(len(shown), len(found), len(timelines), wanted, snapshot.slo_ttft_s)
    return request_rows.rows(shown, snapshot, sentence, _NONE_LIKE_THAT if timelines else request_rows.EMPTY)


def _sentence(shown: int, found: int, kept: int, wanted: Wanted, target_s: float) -> str:
    what = words.several(found, "request") if wanted.show == "all" else f"{words.count(found)} {wanted.show}"
    late = f" (over {words.setting(target_s)} to the first token)" if wanted.show == "slow" else ""
    where = f" on {wanted.engine}" if wanted.engine else ""
    of = f", of {words.count(kept)} kept" if found < kept else " kept"
    newest = f"; the newest {shown:,} are shown" if shown < found else ""
    return f"{what}{where}{late}{of}{newest}"


def _groups(wanted: Wanted, snapshot: NodeSnapshot, timelines: Sequence[Timeline]) -> tuple[ChoicesContext, ...]:
    """Links to other ones."""
    routes = sorted({one.route for one in timelines} | ({wanted.route} - {""}))
    lines: dict[str, list[tuple[str, str]]] = {
        "show": [(show, show) for show in SHOWN],
        "engine": [("any", ""), *((engine.name, engine.name) for engine in snapshot.engines)],
        "route": [("any", ""), *((route.removeprefix("/v1/"), route) for route in routes)],
        "limit": [(str(limit), str(limit)) for limit in _ROWS],
    }
    query = {name: _in_address(name, str(getattr(wanted, name))) for name in lines}
    return tuple(
        choices(_LABELS[name], _PATH, query, name, [(said, _in_address(name, value)) for said, value in options])
        for name, options in lines.items()
        if name != "route" or len(routes) > 1
    )


def _in_address(name: str, value: str) -> str:
    """What is usual is not said there."""
    return "" if value == str(getattr(_USUAL, name)) else value
