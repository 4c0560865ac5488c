"""The page on which a prompt can be tried: its answer as it comes, and where its time went. The browser asks; nothing is kept here."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from appliance.records import NodeSnapshot
from web import assets, words
from web.contexts import Context
from web.overview import curl
from web.views import Asked, Parts, View
from web.waterfall import LEGEND, LegendContext


class TryContext(Context, frozen=True, kw_only=True):
    """``try.html``."""

    parts: Mapping[str, Markup]
    model: str
    simulated: bool
    legend: tuple[LegendContext, ...]
    ttft_target_s: float
    itl_target_s: float
    curl: str
    build: str


class ReadinessContext(Context, frozen=True, kw_only=True):
    """``readiness.html``: whether a request would be served now."""

    ready: bool
    sentence: str


class Playground:
    """``/try``."""

    path = "/try"
    query: tuple[str, ...] = ()
    template = "try"
    place = "Try it"

    def view(self, asked: Asked) -> View:
        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            return TryContext(
                parts=painted,
                model=snapshot.model,
                simulated=snapshot.simulated,
                legend=LEGEND,
                ttft_target_s=snapshot.slo_ttft_s,
                itl_target_s=snapshot.slo_itl_s,
                curl=curl(snapshot.model, asked.origin),
                build=assets.fingerprint(),
            )

        return View(title=lambda snapshot: "Try it", parts=parts, body=body)


def parts(snapshot: NodeSnapshot) -> Parts:
    """What moves."""
    return {"readiness": readiness(snapshot)}


def readiness(snapshot: NodeSnapshot) -> ReadinessContext:
    """In words, and why not."""
    if not snapshot.ready:
        return ReadinessContext(ready=False, sentence=snapshot.reason or "No engine is ready yet.")
    waiting = words.several(snapshot.queue.depth, "request")
    before = (
        f" {waiting} {'is' if snapshot.queue.depth == 1 else 'are'} before it in the queue."
        if snapshot.queue.depth
        else ""
    )
    return ReadinessContext(ready=True, sentence=f"A request would be served now.{before}")
