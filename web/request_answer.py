"""How a request's answer left, piece by piece. Pure."""

from __future__ import annotations

from appliance.records import NodeSnapshot, Pieces, Timeline
from web import plot, words
from web.contexts import Context
from web.plot import Axis, BandContext, DrawnContext, PlotContext
from web.ports import Explained


class TokensContext(Context, frozen=True, kw_only=True):
    """``request_tokens.html``."""

    plot: PlotContext | None
    why_not: str
    pieces: str
    each: str
    usual: str
    target: str
    slow: bool
    whole: bool  # there is a time for every piece


def tokens(timeline: Timeline, explained: Explained | None, snapshot: NodeSnapshot) -> TokensContext:
    """Pieces over time. A piece is a token, as a rule."""
    pace = explained.pace if explained else None
    target_s = snapshot.slo_itl_s
    return TokensContext(
        plot=_pieces(timeline, timeline.pieces, target_s) if timeline.stream else None,
        why_not=_why_not(timeline),
        pieces=words.several(timeline.output_chunks, "piece"),
        each=words.duration(pace.each_s if pace else None),
        usual=words.duration(pace.usual_s if pace else None),
        target=words.setting(target_s),
        slow=pace is not None and pace.each_s > target_s,
        whole=timeline.pieces is None or timeline.pieces.every == 1,
    )


def _why_not(timeline: Timeline) -> str:
    if not timeline.stream:
        return "It was answered in one piece: there is nothing to be seen between its first token and its end."
    return "No piece of an answer has left yet." if timeline.outcome == "running" else "No answer had begun."


def _pieces(timeline: Timeline, pieces: Pieces | None, target_s: float) -> PlotContext | None:
    if pieces is None or timeline.ttft_s is None:
        return None
    points = [(after_s, 1 + number * pieces.every) for number, after_s in enumerate(pieces.after_s)]
    end_s = timeline.total_s or points[-1][0]
    points.append((max(end_s, points[-1][0]), timeline.output_chunks))
    x, y = Axis(0.0, max(end_s, 1e-3)), Axis(0.0, float(max(timeline.output_chunks, 2)))
    first_s = points[0][0]
    in_time = min(end_s, first_s + target_s * timeline.output_chunks)
    paced = [(x.x(first_s), y.y(1)), (x.x(in_time), y.y(1 + (in_time - first_s) / target_s))]
    return PlotContext(
        label=f"{words.several(timeline.output_chunks, 'piece')} of the answer, "
        f"from {words.duration(first_s)} to {words.duration(end_s)} after the request came.",
        x_name="since it came",
        y_name="pieces sent",
        x_ticks=plot.x_ticks(x, [(value, words.setting(value) if value else "0") for value in x.ticks()]),
        y_ticks=plot.y_ticks(y, [(value, words.count(round(value))) for value in y.ticks()]),
        drawn=(
            DrawnContext(kind="at-target", d=plot.line(paced)),
            DrawnContext(kind="pieces", d=plot.stairs([(x.x(after_s), y.y(count)) for after_s, count in points])),
        ),
        band=BandContext(x="0", width=f"{x.x(first_s):.1f}", middle=f"{x.x(first_s):.1f}"),
    )
