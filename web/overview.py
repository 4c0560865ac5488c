"""The first page: whether the node is well, and if not, which engine, why, and what to do."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Final

from markupsafe import Markup

from appliance.records import NodeSnapshot
from web import assets, contexts, diagnosis, flow, gpus, remedies, request_rows
from web.contexts import Context
from web.paced import Paced
from web.ports import Actions, HistoryView
from web.views import Asked, Parts, View
from web.waterfall import LEGEND, LegendContext

_NEWEST: Final = 6  # requests
_NEWEST_S: Final = 1.0  # they are most of what is sent, and nobody reads them in less
_ORIGIN: Final = re.compile(r"https?://([A-Za-z0-9.\-]+|\[[0-9a-fA-F:.]+\])(:\d+)?")


class OverviewContext(Context, frozen=True, kw_only=True):
    """``overview.html``."""

    parts: Mapping[str, Markup]
    curl: str  # a first request, to be copied
    empty: bool  # nothing has been asked yet
    legend: tuple[LegendContext, ...]
    build: str  # fingerprint of the static files


class Overview:
    """``/``."""

    path = "/"
    query: tuple[str, ...] = ()  # its charts' range is the browser's business
    template = "overview"
    place = "Overview"

    def __init__(self, actions: Actions, history: HistoryView | None) -> None:
        self._actions = actions
        self._history = history

    def view(self, asked: Asked) -> View:
        def body(snapshot: NodeSnapshot, parts: Mapping[str, Markup]) -> Context:
            return OverviewContext(
                parts=parts,
                curl=curl(snapshot.model, asked.origin),
                empty=not snapshot.requests.total,
                legend=LEGEND,
                build=assets.fingerprint(),
            )

        sample = self._history.sample if self._history else None
        return View(
            title=lambda snapshot: snapshot.model, parts=self._parts(), body=body, sample=sample, style="charts"
        )

    def _parts(self) -> Callable[[NodeSnapshot], Parts]:
        newest = Paced[Context](_NEWEST_S)
        return lambda snapshot: {
            "headline": contexts.headline(snapshot),
            "diagnosis": diagnosis.diagnosis(snapshot),
            "remedies": remedies.remedies(self._actions.remedies(), snapshot),
            "flow": flow.flow(snapshot),
            "gpus": gpus.gpus(snapshot),
            "request_rows": newest.get(
                snapshot.time, lambda: request_rows.rows(snapshot.recent[:_NEWEST], snapshot, sentence=None)
            ),
        }


def curl(model: str, origin: str) -> str:
    """A first request to this node. ``origin`` is the browser's; anything odd is replaced."""
    where = origin if _ORIGIN.fullmatch(origin) else "http://127.0.0.1:8000"
    body = {"model": model, "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}
    return "\n".join(
        (
            f"curl -N {where}/v1/chat/completions \\",
            "  -H 'content-type: application/json' \\",
            f"  -d {shlex.quote(json.dumps(body))}",
        )
    )
