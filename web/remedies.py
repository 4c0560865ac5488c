"""What was done about bottlenecks lately, and what it brought. Pure, like ``web.contexts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.records import NodeSnapshot, Remedy, RemedyState
from web import times, words
from web.contexts import TONES, Context

_ROWS: Final = 3
_LATELY_S: Final = 1800.0


class RemedyContext(Context, frozen=True, kw_only=True):
    """One line of ``remedies.html``."""

    clock: str  # when it was done, the server's time of day
    sentence: str
    expected: str | None
    state: str  # what it brought, or when that will be known
    tone: str
    glyph: str
    undo: str | None  # its id, where there is a way back


class RemediesContext(Context, frozen=True, kw_only=True):
    """``remedies.html``: the newest ones, newest first."""

    remedies: tuple[RemedyContext, ...]


def remedies(given: Sequence[Remedy], snapshot: NodeSnapshot) -> RemediesContext:
    """Of the last half hour."""
    lately = [one for one in given[:_ROWS] if snapshot.time - one.time <= _LATELY_S]
    return RemediesContext(remedies=tuple(_remedy(one, snapshot.time) for one in lately))


def _remedy(one: Remedy, now: float) -> RemedyContext:
    tone, state = _state(one, now)
    holds = one.over is None and one.undo is not None
    return RemedyContext(
        clock=times.clock(one.time),
        sentence=one.sentence,
        expected=one.expected,
        state=state,
        tone=tone,
        glyph=TONES[tone],
        undo=one.id if holds else None,
    )


def _state(one: Remedy, now: float) -> tuple[str, str]:
    if one.state is RemedyState.SETTLING:
        return "wait", f"done {words.age(max(0.0, now - one.time))} ago; what it brings is not known yet"
    tone = "ok" if one.state is RemedyState.SETTLED else "warn"
    beside = f" (but {'; '.join(one.beside)})" if one.beside else ""
    over = f"; {one.over}" if one.over is not None else ""
    return "off" if over else tone, f"brought: {one.brought or words.DASH}{beside}{over}"
