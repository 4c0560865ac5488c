"""The pages of engines: all of them side by side, and each with its steps, figures, log, command line, and what it can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from markupsafe import Markup

from appliance.errors import RequestError, quoted
from appliance.records import EngineSnapshot, EngineState, GpuSnapshot, NodeSnapshot, Order, Remedy
from web import assets, engine_log, engine_orders, engine_parts, flow, gpus, remedies, steps, words
from web.contexts import TONES, ChoicesContext, Context, choices, slow
from web.knees import Knees
from web.paced import Paced
from web.ports import Actions, NodeView
from web.views import Asked, Parts, View

_STEPS: Final = 2000  # at most, in the plots
_STEPS_S: Final = 2.0  # from one drawing of them to the next: there are many
_LOG_S: Final = 1.0
_SERIES: Final = ("running", "waiting", "fetching", "kv_usage", "busy", "slowdown")
_WORST_FIRST: Final = ("bad", "warn", "wait", "off", "ok")
_LONGEST: Final = 200  # characters to be found in a log
_ALL: Final = "all"  # levels


class ListedContext(Context, frozen=True, kw_only=True):
    """One row of ``engine_list.html``."""

    name: str
    role: str
    state: str
    tone: str
    glyph: str
    held: bool
    hardware: str
    prompt_s: str
    output_s: str
    busy: str
    slowdown: str
    slow: bool
    running: str
    waiting: str
    kv: str
    kv_percent: int
    memory: str
    restarts: str


class ListContext(Context, frozen=True, kw_only=True):
    """``engine_list.html``."""

    rows: tuple[ListedContext, ...]
    topology: str
    tone: str
    glyph: str
    sentence: str


class EnginesContext(Context, frozen=True, kw_only=True):
    """``engines.html``."""

    parts: Mapping[str, Markup]


class Engines:
    """``/engines``."""

    path = "/engines"
    query: tuple[str, ...] = ()
    template = "engines"
    place = "Engines"

    def view(self, asked: Asked) -> View:
        return View(
            title=lambda snapshot: "Engines",
            parts=lambda snapshot: {"engine_list": listed(snapshot), "gpus": gpus.gpus(snapshot)},
            body=lambda snapshot, parts: EnginesContext(parts=parts),
        )


def listed(snapshot: NodeSnapshot) -> ListContext:
    """All engines."""
    tone, sentence = _verdict(snapshot)
    return ListContext(
        rows=tuple(_listed(engine, snapshot) for engine in snapshot.engines),
        topology=snapshot.topology,
        tone=tone,
        glyph=TONES[tone],
        sentence=sentence,
    )


def _verdict(snapshot: NodeSnapshot) -> tuple[str, str]:
    """Tone and sentence: the worst of any engine's."""
    engines, held = snapshot.engines, flow.held_back(snapshot)
    ready = sum(engine.state is EngineState.READY for engine in engines)
    if ready < len(engines):
        tones = [flow.STATE_TONES[engine.state] for engine in engines]
        worst = next(tone for tone in _WORST_FIRST if tone in tones)
        return worst, f"{ready} of {words.several(len(engines), 'engine')} {'is' if ready == 1 else 'are'} ready."
    all_of = f"{words.several(ready, 'engine')}, {'' if ready == 1 else 'all '}ready"
    if held:
        return "bad", f"{all_of}; {words.listing(held)} {'holds' if len(held) == 1 else 'hold'} the node back."
    return "ok", f"{all_of}."


def _listed(engine: EngineSnapshot, snapshot: NodeSnapshot) -> ListedContext:
    tone = flow.STATE_TONES[engine.state]
    slowdown = engine.slowdown
    return ListedContext(
        name=engine.name,
        role=engine.role.value,
        state=engine.state.value,
        tone=tone,
        glyph=TONES[tone],
        held=engine.name in flow.held_back(snapshot),
        hardware=flow.hardware(engine, snapshot),
        prompt_s=words.number(engine.prompt_tokens_s),
        output_s=words.number(engine.output_tokens_s),
        busy=words.percent(engine.busy),
        slowdown=words.DASH if slowdown is None else f"{slowdown:.2f}",
        slow=slow(slowdown),
        running=words.count(engine.running),
        waiting=words.count(engine.waiting),
        kv=words.percent(engine.kv_usage),
        kv_percent=round(100 * (engine.kv_usage or 0.0)),
        memory=words.memory(engine.memory_bytes),
        restarts=words.count(engine.restarts),
    )


class EngineContext(Context, frozen=True, kw_only=True):
    """``engine.html``."""

    name: str
    parts: Mapping[str, Markup]
    command: str | None
    weight: str
    levels: ChoicesContext
    find: str
    build: str


class EnginePage:
    """``/engines/{name}``; ``?level=`` and ``?find=`` say which lines of the log."""

    path = "/engines/{name}"
    query: tuple[str, ...] = ("level", "find")
    template = "engine"
    place = "Engines"

    def __init__(self, node: NodeView, actions: Actions) -> None:
        self._node = node
        self._actions = actions
        self._knees = Knees(node)

    def view(self, asked: Asked) -> View:
        name = asked.names["name"]
        _known(self._node.latest(), name)
        level, find = _level(asked.query.get("level", _ALL)), asked.query.get("find", "")[:_LONGEST]
        drawn, read = Paced[Context](_STEPS_S), Paced[Context](_LOG_S)

        def parts(snapshot: NodeSnapshot) -> Parts:
            engine = _known(snapshot, name)  # without it there is nothing to follow any more
            mine = msgspec.structs.replace(snapshot, gpus=_own(engine, snapshot))
            return {
                "engine_head": engine_parts.head(engine, snapshot),
                "remedies": remedies.remedies(_touching(self._actions.remedies(), name), snapshot),
                "engine_steps": drawn.get(snapshot.time, lambda: self._steps(name)),
                "engine_figures": engine_parts.figures(engine, snapshot),
                "engine_handoffs": engine_parts.handoffs(engine, snapshot),
                "gpus": gpus.gpus(mine),
                "engine_orders": engine_orders.orders(engine, snapshot),
                "engine_log": read.get(snapshot.time, lambda: self._log(name, level, find)),
            }

        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            return EngineContext(
                name=name,
                parts=painted,
                command=_written(self._node.command(name)),
                weight=f"{_known(snapshot, name).weight:g}",
                levels=_levels(name, level, find),
                find=find,
                build=assets.fingerprint(),
            )

        return View(
            title=lambda snapshot: f"{name}, {_known(snapshot, name).role.value}",
            parts=parts,
            body=body,
            sample=lambda snapshot: _sample(_known(snapshot, name)),
        )

    def _steps(self, name: str) -> Context:
        return steps.steps(self._node.steps(name, 0, _STEPS) or (), self._knees.latest(name))

    def _log(self, name: str, level: str, find: str) -> Context:
        return engine_log.log(self._node.logs(name) or (), level, find)


def _known(snapshot: NodeSnapshot, name: str) -> EngineSnapshot:
    found = engine_parts.find(snapshot, name)
    if found is None:
        there = words.listing([engine.name for engine in snapshot.engines])
        raise RequestError(404, f"There is no engine {quoted(name)} on this node. It has {there}.", code="not_found")
    return found


def _level(text: str) -> str:
    if text not in engine_log.LEVELS:
        raise RequestError(400, f"level must be one of {', '.join(engine_log.LEVELS)}.", param="level")
    return text


def _levels(name: str, level: str, find: str) -> ChoicesContext:
    options = [(said, "" if key == _ALL else key) for key, said in engine_log.LEVELS.items()]
    asked = {"level": "" if level == _ALL else level, "find": find}
    return choices("Lines to show", f"/engines/{name}", asked, "level", options, "#log")


def _own(engine: EngineSnapshot, snapshot: NodeSnapshot) -> tuple[GpuSnapshot, ...]:
    return tuple(gpu for gpu in snapshot.gpus if gpu.engine == engine.name or gpu.uuid in engine.gpus)


def _touching(given: Sequence[Remedy], name: str) -> list[Remedy]:
    """Remedies of this engine, and those of the whole node."""

    def touches(order: Order) -> bool:
        return order.engine in (name, None)

    return [remedy for remedy in given if touches(remedy.order)]


def _written(command: Sequence[str] | None) -> str | None:
    """A command line, an option to a line."""
    if not command:
        return None
    lines: list[list[str]] = [[]]
    for argument in command:
        if argument.startswith("--") and argument != "--":
            lines.append([])
        lines[-1].append(words.quoted(argument))
    return " \\\n  ".join(" ".join(line) for line in lines)


def _sample(engine: EngineSnapshot) -> dict[str, float | None]:
    """One point of the charts."""
    return {name: getattr(engine, name) for name in _SERIES}
