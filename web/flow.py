"""The map of the node: queue, engines, hand-offs and answers. Pure, like ``web.contexts``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from appliance.records import EngineSnapshot, EngineState, NodeSnapshot, Pair, Role
from web import words
from web.contexts import TONES, Context, token_rates


class LinkContext(Context, frozen=True, kw_only=True):
    """``link.html``: an arrow between two stations."""

    label: str
    unit: str
    level: int  # 0 nothing flows, to 5; the width of the arrow, by the logarithm of the rate


class RateContext(Context, frozen=True, kw_only=True):
    """A rate with its unit."""

    value: str
    unit: str


class EngineContext(Context, frozen=True, kw_only=True):
    """``engine.html``: one engine."""

    name: str
    role: str
    state: str
    tone: str
    glyph: str
    since: str  # how long it has been in that state
    pid: str
    hardware: str  # cores or GPUs
    memory: str
    stage: str | None  # what it does while it starts
    progress: int | None  # of the start, percent
    cause: str | None  # of its last end, with the remedy
    warnings: tuple[str, ...]
    rates: tuple[RateContext, ...]
    running: str
    waiting: str
    fetching: str
    kv: str
    kv_percent: int | None
    kv_blocks: str  # in use, of all
    step: str
    prefix_hits: str
    restarts: int
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
    prefill: tuple[EngineContext, ...]
    decode: tuple[EngineContext, ...]
    both: tuple[EngineContext, ...]  # aggregated
    split: bool  # there are engines that only prefill or only decode
    prompt_link: LinkContext
    handoff_link: LinkContext
    output_link: LinkContext


_STATE_TONES: Final = {
    EngineState.STARTING: "wait",
    EngineState.READY: "ok",
    EngineState.DRAINING: "wait",
    EngineState.SUSPECT: "warn",
    EngineState.HUNG: "bad",
    EngineState.BACKOFF: "warn",
    EngineState.FAILED: "bad",
    EngineState.STOPPED: "off",
}
_NEGLIGIBLE: Final = 0.1  # of an engine's own rate
_SILENT_S: Final = 5.0  # an engine says something every second


def flow(snapshot: NodeSnapshot) -> FlowContext:
    """The map of the node."""
    prompt, output = token_rates(snapshot)
    held = _held(snapshot)
    by_role = {
        role: tuple(engine(e, bottleneck=e.name in held) for e in snapshot.engines if e.role is role) for role in Role
    }
    return FlowContext(
        queue=_queue(snapshot),
        handoff=_handoff(snapshot),
        answers=_answers(snapshot),
        prefill=by_role[Role.PREFILL],
        decode=by_role[Role.DECODE],
        both=by_role[Role.BOTH],
        split=bool(by_role[Role.PREFILL] or by_role[Role.DECODE]),
        prompt_link=_link(prompt, "prompt tokens/s"),
        handoff_link=_link(snapshot.handoffs.recent_s, "hand-offs/s"),
        output_link=_link(output, "output tokens/s"),
    )


def _held(snapshot: NodeSnapshot) -> tuple[str, ...]:
    """Engines that hold the node back."""
    verdict = snapshot.verdict
    return verdict.engines if verdict is not None and verdict.state == "bottleneck" else ()


def engine(snapshot: EngineSnapshot, *, bottleneck: bool = False) -> EngineContext:
    """One engine's card."""
    starting = snapshot.state is EngineState.STARTING
    return EngineContext(
        name=snapshot.name,
        role=snapshot.role.value,
        state=snapshot.state.value,
        tone=_STATE_TONES[snapshot.state],
        glyph=TONES[_STATE_TONES[snapshot.state]],
        since=words.age(snapshot.in_state_s),
        pid=words.DASH if snapshot.pid is None else str(snapshot.pid),
        hardware=_hardware(snapshot),
        memory=words.memory(snapshot.memory_bytes),
        stage=snapshot.stage if starting else None,
        progress=_percent(snapshot.progress) if starting else None,
        cause=snapshot.cause,
        warnings=_warnings(snapshot),
        rates=_engine_rates(snapshot),
        running=words.count(snapshot.running),
        waiting=words.count(snapshot.waiting),
        fetching=words.count(snapshot.fetching),
        kv=words.percent(snapshot.kv_usage),
        kv_percent=_percent(snapshot.kv_usage),
        kv_blocks=_blocks(snapshot),
        step=words.duration(None if snapshot.step_ms is None else snapshot.step_ms / 1e3),
        prefix_hits=words.percent(snapshot.prefix_hit_rate),
        restarts=snapshot.restarts,
        bottleneck=bottleneck,
    )


def _engine_rates(snapshot: EngineSnapshot) -> tuple[RateContext, ...]:
    """What its role is for; and the other where it amounts to something, as with requests that run whole."""
    prompt_s, output_s = snapshot.prompt_tokens_s, snapshot.output_tokens_s
    prompt = RateContext(value=words.number(prompt_s), unit="prompt tokens/s")
    output = RateContext(value=words.number(output_s), unit="output tokens/s")
    if snapshot.role is Role.PREFILL:
        return (prompt, output) if _amounts(output_s, prompt_s) else (prompt,)
    if snapshot.role is Role.DECODE:
        return (output, prompt) if _amounts(prompt_s, output_s) else (output,)
    return prompt, output


def _amounts(other_s: float | None, own_s: float | None) -> bool:
    """Each split request has one output token on its prefill engine, and one prompt token on its decode engine."""
    return (other_s or 0.0) > _NEGLIGIBLE * (own_s or 0.0)


def _hardware(snapshot: EngineSnapshot) -> str:
    if snapshot.gpus:
        return f"{words.several(len(snapshot.gpus), 'GPU')}: {', '.join(_short_uuid(gpu) for gpu in snapshot.gpus)}"
    if not snapshot.cores:
        return words.DASH
    return f"{'core' if len(snapshot.cores) == 1 else 'cores'} {words.ranges(snapshot.cores)}"


def _short_uuid(gpu: str) -> str:
    """GPU-3f2a81c0-… as 3f2a81c0."""
    return gpu.removeprefix("GPU-").split("-")[0]


def _warnings(snapshot: EngineSnapshot) -> tuple[str, ...]:
    silent = snapshot.last_step_age_s
    if silent is not None and silent > _SILENT_S and snapshot.state is EngineState.READY:
        return (f"has said nothing for {words.age(silent)}", *snapshot.peer_errors)
    return snapshot.peer_errors


def _blocks(snapshot: EngineSnapshot) -> str:
    total, free = snapshot.kv_blocks_total, snapshot.kv_blocks_free
    if total is None:
        return words.DASH
    return f"{words.count(None if free is None else total - free)} of {words.count(total)}"


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
    return AnswersContext(
        ttft_p50=words.duration(snapshot.ttft_p50_s),
        ttft_p99=words.duration(snapshot.ttft_p99_s),
        ttft_target=words.duration(snapshot.slo_ttft_s),
        itl_p50=words.duration(snapshot.itl_p50_s),
        itl_target=words.duration(snapshot.slo_itl_s),
        ok=words.count(requests.ok),
        failed=requests.failed,
        cancelled=words.count(requests.cancelled),
        retried=requests.retried,
    )


def _link(rate: float | None, unit: str) -> LinkContext:
    level = 0 if not rate else min(5, max(1, 1 + math.floor(math.log10(max(1.0, rate)))))
    return LinkContext(label=words.number(rate), unit=unit, level=level)
