"""Incidents and their replays in words, for people at a terminal. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from appliance.cli.glyphs import visible
from appliance.incidents.bundle import Bundle
from appliance.incidents.replay import Moment, Replay, words
from appliance.records import Incident, Said
from web.words import several

_DASH = "—"


def row(one: Incident, now: float) -> tuple[str, ...]:
    """Of the list. ``now``: Unix seconds."""
    lasted = f"open, {_age(one, now)}" if one.closed is None else _length(one.closed - one.opened)
    peak = _DASH if one.severity is None else f"{one.severity:.0%}"
    cause = one.cause or "unknown"
    marked = f"{cause} (simulated)" if one.simulated else cause
    return tuple(
        visible(cell)
        for cell in (
            one.id,
            _date(one.opened),
            lasted,
            where(one),
            marked,
            peak,
            f"~{one.late}",
            str(one.failed),
        )
    )


def where(one: Incident | Said) -> str:
    """``e1``, or ``e0 to e1``."""
    if one.link is not None:
        return " to ".join(one.link)
    several = one.engines if isinstance(one, Incident) else ()
    return ", ".join(several) or one.engine or "the node"


def incident_text(one: Incident, now: float) -> str:
    """All of it. ``now``: Unix seconds."""
    return _lines([*_head(one, now), *_advice(one), "", f"Time line ({zone(one.opened)}):", *_time_line(one)])


def _head(one: Incident, now: float) -> Iterator[str]:
    over = (
        f"still open after {_age(one, now)}"
        if one.closed is None
        else f"over after {_length(one.closed - one.opened)}: {one.ended}"
    )
    again = f", was back {several(one.reopened, 'time')}" if one.reopened else ""
    yield f"Incident {one.id}{' (simulated)' if one.simulated else ''}, opened {_date(one.opened)} {zone(one.opened)}, {over}{again}"
    yield f"{where(one)}: {one.cause or 'nothing told why'}"
    yield one.summary
    peak = "" if one.severity is None else f" At the peak, {one.severity:.0%} were late or failed."
    yield f"About {one.late} first tokens were late, and {one.failed} requests failed.{peak}"
    yield f"The node: {one.model} as {one.topology}, pd-appliance {one.version}"


def _advice(one: Incident) -> Iterator[str]:
    yield from (f"  - {evidence.sentence}" for evidence in one.evidence)
    if one.action is not None:
        yield f"What to do: {one.action.sentence}"
        yield from (f"  {way}" for way in (one.action.call, one.action.setting) if way)
    if one.next:
        yield f"Then: {one.next}"


def _time_line(one: Incident) -> list[str]:
    """What changed, what was said of it, and when it began and ended."""
    happened = [(change.time, f"  {change.sentence}") for change in one.changes]
    happened.append((one.opened, "* it began"))
    happened += [(said.time, f"! {_verdict(said)}") for said in one.verdicts]
    if one.closed is not None:
        happened.append((one.closed, f"* it was over: {one.ended}"))
    return [
        f"  {_time(when)}  {_since(when - one.opened):>7}  {what}"
        for when, what in sorted(happened, key=lambda one: one[0])
    ]


def _verdict(said: Said) -> str:
    return said.summary if said.cause is None else f"{said.cause} of {where(said)}: {said.summary}"


def replay_text(read: Bundle, found: Replay) -> str:
    """What was said then, and what is said now."""
    header = read.header
    marked = " (simulated)" if header.simulated else ""
    lines = [f"Incident {read.incident.id}{marked}, seen by pd-appliance {header.version}: {found.snapshots} snapshots"]
    lines += [
        f"  {_time(one.time)}  {_since(one.time - read.incident.opened):>7}  {_moment(one)}" for one in found.changes
    ]
    return _lines([*lines, _judgement(found)])


def _lines(found: Iterable[str]) -> str:
    """A file may be anybody's, and engines' last words are their own: nothing of it is obeyed by a terminal."""
    return "\n".join(map(visible, found))


def _moment(one: Moment) -> str:
    said, now = words(one.recorded), words(one.replayed)
    if said == now:
        return now
    why = "" if one.judged else "; too little of what was before is in the file to judge"
    return f"{now} (then: {said}{why})"


def _judgement(found: Replay) -> str:
    if found.agrees is None:
        return "Too few snapshots in a row are in the file to judge whether the diagnoser says the same."
    if found.agrees:
        return f"The diagnoser says what it said then, for all {found.judged} snapshots that it can be judged by."
    return f"The diagnoser says something else than it said then for {found.judged - found.same} of {found.judged} snapshots."


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _age(one: Incident, now: float) -> str:
    return _length(max(0.0, now - one.opened))


def _since(seconds: float) -> str:
    return f"{seconds:+.1f} s" if abs(seconds) < 1000 else f"{seconds / 60:+.0f} min"


def _time(unix_s: float) -> str:
    return _local("%H:%M:%S", unix_s)


def _date(unix_s: float) -> str:
    return _local("%Y-%m-%d %H:%M:%S", unix_s)


def zone(unix_s: float) -> str:
    """Whose time it is that is shown: ids are in UTC."""
    return _local("%Z", unix_s)


def _local(form: str, unix_s: float) -> str:
    try:
        return time.strftime(form, time.localtime(unix_s))
    except (OverflowError, OSError, ValueError):  # no time that a clock ever said
        return _DASH
