"""What is put on a request as it goes, and the stages that are made of it. Pure.

Stages are clamped, each between the one before it and the first token, so that they always sum to TTFT. A mark that never came leaves its
stage at 0 and its time to the next one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.records import STAGES, Pieces, Stage

_NS: Final = 1e-9
_WHOLE_STAGES: Final = STAGES[:3]  # nothing divides the rest of an unsplit request
_TIMES_KEPT: Final = 256  # of one request's pieces


class Marks(msgspec.Struct):
    """``CLOCK_MONOTONIC`` nanoseconds; None until it has happened. All but ``arrived`` are of the latest attempt."""

    arrived: int
    dispatched: int | None = None  # first leg sent
    scheduled: int | None = None  # first leg scheduled
    kept: int | None = None  # prompt's KV complete and held
    decode_sent: int | None = None  # decode leg
    pull_began: int | None = None
    pull_ended: int | None = None
    decode_scheduled: int | None = None
    first_token: int | None = None
    made: int | None = None  # the same, in the engine's word
    prefilled: int | None = None  # the answer of the prefill leg is here

    def restart(self, now_ns: int) -> None:
        """A new attempt: what was lost on the last one counts as queueing."""
        self.dispatched = now_ns
        self.scheduled = self.kept = self.decode_sent = self.pull_began = self.pull_ended = self.decode_scheduled = None
        self.made = self.first_token = self.prefilled = None


def stages(marks: Marks, split: bool, now_ns: int) -> tuple[Stage, ...]:
    """The stages until the first token, or until ``now_ns`` while there is none. They sum to the time since arrival."""
    inner: list[int | None] = [marks.dispatched, marks.scheduled]
    if split:
        inner += [marks.kept, marks.pull_began, marks.pull_ended, marks.decode_scheduled]
    if marks.first_token is None:
        while inner and inner[-1] is None:  # it is still in the stage after the last mark
            inner.pop()
    end = now_ns if marks.first_token is None else marks.first_token
    return _between(marks.arrived, inner, max(end, marks.arrived), STAGES if split else _WHOLE_STAGES)


def _between(start: int, inner: list[int | None], end: int, names: Sequence[str]) -> tuple[Stage, ...]:
    """``names[i]`` ends at the i-th of ``inner``, and the one after these at ``end``."""
    found, previous = [], start
    for name, mark in zip(names, [*inner, end], strict=False):
        until = previous if mark is None else min(max(mark, previous), end)
        found.append(Stage(name, (until - previous) * _NS))
        previous = until
    return tuple(found)


class Sent:
    """When pieces left, in at most ``_TIMES_KEPT`` times however many they are: when it is full, every other one goes."""

    __slots__ = ("_after_s", "_every", "due")

    def __init__(self) -> None:
        self._every = 1
        self._after_s = array("f")  # single precision: a tenth of a millisecond after half an hour
        self.due = 1
        """The next piece, counted from 1, whose time is wanted."""

    def add(self, after_ns: int) -> None:
        """The piece that was due has left."""
        self._after_s.append(after_ns * _NS)
        if len(self._after_s) == _TIMES_KEPT:
            self._after_s = self._after_s[::2]
            self._every *= 2
        self.due = 1 + len(self._after_s) * self._every

    def pieces(self) -> Pieces | None:
        """None of an answer that has not begun."""
        return (
            Pieces(every=self._every, after_s=tuple(round(one, 5) for one in self._after_s)) if self._after_s else None
        )
