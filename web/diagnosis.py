"""What the page says of what holds the node back. Pure, like ``web.contexts``."""

from __future__ import annotations

import msgspec

from appliance.records import GAINS_REQUESTS, Evidence, NodeSnapshot
from web import words
from web.contexts import Context


class EvidenceContext(Context, frozen=True, kw_only=True):
    """One line of ``diagnosis.html``."""

    sentence: str


class DiagnosisContext(Context, frozen=True, kw_only=True):
    """``diagnosis.html``."""

    sentence: str
    evidence: tuple[EvidenceContext, ...]
    action: str | None
    call: str | None  # or the setting
    order: str | None  # as JSON, where one does it
    gain: str | None
    then: str | None  # what would hold it back next
    quiet: bool  # there is nothing to say


def diagnosis(snapshot: NodeSnapshot) -> DiagnosisContext:
    """Nothing to say while the node is well, or does not serve yet: the headline does that."""
    verdict = snapshot.verdict
    if verdict is None or verdict.state == "ok":
        return DiagnosisContext(
            sentence="No bottleneck.",
            evidence=(),
            action=None,
            call=None,
            order=None,
            gain=None,
            then=None,
            quiet=True,
        )
    action = verdict.action
    return DiagnosisContext(
        sentence=verdict.summary,
        evidence=tuple(map(_evidence, verdict.evidence)),
        action=action.sentence if action else None,
        call=(action.call or action.setting) if action else None,
        order=msgspec.json.encode(action.order).decode() if action and action.order else None,
        gain=None
        if verdict.expected_gain is None or verdict.cause in GAINS_REQUESTS  # which its evidence says
        else f"{words.percent(verdict.expected_gain)} of the time by which they are late, estimated",
        then=verdict.next,
        quiet=False,
    )


def _evidence(evidence: Evidence) -> EvidenceContext:
    return EvidenceContext(sentence=evidence.sentence)
