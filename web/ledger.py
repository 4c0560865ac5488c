"""The page of the KV ledger: who holds which blocks for whom, for how much longer, and what nobody accounts for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from markupsafe import Markup

from appliance.records import EngineSnapshot, Lease, LedgerSnapshot, NodeSnapshot, Unexplained
from web import words
from web.contexts import TONES, Context, overdue, splits
from web.views import Asked, Parts, View

ROWS: Final = 200


class HeldContext(Context, frozen=True, kw_only=True):
    """One engine's blocks. Positions in percent of all that it has."""

    name: str
    role: str
    used: str  # by requests of its own
    leased: str
    free: str
    total: str
    known: bool  # else there is nothing to draw
    used_width: str
    leased_x: str
    leased_width: str
    spoken: str


class LeaseContext(Context, frozen=True, kw_only=True):
    """One lease."""

    id: str
    owner: str
    consumer: str
    request: str | None
    whose: str  # where there is no request
    blocks: str
    tokens: str
    age: str
    left: str
    left_percent: str  # of the time that it had
    overdue: bool


class LeakContext(Context, frozen=True, kw_only=True):
    """What should not be there, and what to do."""

    what: str
    action: str
    call: str | None


class TotalContext(Context, frozen=True, kw_only=True):
    """A count since the start."""

    label: str
    value: str
    title: str
    odd: bool


class LedgerContext(Context, frozen=True, kw_only=True):
    """``ledger.html``: the live part."""

    tone: str
    glyph: str
    sentence: str
    leaks: tuple[LeakContext, ...]
    engines: tuple[HeldContext, ...]
    leases: tuple[LeaseContext, ...]
    more: str | None  # that are not shown
    totals: tuple[TotalContext, ...]
    splits: bool


class KvContext(Context, frozen=True, kw_only=True):
    """``kv.html``."""

    parts: Mapping[str, Markup]


class Kv:
    """``/kv``."""

    path = "/kv"
    query: tuple[str, ...] = ()
    template = "kv"
    place = "KV"

    def view(self, asked: Asked) -> View:
        def body(snapshot: NodeSnapshot, painted: Mapping[str, Markup]) -> Context:
            return KvContext(parts=painted)

        return View(title=lambda snapshot: "KV ledger", parts=parts, body=body)


def parts(snapshot: NodeSnapshot) -> Parts:
    """What moves."""
    return {"ledger": ledger(snapshot)}


def ledger(snapshot: NodeSnapshot) -> LedgerContext:
    """Leases by the time that is left."""
    book = snapshot.ledger
    ordered = sorted(book.leases, key=lambda lease: lease.remaining_s)
    leaks = (*_overdue(ordered), *map(_unexplained, book.unexplained))
    tone = "bad" if leaks else "ok"
    return LedgerContext(
        tone=tone,
        glyph=TONES[tone],
        sentence=_sentence(snapshot, leaks),
        leaks=leaks,
        engines=tuple(_held(engine, book.leases) for engine in snapshot.engines),
        leases=tuple(map(_lease, ordered[:ROWS])),
        more=f"{words.several(len(ordered) - ROWS, 'lease')} more, with more time left"
        if len(ordered) > ROWS
        else None,
        totals=_totals(book),
        splits=splits(snapshot),
    )


def _sentence(snapshot: NodeSnapshot, leaks: Sequence[LeakContext]) -> str:
    if leaks:
        return f"Leak: {leaks[0].what}" + (f" And {len(leaks) - 1} more." if len(leaks) > 1 else "")
    leases = snapshot.ledger.leases
    if not leases:
        return "No KV is held for another engine."
    hold = "holds" if len(leases) == 1 else "hold"
    blocks = words.several(sum(lease.blocks for lease in leases), "block")
    left = words.age(max(0.0, min(lease.remaining_s for lease in leases)))
    return f"{words.several(len(leases), 'lease')} {hold} {blocks}; no leak. The shortest has {left} left."


def _overdue(leases: Sequence[Lease]) -> Iterator[LeakContext]:
    """One for each engine that holds some: there may be thousands."""
    late: dict[str, list[Lease]] = {}
    for lease in filter(overdue, leases):
        late.setdefault(lease.owner, []).append(lease)
    for owner, held in late.items():
        blocks, longest = words.several(sum(one.blocks for one in held), "block"), words.age(-held[0].remaining_s)
        of = (
            "the lease's deadline"
            if len(held) == 1
            else f"the deadlines of {words.several(len(held), 'lease')}, at most"
        )
        yield LeakContext(
            what=f"{owner} still holds {blocks}, {longest} after {of}.",
            action=f"{owner} should have taken them back by itself. If they are still held in a minute, restart it: "
            "requests that it has begun are finished first.",
            call=f"POST /api/engines/{owner}/restart",
        )


def _unexplained(one: Unexplained) -> LeakContext:
    blocks = words.several(one.blocks, "leased block")
    return LeakContext(
        what=f"{one.engine} has {blocks} for {words.age(one.age_s)} that no lease accounts for.",
        action=f"Nobody will release them: restart {one.engine}; requests that it has begun are finished first.",
        call=f"POST /api/engines/{one.engine}/restart",
    )


def _held(engine: EngineSnapshot, leases: Sequence[Lease]) -> HeldContext:
    """Leased is what the engine says, or where it says nothing, what leases do."""
    total, free = engine.kv_blocks_total, engine.kv_blocks_free
    known = sum(lease.blocks for lease in leases if lease.owner == engine.name)
    leased = known if engine.leased_blocks is None else engine.leased_blocks
    taken = None if total is None or free is None else max(0, total - free)
    used = None if taken is None else max(0, taken - leased)
    return HeldContext(
        name=engine.name,
        role=engine.role.value,
        used=words.count(used),
        leased=words.count(leased if total is not None else None),
        free=words.count(free),
        total=words.count(total),
        known=used is not None,
        used_width=_percent(used, total),
        leased_x=_percent(used, total),
        leased_width=_percent(min(leased, taken) if taken is not None else None, total),
        spoken=f"{words.count(used)} in use, {words.count(leased)} leased and {words.count(free)} free, of {words.count(total)}",
    )


def _percent(part: int | None, whole: int | None) -> str:
    return f"{100 * part / whole:.2f}%" if part is not None and whole else "0%"


def _lease(lease: Lease) -> LeaseContext:
    had_s = lease.age_s + lease.remaining_s
    left = max(0.0, min(1.0, lease.remaining_s / had_s)) if had_s > 0 else 0.0
    late = overdue(lease)
    return LeaseContext(
        id=lease.id,
        owner=lease.owner,
        consumer=lease.consumer or words.DASH,
        request=lease.request,
        whose="a test of this pair" if lease.consumer else words.DASH,
        blocks=words.count(lease.blocks),
        tokens=words.count(lease.tokens),
        age=words.age(lease.age_s),
        left=f"{words.age(-lease.remaining_s)} over" if late else words.age(max(0.0, lease.remaining_s)),
        left_percent=f"{100 * left:.1f}%",
        overdue=late,
    )


def _totals(book: LedgerSnapshot) -> tuple[TotalContext, ...]:
    found = (
        ("granted", book.granted, "since the appliance was started", False),
        ("released", book.released, "the decode engine had its copy", False),
        ("cancelled", book.cancelled, "nobody wanted the KV any more", False),
        (
            "expired",
            book.expired,
            "nobody came for it in time: the prompt was computed again, or its client had left",
            True,
        ),
        ("lost", book.lost, "their engine ended", True),
    )
    return tuple(
        TotalContext(label=label, value=words.count(value), title=title, odd=odd and value > 0)
        for label, value, title, odd in found
    )
