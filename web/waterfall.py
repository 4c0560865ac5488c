"""Where a request's time to first token went, in words and as stretches of a bar. Pure, like ``web.contexts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.records import STAGES, Timeline
from web import words
from web.contexts import Context

LABELS: Final = {
    "queue": "queue",
    "prefill_wait": "prefill wait",
    "prefill_compute": "prefill",
    "handoff_wait": "hand-off wait",
    "transfer": "transfer",
    "decode_wait": "decode wait",
    "first_step": "first step",
}
_OUTCOMES: Final = {"running": "busy", "ok": "ok", "failed": "bad", "cancelled": "off"}
_SCALES_S: Final = tuple(step * 10.0**power for power in range(-3, 4) for step in (1, 2, 5))


class LegendContext(Context, frozen=True, kw_only=True):
    """One stage in ``legend.html``, and wherever else they are listed."""

    stage: str
    label: str


LEGEND: Final = tuple(LegendContext(stage=stage, label=LABELS[stage]) for stage in STAGES)
"""All stages, in their order."""


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """One stage as it lies in its request."""

    stage: str
    begins_s: float  # after the request came
    lasts_s: float

    @property
    def label(self) -> str:
        return LABELS.get(self.stage, self.stage)

    @property
    def said(self) -> str:
        return f"{self.label} {words.duration(self.lasts_s)}"


def stretches(timeline: Timeline) -> tuple[Stretch, ...]:
    """One after the other, without a gap; also those that took no time."""
    found, begins_s = [], 0.0
    for stage in timeline.stages:
        found.append(Stretch(stage=stage.name, begins_s=begins_s, lasts_s=stage.duration_s))
        begins_s += stage.duration_s
    return tuple(found)


def seconds(timeline: Timeline) -> float:
    """To the first token, or so far."""
    return sum(stage.duration_s for stage in timeline.stages) if timeline.ttft_s is None else timeline.ttft_s


def scale(lengths_s: Sequence[float]) -> float:
    """The least of 1, 2, 5 times a power of ten that holds them all, in seconds; 0.1 for none."""
    longest = max(lengths_s, default=0.1)
    return next((step for step in _SCALES_S if step >= longest), longest)


def share(part_s: float, whole_s: float) -> str:
    """In percent, as SVG has it."""
    return f"{100 * part_s / whole_s:.2f}%"


def target_x(target_s: float, scale_s: float) -> str | None:
    """Where the target is on the scale; None beyond its end."""
    return share(target_s, scale_s) if target_s <= scale_s else None


def mostly(timeline: Timeline) -> str | None:
    """The stage that took most of it."""
    longest = max(stretches(timeline), key=lambda one: one.lasts_s, default=None)
    return longest.said if longest is not None and longest.lasts_s > 0 else None


def path(timeline: Timeline) -> str:
    """The engines that it ran on."""
    if timeline.prefill_engine is None:
        return words.DASH
    if timeline.split:
        return f"{timeline.prefill_engine} → {timeline.decode_engine}"
    prefilling = timeline.decode_engine is None and timeline.outcome == "running"
    return f"{timeline.prefill_engine} → …" if prefilling else timeline.prefill_engine


def tone(timeline: Timeline) -> str:
    """Of its outcome: one of ``TONES``."""
    return _OUTCOMES.get(timeline.outcome, "off")


def outcome(timeline: Timeline) -> str:
    """With the status that says more."""
    if timeline.outcome == "failed" and timeline.status is not None:
        return f"failed ({timeline.status})"
    return timeline.outcome
