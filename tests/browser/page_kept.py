"""Made-up incidents with what was seen around them, plans, and leases: what pages besides the first one show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import page_states as made

from appliance.records import (
    Change,
    ChangeKind,
    Demand,
    Incident,
    IncidentState,
    KneeReading,
    Lately,
    Lease,
    LedgerSnapshot,
    Moment,
    NodeSnapshot,
    Plan,
    Plans,
    Predicted,
    Said,
    StepReading,
    Unexplained,
    Verdict,
)

replace = msgspec.structs.replace
NOON = made.NOON
_HELD = made.bottleneck(0).verdict
assert _HELD is not None
OK = Verdict(state="ok", summary="No bottleneck.", since=NOON)


def _said(at_s: float, verdict: Verdict) -> Said:
    return Said(
        time=NOON + at_s, state=verdict.state, summary=verdict.summary, engine=verdict.engine, cause=verdict.cause
    )


OPEN = Incident(
    id="231114-2210",
    opened=NOON - 140,
    engine="e1",
    engines=("e1",),
    stage="prefill",
    cause="prefill_straggler_gpu",
    summary=_HELD.summary,
    severity=0.62,
    late=481,
    failed=3,
    evidence=_HELD.evidence,
    action=_HELD.action,
    expected_gain=0.47,
    next=_HELD.next,
    verdicts=(_said(-140, _HELD),),
    changes=(
        Change(time=NOON - 200, kind=ChangeKind.ROLE, engine="e3", sentence="e3 got another role: both → decode."),
        Change(
            time=NOON - 96,
            kind=ChangeKind.TRAFFIC,
            sentence="Requests come at 44.1 per second over the last minute, 21.0 in the one before.",
        ),
    ),
    simulated=True,
    version="0.1.0",
    model="Llama-3.3-70B",
    topology="3p1d@tp2",
    slo_ttft_s=2.0,
    slo_itl_s=0.05,
    slo_share=0.95,
)
CLOSED = replace(
    OPEN,
    id="231114-1902",
    opened=NOON - 11_460,
    state=IncidentState.CLOSED,
    closed=NOON - 11_280,
    ended="requests were answered within the targets again",
    reopened=1,
    engine="e2",
    engines=("e2",),
    cause="engine_crashed",
    summary="e2 was ended by SIGKILL, probably out of memory; it is started again.",
    severity=0.21,
    late=88,
    failed=0,
    evidence=(),
    action=None,
    expected_gain=None,
    next=None,
    verdicts=(
        _said(-11_460, replace(_HELD, engine="e2", cause="engine_crashed", summary="e2 has ended.")),
        _said(-11_430, OK),
    ),
    changes=(
        Change(time=NOON - 11_461, kind=ChangeKind.ENDED, engine="e2", sentence="e2 ended: killed by the kernel."),
    ),
)
LINK = replace(
    CLOSED,
    id="231114-2130",
    opened=NOON - 2600,
    closed=NOON - 2480,
    reopened=0,
    engine=None,
    engines=(),
    link=("e0", "e3"),
    cause="handoff_link_slow",
    summary="Hand-offs from e0 to e3 take 9.4 times as long as they should.",
    severity=0.97,
    late=1240,
    verdicts=(),
    changes=(),
)
CRASHED = replace(
    CLOSED,
    id="231114-2212",
    opened=NOON - 42,
    state=IncidentState.OPEN,
    closed=None,
    ended=None,
    reopened=0,
    engine="e1",
    engines=("e1",),
    stage="decode",
    summary="e1 was ended by SIGKILL, probably out of memory, and is not started again: it ended ten times.",
    severity=1.0,
    late=0,
    failed=4,
    evidence=(),
    action=None,
    expected_gain=None,
    next=None,
    verdicts=(),
    changes=(Change(time=NOON - 43, kind=ChangeKind.ENDED, engine="e1", sentence="e1 ended: killed by the kernel."),),
    simulated=False,
    model="tiny-stories",
    topology="1p1d",
)


class FakeIncidents:
    """Implements ``IncidentView`` over a few of them."""

    def __init__(self, *incidents: Incident, none: bool = False) -> None:
        self.kept = [] if none else list(incidents or (OPEN, LINK, CLOSED))

    async def incidents(self, limit: int, state: str | None) -> Sequence[Incident]:
        return [one for one in self.kept if state is None or one.state == state][:limit]

    async def incident(self, id: str) -> Incident | None:
        return next((one for one in self.kept if one.id == id), None)

    async def bundle(self, id: str) -> bytes | None:
        return b"\x1f\x8b" if await self.incident(id) else None

    async def moments(self, id: str, limit: int) -> Sequence[Moment] | None:
        """Of the first one alone: two minutes before it, and until now."""
        if await self.incident(id) is None:
            return None
        return [_moment(second) for second in range(-260, 1, 2)] if id == OPEN.id else []

    async def frame(self, id: str, uptime_s: float) -> NodeSnapshot | None:
        if id != OPEN.id:
            return None
        second = uptime_s - 1000
        node = made.bottleneck(0) if second >= -140 else replace(made.large(0), verdict=OK)
        late = _moment(second).ttft_late
        lately = Lately(first_tokens=30, ttft_s=_moment(second).ttft_s, ttft_late=late)
        return replace(node, time=NOON + second, uptime_s=uptime_s, lately=lately)


def _moment(second: float) -> Moment:
    hurt = second >= -140
    grown = min(1.0, max(0.0, (second + 140) / 60))
    return Moment(
        time=NOON + second,
        uptime_s=1000.0 + second,
        state="bottleneck" if hurt else "ok",
        engine="e1" if hurt else None,
        cause="prefill_straggler_gpu" if hurt else None,
        queue=round(2 + 60 * grown + second % 7),
        ttft_s=0.4 + 2.6 * grown + (second % 11) / 40,
        ttft_late=0.62 * grown,
        output_tokens_s=6000 - 2100 * grown + 40 * (second % 9),
    )


# ---- the plan


def predicted(prefill: float, decode: float, kv: float, good: float, rate: float) -> Predicted:
    return Predicted(
        prefill_load=prefill,
        decode_load=decode,
        kv_load=kv,
        ttft_s=None if prefill > 1 else 0.4 / (1.02 - prefill),
        ttft_share=good,
        itl_s=0.03 * decode + 0.008,
        itl_share=1.0,
        good=good,
        goodput_s=good * 44,
        most_rate_s=rate,
        at_once=31.0,
        error=0.03,
    )


LAYOUTS = (
    Plan(
        layout="1p3d@tp2",
        feasible=False,
        reason="more prompts come than can be computed: 197% of it",
        predicted=predicted(1.97, 0.31, 0.2, 0.0, 9.0),
    ),
    Plan(layout="2p2d@tp2", feasible=True, predicted=predicted(0.82, 0.62, 0.41, 0.98, 51.2)),
    Plan(
        layout="3p1d@tp2",
        feasible=False,
        reason="31% of tokens are late",
        predicted=predicted(0.51, 1.21, 0.93, 0.62, 38.0),
    ),
    Plan(layout="4b@tp2", feasible=False, reason="how long a step of 64 sequences takes is not known yet"),
)
DEMAND = Demand(
    rate_s=44.06, prompt_tokens=(100, 400, 720, 1500, 6150), output_tokens=(25, 100, 150, 290, 800), hit_share=0.12
)
PLANS = Plans(time=NOON, now="3p1d@tp2", best="2p2d@tp2", demand=DEMAND, layouts=LAYOUTS)
WELL = replace(
    PLANS,
    best="3p1d@tp2",
    layouts=(
        LAYOUTS[0],
        Plan(layout="2p2d@tp2", feasible=True, predicted=predicted(0.92, 0.39, 0.24, 0.97, 46.9)),
        Plan(layout="3p1d@tp2", feasible=True, predicted=predicted(0.61, 0.77, 0.44, 0.99, 55.1)),
        LAYOUTS[3],
    ),
)


@dataclass
class FakePlanning:
    """Implements ``Planning``: plans of a large node, and none of others."""

    node: made.FakeNode
    told: Plans | None = PLANS

    def plans(self) -> Plans | None:
        if self.node.state == "healthy":
            return WELL
        if len(self.node.latest().engines) < 4:
            return Plans(time=NOON, now="1p1d", reason="nobody has asked for anything in the last minute")
        return self.told


KNEE = KneeReading(
    tokens=1394,
    low=951,
    high=1769,
    tokens_s=22_672.0,
    best_tokens_s=25_188.0,
    limit_tokens=2999,
    steps=549,
    curve=tuple(
        (size, 25_400.0 * size / (size + 170) - size * 0.8)
        for size in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    ),
)


def steps() -> list[StepReading]:
    """On that line, but for some noise."""
    return [
        StepReading(
            number=number,
            prompt_tokens=size,
            decode_tokens=0,
            context_tokens=size,
            seconds=size / (25_400.0 * size / (size + 170) - size * 0.8) * (1 + (number * 37 % 17 - 8) / 100),
        )
        for number, size in enumerate((16 * 2 ** ((n * 29 % 90) / 10)).__round__() for n in range(1, 240))
    ]


# ---- leases


def leaking(tick: int) -> NodeSnapshot:
    """A lease that is over its deadline, one whose request is known, a test's, and blocks that nobody accounts for."""
    node = made.busy(tick)
    lease = Lease(
        id=f"{7:032x}.0123456789abcdef.1",
        owner="e0",
        blocks=212,
        tokens=3392,
        consumers=1,
        age_s=74.0 + tick / 2,
        remaining_s=-14.0 - tick / 2,
        consumer="e1",
        request=f"{7:032x}",
    )
    test = replace(lease, id="canary/e0.e1.4", blocks=1, tokens=9, age_s=0.1, remaining_s=59.9, request=None)
    missing = Unexplained(engine="e1", blocks=96, age_s=31.0 + tick / 2)
    ledger = replace(node.ledger, leases=(*node.ledger.leases, test, lease), unexplained=(missing,))
    engines = tuple(replace(one, leased_blocks=_leased(one.name, ledger)) for one in node.engines)
    return replace(node, ledger=ledger, engines=engines)


def _leased(engine: str, ledger: LedgerSnapshot) -> int:
    known = sum(lease.blocks for lease in ledger.leases if lease.owner == engine)
    return known + sum(one.blocks for one in ledger.unexplained if one.engine == engine)


made.STATES["leaking"] = leaking
