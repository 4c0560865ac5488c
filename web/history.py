"""How the node was, and what happened to it meanwhile: what charts are drawn of."""

from __future__ import annotations

import asyncio
import re
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliance.errors import RequestError
from appliance.records import Change, History, Incident
from web import answers
from web.packed import PACKED
from web.ports import HistoryView, MarkView, NodeView

_POINTS: Final = 600
_POINTS_MOST: Final = 2000
_MARKS_MOST: Final = 500
_SERIES_MOST: Final = 256
_YEARS_S: Final = 10 * 366 * 86_400.0
_RELATIVE: Final = re.compile(r"-(\d{1,9}(?:\.\d{1,3})?)([smhd])", re.ASCII)
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_UNIX: Final = re.compile(r"\d{1,10}(\.\d{1,6})?", re.ASCII)


class Spell(msgspec.Struct, frozen=True, kw_only=True):
    """An incident, as a chart marks it."""

    id: str
    opened: float
    closed: float | None
    summary: str
    cause: str | None
    engine: str | None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: one column of values for each series, with the times that they all share."""

    now: float  # the node's clock
    simulated: bool
    slo_ttft_s: float
    slo_itl_s: float
    history: History
    changes: tuple[Change, ...]
    incidents: tuple[Spell, ...]
    marks_most: int = _MARKS_MOST  # of the changes and of the incidents; older ones are left out


class HistoryRoutes:
    """404 where no history is kept."""

    def __init__(self, node: NodeView, history: HistoryView | None, marks: MarkView | None) -> None:
        self._node = node
        self._history = history
        self._marks = marks

    def routes(self) -> list[BaseRoute]:
        return [Route("/api/history", self.history, middleware=PACKED)]

    async def history(self, request: Request) -> Response:
        """``?from=-1h&to=now&points=600&series=ttft_s,*.kv_usage``."""
        if self._history is None:
            raise RequestError(404, "No history is kept.", code="not_found")
        asked, node = request.query_params, self._node.latest()
        since, until = span(asked.get("from"), asked.get("to"), node.time)
        points = points_of(asked.get("points"))
        found = await self._history.read(since, until, points, series_of(asked.get("series")))
        changes, incidents = await self._marked(since, until)
        told = Told(
            now=node.time,
            simulated=node.simulated,
            slo_ttft_s=node.slo_ttft_s,
            slo_itl_s=node.slo_itl_s,
            history=found,
            changes=changes,
            incidents=incidents,
        )
        return answers.encoded(await asyncio.to_thread(encoded, told))

    async def _marked(self, since: float, until: float) -> tuple[tuple[Change, ...], tuple[Spell, ...]]:
        if self._marks is None:
            return (), ()
        changes, incidents = await self._marks.between(since, until, _MARKS_MOST)
        return tuple(changes), tuple(_spell(one) for one in incidents)


def encoded(told: Told) -> bytes:
    """Series by series, beside the loop: of all in one piece the interpreter would be taken from it for as long as they take."""
    history = msgspec.structs.asdict(told.history)
    for part in ("series", "highest", "lowest"):
        history[part] = {name: msgspec.Raw(msgspec.json.encode(values)) for name, values in history[part].items()}
    return msgspec.json.encode({**msgspec.structs.asdict(told), "history": history})


def span(since: str | None, until: str | None, now: float) -> tuple[float, float]:
    """From when to when. Raises ``RequestError``."""
    begin, end = moment(since or "-1h", "from", now), min(now, moment(until or "now", "to", now))
    if not 1 <= end - begin <= _YEARS_S:
        raise RequestError(400, "from must be at least a second before to, which is no later than now.", param="from")
    return begin, end


def moment(text: str, name: str, now: float) -> float:
    """Unix seconds, ``now``, or back from it: ``-90s``, ``-15m``, ``-6h``, ``-7d``. Raises ``RequestError``."""
    if text == "now":
        return now
    if (back := _RELATIVE.fullmatch(text)) is not None and (found := now - float(back[1]) * _UNITS_S[back[2]]) >= 0:
        return found
    if _UNIX.fullmatch(text) is not None:
        return float(text)
    raise RequestError(
        400, f"{name} must be Unix seconds, now, or back from now, like -90s, -15m, -6h or -7d.", param=name
    )


def points_of(text: str | None) -> int:
    """Raises ``RequestError``."""
    if text is None:
        return _POINTS
    if text.isascii() and text.isdigit() and len(text) < 6 and 2 <= int(text) <= _POINTS_MOST:
        return int(text)
    raise RequestError(400, f"points must be a whole number from 2 to {_POINTS_MOST}.", param="points")


def series_of(text: str | None) -> list[str]:
    """All of the node's own where nothing is said. Raises ``RequestError``."""
    found = [name.strip() for name in ("*" if text is None else text).split(",")]
    if len(found) > _SERIES_MOST or not all(found):
        raise RequestError(
            400,
            f"series must be names with commas between them, {_SERIES_MOST} at most: ttft_s,*.kv_usage",
            param="series",
        )
    return found


def _spell(incident: Incident) -> Spell:
    return Spell(
        id=incident.id,
        opened=incident.opened,
        closed=incident.closed,
        summary=incident.summary,
        cause=incident.cause,
        engine=incident.engine,
    )
