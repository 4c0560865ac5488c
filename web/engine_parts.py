"""One engine, in figures: its state, its work, its KV, its processes, and its hand-offs. Pure, like ``web.contexts``."""

from __future__ import annotations

from typing import Final

from appliance.records import (
    CalibrationSnapshot,
    EngineSnapshot,
    EngineState,
    HostReading,
    LinkSnapshot,
    NodeSnapshot,
    Pair,
)
from web import causes, flow, words
from web.contexts import TONES, Context, FactContext, slow

_STARVED: Final = 0.1  # of the time without a core that it could have used
_OWN_FAULTS: Final = (EngineState.BACKOFF, EngineState.FAILED, EngineState.HUNG, EngineState.SUSPECT)


class NeighbourContext(Context, frozen=True, kw_only=True):
    """A link to an engine."""

    name: str
    role: str
    tone: str
    glyph: str
    state: str
    here: bool


class HeadContext(Context, frozen=True, kw_only=True):
    """``engine_head.html``."""

    name: str
    role: str
    state: str
    tone: str
    glyph: str
    since: str
    hardware: str
    stage: str | None
    progress: int | None
    held: str | None  # what it holds the node back by
    summary: str | None
    cause: str | None
    again: bool  # the cause is of an earlier life
    restarts: int
    warnings: tuple[str, ...]
    neighbours: tuple[NeighbourContext, ...]


class GroupContext(Context, frozen=True, kw_only=True):
    """Figures of one kind."""

    title: str
    facts: tuple[FactContext, ...]


class FiguresContext(Context, frozen=True, kw_only=True):
    """``engine_figures.html``."""

    groups: tuple[GroupContext, ...]
    works: bool  # else only what is known is there


class HandoffRowContext(Context, frozen=True, kw_only=True):
    """Hand-offs to one engine, or from it."""

    way: str  # to, from
    peer: str
    rate: str
    bandwidth: str
    slowdown: str
    slow: bool
    tone: str
    glyph: str
    tested: str


class HandoffsContext(Context, frozen=True, kw_only=True):
    """``engine_handoffs.html``."""

    rows: tuple[HandoffRowContext, ...]
    leases: str  # held on it for others
    blocks: str
    errors: tuple[str, ...]  # engines whose memory it can't map


def find(snapshot: NodeSnapshot, name: str) -> EngineSnapshot | None:
    return next((engine for engine in snapshot.engines if engine.name == name), None)


# ---- its state


def head(engine: EngineSnapshot, snapshot: NodeSnapshot) -> HeadContext:
    """How it is."""
    starting = engine.state is EngineState.STARTING
    held = engine.name in flow.held_back(snapshot)
    tone, verdict = "bad" if held else flow.STATE_TONES[engine.state], snapshot.verdict
    return HeadContext(
        name=engine.name,
        role=engine.role.value,
        state=engine.state.value,
        tone=tone,
        glyph=TONES[tone],
        since=words.age(engine.in_state_s),
        hardware=flow.hardware(engine, snapshot),
        stage=(engine.stage or "starting") if starting else None,
        progress=None if engine.progress is None or not starting else round(100 * engine.progress),
        held=causes.words(verdict) if held and verdict is not None else None,
        summary=verdict.summary if held and verdict is not None else None,
        cause=engine.cause,
        again=engine.state not in _OWN_FAULTS,
        restarts=engine.restarts,
        warnings=flow.warnings(engine),
        neighbours=tuple(_neighbour(one, engine.name) for one in snapshot.engines),
    )


def _neighbour(engine: EngineSnapshot, here: str) -> NeighbourContext:
    tone = flow.STATE_TONES[engine.state]
    return NeighbourContext(
        name=engine.name,
        role=engine.role.value,
        tone=tone,
        glyph=TONES[tone],
        state=engine.state.value,
        here=engine.name == here,
    )


# ---- figures


def figures(engine: EngineSnapshot, snapshot: NodeSnapshot) -> FiguresContext:
    """All that it tells of itself; of one that does not work, only what it does tell: dashes would be all that there is."""
    works = engine.state in flow.WORK
    groups = (
        GroupContext(title="Work", facts=_work(engine)),
        GroupContext(title="Requests", facts=_requests(engine, snapshot)),
        GroupContext(title="KV", facts=_kv(engine)),
        GroupContext(title="Processes", facts=_processes(engine)),
        GroupContext(title="CPU", facts=_cpu(engine.host or HostReading())),
        GroupContext(title="First steps of this life", facts=_calibration(engine.calibration)),
    )
    return FiguresContext(groups=groups if works else tuple(map(_told, groups)), works=works)


def _told(group: GroupContext) -> GroupContext:
    return GroupContext(title=group.title, facts=tuple(fact for fact in group.facts if fact.value != words.DASH))


def _work(engine: EngineSnapshot) -> tuple[FactContext, ...]:
    budget = "" if engine.token_budget is None else f" of {engine.token_budget:,}"
    return (
        _fact("prompt tokens/s", words.number(engine.prompt_tokens_s)),
        _fact("output tokens/s", words.number(engine.output_tokens_s)),
        _fact("busy", words.percent(engine.busy)),
        _fact("steps/s", words.number(engine.steps_s)),
        _fact("step, mean", words.duration(None if engine.step_ms is None else engine.step_ms / 1e3)),
        _times("steps take", engine.slowdown),
        _fact("prompt tokens per step", _of(words.number(engine.step_prompt_tokens), budget)),
        _fact("decode tokens per step", words.number(engine.step_decode_tokens)),
    )


def _of(figure: str, whole: str) -> str:
    return figure if figure == words.DASH else figure + whole


def _times(label: str, ratio: float | None, unit: str = " × expected") -> FactContext:
    value = words.DASH if ratio is None else f"{ratio:.2f}{unit}"
    return _fact(label, value, odd=slow(ratio))


def _requests(engine: EngineSnapshot, snapshot: NodeSnapshot) -> tuple[FactContext, ...]:
    places = "" if engine.max_running is None else f" of {engine.max_running:,}"
    itl_late = engine.itl_s is not None and engine.itl_s > snapshot.slo_itl_s
    return (
        _fact("running", _of(words.count(engine.running), places)),
        _fact("waiting", words.count(engine.waiting)),
        _fact("fetching KV", words.count(engine.fetching)),
        _fact("sent to it, not ended", words.count(engine.in_flight)),
        _fact("prompt tokens sent, to do", words.count(engine.outstanding_prompt_tokens)),
        _fact("ITL, mean", words.duration(engine.itl_s), odd=itl_late),
        _fact("tokens later than target", words.percent(engine.itl_late)),
        _fact("could decode in time", words.DASH if engine.room is None else f"{engine.room:.1f} × as much"),
        _fact("preemptions", words.count(engine.preemptions), odd=bool(engine.preemptions)),
    )


def _kv(engine: EngineSnapshot) -> tuple[FactContext, ...]:
    total, free = engine.kv_blocks_total, engine.kv_blocks_free
    used = words.count(None if total is None or free is None else total - free)
    tokens = words.DASH if engine.block_tokens is None else f"{engine.block_tokens} tokens"
    return (
        _fact("in use", words.percent(engine.kv_usage), odd=(engine.kv_usage or 0.0) > 0.95),
        _fact("blocks", words.DASH if total is None else f"{used} of {words.count(total)}"),
        _fact("a block", tokens),
        _fact("held for others", words.count(engine.leased_blocks)),
        _fact("prefix hits", words.percent(engine.prefix_hit_rate)),
    )


def _processes(engine: EngineSnapshot) -> tuple[FactContext, ...]:
    return (
        _fact("life", words.count(engine.epoch)),
        _fact("restarts", words.count(engine.restarts), odd=bool(engine.restarts)),
        _fact("session leader", words.DASH if engine.pid is None else f"pid {engine.pid}"),
        _fact("memory of all", words.memory(engine.memory_bytes)),
        _fact("cores", words.ranges(engine.cores) if engine.cores else "any"),
        _fact("last sign of life", words.DASH if engine.last_step_age_s is None else _ago(engine.last_step_age_s)),
    )


def _ago(seconds: float) -> str:
    return "now" if seconds < 1.5 else f"{words.age(seconds)} ago"


def _cpu(host: HostReading) -> tuple[FactContext, ...]:
    return (
        _fact("EngineCore ran", words.percent(host.core_busy)),
        _fact("wanted a core, had none", words.percent(host.core_delay), odd=(host.core_delay or 0.0) > _STARVED),
        _fact("API process ran", words.percent(host.api_busy), odd=(host.api_busy or 0.0) > 1 - _STARVED),
        _fact("quota used up", words.percent(host.throttled), odd=(host.throttled or 0.0) > _STARVED),
        _fact("pressure", words.percent(host.pressure)),
        _fact("cores allowed", words.count(host.cores)),
        _fact("pushed off its core", words.DASH if host.core_switches_s is None else f"{host.core_switches_s:,.0f}/s"),
    )


def _calibration(found: CalibrationSnapshot | None) -> tuple[FactContext, ...]:
    if found is None:
        return (_fact("made when idle", words.DASH),)
    like = f" × {words.listing(found.like)}" if found.like else " × its like"
    return (
        _fact("made when idle", words.count(found.steps)),
        _times("took, against known", found.slowdown),
        _times("took, against others", found.against_like, like),
    )


def _fact(label: str, value: str, *, odd: bool = False) -> FactContext:
    return FactContext(label=label, value=value, odd=odd)


# ---- hand-offs


def handoffs(engine: EngineSnapshot, snapshot: NodeSnapshot) -> HandoffsContext:
    """To others, and from them: pairs that there are, and links that were used lately."""
    pairs = {(pair.prefill, pair.decode): pair for pair in snapshot.pairs}
    links = {(link.producer, link.consumer): link for link in snapshot.links}
    ways = sorted(way for way in {*pairs, *links} if engine.name in way)
    held = [lease for lease in snapshot.ledger.leases if lease.owner == engine.name]
    return HandoffsContext(
        rows=tuple(_row(engine.name, way, links.get(way), pairs.get(way)) for way in ways),
        leases=words.several(len(held), "lease"),
        blocks=words.several(sum(lease.blocks for lease in held), "block"),
        errors=engine.peer_errors,
    )


def _row(name: str, way: tuple[str, str], link: LinkSnapshot | None, pair: Pair | None) -> HandoffRowContext:
    tone, tested = _tested(pair)
    ratio = link.slowdown if link else None
    return HandoffRowContext(
        way="to" if way[0] == name else "from",
        peer=way[1] if way[0] == name else way[0],
        rate=words.number(link.handoffs_s if link else 0.0),
        bandwidth=words.traffic_rate(link.bytes_s if link else None),
        slowdown=words.DASH if ratio is None else f"{ratio:.2f} × expected",
        slow=slow(ratio),
        tone=tone,
        glyph=TONES[tone],
        tested=tested,
    )


def _tested(pair: Pair | None) -> tuple[str, str]:
    if pair is None or pair.ok is None:
        return "wait", "not tested yet"
    if pair.ok:
        return "ok", "works" if pair.age_s is None else f"works, seen {words.age(pair.age_s)} ago"
    said = "failed a test" if pair.in_use else "broken, not used"
    return ("warn" if pair.in_use else "bad"), f"{said}: {pair.error}" if pair.error else said
