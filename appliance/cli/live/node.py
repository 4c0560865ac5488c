"""The node as a whole: what it is, how clients fare, and how that went in the last minutes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from rich.text import Text

from appliance.cli import glyphs
from appliance.cli.live.layout import Section, flowing
from appliance.cli.live.view import Sample, View
from appliance.records import NodeSnapshot
from web import words
from web.times import clock

_CELL_S: Final = 3.0
_LONGEST_S: Final = 300.0
_WIDE: Final = 100


def node(view: View, snapshot: NodeSnapshot, width: int) -> Section:
    what = flowing(_what(view, snapshot), width, between=" · ")
    how = flowing([*_queue(snapshot), *_answers(view, snapshot)], width, between=" · ")
    return Section.of((2.2, [*what, *how]), (1.2, [*what[:1], *how[:2]]), (0.5, how[:1]))


def _what(view: View, snapshot: NodeSnapshot) -> list[Text]:
    found = [Text(snapshot.model, "bold"), Text(snapshot.topology)]
    found.append(Text("ready") if snapshot.ready else Text("not ready", "bold red"))
    if snapshot.simulated:
        found.append(Text("SIMULATED", "bold magenta"))
    found.append(Text(f"up {glyphs.age(snapshot.uptime_s)}"))
    at = Text(f"at {clock(snapshot.time)}")
    if view.error is not None or view.stale:
        at = Text(
            f"as of {clock(snapshot.time)}, {glyphs.age(view.silent_s)} ago",
            "bold yellow",
        )
    return [*found, at]


def _queue(snapshot: NodeSnapshot) -> list[Text]:
    queue = snapshot.queue
    oldest = f" (oldest {glyphs.seconds(queue.oldest_s)})" if queue.depth else ""
    late = queue.oldest_s is not None and queue.oldest_s > snapshot.slo_ttft_s / 2
    return [
        Text(f"queue {words.count(queue.depth)}{oldest}", "yellow" if late else ""),
        Text(f"in flight {words.count(queue.in_flight)}"),
    ]


def _answers(view: View, snapshot: NodeSnapshot) -> list[Text]:
    lately, requests = snapshot.lately, snapshot.requests
    late = lately.ttft_late if lately else None
    ttft = Text("TTFT p50 ").append_text(_timed(snapshot.ttft_p50_s, snapshot.slo_ttft_s))
    ttft.append(" p99 ").append_text(_timed(snapshot.ttft_p99_s, snapshot.slo_ttft_s))
    ttft.append(f" (target {glyphs.seconds(snapshot.slo_ttft_s)})", "dim")
    itl = Text("ITL ").append_text(_timed(snapshot.itl_p50_s, snapshot.slo_itl_s))
    itl.append(f" (target {glyphs.seconds(snapshot.slo_itl_s)})", "dim")
    now = Text("now ").append_text(_timed(lately.ttft_s if lately else None, snapshot.slo_ttft_s))
    return [
        ttft,
        now.append(", late ").append(glyphs.percent(late), "yellow" if late else ""),
        itl,
        Text(f"requests/s {words.number(view.requests_s)}"),
        Text(f"failed {words.count(requests.failed)}", "bold red" if requests.failed else ""),
    ]


def _timed(value: float | None, target: float) -> Text:
    """Yellow beyond its target."""
    return Text(glyphs.seconds(value), "yellow" if value is not None and value > target else "")


class _Line(NamedTuple):
    name: str
    pick: Callable[[Sample], float | None]
    say: Callable[[float | None], str]


_LINES: Final = (
    _Line("queue", lambda sample: sample.queue, lambda value: words.count(None if value is None else round(value))),
    _Line("TTFT", lambda sample: sample.ttft_s, glyphs.seconds),
    _Line("output tokens/s", lambda sample: sample.output_tokens_s, glyphs.short),
)


def sparks(view: View, width: int) -> Section:
    """A line each; side by side where there is less height."""
    if len(view.samples) < 2:
        return Section([])
    beside = [_spark(view, line, (width - 6) // 3, line.name.split()[0]) for line in _LINES]
    one = Text("   ").join(beside)
    each = [_spark(view, line, width, line.name.ljust(15)) for line in _LINES]
    return Section.of((4.6, each), (4.2, [one])) if width >= _WIDE else Section.of((4.4, each))


def _spark(view: View, line: _Line, width: int, name: str) -> Text:
    """``queue ▁▂▅█ 12, at most 31 in 2 min``."""
    room = width - len(name) - 30
    cells = max(4, min(int(_LONGEST_S / _CELL_S), room))
    values = view.series(line.pick, cells, _CELL_S)
    known = [value for value in values if value is not None]
    now = line.pick(view.samples[-1])
    over = glyphs.age(min(cells * _CELL_S, max(_CELL_S, view.samples[-1].time - view.samples[0].time)))
    highest = line.say(max(known)) if known else words.DASH
    found = Text(f"{name} ", "dim").append(glyphs.spark(values), "cyan")
    said = glyphs.plain(f" {line.say(now)}").ljust(9) + glyphs.plain(f"most {highest} in {over}")
    found.append(said)
    found.truncate(width, overflow="ellipsis")
    return found
