"""What the templates are given: documented structs, and the pure functions that make them of a snapshot.

A test holds each template's variables to the fields here. Texts are ready to print: absent values are dashes already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from appliance.records import EngineState, Lease, NodeSnapshot, Role, Verdict
from web import causes, words


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything a template renders."""


class FactContext(Context, frozen=True, kw_only=True):
    """``fact.html``: a figure and what it is. ``odd``: not as it should be."""

    label: str
    value: str
    odd: bool = False


class ChoiceContext(Context, frozen=True, kw_only=True):
    """A link to another page, or to more or less of this one."""

    label: str
    href: str
    here: bool


class ChoicesContext(Context, frozen=True, kw_only=True):
    """``choices.html``: a line of links, of which one is taken."""

    label: str
    choices: tuple[ChoiceContext, ...]


class HeadlineContext(Context, frozen=True, kw_only=True):
    """``headline.html``: how the node is, in one sentence."""

    tone: str  # one of TONES
    glyph: str  # the tone again, as a shape
    sentence: str
    detail: str | None
    causes: tuple[str, ...]  # why engines are down, with the remedy
    model: str
    topology: str
    simulated: bool


class StripContext(Context, frozen=True, kw_only=True):
    """``strip.html``: the same in a line, on every page; a link to the first one."""

    tone: str
    glyph: str
    sentence: str


class AnnouncementContext(Context, frozen=True, kw_only=True):
    """``announcement.html``: told to screen readers; changes only when the node's condition does, never with numbers."""

    text: str


class FooterContext(Context, frozen=True, kw_only=True):
    """``footer.html``: what the supervisor itself costs."""

    version: str
    uptime: str
    memory: str
    cpu: str
    loop_delay: str


TONES: Final = {"ok": "●", "busy": "○", "wait": "◔", "warn": "▲", "bad": "✕", "off": "■"}

_VERDICTS: Final = {"bottleneck": "bad", "unknown": "warn"}
_OVERDUE_S: Final = 3.0  # an engine looks at its leases once a second
_SLOW: Final = 1.15  # times what is expected
_DOWN: Final = {
    EngineState.SUSPECT: "is suspect",
    EngineState.HUNG: "hangs",
    EngineState.BACKOFF: "is started again shortly",
    EngineState.FAILED: "has failed",
    EngineState.STOPPED: "is stopped",
}


def choices(
    label: str, path: str, query: Mapping[str, str], name: str, options: Iterable[tuple[str, str]], anchor: str = ""
) -> ChoicesContext:
    """Links to the same page that choose otherwise in one thing and keep the rest of what was asked for.

    Args:
        query: what was asked for; what is empty was not.
        name: of that which the line is about.
        options: its values, each after its words; an empty one leaves it out.
        anchor: where on the page they lead, with its ``#``.
    """
    return ChoicesContext(
        label=label,
        choices=tuple(
            ChoiceContext(
                label=said,
                href=words.address(path, **{**query, name: value}) + anchor,
                here=query.get(name, "") == value,
            )
            for said, value in options
        ),
    )


def slow(ratio: float | None) -> bool:
    """Steps or copies take much longer than they should. ``ratio``: measured over expected."""
    return ratio is not None and ratio > _SLOW


def splits(snapshot: NodeSnapshot) -> bool:
    """Some engines only prefill or only decode: requests are split as a rule."""
    return any(engine.role is not Role.BOTH for engine in snapshot.engines)


def headline(snapshot: NodeSnapshot) -> HeadlineContext:
    """What holds the node back, or its condition; numbers included."""
    tone, sentence, detail = _condition(snapshot)
    verdict = _held_by(snapshot)
    if verdict is not None:
        detail = " ".join((sentence, detail or "")).strip()
        lasts = words.age(max(0.0, snapshot.time - verdict.since))
        tone, sentence = _VERDICTS.get(verdict.state, "warn"), f"{_said(verdict)}, for {lasts}"
    return HeadlineContext(
        tone=tone,
        glyph=TONES[tone],
        sentence=sentence,
        detail=detail,
        causes=tuple(f"{e.name}: {e.cause}" for e in snapshot.engines if e.cause and e.state in _DOWN),
        model=snapshot.model,
        topology=snapshot.topology,
        simulated=snapshot.simulated,
    )


def strip(snapshot: NodeSnapshot) -> StripContext:
    """What holds the node back, if anything does; else its condition."""
    tone, sentence, _ = _condition(snapshot)
    verdict = _held_by(snapshot)
    if verdict is not None:
        tone, sentence = _VERDICTS.get(verdict.state, "warn"), _said(verdict)
    return StripContext(tone=tone, glyph=TONES[tone], sentence=sentence)


def announcement(snapshot: NodeSnapshot) -> AnnouncementContext:
    """The node's condition without numbers."""
    down = [f"{e.name} {_DOWN[e.state]}" for e in snapshot.engines if e.state in _DOWN] + _broken(snapshot)
    verdict = _held_by(snapshot)
    held = f" {_said(verdict)}." if verdict else ""
    begins = any(engine.state is EngineState.STARTING for engine in snapshot.engines)
    serving = f"The node {'serves' if snapshot.ready else 'does not serve'} requests{'' if snapshot.ready or not begins else ' yet'}"
    return AnnouncementContext(text=f"{serving}{'; ' if down else ''}{words.listing(down)}.{held}")


def _held_by(snapshot: NodeSnapshot) -> Verdict | None:
    """What there is to be said of what holds the node back: nothing while it does not serve yet."""
    verdict = snapshot.verdict
    return verdict if snapshot.ready and verdict is not None and verdict.state != "ok" else None


def _said(verdict: Verdict) -> str:
    """Without numbers."""
    return f"Bottleneck: {causes.words(verdict)}" if verdict.cause else "Something holds it back"


def _condition(snapshot: NodeSnapshot) -> tuple[str, str, str | None]:
    """Tone, sentence and detail."""
    if not snapshot.ready:
        return _not_serving(snapshot)
    troubles = _troubles(snapshot)
    queue = snapshot.queue
    active = queue.depth + queue.in_flight
    tone = "warn" if troubles else "ok"
    suffix = f", but {words.listing(troubles)}" if troubles else ""
    if active:
        return tone, f"Serving {words.several(active, 'request')}{suffix}.", _rates(snapshot)
    if not snapshot.requests.total:
        return tone, f"Ready{suffix}. Nothing has been asked yet.", "The command below sends a first request."
    return tone, f"Ready, and idle{suffix}.", _tally(snapshot)


def _not_serving(snapshot: NodeSnapshot) -> tuple[str, str, str | None]:
    starting = [e for e in snapshot.engines if e.state is EngineState.STARTING]
    if starting:
        states = words.listing(
            [e.name if e.progress is None else f"{e.name} {words.percent(e.progress)}" for e in starting]
        )
        down = [f"{e.name} {_DOWN[e.state]}" for e in snapshot.engines if e.state in _DOWN]
        stages = dict.fromkeys(f"{e.name} is {e.stage}" for e in starting if e.stage)
        detail = f"{words.listing(list(stages))}." if stages else snapshot.reason
        return "bad" if down else "wait", f"Loading: {words.listing([states, *down])}.", detail
    troubles = _troubles(snapshot)
    sentence = f"Not serving: {words.listing(troubles)}." if troubles else "Not serving."
    return "bad", sentence, snapshot.reason


def _troubles(snapshot: NodeSnapshot) -> list[str]:
    """Engines that are not at work, each with what it does instead."""
    found = []
    for engine in snapshot.engines:
        if engine.state in _DOWN:
            found.append(f"{engine.name} {_DOWN[engine.state]}")
        elif engine.state is EngineState.STARTING:
            progress = "" if engine.progress is None else f" ({words.percent(engine.progress)})"
            found.append(f"{engine.name} is still starting{progress}")
    return found + _broken(snapshot)


def _broken(snapshot: NodeSnapshot) -> list[str]:
    cut = [f"no KV gets from {pair.prefill} to {pair.decode}" for pair in snapshot.pairs if not pair.in_use]
    leaks = leaking(snapshot)
    return cut + ([f"{words.listing(leaks)} {'leaks' if len(leaks) == 1 else 'leak'} KV blocks"] if leaks else [])


def leaking(snapshot: NodeSnapshot) -> tuple[str, ...]:
    """Engines that hold blocks which they should have taken back, or which nobody accounts for."""
    book = snapshot.ledger
    late = [lease.owner for lease in book.leases if overdue(lease)]
    return tuple(dict.fromkeys([*late, *(one.engine for one in book.unexplained)]))


def overdue(lease: Lease) -> bool:
    """Its engine should have taken the blocks back."""
    return lease.remaining_s < -_OVERDUE_S


def _rates(snapshot: NodeSnapshot) -> str:
    prompt, output = token_rates(snapshot)
    waiting = f" {words.several(snapshot.queue.depth, 'request')} in the queue." if snapshot.queue.depth else ""
    return f"{words.number(prompt)} prompt tokens/s in, {words.number(output)} output tokens/s out.{waiting}"


def _tally(snapshot: NodeSnapshot) -> str:
    requests = snapshot.requests
    unhappy = [
        f"{amount:,} {what}"
        for amount, what in ((requests.failed, "failed"), (requests.cancelled, "cancelled"))
        if amount
    ]
    rest = f"; {words.listing(unhappy)}" if unhappy else ""
    return f"{words.several(requests.ok, 'request')} answered since the start{rest}."


def token_rates(snapshot: NodeSnapshot) -> tuple[float | None, float | None]:
    """Prompt and output tokens per second of all engines: what can't be split does both on whichever engine it runs."""
    prompt = total(e.prompt_tokens_s for e in snapshot.engines)
    return prompt, total(e.output_tokens_s for e in snapshot.engines)


def total(values: Iterable[float | None]) -> float | None:
    """Sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def footer(snapshot: NodeSnapshot) -> FooterContext:
    """The supervisor's own cost."""
    supervisor = snapshot.supervisor
    delay_ms = supervisor.loop_delay_ms
    return FooterContext(
        version=snapshot.version,
        uptime=words.age(snapshot.uptime_s),
        memory=words.memory(supervisor.memory_bytes),
        cpu=words.DASH if supervisor.cpu_share is None else f"{supervisor.cpu_share * 100:.1f}\u00a0%",
        loop_delay=words.duration(None if delay_ms is None else delay_ms / 1e3),
    )
