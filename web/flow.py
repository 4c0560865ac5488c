"""The map of the node: queue, engines, hand-offs and answers. Pure, like ``web.contexts``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from appliance.records import EngineSnapshot, EngineState, NodeSnapshot, Pair, Role
from web import gpus, ribbons, words
from web.contexts import TONES, Context, slow, splits, token_rates


class RibbonContext(Context, frozen=True, kw_only=True):
    """One shape in ``link.html``."""

    path: str
    look: str  # flows | empty | held


class LinkContext(Context, frozen=True, kw_only=True):
    """``link.html``: what flows between two columns of stations."""

    label: str
    unit: str
    kind: str  # prefill | handoff | decode
    height: str
    ribbons: tuple[RibbonContext, ...]
    held: str | None  # the link that holds the node back


class RateContext(Context, frozen=True, kw_only=True):
    """A rate with its unit."""

    value: str
    unit: str


class CardContext(Context, frozen=True, kw_only=True):
    """``card.html``: one engine on the map. The page of the engine has the rest."""

    name: str
    role: str
    state: str
    tone: str
    glyph: str
    hardware: str  # cores or GPUs
    trouble: str | None  # why it does not work, or what it does while it starts
    progress: int | None  # of the start, percent
    working: bool
    rates: tuple[RateContext, ...]
    load: str
    load_percent: int | None
    load_is: str  # what it is a share of
    kv: str
    kv_percent: int | None
    running: str
    waiting: str
    slow: str | None
    hot: str | None  # what its GPUs tell
    bottleneck: bool  # it holds the node back


class QueueContext(Context, frozen=True, kw_only=True):
    """The router's queue, in ``flow.html``."""

    depth: str
    capacity: str
    oldest: str
    in_flight: str


class PairContext(Context, frozen=True, kw_only=True):
    """A prefill and a decode engine, in ``flow.html``: whether KV gets from the one to the other."""

    name: str
    tone: str
    glyph: str
    said: str


class HandoffContext(Context, frozen=True, kw_only=True):
    """Hand-offs and leases, in ``flow.html``."""

    bandwidth: str
    count: str
    moved: str
    failed: int  # recomputed
    leases: str
    leased_blocks: str
    lost: str | None  # leases that ended otherwise than planned
    last_error: str | None
    tests: tuple[PairContext, ...]


class AnswersContext(Context, frozen=True, kw_only=True):
    """What clients got, in ``flow.html``."""

    in_time: str  # share of the latest first tokens
    ttft_p50: str
    ttft_p99: str
    ttft_target: str
    itl_p50: str
    itl_target: str
    ok: str
    failed: int
    cancelled: str
    retried: int


class FlowContext(Context, frozen=True, kw_only=True):
    """``flow.html``: the way of a request through the node."""

    queue: QueueContext
    handoff: HandoffContext
    answers: AnswersContext
    prefill: tuple[CardContext, ...]
    decode: tuple[CardContext, ...]
    both: tuple[CardContext, ...]  # aggregated
    split: bool  # there are engines that only prefill or only decode
    prompts: LinkContext
    handoffs: LinkContext
    outputs: LinkContext


STATE_TONES: Final = {
    EngineState.STARTING: "wait",
    EngineState.READY: "ok",
    EngineState.DRAINING: "wait",
    EngineState.SUSPECT: "warn",
    EngineState.HUNG: "bad",
    EngineState.BACKOFF: "warn",
    EngineState.FAILED: "bad",
    EngineState.STOPPED: "off",
}
WORK: Final = (EngineState.READY, EngineState.DRAINING, EngineState.SUSPECT)
_NEGLIGIBLE: Final = 0.1  # of an engine's own rate
_SILENT_S: Final = 5.0  # an engine says something every second


def flow(snapshot: NodeSnapshot) -> FlowContext:
    """The map of the node."""
    by_role = {role: [engine for engine in snapshot.engines if engine.role is role] for role in Role}
    split = splits(snapshot)
    first, last = (by_role[Role.PREFILL], by_role[Role.DECODE]) if split else (by_role[Role.BOTH], by_role[Role.BOTH])
    height = ribbons.height([len(first), len(last)])
    ends = Ends(clients={"": height / 2}, first=_middles(first, height), last=_middles(last, height), height=height)
    cards = {role: tuple(card(engine, snapshot) for engine in engines) for role, engines in by_role.items()}
    return FlowContext(
        queue=_queue(snapshot),
        handoff=_handoff(snapshot),
        answers=_answers(snapshot),
        prefill=cards[Role.PREFILL],
        decode=cards[Role.DECODE],
        both=cards[Role.BOTH],
        split=split,
        prompts=_prompts(snapshot, ends, first),
        handoffs=_handoffs(snapshot, ends),
        outputs=_outputs(snapshot, ends, last),
    )


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """Where the map's stations have their middles."""

    clients: Mapping[str, float]  # the queue, or the answers: one
    first: Mapping[str, float]
    last: Mapping[str, float]
    height: float


def _middles(engines: Sequence[EngineSnapshot], height: float) -> Mapping[str, float]:
    return ribbons.middles([engine.name for engine in engines], height)


def _prompts(snapshot: NodeSnapshot, ends: Ends, engines: Sequence[EngineSnapshot]) -> LinkContext:
    held = held_back(snapshot)
    flows = {("", engine.name): engine.prompt_tokens_s or 0.0 for engine in engines}
    gap = ribbons.gap(ends.clients, ends.first, flows, ends.height)
    return _link(gap, "prefill", token_rates(snapshot)[0], "prompt tokens/s", lambda _, name: name in held)


def _handoffs(snapshot: NodeSnapshot, ends: Ends) -> LinkContext:
    """Of the latest seconds, from each prefill engine to each decode engine."""
    rates = {(link.producer, link.consumer): link.handoffs_s for link in snapshot.links}
    flows = {pair: rates.get(pair, 0.0) for pair in itertools.product(ends.first, ends.last)}
    gap = ribbons.gap(ends.first, ends.last, flows, ends.height)
    link = snapshot.verdict.link if snapshot.verdict is not None else None
    said = _link(gap, "handoff", snapshot.handoffs.recent_s, "hand-offs/s", lambda *pair: pair == link)
    return msgspec.structs.replace(said, held=" to ".join(link)) if link else said


def _outputs(snapshot: NodeSnapshot, ends: Ends, engines: Sequence[EngineSnapshot]) -> LinkContext:
    held = held_back(snapshot)
    flows = {(engine.name, ""): engine.output_tokens_s or 0.0 for engine in engines}
    gap = ribbons.gap(ends.last, ends.clients, flows, ends.height)
    return _link(gap, "decode", token_rates(snapshot)[1], "output tokens/s", lambda name, _: name in held)


def _link(gap: ribbons.Gap, kind: str, rate: float | None, unit: str, held: Callable[[str, str], bool]) -> LinkContext:
    shapes = tuple(
        RibbonContext(
            path=ribbon.path,
            look="held" if held(ribbon.source, ribbon.target) else "empty" if ribbon.empty else "flows",
        )
        for ribbon in gap.ribbons
    )
    return LinkContext(
        label=words.number(rate), unit=unit, kind=kind, height=f"{gap.height:g}", ribbons=shapes, held=None
    )


def held_back(snapshot: NodeSnapshot) -> tuple[str, ...]:
    """Engines that hold the node back."""
    verdict = snapshot.verdict
    return verdict.engines if verdict is not None and verdict.state == "bottleneck" else ()


def card(engine: EngineSnapshot, snapshot: NodeSnapshot) -> CardContext:
    """One engine's card."""
    starting = engine.state is EngineState.STARTING
    load, load_is = _load(engine)
    tone = STATE_TONES[engine.state]
    return CardContext(
        name=engine.name,
        role=engine.role.value,
        state=engine.state.value,
        tone=tone,
        glyph=TONES[tone],
        hardware=hardware(engine, snapshot),
        trouble=(engine.stage or "starting") if starting else _trouble(engine),
        progress=_percent(engine.progress) if starting else None,
        working=engine.state in WORK,
        rates=_engine_rates(engine),
        load=words.percent(load),
        load_percent=_percent(load),
        load_is=load_is,
        kv=words.percent(engine.kv_usage),
        kv_percent=_percent(engine.kv_usage),
        running=words.count(engine.running),
        waiting=words.count(engine.waiting),
        slow=_slow(engine),
        hot=_hot(engine, snapshot),
        bottleneck=engine.name in held_back(snapshot),
    )


def _load(engine: EngineSnapshot) -> tuple[float | None, str]:
    """Of what it can do. An engine that decodes makes steps as long as it has anything: how full these may get is what counts."""
    if engine.role.decodes and engine.room:
        return 1 / engine.room, "what it decodes, of what it could decode in time; predicted"
    if engine.role.prefills:
        return engine.busy, "share of the latest seconds in which it made steps"
    return None, "how much it could decode is not known yet"


def _slow(engine: EngineSnapshot) -> str | None:
    """Its steps, beside what such steps take."""
    return f"steps × {engine.slowdown:.2g}" if slow(engine.slowdown) else None


def _hot(engine: EngineSnapshot, snapshot: NodeSnapshot) -> str | None:
    """What is the matter with its GPUs."""
    found = dict.fromkeys(
        said
        for gpu in snapshot.gpus
        if gpu.engine == engine.name or gpu.uuid in engine.gpus
        if (said := gpus.slowed(gpu))
    )
    return words.listing(list(found)) or None


def _trouble(engine: EngineSnapshot) -> str | None:
    """The first thing that is wrong."""
    if engine.state not in WORK and engine.cause:
        return engine.cause
    return next(iter(warnings(engine)), engine.cause)


def _engine_rates(engine: EngineSnapshot) -> tuple[RateContext, ...]:
    """What its role is for; and the other where it amounts to something, as with requests that run whole."""
    prompt_s, output_s = engine.prompt_tokens_s, engine.output_tokens_s
    prompt = RateContext(value=words.number(prompt_s), unit="prompt tokens/s")
    output = RateContext(value=words.number(output_s), unit="output tokens/s")
    if engine.role is Role.PREFILL:
        return (prompt, output) if _amounts(output_s, prompt_s) else (prompt,)
    if engine.role is Role.DECODE:
        return (output, prompt) if _amounts(prompt_s, output_s) else (output,)
    return prompt, output


def _amounts(other_s: float | None, own_s: float | None) -> bool:
    """Each split request has one output token on its prefill engine, and one prompt token on its decode engine."""
    return (other_s or 0.0) > _NEGLIGIBLE * (own_s or 0.0)


def hardware(engine: EngineSnapshot, snapshot: NodeSnapshot) -> str:
    """Its GPUs as the table below numbers them, or its cores."""
    if engine.gpus:
        numbers = sorted(gpu.index for gpu in snapshot.gpus if gpu.uuid in engine.gpus or gpu.engine == engine.name)
        named = f"{'GPU' if len(numbers) == 1 else 'GPUs'} {words.ranges(numbers)}"
        return named if numbers else words.several(len(engine.gpus), "GPU")
    if not engine.cores:
        return words.DASH
    return f"{'core' if len(engine.cores) == 1 else 'cores'} {words.ranges(engine.cores)}"


def warnings(engine: EngineSnapshot) -> tuple[str, ...]:
    """What it does not say by its state."""
    silent_s = engine.last_step_age_s
    if silent_s is not None and silent_s > _SILENT_S and engine.state is EngineState.READY:
        return (f"has said nothing for {words.age(silent_s)}", *engine.peer_errors)
    return engine.peer_errors


def _percent(share: float | None) -> int | None:
    return None if share is None else round(100 * min(1.0, max(0.0, share)))


def _queue(snapshot: NodeSnapshot) -> QueueContext:
    queue = snapshot.queue
    return QueueContext(
        depth=words.count(queue.depth),
        capacity=words.count(queue.capacity),
        oldest=words.duration(queue.oldest_s),
        in_flight=words.count(queue.in_flight),
    )


def _handoff(snapshot: NodeSnapshot) -> HandoffContext:
    handoffs, ledger = snapshot.handoffs, snapshot.ledger
    ended = ((ledger.expired, "expired"), (ledger.lost, "lost"))
    return HandoffContext(
        bandwidth=words.traffic_rate(handoffs.recent_bytes_s),
        count=words.count(handoffs.count),
        moved=words.traffic(handoffs.bytes),
        failed=handoffs.failed,
        leases=words.count(len(ledger.leases)),
        leased_blocks=words.count(sum(lease.blocks for lease in ledger.leases)),
        lost=words.listing([f"{amount:,} {what}" for amount, what in ended if amount]) or None,
        last_error=handoffs.last_error,
        tests=_tests(snapshot.pairs),
    )


def _tests(pairs: Sequence[Pair]) -> tuple[PairContext, ...]:
    """Those that do not work, one by one; those that do need few words."""
    good = [pair for pair in pairs if pair.ok]
    bad = tuple(_pair(pair) for pair in pairs if not pair.ok)
    if not good:
        return bad
    name = _name(good[0]) if len(good) == 1 else f"{len(good)} pairs"
    oldest_s = max(pair.age_s or 0.0 for pair in good)
    said = f"{'works' if len(good) == 1 else 'work'}, seen {words.age(oldest_s)} ago"
    return (*bad, PairContext(name=name, tone="ok", glyph=TONES["ok"], said=said))


def _pair(pair: Pair) -> PairContext:
    """One that is not known to work."""
    tone = "wait" if pair.ok is None else "warn" if pair.in_use else "bad"
    untested = "not tested yet" if pair.error is None else "could not be tested"
    verdict = {"wait": untested, "warn": "failed a test", "bad": "broken, not used"}[tone]
    said = verdict if pair.error is None else f"{verdict}: {pair.error}"
    return PairContext(name=_name(pair), tone=tone, glyph=TONES[tone], said=said)


def _name(pair: Pair) -> str:
    return f"{pair.prefill} to {pair.decode}"


def _answers(snapshot: NodeSnapshot) -> AnswersContext:
    requests = snapshot.requests
    late = snapshot.lately.ttft_late if snapshot.lately is not None else None
    return AnswersContext(
        in_time=words.percent(None if late is None else 1 - late),
        ttft_p50=words.duration(snapshot.ttft_p50_s),
        ttft_p99=words.duration(snapshot.ttft_p99_s),
        ttft_target=words.setting(snapshot.slo_ttft_s),
        itl_p50=words.duration(snapshot.itl_p50_s),
        itl_target=words.setting(snapshot.slo_itl_s),
        ok=words.count(requests.ok),
        failed=requests.failed,
        cancelled=words.count(requests.cancelled),
        retried=requests.retried,
    )
