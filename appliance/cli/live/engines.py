"""The engines, a row each. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from appliance.cli import glyphs
from appliance.cli.live.layout import Column, Section, table, wrapped
from appliance.records import EngineSnapshot, EngineState, NodeSnapshot, Role
from web import words

_STATES: Final = {
    EngineState.READY: "green",
    EngineState.STARTING: "cyan",
    EngineState.DRAINING: "cyan",
    EngineState.SUSPECT: "bold yellow",
    EngineState.BACKOFF: "bold yellow",
    EngineState.HUNG: "bold red",
    EngineState.FAILED: "bold red",
    EngineState.STOPPED: "dim",
}
_ROLES: Final = {Role.PREFILL: "pre", Role.DECODE: "dec", Role.BOTH: "both"}
_NARROW: Final = 90
_FEW: Final = 3  # fewer than these only where nothing else is left
_SILENT_S: Final = 5.0
_MARK: Final = "▶"


def engines(snapshot: NodeSnapshot, width: int) -> Section:
    """All of them; with less room those that matter most, and how many there are besides."""
    held = held_back(snapshot)
    if not snapshot.engines:
        return Section([])
    rows = list(snapshot.engines)
    columns = _columns(snapshot, width, held)
    variants = [(1.6, table(columns, rows, width))]
    urgent = sorted(rows, key=lambda engine: (engine.name not in held, engine.state is EngineState.READY))
    for kept in range(len(rows) - 1, 0, -1):
        fewer = {engine.name for engine in urgent[:kept]}
        lines = table(columns, [row for row in rows if row.name in fewer], width)
        lines.append(Text(f"  and {words.several(len(rows) - kept, 'engine')} more", "dim"))
        variants.append((1.6 if kept >= _FEW else 0.8, lines))
    return Section.of(*variants)


def held_back(snapshot: NodeSnapshot) -> tuple[str, ...]:
    """Engines that hold the node back, those of a link included."""
    verdict = snapshot.verdict
    if verdict is None or verdict.state != "bottleneck":
        return ()
    return verdict.engines or verdict.link or ((verdict.engine,) if verdict.engine else ())


def troubles(snapshot: NodeSnapshot, width: int) -> Section:
    """Why engines are not at work, with the remedy; what they can't reach; and that they are silent."""
    lines = []
    for engine in snapshot.engines:
        said = [engine.cause] if engine.cause and engine.state is not EngineState.READY else []
        said += engine.peer_errors
        if engine.state is EngineState.READY and (engine.last_step_age_s or 0.0) > _SILENT_S:
            said.append(f"has said nothing for {glyphs.age(engine.last_step_age_s)}")
        lines += [line for one in said for line in wrapped(f"{engine.name}: {one}", width, indent="      ", first="  ")]
    return Section.of((3.2, lines), (1.8, lines[:2]))


def _columns(snapshot: NodeSnapshot, width: int, held: Sequence[str]) -> list[Column[EngineSnapshot]]:
    narrow = width < _NARROW
    bar = 4 if narrow else 6 if width < 130 else 10
    rate = glyphs.short if narrow else words.number
    itl = snapshot.slo_itl_s

    def name(engine: EngineSnapshot) -> str:
        return f"{_MARK if engine.name in held else ' '} {engine.name}"

    def strong(engine: EngineSnapshot) -> str:
        return "bold red" if engine.name in held else "bold"

    def late(engine: EngineSnapshot) -> str:
        return "yellow" if engine.itl_s is not None and engine.itl_s > itl else ""

    def bar_of(share: float | None) -> str:
        return f"{glyphs.bar(share, bar)} {glyphs.percent(share):>4}"

    columns: list[Column[EngineSnapshot]] = [
        Column("  name", name, right=False, style=strong),
        Column("role", lambda e: _ROLES[e.role] if narrow else e.role.value, right=False),
        Column("state", state, right=False, style=lambda e: _STATES[e.state]),
        Column("busy", lambda e: bar_of(e.busy), rank=1),
        Column("slow", lambda e: glyphs.times(e.slowdown), rank=3, style=_slow),
        Column("run", lambda e: _places(e, narrow), rank=2),
        Column("wait", lambda e: words.count(e.waiting), rank=2, style=lambda e: "yellow" if e.waiting else ""),
        Column("KV", lambda e: bar_of(e.kv_usage), rank=1, style=_full),
        Column("in/s" if narrow else "prompt tok/s", lambda e: rate(e.prompt_tokens_s), rank=4),
        Column("out/s" if narrow else "output tok/s", lambda e: rate(e.output_tokens_s), rank=4),
        Column("ITL", lambda e: glyphs.seconds(e.itl_s), rank=5, style=late),
        Column("late", lambda e: glyphs.percent(e.itl_late), rank=9),
        Column("step", lambda e: glyphs.seconds(None if e.step_ms is None else e.step_ms / 1e3), rank=8),
        Column("hits", lambda e: glyphs.percent(e.prefix_hit_rate), rank=10),
        Column("weight", lambda e: f"{e.weight:g}", rank=7),
        Column("restarts", lambda e: str(e.restarts), rank=6, style=lambda e: "yellow" if e.restarts else ""),
    ]
    return columns


def state(engine: EngineSnapshot) -> str:
    """With how far it is, or for how long it has been so, where that is of interest."""
    if engine.state is EngineState.READY:
        return "ready"
    if engine.state is EngineState.STARTING and engine.progress is not None:
        return f"starting {engine.progress:.0%}"
    return f"{engine.state.value} {glyphs.age(engine.in_state_s)}"


def _places(engine: EngineSnapshot, narrow: bool) -> str:
    running = words.count(engine.running)
    return running if engine.max_running is None else f"{running}/{engine.max_running}"


def _slow(engine: EngineSnapshot) -> str:
    return "bold yellow" if engine.slowdown is not None and engine.slowdown > 1.15 else ""


def _full(engine: EngineSnapshot) -> str:
    return "yellow" if engine.kv_usage is not None and engine.kv_usage > 0.95 else ""
