"""One request in text: the answer, its stages as a waterfall beside what is usual, and what else is known of it. Pure."""

from __future__ import annotations

from rich.text import Text

from appliance.cli import glyphs
from appliance.cli.live.layout import wrapped
from appliance.cli.live.requests import outcome
from appliance.diagnosis.because import Why, clock
from appliance.diagnosis.why import DECODE, Part
from appliance.records import Leg, Timeline
from web import words
from web.waterfall import LABELS, path

_NAME, _FIGURE, _SHARE = 14, 9, 6  # characters
_WIDEST = 60  # of the bars
_LABEL = 11


def waterfall(why: Why, width: int) -> list[Text]:
    """Lines of at most ``width`` characters."""
    lines = [*_head(why.timeline, width), Text(), *wrapped(why.sentence, width, style="bold")]
    lines += [Text(), *_stages(why, width), *_after(why)]
    details = [*_handoff(why, width), *_legs(why.timeline, width), *_notes(why, width)]
    lines += [Text(), *details] if details else []
    lines += [Text(), *wrapped(_compared(why), width, style="dim")]
    return [*lines, *_verdict(why, width)]


def _head(timeline: Timeline, width: int) -> list[Text]:
    said = [timeline.id, timeline.route, "streamed" if timeline.stream else "in one piece", outcome(timeline)]
    said.append(f"came {clock(timeline.arrived)}")
    if timeline.prompt_tokens is not None:
        said.append(f"{timeline.prompt_tokens:,} prompt tokens")
    if timeline.stream and timeline.output_chunks:
        said.append(words.several(timeline.output_chunks, "piece"))
    said.append(path(timeline))
    return wrapped(" · ".join(said), width, style="dim")


def _stages(why: Why, width: int) -> list[Text]:
    room = min(_WIDEST, width - _NAME - 2 * _FIGURE - _SHARE - 4)
    head = f"  {'stage':<{_NAME}}{'time':>{_FIGURE}}{'share':>{_SHARE}}{'usual':>{_FIGURE}}"
    lines, before_s = [Text(head, "dim")], 0.0
    for part in why.parts:
        lines.append(_stage(part, before_s, why.first_s, room, held=part.stage in (why.held_by, why.also)))
        before_s += part.duration_s
    return lines


def _stage(part: Part, before_s: float, whole_s: float, room: int, *, held: bool) -> Text:
    style = "bold yellow" if held else ""
    label = LABELS.get(part.stage, part.stage)
    line = Text(f"{'▶' if held else ' '} {label:<{_NAME}}{glyphs.seconds(part.duration_s):>{_FIGURE}}", style)
    line.append(f"{glyphs.percent(part.share):>{_SHARE}}").append(f"{glyphs.seconds(part.usual_s):>{_FIGURE}}", "dim")
    if room > 0 and part.duration_s > 0 and whole_s > 0:
        line.append("  ").append(glyphs.span(before_s / whole_s, part.duration_s / whole_s, room).rstrip(), "cyan")
    return line


def _after(why: Why) -> list[Text]:
    """The sums below the stages: first token, answer, all of it."""
    late = why.first_s > why.target_ttft_s
    first = _row("first token" if why.timeline.ttft_s is not None else "so far", why.first_s, why.usual_first_s)
    first.append(f"  target {glyphs.seconds(why.target_ttft_s)}", "dim")
    first.append(f", {glyphs.seconds(why.first_s - why.target_ttft_s)} late" if late else "", "yellow")
    lines = [first]
    if why.timeline.ttft_s is not None:
        lines.append(_row("answer", why.elapsed_s - why.first_s, None))
    if why.pace is not None:
        each = _row("each piece", why.pace.each_s, why.pace.usual_s, held=DECODE in (why.held_by, why.also))
        lines.append(each.append(f"  target {glyphs.seconds(why.pace.target_s)}", "dim"))
    lines.append(_row("all of it", why.elapsed_s, None))
    for line in lines:
        line.rstrip()
    return lines


def _row(name: str, took_s: float, usual_s: float | None, *, held: bool = False) -> Text:
    line = Text(f"{'▶' if held else ' '} {name:<{_NAME}}", "bold yellow" if held else "")
    line.append(f"{glyphs.seconds(took_s):>{_FIGURE}}").append(" " * _SHARE)
    return line.append(f"{'' if usual_s is None else glyphs.seconds(usual_s):>{_FIGURE}}", "dim")


def _handoff(why: Why, width: int) -> list[Text]:
    moved = why.transfer
    if moved is None:
        return []
    copies = "" if not moved.copies else " in 1 copy" if moved.copies == 1 else f" in {moved.copies:,} copies"
    usual = "" if moved.usual_bytes_s is None else f" (usual {words.traffic_rate(moved.usual_bytes_s)})"
    said = f"{path(why.timeline)}, {words.traffic(moved.bytes)}{copies}, {words.traffic_rate(moved.bytes_s)}{usual}"
    return _detail("hand-off", said, width)


def _legs(timeline: Timeline, width: int) -> list[Text]:
    legs = enumerate(timeline.legs)
    return [line for at, leg in legs for line in _detail("" if at else "legs", _leg(leg), width)]


def _leg(leg: Leg) -> str:
    status = "" if leg.status is None else f" ({leg.status})"
    error = f": {leg.error}" if leg.error else ""
    return f"{leg.kind} on {leg.engine}, {leg.outcome}{status}, {glyphs.seconds(leg.duration_s)}{error}"


def _notes(why: Why, width: int) -> list[Text]:
    said = [f"error: {why.timeline.error}"] if why.timeline.error and why.timeline.outcome == "ok" else []
    said += why.notes
    return [line for one in said for line in wrapped(one, width, indent="    ", first="  ")]


def _detail(label: str, said: str, width: int) -> list[Text]:
    return wrapped(said, width, indent=" " * (_LABEL + 4), first=f"  {label:<{_LABEL}}")


def _compared(why: Why) -> str:
    if not why.compared and why.usual_first_s is not None:
        return "Usual: the means of those whose first token came in the last seconds; no other like it is kept."
    if not why.compared:
        return "Nothing is known of what is usual: no other request like it is kept."
    return f"Usual: the medians of {words.several(why.compared, 'other request')} of that time."


def _verdict(why: Why, width: int) -> list[Text]:
    """What held the node back then, where it did."""
    found = why.verdict
    if found is None or found.state == "ok":
        return []
    since = f"Since {clock(found.since)}: "
    fits = (
        ""
        if why.fits or why.held_by is None or found.state != "bottleneck"
        else " That explains nothing here, or came later."
    )
    lines = wrapped(f"{found.summary}{fits}", width, indent="  ", first=since)
    action = found.action
    if action is None or not why.fits:
        return lines
    lines += wrapped(action.sentence, width, style="bold", indent="      ", first="  Do: ")
    return lines + [Text(f"      {text}", "cyan") for text in (action.call, action.setting) if text]
