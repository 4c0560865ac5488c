"""One screen: a view and a size make lines. Pure.

What matters least goes first where there is no room: footer, newest requests, the healthy GPUs and links, sparklines, what would come
next, evidence; then engines that are well. The first line, and the engines that hold the node back, stay.
"""

from __future__ import annotations

from rich.text import Text

from appliance.cli import glyphs
from appliance.cli.live.engines import engines, troubles
from appliance.cli.live.hardware import gpus, handoffs
from appliance.cli.live.layout import Section, fit
from appliance.cli.live.node import node, sparks
from appliance.cli.live.requests import requests
from appliance.cli.live.verdict import headline, verdict
from appliance.cli.live.view import View


def frame(view: View, width: int, height: int | None = None, *, keys: bool = False) -> list[Text]:
    """Lines of at most ``width`` characters, and at most ``height`` of them; ``keys``: say which there are."""
    lines = fit(_sections(view, width, keys), height)
    first = len(headline(view, width))
    for at, line in enumerate(lines):
        if at >= first and (view.error is not None or view.stale):
            line.stylize("dim")  # it was so, and may be otherwise by now
        line.truncate(width, overflow="ellipsis")
    return lines


def _sections(view: View, width: int, keys: bool) -> list[Section]:
    found, snapshot = [verdict(view, width)], view.snapshot
    if snapshot is not None:
        found += [
            node(view, snapshot, width),
            troubles(snapshot, width),
            engines(snapshot, width),
            sparks(view, width),
            handoffs(snapshot, width),
            gpus(snapshot, width),
            requests(snapshot, width),
        ]
    return [*found, _footer(view)] if keys else found


def _footer(view: View) -> Section:
    every = f"every {view.interval_s:g} s"
    version = f"pd-appliance {view.snapshot.version} · " if view.snapshot is not None else ""
    return Section.of((9.0, [Text(f"{version}{view.url} · {every} · q ends", "dim")]))


def printable(lines: list[Text], encoding: str) -> list[Text]:
    """The same for a terminal that has no more than ASCII."""
    if encoding.lower().replace("-", "").startswith("utf"):
        return lines
    return [Text.assemble(*_spans(line)) for line in lines]


def _spans(line: Text) -> list[tuple[str, str]]:
    """Its pieces, each in one style."""
    edges = sorted({0, len(line), *(span.start for span in line.spans), *(span.end for span in line.spans)})
    pieces = line.divide(edges[1:-1])
    return [
        (glyphs.ascii_only(piece.plain), str(piece.spans[0].style if piece.spans else piece.style)) for piece in pieces
    ]
