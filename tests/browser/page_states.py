"""Made-up snapshots of a node in each of its conditions, and a node that shows them; for tests and for screenshots."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec

from appliance.errors import ActionError
from appliance.records import (
    STAGES,
    Action,
    EngineSnapshot,
    EngineState,
    Evidence,
    GpuSnapshot,
    HandoffSnapshot,
    KneeReading,
    Lately,
    Lease,
    LedgerSnapshot,
    Leg,
    LinkSnapshot,
    Moved,
    NodeSnapshot,
    Order,
    OrderKind,
    Pair,
    QueueSnapshot,
    Remedy,
    RequestCounts,
    Role,
    Stage,
    StepReading,
    SupervisorSnapshot,
    Timeline,
    Verdict,
)
from web import views
from web.overview import Overview
from web.render import compact
from web.views import Asked, Page

NOON = 1_700_000_000.0


def engine(
    name: str, role: Role = Role.PREFILL, state: EngineState = EngineState.READY, **more: object
) -> EngineSnapshot:
    """An idle engine on two cores, unless told otherwise."""
    number = int(name[1:])
    defaults: dict[str, object] = {
        "epoch": 1,
        "pid": 41000 + number,
        "cores": (2 * number, 2 * number + 1),
        "in_state_s": 754.0,
        "running": 0,
        "waiting": 0,
        "fetching": 0,
        "kv_usage": 0.0,
        "kv_blocks_total": 4096,
        "kv_blocks_free": 4096,
        "block_tokens": 16,
        "prompt_tokens_s": 0.0,
        "output_tokens_s": 0.0,
        "steps_s": 0.0,
        "last_step_age_s": 0.4,
        "memory_bytes": 912 << 20,
    }
    return EngineSnapshot(name=name, role=role, state=state, **{**defaults, **more})  # type: ignore[arg-type]


def node(engines: tuple[EngineSnapshot, ...], tick: int, **more: object) -> NodeSnapshot:
    """A ready node around these engines."""
    defaults: dict[str, object] = {
        "version": "0.1.0",
        "model": "tiny-stories",
        "topology": "1p1d",
        "simulated": False,
        "ready": True,
        "reason": None,
        "uptime_s": 760.0 + tick / 2,
        "queue": QueueSnapshot(capacity=1024),
        "ledger": LedgerSnapshot(),
        "handoffs": HandoffSnapshot(),
        "requests": RequestCounts(),
        "supervisor": SupervisorSnapshot(memory_bytes=61 << 20, cpu_share=0.012, loop_delay_ms=0.3),
        "slo_ttft_s": 2.0,
        "slo_itl_s": 0.05,
    }
    return NodeSnapshot(time=NOON + tick / 2, engines=engines, **{**defaults, **more})  # type: ignore[arg-type]


def timeline(number: int, lengths_ms: tuple[float, ...], **more: object) -> Timeline:
    """A split, streamed, answered request; ``lengths_ms`` are its stages."""
    names = ("queue", "prefill_wait", "prefill_compute", "handoff_wait", "transfer", "decode_wait", "first_step")
    stages = tuple(Stage(name, length / 1e3) for name, length in zip(names, lengths_ms, strict=False))
    ttft_s = sum(lengths_ms) / 1e3
    defaults: dict[str, object] = {
        "route": "/v1/chat/completions",
        "stream": True,
        "split": True,
        "status": 200,
        "outcome": "ok",
        "prefill_engine": "e0",
        "decode_engine": "e1",
        "prompt_tokens": 180 + 37 * (number % 31),
        "output_chunks": 96,
        "transfer_bytes": 1_800_000,
        "transfer_copies": 12,
        "ttft_s": ttft_s,
        "total_s": ttft_s + 1.9,
        "legs": (
            Leg(kind="prefill", engine="e0", outcome="ok", status=200, duration_s=ttft_s * 0.7),
            Leg(kind="decode", engine="e1", outcome="ok", status=200, duration_s=1.9),
        ),
    }
    identity = f"{number:032x}"
    return Timeline(id=identity, arrived=NOON + number * 0.7, stages=stages, **{**defaults, **more})  # type: ignore[arg-type]


def loading(tick: int) -> NodeSnapshot:
    """Both engines start."""
    share = min(0.95, 0.1 + tick * 0.02)
    half = {
        "output_tokens_s": None,
        "kv_usage": None,
        "kv_blocks_total": None,
        "kv_blocks_free": None,
        "block_tokens": None,
        "steps_s": None,
        "prompt_tokens_s": None,
        "running": None,
    }
    half |= {
        "waiting": None,
        "fetching": None,
        "memory_bytes": 512 << 20,
        "in_state_s": tick / 2,
        "last_step_age_s": None,
    }
    return node(
        (
            engine("e0", state=EngineState.STARTING, progress=share, stage="loading weights", **half),
            engine("e1", Role.DECODE, EngineState.STARTING, progress=share / 2, stage="importing vLLM", **half),
        ),
        tick,
        ready=False,
        reason="e0 and e1 are still starting.",
        uptime_s=tick / 2,
    )


def empty(tick: int) -> NodeSnapshot:
    """Ready; nobody has come yet."""
    return node((engine("e0"), engine("e1", Role.DECODE)), tick)


def idle(tick: int) -> NodeSnapshot:
    """It has worked, and rests."""
    recent = tuple(timeline(n, (0.2, 0.4, 9 + n, 0.3, 0.5, 0.6, 4.1)) for n in range(6, 0, -1))
    counts = RequestCounts(total=1211, ok=1204, failed=3, cancelled=4, split=1180, retried=2)
    handoffs = HandoffSnapshot(count=1180, bytes=2_124_000_000, failed=1)
    return node(
        (engine("e0", prefix_hit_rate=0.31), engine("e1", Role.DECODE)),
        tick,
        recent=recent,
        requests=counts,
        handoffs=handoffs,
        pairs=(Pair(prefill="e0", decode="e1", ok=True, age_s=12.0, duration_s=0.05),),
        ttft_p50_s=0.0182,
        ttft_p99_s=0.049,
        itl_p50_s=0.0041,
    )


def busy(tick: int) -> NodeSnapshot:
    """It works; two requests in the queue, one retried, one whole, one cancelled, one failed."""
    wave = 1 + 0.3 * math.sin(tick / 7)
    prefill = engine(
        "e0",
        running=3,
        waiting=5,
        kv_usage=0.62,
        kv_blocks_free=1557,
        prompt_tokens_s=4213 * wave,
        steps_s=11.0,
        step_ms=86.0,
        prefix_hit_rate=0.27,
        output_tokens_s=11.0,
    )
    decode = engine(
        "e1",
        Role.DECODE,
        running=14,
        waiting=0,
        fetching=2,
        kv_usage=0.41,
        kv_blocks_free=2416,
        output_tokens_s=851 * wave,
        steps_s=61.0,
        step_ms=14.2,
        restarts=1,
        prompt_tokens_s=14.0,
    )
    leases = tuple(
        Lease(
            id=f"{n:032x}.0123456789abcdef.1",
            owner="e0",
            blocks=31 + n,
            tokens=500,
            consumers=1,
            age_s=0.2 + 7 * n,
            remaining_s=59.8 - 7 * n,
            consumer="e1",
            request=f"{n:032x}",
        )
        for n in range(3)
    )
    return node(
        (prefill, decode),
        tick,
        recent=_mixed(tick // 4),
        queue=QueueSnapshot(depth=2, capacity=1024, oldest_s=0.21, in_flight=19),
        ledger=LedgerSnapshot(leases=leases, granted=612, released=606, cancelled=2, expired=1),
        handoffs=HandoffSnapshot(count=608, failed=1, bytes=1_094_400_000, recent_s=11.2 * wave, recent_bytes_s=3.24e9),
        requests=RequestCounts(total=633, ok=609, failed=1, cancelled=4, split=608, retried=1),
        ttft_p50_s=0.21 * wave,
        ttft_p99_s=0.62 * wave,
        itl_p50_s=0.0162,
    )


def _mixed(newest: int) -> tuple[Timeline, ...]:
    """Newest first; a request keeps its shape while newer ones push it down."""
    prefilling = {"split": False, "decode_engine": None, "outcome": "running", "status": None}
    running = timeline(newest + 101, (4, 2, 61), ttft_s=None, total_s=None, legs=(), **prefilling)
    return running, *(_one(number) for number in range(newest + 100, newest + 86, -1))


def older(than: Timeline, count: int) -> tuple[Timeline, ...]:
    """Requests before that one, newest first."""
    newest = int(than.id, 16)
    return tuple(_one(number) for number in range(newest - 1, max(newest - 1 - count, 0), -1))


def _one(number: int) -> Timeline:
    dice = random.Random(number)
    base = (
        dice.uniform(1, 160),
        dice.uniform(1, 40),
        dice.uniform(60, 210),
        dice.uniform(0.5, 30),
        dice.uniform(2, 25),
        dice.uniform(1, 20),
        dice.uniform(12, 18),
    )
    match number % 9:
        case 1:
            return timeline(number, base, attempts=2)
        case 3:
            whole = {"split": False, "decode_engine": "e0", "unsplit_reason": "prompt_logprobs", "transfer_bytes": None}
            return timeline(number, base[:3], stream=False, **whole)
        case 5:
            return timeline(number, base, recomputed=True)
        case 7:
            left = {"split": False, "decode_engine": None, "outcome": "cancelled", "status": None}
            return timeline(number, base[:3], ttft_s=None, **left)
        case 8 if number % 2:
            error = "e1: connection reset before the first byte; 3 attempts were made"
            return timeline(number, base[:5], outcome="failed", status=502, error=error, attempts=3, ttft_s=None)
        case _:
            return timeline(number, base)


def failed(tick: int) -> NodeSnapshot:
    """The decode engine can't start; nothing can be served."""
    cause = (
        "Killed by the kernel (SIGKILL), probably out of memory.\n"
        "Lower [engine] kv_cache_bytes, or use a smaller model."
    )
    dead = {
        "pid": None,
        "memory_bytes": None,
        "kv_usage": None,
        "kv_blocks_total": None,
        "kv_blocks_free": None,
        "block_tokens": None,
        "steps_s": None,
        "prompt_tokens_s": None,
        "running": None,
        "waiting": None,
    }
    dead |= {"fetching": None, "output_tokens_s": None, "restarts": 5, "in_state_s": 42.0, "last_step_age_s": None}
    return node(
        (
            engine("e0", peer_errors=("can't share KV with e1: e1 is not running",)),
            engine("e1", Role.DECODE, EngineState.FAILED, cause=cause, **dead),
        ),
        tick,
        ready=False,
        reason="No engine decodes: e1 has failed.",
        recent=_mixed(3)[:4],
        requests=RequestCounts(total=18, ok=14, failed=4),
    )


def whole(tick: int) -> NodeSnapshot:
    """Two aggregated engines, one of them back from a crash."""
    wave = 1 + 0.3 * math.sin(tick / 7)
    work = {"running": 6, "waiting": 1, "kv_usage": 0.5, "kv_blocks_free": 2048, "step_ms": 31.0}
    again = {"restarts": 2, "progress": 0.6, "stage": "warming up", "cause": "Segmentation fault (SIGSEGV) 12 s ago."}
    recent = tuple(
        timeline(n, (3, 5, 80 + n), split=False, decode_engine="e0", unsplit_reason="aggregated", transfer_bytes=None)
        for n in range(9, 0, -1)
    )
    return node(
        (
            engine("e0", Role.BOTH, prompt_tokens_s=2100 * wave, output_tokens_s=310 * wave, **work),
            engine("e1", Role.BOTH, EngineState.STARTING, **again),
        ),
        tick,
        topology="2b",
        recent=recent,
        queue=QueueSnapshot(capacity=1024, in_flight=7),
        requests=RequestCounts(total=90, ok=83),
        ttft_p50_s=0.11 * wave,
        ttft_p99_s=0.3,
        itl_p50_s=0.02,
    )


def broken(tick: int) -> NodeSnapshot:
    """Two prefill engines; the KV of one does not get to the decode engine."""
    error = "hand-off from e0: its memory can't be mapped: Cannot allocate memory"
    pairs = (
        Pair(prefill="e0", decode="e2", ok=False, in_use=False, age_s=1.5, error=error),
        Pair(prefill="e1", decode="e2", ok=True, age_s=4.0, duration_s=0.06),
    )
    return msgspec.structs.replace(
        idle(tick), engines=(engine("e0"), engine("e1"), engine("e2", Role.DECODE)), topology="2p1d", pairs=pairs
    )


def large(tick: int) -> NodeSnapshot:
    """Eight simulated GPUs, three engines that prefill and one that decodes, two GPUs each."""
    wave = 1 + 0.2 * math.sin(tick / 5)

    def gpus(n: int) -> tuple[str, ...]:
        return tuple(f"GPU-{random.Random(g).getrandbits(32):08x}-0000" for g in (2 * n, 2 * n + 1))

    work = {
        "cores": (),
        "token_budget": 512,
        "running": 9,
        "waiting": 3,
        "kv_usage": 0.71,
        "kv_blocks_free": 1188,
        "step_ms": 42.0,
    }
    prefill = tuple(engine(f"e{n}", gpus=gpus(n), prompt_tokens_s=21450 * wave, busy=0.93, **work) for n in range(3))
    decode = engine(
        "e3",
        Role.DECODE,
        gpus=gpus(3),
        output_tokens_s=6120 * wave,
        room=1.3,
        itl_s=0.0162,
        itl_late=0.01,
        **{**work, "kv_usage": 0.97, "waiting": 41},
    )
    small = busy(tick)
    leases = tuple(msgspec.structs.replace(lease, consumer="e3") for lease in small.ledger.leases)
    return msgspec.structs.replace(
        small,
        recent=tuple(map(_of_large, small.recent)),
        ledger=msgspec.structs.replace(small.ledger, leases=leases),
        engines=(*prefill, decode),
        gpus=tuple(_gpu(index, wave) for index in range(8)),
        links=tuple(
            LinkSnapshot(producer=f"e{n}", consumer="e3", handoffs_s=3.7 * wave, bytes_s=3.2e9) for n in range(3)
        ),
        lately=_lately(33, 0.02, 0.2),
        topology="3p1d@tp2",
        simulated=True,
        model="Llama-3.3-70B",
    )


def _lately(first_tokens: int, late: float, ttft_s: float) -> Lately:
    shares = (0.3, 0.05, 0.4, 0.04, 0.08, 0.03, 0.1)
    stages = tuple(Stage(name, share * ttft_s) for name, share in zip(STAGES, shares, strict=True))
    ended = first_tokens - 2
    return Lately(first_tokens=first_tokens, ttft_late=late, ttft_s=ttft_s, stages=stages, ended=ended, good=1.0 - late)


def _of_large(one: Timeline) -> Timeline:
    """One of three engines prefills, and the fourth decodes."""
    names = {"e0": f"e{int(one.id, 16) % 3}", "e1": "e3"}
    legs = tuple(msgspec.structs.replace(leg, engine=names[leg.engine]) for leg in one.legs)
    prefill, decode = names.get(one.prefill_engine or ""), names.get(one.decode_engine or "")
    error = one.error and one.error.replace("e1", "e3")
    return msgspec.structs.replace(one, prefill_engine=prefill, decode_engine=decode, legs=legs, error=error)


def healthy(tick: int) -> NodeSnapshot:
    """The large node, with all as it should be."""
    node = large(tick)
    gpus = tuple(
        msgspec.structs.replace(
            _gpu(3, 1.0 + 0.02 * math.sin(tick)),
            index=gpu.index,
            uuid=gpu.uuid,
            engine=gpu.engine,
            tensor=gpu.tensor,
            dram=gpu.dram,
        )
        for gpu in node.gpus
    )
    rested = {"kv_usage": 0.44, "kv_blocks_free": 2294, "waiting": 1, "busy": 0.61}
    engines = tuple(msgspec.structs.replace(one, **rested) for one in node.engines)
    return msgspec.structs.replace(
        node,
        engines=engines,
        gpus=gpus,
        requests=RequestCounts(total=9633, ok=9609, cancelled=4, split=9608),
        handoffs=HandoffSnapshot(count=9608, bytes=17_294_400_000, recent_s=11.2, recent_bytes_s=3.24e9),
        ledger=msgspec.structs.replace(node.ledger, expired=0),
        recent=tuple(one for one in node.recent if one.outcome in ("ok", "running") and one.attempts == 1),
        pairs=tuple(Pair(prefill=f"e{n}", decode="e3", ok=True, age_s=1.0 + n) for n in range(3)),
        lately=_lately(33, 0.0, 0.2),
        verdict=Verdict(state="ok", summary="No bottleneck.", since=NOON),
    )


def _gpu(index: int, wave: float) -> GpuSnapshot:
    """The third one is too hot, and the last one's memory has errors."""
    hot, bad, decodes = index == 2, index == 7, index > 5
    return GpuSnapshot(
        index=index,
        uuid=f"GPU-sim{index}",
        name="H100-SXM5-80GB",
        engine=f"e{index // 2}",
        clock_mhz=990.0 if hot else 1980.0,
        clock_max_mhz=1980.0,
        clock_reasons=("hw_thermal_slowdown",) if hot else (),
        power_w=520.0 * wave,
        power_limit_w=700.0,
        temperature_c=88.0 if hot else 61.0,
        memory_used_bytes=72 << 30,
        memory_total_bytes=80 << 30,
        busy=0.97,
        tensor=0.11 if decodes else 0.71 * wave,
        dram=0.78 if decodes else 0.24,
        nvlink_bytes_s=6.1e9,
        ecc_corrected=812 if bad else 0,
        ecc_uncorrected=1 if bad else 0,
        xids=(94,) if bad else (),
    )


def bottleneck(tick: int) -> NodeSnapshot:
    """The large node, one of whose prefill engines is too hot."""
    verdict = Verdict(
        state="bottleneck",
        summary="e1 takes 1.9 times as long for its steps as it should: GPU 2 runs at 990 of 1,980 MHz (hw thermal slowdown) at 88 °C. "
        "31% of the first tokens come later than 2 s.",
        since=NOON + tick / 2 - 12,
        engine="e1",
        engines=("e1",),
        stage="prefill",
        cause="prefill_straggler_gpu",
        confidence=0.95,
        evidence=(
            Evidence(
                measured=1.9,
                expected=1.0,
                unit="times",
                sentence="Steps of e1 take 1.90 times as long as such steps do.",
            ),
            Evidence(
                measured=990,
                expected=1980,
                unit="MHz",
                sentence="GPU 2 runs at 990 of 1,980 MHz (hw thermal slowdown) at 88 °C.",
            ),
        ),
        action=Action(
            sentence="Give e1 less of the work until that is mended, or drain it and see to its cooling.",
            order=Order(kind=OrderKind.WEIGHT, engine="e1", weight=0.53),
            call='POST /api/engines/e1/weight {"weight": 0.53}',
        ),
        expected_gain=0.47,
        next="e0, e1 and e2 prefill all of the time, 41,200 tokens/s, and 12 requests wait: more is asked than they can do.",
    )
    node = large(tick)
    slow = {"slowdown": 1.9, "prompt_tokens_s": 0.53 * (node.engines[0].prompt_tokens_s or 0.0), "busy": 1.0}
    engines = tuple(msgspec.structs.replace(e, **(slow if e.name == "e1" else {})) for e in node.engines)
    lately = _lately(29, 0.31, 1.1)
    return msgspec.structs.replace(
        node,
        engines=engines,
        recent=tuple(map(_of_slow, node.recent)),
        lately=lately,
        verdict=verdict,
        ttft_p50_s=0.34,
        ttft_p99_s=3.1,
    )


def _of_slow(one: Timeline) -> Timeline:
    """What was prefilled on the slow engine waited for it."""
    if one.prefill_engine != "e1":
        return one
    late_s = 1.4 + int(one.id, 16) % 9 / 5
    slower = {"prefill_wait": lambda s: s + late_s, "prefill_compute": lambda s: 1.9 * s}
    stages = tuple(
        msgspec.structs.replace(stage, duration_s=slower.get(stage.name, lambda s: s)(stage.duration_s))
        for stage in one.stages
    )
    more_s = sum(stage.duration_s for stage in stages) - sum(stage.duration_s for stage in one.stages)
    ttft_s, total_s = (None if known is None else known + more_s for known in (one.ttft_s, one.total_s))
    return msgspec.structs.replace(one, stages=stages, ttft_s=ttft_s, total_s=total_s)


def of_state(state: str, one: Timeline) -> Timeline:
    """An older request, as that state would have it."""
    if state not in ("large", "healthy", "bottleneck"):
        return one
    return _of_slow(_of_large(one)) if state == "bottleneck" else _of_large(one)


STATES: dict[str, Callable[[int], NodeSnapshot]] = {
    "loading": loading,
    "empty": empty,
    "idle": idle,
    "busy": busy,
    "failed": failed,
    "whole": whole,
    "broken": broken,
    "large": large,
    "healthy": healthy,
    "bottleneck": bottleneck,
}


NODES_WITHOUT_WORK = ("loading", "empty", "failed")
"""States in which no engine has made a step lately."""


class NoActions:
    """Nothing has been done."""

    def remedies(self) -> Sequence[Remedy]:
        return ()

    def apply(self, order: Order, by: str) -> Remedy:
        raise AssertionError

    def undo(self, id: str, by: str, *, force: bool = False) -> Remedy:
        raise AssertionError


OVERVIEW = Overview(NoActions(), None)


def sections(snapshot: NodeSnapshot, page: Page | None = None) -> dict[str, str]:
    """The moving parts of a page, as HTML."""
    parts = (page or OVERVIEW).view(Asked()).parts(snapshot)
    return {name: compact(name, context) for name, context in {**views.shared(snapshot), **parts}.items()}


class FakeNode:
    """A ``NodeView`` and ``Hands`` that shows one of ``STATES`` and ticks on; ``show`` changes to another."""

    def __init__(self, state: str = "busy", tick_s: float = 0.5) -> None:
        self.state = state
        self.tick_s = tick_s
        self.readers = 0
        self.asked: list[str] = []
        self.moved = Moved()  # what a topology does to engines
        self.knees = KneeReading(tokens=608, low=550, high=690)
        self._began = time.monotonic()
        self._stands_at: int | None = None

    def show(self, state: str) -> None:
        self.state = state

    def stand_still(self) -> None:
        """Nothing happens any more; what was last seen is told again and again."""
        self._stands_at = self._tick()

    def latest(self) -> NodeSnapshot:
        return STATES[self.state](self._tick())

    def _tick(self) -> int:
        return int((time.monotonic() - self._began) / self.tick_s) if self._stands_at is None else self._stands_at

    async def updates(self) -> AsyncIterator[NodeSnapshot]:
        self.readers += 1
        try:
            while True:
                yield self.latest()
                await asyncio.sleep(self.tick_s)
        finally:
            self.readers -= 1

    def drain(self, name: str, *, force: bool = False) -> None:
        self._asked("forced drain" if force else "drain", name)

    def resume(self, name: str) -> None:
        self._asked("resume", name)

    def restart(self, name: str) -> None:
        self._asked("restart", name)

    def restart_all(self) -> None:
        self.asked.append("restart")

    def weight(self, name: str, weight: float) -> None:
        self._asked(f"weight {weight:g}", name)

    def role(self, name: str, role: Role, *, force: bool = False) -> None:
        self._asked(f"{'forced ' if force else ''}role {role.value}", name)

    def relabel(self, layout: str, roles: Mapping[str, Role] | None = None, *, force: bool = False) -> Moved:
        self.asked.append(f"topology {layout}")
        return self.moved

    def _asked(self, verb: str, name: str) -> None:
        found = next((engine for engine in self.latest().engines if engine.name == name), None)
        if found is None:
            raise ActionError(f"there is no engine {name!r}", unknown=True)
        if found.state is EngineState.STARTING:
            raise ActionError(f"{name} is starting")
        self.asked.append(f"{verb} {name}")

    def timelines(self, limit: int) -> list[Timeline]:
        return list(self.latest().recent[:limit])

    def timeline(self, request_id: str) -> Timeline | None:
        return next((t for t in self.latest().recent if t.id == request_id), None)

    def logs(self, engine: str) -> list[str] | None:
        known = {e.name for e in self.latest().engines}
        return [f"INFO {engine} one", f"ERROR {engine} two"] if engine in known else None

    def command(self, engine: str) -> list[str] | None:
        return ["python", "-m", "appliance.engine.main"] if self.logs(engine) else None

    def steps(self, engine: str, since: int, limit: int) -> list[StepReading] | None:
        made = [
            StepReading(number=number, prompt_tokens=64, decode_tokens=0, context_tokens=64, seconds=0.02)
            for number in range(since + 1, 6)
        ]
        return made[-limit:] if self.logs(engine) else None

    async def knee(self, engine: str) -> KneeReading | None:
        return self.knees if self.logs(engine) else None
