"""Prompts wait: for engines, for steps that are large enough, for other prompts, or for KV. Pure.

Each test says what speaks for its cause and what to do, or None where it is not so. Thresholds are of two kinds: what is material to a
request, and what is beyond the noise of a figure. They were chosen on the tuning seeds of ``bench/diagnosis``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.diagnosis import advice, layout
from appliance.diagnosis.finding import Finding, do, first, load, ms, names
from appliance.diagnosis.signs import Engine, Signs
from appliance.records import Action, Evidence

_SATURATED: Final = 0.9  # of the time
_ALWAYS: Final = 0.995  # of the time, as it is said
_PINNED: Final = 0.8  # of the token budget
_FULLER: Final = 1.15  # see ``records.EngineSnapshot.fuller``
_BEHIND: Final = 0.5  # of the wait of those that are late
_LATE: Final = 0.5  # of the target of first tokens
_MOST: Final = 0.5  # of the prompt tokens that an engine is to compute
_FULL: Final = 0.95  # of KV
_HELD: Final = 0.7  # of the KV in use
_IDLE: Final = 0.3


def prefill_saturated(signs: Signs) -> Finding | None:
    """All engines that prefill do so all of the time."""
    pool = signs.prefill
    if not pool or min(engine.busy for engine in pool) < _SATURATED or signs.queue + sum(e.waiting for e in pool) < 1:
        return None
    others = [engine for engine in signs.decode if not engine.prefills]
    idle = (
        bool(others) and max(load(engine, "decode") for engine in others) < _IDLE and max(e.kv for e in others) < _IDLE
    )
    rate = sum(engine.prompt_tokens_s for engine in pool)
    wait = signs.queue + sum(engine.waiting for engine in pool)
    return Finding(
        cause="pool_imbalance" if idle and len(others) > 1 else "prefill_saturated",
        stage="prefill",
        sentence=(
            f"{do(pool, 'prefills', 'prefill')} all of the time, {rate:,.0f} tokens/s, while {wait:.0f} requests wait"
            + (f" and {do(others, 'has', 'have')} little to decode." if idle else ": more is asked than can be done.")
        ),
        confidence=0.85,
        engines=tuple(engine.name for engine in pool),
        evidence=(
            Evidence(
                measured=min(engine.busy for engine in pool),
                expected=0.75,
                unit="of the time",
                sentence=_busy(pool),
            ),
            Evidence(
                measured=wait,
                expected=0.0,
                unit="requests",
                sentence=f"{wait:.0f} requests wait; the queue grows by {signs.queue_growth_s:+.1f} per second.",
            ),
        ),
        action=advice.resume(signs, "prefill")
        or layout.change(signs, "prefill")
        or advice.re_role(signs, "prefill")
        or Action(
            sentence="Send fewer requests, or add an engine that prefills: all that there are have as much as they can do."
        ),
    )


def budget_small(signs: Signs) -> Finding | None:
    """Prompts are computed in steps that are too small to keep the hardware busy."""
    pool = [engine for engine in signs.prefill if engine.busy >= _SATURATED]
    found = [engine for engine in pool if _is_pinched(engine)]
    if not found or len(found) < len(signs.prefill) or signs.queue + sum(one.waiting for one in found) < 1:
        return None
    worst = max(found, key=lambda engine: engine.now.fuller or 0.0)
    budget, gain = worst.now.token_budget or 0, (worst.now.fuller or 1.0) - 1
    return Finding(
        cause="prefill_budget_small",
        stage="prefill",
        sentence=(
            f"{do(found, 'prefills', 'prefill')} all of the time in steps of {budget} tokens, which are too small for the hardware: "
            f"a step of half the size takes {min(1.0, (1 + gain) / 2):.0%} as long."
        ),
        confidence=0.8,
        engines=first(worst, found),
        evidence=(
            Evidence(
                measured=worst.now.step_prompt_tokens or 0.0,
                expected=None,
                unit="tokens",
                sentence=f"Steps of {worst.name} have {worst.now.step_prompt_tokens or 0:.0f} prompt tokens; they may have {budget}.",
            ),
            Evidence(
                measured=1 + gain,
                expected=1.0,
                unit="times",
                sentence=f"Full steps do {min(1.0, gain):.0%} more tokens/s than half-full ones: larger ones would do more still.",
            ),
        ),
        action=Action(
            sentence="Raise the token budget of a step; pd-appliance tune measures how far.",
            setting=f"{'[engine]' if worst.decodes else '[engine.prefill]'} args: --max-num-batched-tokens {2 * budget}",
        ),
        gain=1 - 1 / (1 + gain),
    )


def _is_pinched(engine: Engine) -> bool:
    budget, tokens = engine.now.token_budget, engine.now.step_prompt_tokens
    return bool(budget and tokens and tokens >= _PINNED * budget and (engine.now.fuller or 1.0) >= _FULLER)


def _busy(pool: Sequence[Engine]) -> str:
    least = min(engine.busy for engine in pool)
    how = "all of the time" if least >= _ALWAYS else f"at least {least:.0%} of the time"
    return f"Each engine that prefills is busy {how}."


def long_prompts(signs: Signs) -> Finding | None:
    """There is time for all, but short prompts wait behind a few that are many times as long."""
    pool = signs.prefill
    busy = sum(one.busy_before for one in pool) / max(1, len(pool))
    held_up = _held_up(pool, signs.now.slo_ttft_s)
    if not pool or (signs.behind_long < _BEHIND and not held_up) or busy >= _SATURATED:
        return None
    worst = max(held_up or pool, key=lambda engine: engine.outstanding)
    lately = signs.now.lately
    length = worst.longest_prompt or (lately.long_tokens or 0.0 if lately else 0.0)
    return Finding(
        cause="long_prompt_blocking",
        stage="prefill",
        sentence=(
            f"Prompts wait behind a few very long ones, of {length:,.0f} tokens. {do(pool, 'is', 'are')} not busy all of the time: "
            f"there would be time for all prompts."
        ),
        confidence=0.75,
        engines=first(worst, pool),
        evidence=(
            Evidence(
                measured=length,
                expected=signs.prompt_tokens_before,
                unit="tokens",
                sentence=f"{worst.name} computed a prompt of {length:,.0f} tokens; it has {worst.outstanding:,.0f} to compute.",
            )
            if held_up
            else Evidence(
                measured=signs.behind_long,
                expected=0.0,
                unit="of their wait",
                sentence=f"Late requests waited {signs.behind_long:.0%} of their time behind prompts of {length:,.0f} tokens.",
            ),
            Evidence(
                measured=busy,
                expected=None,
                unit="of the time",
                sentence=f"Over the last half minute {names(pool)} prefilled {busy:.0%} of the time.",
            ),
        ),
        action=Action(
            sentence="Let short prompts pass long ones, or give long ones an engine of their own.",
            setting=_threshold(worst),
        ),
    )


def _held_up(pool: Sequence[Engine], target_s: float) -> list[Engine]:
    """Engines that are busy with a prompt so long that all behind it are late, where no other one is busy without."""
    busy = [engine for engine in pool if engine.busy >= _SATURATED]
    held = [engine for engine in busy if _takes_long(engine, target_s)]
    return held if len(held) == len(busy) else []


def _takes_long(engine: Engine, target_s: float) -> bool:
    """It is most of what the engine is to compute, and takes it long, at the rate that it computes at."""
    longest = engine.longest_prompt
    return longest > 0 and longest >= max(_MOST * engine.outstanding, _LATE * target_s * engine.prompt_tokens_s)


def _threshold(engine: Engine) -> str:
    section = "[engine]" if engine.decodes else "[engine.prefill]"
    return f"{section} args: --long-prefill-token-threshold {max(1, (engine.now.token_budget or 2048) // 2)}"


def long_steps(signs: Signs) -> Finding | None:
    """Where engines do both, tokens wait for each step of a very long prompt that their engine computes meanwhile."""
    found = [one for one in signs.prefill if one.decodes and signs.is_behind(one) and one.longest_prompt]
    if not found:
        return None
    worst = max(found, key=lambda engine: engine.longest_prompt)
    return Finding(
        cause="long_prompt_blocking",
        stage="prefill",
        sentence=(
            f"{do(found, 'computes', 'compute')} a few very long prompts, of up to {worst.longest_prompt:,.0f} tokens: "
            f"whoever waits for the next token there waits for whole steps of them."
        ),
        confidence=0.75,
        engines=first(worst, found),
        evidence=(
            Evidence(
                measured=worst.longest_prompt,
                expected=signs.prompt_tokens_before,
                unit="tokens",
                sentence=f"{worst.name} computed a prompt of {worst.longest_prompt:,.0f} tokens; "
                f"{ms(worst.itl_s)} pass from token to token.",
            ),
        ),
        action=Action(
            sentence="Compute long prompts in smaller steps, or give them an engine of their own.",
            setting=_threshold(worst),
        ),
    )


def kv_pinned(signs: Signs) -> Finding | None:
    """KV of prompts that are done waits to be fetched, and leaves no room for others: the engine that holds it is the victim."""
    found = [engine for engine in signs.prefill if not engine.decodes and _is_pinned(engine)]
    if not found:
        return None
    worst = max(found, key=lambda engine: engine.kv)
    pullers = [engine for engine in signs.engines if engine.decodes and not engine.prefills]
    blamed = max(pullers, key=lambda engine: engine.waiting + engine.fetching, default=worst)
    blocks = worst.now.leased_blocks or 0
    return Finding(
        cause="prefill_kv_pinned",
        stage="handoff",
        sentence=(
            f"{blocks:,} KV blocks of {worst.name} are held for requests that {blamed.name} has not fetched: "
            f"{worst.waiting:.0f} prompts wait for room while {worst.name} computes nothing."
        ),
        confidence=0.8,
        engines=first(blamed, [blamed, *found]),
        evidence=(
            Evidence(
                measured=worst.kv,
                expected=0.9,
                unit="of KV",
                sentence=f"{worst.kv:.0%} of the KV of {worst.name} is in use, {blocks:,} blocks of it for others.",
            ),
        ),
        action=Action(
            sentence=f"See to what keeps {blamed.name} from fetching; a shorter lease gives blocks back sooner.",
            setting="[router] lease_ttl_s",
        ),
    )


def _is_pinned(engine: Engine) -> bool:
    total, leased = engine.now.kv_blocks_total or 0, engine.now.leased_blocks or 0
    held = bool(total) and leased >= _HELD * engine.kv * total
    return held and engine.kv >= _FULL and engine.waiting >= 1 and engine.running < 1
