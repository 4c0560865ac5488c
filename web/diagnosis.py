"""What the page says of what holds the node back. Pure, like ``web.contexts``."""

from __future__ import annotations

from typing import Final

from appliance.records import Evidence, NodeSnapshot, Verdict
from web import words
from web.contexts import TONES, Context

_CAUSES: Final = {
    "prefill_straggler_gpu": "slow GPU",
    "decode_straggler_gpu": "slow GPU",
    "prefill_straggler_cpu": "no CPU time",
    "decode_straggler_cpu": "no CPU time",
    "frontend_bound": "busy API process",
    "handoff_link_slow": "slow link",
    "decode_kv_full": "KV cache full",
    "handoff_decode_admission": "no free places",
    "routing_skew": "too much work",
    "cache_miss_storm": "prefix cache misses",
    "prefill_budget_small": "steps too small",
    "prefill_kv_pinned": "KV held for others",
    "long_prompt_blocking": "long prompts in the way",
    "disaggregation_not_worth_it": "splitting costs more than it brings",
    "prefill_saturated": "too many prompts",
    "decode_saturated": "too much to decode",
    "pool_imbalance": "roles out of balance",
    "engine_hung": "engine hangs",
    "engine_crashed": "engine has ended",
}
_TONES: Final = {"ok": "ok", "bottleneck": "bad", "unknown": "warn"}


class EvidenceContext(Context, frozen=True, kw_only=True):
    """One line of ``diagnosis.html``."""

    sentence: str


class DiagnosisContext(Context, frozen=True, kw_only=True):
    """``diagnosis.html``."""

    tone: str
    glyph: str
    sentence: str
    cause: str | None  # with the engine, as operators say it
    since: str
    evidence: tuple[EvidenceContext, ...]
    action: str | None
    call: str | None  # or the setting
    gain: str | None
    then: str | None  # what would hold it back next
    quiet: bool  # there is nothing to say


def diagnosis(snapshot: NodeSnapshot) -> DiagnosisContext:
    """Nothing to say while the node is well, or does not serve yet: the headline does that."""
    verdict = snapshot.verdict
    if verdict is None or verdict.state == "ok":
        return DiagnosisContext(
            tone="ok",
            glyph=TONES["ok"],
            sentence="No bottleneck.",
            cause=None,
            since=words.DASH,
            evidence=(),
            action=None,
            call=None,
            gain=None,
            then=None,
            quiet=True,
        )
    tone, action = _TONES.get(verdict.state, "warn"), verdict.action
    return DiagnosisContext(
        tone=tone,
        glyph=TONES[tone],
        sentence=verdict.summary,
        cause=_cause(verdict),
        since=words.age(max(0.0, snapshot.time - verdict.since)),
        evidence=tuple(map(_evidence, verdict.evidence)),
        action=action.sentence if action else None,
        call=(action.call or action.setting) if action else None,
        gain=None if verdict.expected_gain is None else f"{verdict.expected_gain:.0%} of that time, estimated",
        then=verdict.next,
        quiet=False,
    )


def _cause(verdict: Verdict) -> str | None:
    if verdict.cause is None:
        return None
    where = " to ".join(verdict.link) if verdict.link else verdict.engine
    if verdict.cause == "frontend_bound" and where is None:
        return "busy supervisor"
    return _CAUSES.get(verdict.cause, verdict.cause.replace("_", " ")) + (f" on {where}" if where else "")


def _evidence(evidence: Evidence) -> EvidenceContext:
    return EvidenceContext(sentence=evidence.sentence)
