"""The first lines: whether the node answers, serves and is well; what holds it back, on what evidence, what to do. Pure.

Each condition has a word and a mark, so that none needs its colour.
"""

from __future__ import annotations

from typing import Final

from rich.text import Text

from appliance.cli.glyphs import age, plain
from appliance.cli.live.layout import Section, wrapped
from appliance.cli.live.view import View
from appliance.records import GAINS_REQUESTS, EngineState, NodeSnapshot, Verdict
from web import words
from web.times import clock

_STYLES: Final = {"●": "bold green", "▲": "bold yellow", "✕": "bold red", "◔": "bold cyan"}
_INDENT: Final = "  "
_SURE: Final = 0.005


def verdict(view: View, width: int) -> Section:
    """From everything that the verdict says to its first line."""
    first = headline(view, width)
    found = view.snapshot.verdict if view.snapshot is not None else None
    if found is None or view.snapshot is None or (found.state == "ok" and view.error is None):
        return Section.of((0, first))
    before = [Text(f"{_INDENT}Before that: {_name(found, view.snapshot)}", "dim")] if view.error is not None else []
    summary, evidence = _summary(found, width), _evidence(found, width)
    todo, after = _action(found, width), _next(found, width)
    return Section.of(
        (5.8, [*first, *before, *summary, *evidence, *todo, *after]),
        (5.4, [*first, *before, *summary, *evidence, *todo]),
        (3.6, [*first, *before, *summary, *todo]),
        (2.4, [*first, *before, *summary[:2], *todo[:1]]),
        (0.6, [*first, *before, *(todo[:1] or summary[:1])]),
        (0, first),
    )


def headline(view: View, width: int) -> list[Text]:
    """The one line that is always there."""
    mark, word, rest = _condition(view)
    found = Text()
    found.append(f"{mark} {word}", f"{_STYLES[mark]} reverse" if mark == "✕" else _STYLES[mark])
    found.append(plain(rest), "bold" if mark != "●" else "")
    if found.cell_len <= width:
        return [found]
    if mark == "✕" and view.error is not None:  # where it was asked, and why that failed, is all there is to say
        lines = wrapped(f"{mark} {word}{rest}", width, indent=_INDENT, first="")
        return [Text(lines[0].plain, _STYLES[mark]), *lines[1:3]]
    found.truncate(width, overflow="ellipsis")
    return [found]


def _condition(view: View) -> tuple[str, str, str]:
    """Mark, word and sentence."""
    snapshot = view.snapshot
    if view.error is not None and view.lost_at is not None:
        where = f"from {view.url} since {clock(view.lost_at)} ({age(max(0.0, view.now - view.lost_at))})"
        remedy = "" if snapshot is not None else "; --url names another node"
        return "✕", "NO ANSWER", f" {where}: {view.error}. It is asked again and again{remedy}."
    if snapshot is None:
        return "◔", "ASKING", f" {view.url}"
    if view.stale:
        return (
            "▲",
            "STALE",
            f": it answers, but has said nothing new for {age(view.silent_s)}: all of this is as old.",
        )
    if not snapshot.ready:
        return _not_serving(snapshot)
    found = snapshot.verdict
    if found is None:
        return "▲", "UNKNOWN", ": this node does not say what holds it back."
    if found.state == "ok":
        return "●", "OK", f" {found.summary}"
    mark = "✕" if found.state == "bottleneck" else "▲"
    return mark, _name(found, snapshot), _since(found, snapshot)


def _name(found: Verdict, snapshot: NodeSnapshot) -> str:
    """BOTTLENECK e1: prefill_straggler_gpu."""
    if found.state != "bottleneck":
        return found.state.upper()
    where = " to ".join(found.link) if found.link else ", ".join(found.engines) or found.engine or "the node"
    return f"BOTTLENECK {where}: {found.cause or 'not named'}"


def _since(found: Verdict, snapshot: NodeSnapshot) -> str:
    lasts = f", for {age(max(0.0, snapshot.time - found.since))}"
    return lasts if found.confidence is None else f"{lasts}, {found.confidence:.0%} sure"


def _not_serving(snapshot: NodeSnapshot) -> tuple[str, str, str]:
    starting = [engine for engine in snapshot.engines if engine.state is EngineState.STARTING]
    if not starting:
        return "✕", "NOT SERVING", f": {snapshot.reason or 'no engine is ready.'}"
    states = [f"{engine.name} {_progress(engine.progress, engine.stage)}" for engine in starting]
    return "◔", "STARTING", f" {words.listing(states)}."


def _progress(progress: float | None, stage: str | None) -> str:
    return " ".join(filter(None, (None if progress is None else f"{progress:.0%}", f"({stage})" if stage else None)))


def _summary(found: Verdict, width: int) -> list[Text]:
    return wrapped(found.summary, width, indent=_INDENT)


def _evidence(found: Verdict, width: int) -> list[Text]:
    """What the summary does not say already."""
    new = [one.sentence for one in found.evidence if one.sentence.rstrip(".") not in found.summary]
    return [line for one in new for line in wrapped(one, width, indent="    ", first="  · ")]


def _action(found: Verdict, width: int) -> list[Text]:
    action = found.action
    if action is None:
        return []
    lines = wrapped(f"{action.sentence}{_gain(found)}", width, style="bold", indent="      ", first="  Do: ")
    exact = [text for text in (action.call, action.setting) if text]
    return lines + [line for text in exact for line in wrapped(text, width, style="cyan", indent="      ")]


def _gain(found: Verdict) -> str:
    if found.expected_gain is None or found.expected_gain <= _SURE:
        return ""
    if found.cause in GAINS_REQUESTS:
        return f" {found.expected_gain:.0%} more of the requests would meet the targets, predicted."
    return f" Late times would get {found.expected_gain:.0%} shorter, estimated."


def _next(found: Verdict, width: int) -> list[Text]:
    return wrapped(found.next, width, style="dim", indent="        ", first="  Then: ") if found.next else []
