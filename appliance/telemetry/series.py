"""What one life of an engine has reported lately, and the rates that follow from it. Pure but for its memory."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from appliance.channel import CoreReady, Heartbeat, Step, Up

WINDOW_NS: Final = 5 * 1_000_000_000
_MOST_STEPS: Final = 20_000


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Over the window; all 0 for an engine that is up and idle."""

    prompt_tokens_s: float
    output_tokens_s: float
    steps_s: float
    step_ms: float | None  # None without a step in the window
    prefix_hit_rate: float | None  # None without a question to the cache in the window


class Series:
    """One life."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.core: CoreReady | None = None
        self.last: Step | Heartbeat | None = None
        self.last_step: Step | None = None
        self._steps: deque[tuple[int, Step]] = deque(maxlen=_MOST_STEPS)
        self._before: Step | None = None  # the last one before the window

    def add(self, message: Up, now_ns: int) -> None:
        """Steps without tokens are no steps: an engine that only waits for KV makes many."""
        if isinstance(message, CoreReady):
            self.core = message
        elif isinstance(message, Step):
            self.last = self.last_step = message
            if message.prompt_tokens or message.decode_tokens:
                self._steps.append((now_ns, message))
        elif isinstance(message, Heartbeat):
            self.last = message

    def last_sign_ns(self) -> int | None:
        if self.last is None:
            return None
        return self.last.end_ns if isinstance(self.last, Step) else self.last.at_ns

    def rates(self, now_ns: int) -> Rates:
        while self._steps and now_ns - self._steps[0][0] > WINDOW_NS:
            self._before = self._steps.popleft()[1]
        steps = [step for _, step in self._steps]
        seconds = WINDOW_NS * 1e-9
        busy_ms = sum(step.end_ns - step.start_ns for step in steps) * 1e-6
        return Rates(
            prompt_tokens_s=sum(step.prompt_tokens for step in steps) / seconds,
            output_tokens_s=sum(step.decode_tokens for step in steps) / seconds,
            steps_s=len(steps) / seconds,
            step_ms=busy_ms / len(steps) if steps else None,
            prefix_hit_rate=_hit_rate(self._before, steps),
        )


def _hit_rate(before: Step | None, steps: list[Step]) -> float | None:
    """Steps carry totals since the engine's start, which were 0 then."""
    if not steps:
        return None
    queries = steps[-1].prefix_queries - (before.prefix_queries if before else 0)
    return (steps[-1].prefix_hits - (before.prefix_hits if before else 0)) / queries if queries > 0 else None
