"""Signs of life of one engine, and for how long it may give none. Pure.

vLLM's ``/health`` is 200 while its EngineCore stands still, so it proves nothing. EngineCore's main loop says each step and, while there
is none, that it turns. How long a step may take is judged by those that this engine has made.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

from appliance.channel import LONG_STEP_TOKENS, Heartbeat, Step, StepBegan, Up

PATIENCE_S: Final = 2.0  # at the least
STEPS: Final = 10  # as long as so many of the slowest comparable step
UNKNOWN_S: Final = 120.0  # for a long step while there has been none to compare it with
_REMEMBERED: Final = 1024
_PROBE_PATIENCE_S: Final = 4.0


class Condition(StrEnum):
    """What the operating system says of a process that gives no sign."""

    GONE = "gone"  # EngineCore has closed its channel, as it does when it ends; the API process follows soon
    STILL = "still"  # it waits for something
    STOPPED = "stopped"  # SIGSTOP, or a debugger
    BUSY = "busy"  # it computes, or would if it were let: a long step, compiling, a starved machine


class Vitals:
    """Of one life. Times are ``CLOCK_MONOTONIC`` nanoseconds; signs count from when they are received."""

    def __init__(self, now_ns: int) -> None:
        self._sign_ns = now_ns
        self._answer_ns = now_ns
        self._began: StepBegan | None = None
        self._short_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._long_token_s: deque[float] = deque(maxlen=_REMEMBERED)  # per prompt token

    def fold(self, message: Up, now_ns: int) -> None:
        """Take what EngineCore says."""
        match message:
            case Step():
                self._learn(message, (message.end_ns - message.start_ns) * 1e-9)
                if self._began is not None and self._began.at_ns <= message.start_ns:
                    self._began = None
            case StepBegan():
                self._began = message
            case Heartbeat():
                self._began = None
            case _:
                return
        self._sign_ns = now_ns

    def _learn(self, step: Step, duration_s: float) -> None:
        if step.prompt_tokens < LONG_STEP_TOKENS:
            self._short_s.append(duration_s)
        else:
            self._long_token_s.append(duration_s / step.prompt_tokens)

    def answered(self, now_ns: int) -> None:
        """The API process has answered a probe."""
        self._answer_ns = now_ns

    def excuse(self, now_ns: int) -> None:
        """Nobody listened for a while: what was said in that time is still to come."""
        self._sign_ns = self._answer_ns = now_ns

    def core_quiet_s(self, now_ns: int) -> float:
        """Since EngineCore's last sign."""
        return (now_ns - self._sign_ns) * 1e-9

    def api_quiet_s(self, now_ns: int) -> float:
        """Since the API process's last answer."""
        return (now_ns - self._answer_ns) * 1e-9

    def core_patience_s(self) -> float:
        """The longest that EngineCore may be quiet now."""
        return max(PATIENCE_S, STEPS * self._expected_s())

    def api_patience_s(self) -> float:
        """The longest that the API process may be quiet."""
        return _PROBE_PATIENCE_S

    def _expected_s(self) -> float:
        """The slowest comparable step; a long one by its tokens."""
        slowest_short_s = max(self._short_s, default=0.0)
        if self._began is None:
            return slowest_short_s
        if not self._long_token_s:
            return UNKNOWN_S / STEPS
        return max(slowest_short_s, max(self._long_token_s) * self._began.prompt_tokens)
