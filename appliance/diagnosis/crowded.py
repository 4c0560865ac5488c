"""There is not enough to decode with: KV, places, or engines for what is asked. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.diagnosis import advice, layout
from appliance.diagnosis.finding import Finding, do, first, names
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, Evidence

_FULL: Final = 0.95  # of KV
_SOME: Final = 0.02  # of the tokens
_IDLE: Final = 0.3
_FEWER: Final = 0.75


def kv_full(signs: Signs) -> Finding | None:
    """Decode engines have no room for the KV of those that wait."""
    found = [
        engine
        for engine in signs.decode
        if engine.kv >= _FULL and (engine.waiting + engine.fetching >= 1 or engine.preemptions_s > 0)
    ]
    if not found:
        return None
    worst = _least_room(found)
    blocks = worst.now.kv_blocks_total or 0
    return Finding(
        cause="decode_kv_full",
        stage="decode",
        sentence=(
            f"The KV cache of {names(found)}, which {'decodes' if len(found) == 1 else 'decode'}, is full ({worst.kv:.0%}): "
            f"{worst.waiting + worst.fetching:.0f} requests wait for room"
            + (
                f", and {worst.preemptions_s:.1f} per second are thrown out and computed again."
                if worst.preemptions_s
                else "."
            )
        ),
        confidence=0.9,
        engines=first(worst, found),
        evidence=(
            Evidence(
                measured=worst.kv,
                expected=0.9,
                unit="of KV",
                sentence=f"{worst.kv:.1%} of {blocks:,} blocks are in use.",
            ),
            Evidence(
                measured=worst.preemptions_s,
                expected=0.0,
                unit="1/s",
                sentence=f"{worst.name} preempts {worst.preemptions_s:.1f} requests per second.",
            ),
        ),
        action=advice.resume(signs, "decode")
        or (advice.spread(worst, signs) if len(found) == 1 else None)
        or (layout.change(signs, "decode") if len(found) == len(signs.decode) else None)
        or advice.re_role(signs, "decode")
        or Action(
            sentence="Give decoding more KV: another decode engine, fp8 KV, or more memory.",
            setting="[topology] layout with one more decode engine, or [engine] args: --kv-cache-dtype fp8 (of all, or they can't share)",
        ),
    )


def _least_room(full: Sequence[Engine]) -> Engine:
    """Of those that are full: the one that is so with far fewer requests than others, or else the one for which most wait."""
    fewest = min(full, key=lambda engine: engine.running)
    if fewest.running < _FEWER * max(engine.running for engine in full):
        return fewest
    return max(full, key=lambda engine: (engine.waiting, engine.kv))


def no_places(signs: Signs) -> Finding | None:
    """Decode engines run as many as they may, and others wait."""
    found = [engine for engine in signs.decode if engine.full and engine.kv < _FULL]
    if not found or len(found) < len(signs.decode) or signs.queue + sum(engine.waiting for engine in found) < 1:
        return None
    worst = max(found, key=lambda engine: engine.running)
    places = worst.now.max_running or 0
    return Finding(
        cause="handoff_decode_admission",
        stage="handoff",
        sentence=(
            f"All {places} places of {names(found)}{' each' if len(found) > 1 else ''} are taken, "
            f"with {1 - worst.kv:.0%} of the KV still free: requests wait for one."
        ),
        confidence=0.85,
        engines=first(worst, found),
        evidence=(
            Evidence(
                measured=worst.running,
                expected=0.8 * places,
                unit="requests",
                sentence=f"{worst.running:.0f} of {places} places of {worst.name} are taken.",
            ),
        ),
        action=Action(
            sentence="Raise the places of decode engines.",
            setting=f"{_section(worst)} args: --max-num-seqs {2 * places}",
        ),
    )


def decode_saturated(signs: Signs) -> Finding | None:
    """Tokens come late because too many are decoded at once, and no engine is slower than it should be."""
    pool = [engine for engine in signs.decode if signs.is_behind(engine)]
    if not pool or signs.itl_late < _SOME:
        return None
    worst = max(pool, key=lambda engine: engine.itl_s)
    itl_s = worst.itl_s
    others = [engine for engine in signs.prefill if not engine.decodes]
    idle = bool(others) and max(engine.busy for engine in others) < _IDLE
    return Finding(
        cause="pool_imbalance" if idle and len(others) > 1 else "decode_saturated",
        stage="decode",
        sentence=(
            f"{do(pool, 'decodes', 'decode')} {worst.running:.0f} requests at once, which takes {itl_s * 1e3:.1f} ms per token "
            f"where {signs.now.slo_itl_s * 1e3:g} ms is the target"
            + (f", while {do(others, 'has', 'have')} little to prefill." if idle else ": that is what so many take.")
        ),
        confidence=0.8,
        engines=first(worst, pool),
        evidence=(
            Evidence(
                measured=itl_s,
                expected=signs.now.slo_itl_s,
                unit="s",
                sentence=f"{worst.name} takes {itl_s * 1e3:.1f} ms from token to token; {signs.itl_late:.0%} of all tokens are late.",
            ),
            Evidence(
                measured=worst.slowdown,
                expected=1.0,
                unit="times",
                sentence=f"Its steps take {worst.slowdown:.2f} times what such steps do: it is not slow, it has much to do."
                if worst.now.slowdown is not None
                else "What such steps take is not known yet.",
            ),
        ),
        action=advice.resume(signs, "decode")
        or layout.change(signs, "decode")
        or advice.re_role(signs, "decode")
        or Action(
            sentence="Let fewer run at once, so that those that do are in time; or add an engine that decodes.",
            setting=f"{_section(worst)} args: --max-num-seqs {max(1, int(worst.running * 0.8))}",
        ),
    )


def _section(engine: Engine) -> str:
    """Of the configuration, whose arguments it has been started with."""
    return "[engine]" if engine.prefills else "[engine.decode]"
