"""Whether other traffic comes than a minute ago: more or fewer requests, longer or shorter prompts. Pure.

Two minutes are compared in blocks of a few seconds, whose scatter says how much comes and goes by itself (batch means): bursts and long
tails make for large differences between any two minutes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from appliance.records import Change, ChangeKind, NodeSnapshot

T = TypeVar("T")
_BLOCK_S: Final = 5.0
_BLOCKS: Final = 12  # a minute
_RATIO: Final = 1.5  # less is not material
_ERRORS: Final = 4.0  # standard errors; less comes and goes by itself
_REQUESTS: Final = 20  # in the busier minute; of fewer nothing can be said


class Traffic:
    """Is given each snapshot."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=2 * _BLOCKS)
        self._prompts: deque[float | None] = deque(maxlen=2 * _BLOCKS)
        self._first: NodeSnapshot | None = None  # of the block that is being filled
        self._seen: list[tuple[float, int]] = []  # mean prompt, of so many requests

    def fold(self, snapshot: NodeSnapshot) -> tuple[Change, ...]:
        """What has shifted; said once."""
        if snapshot.lately is not None and snapshot.lately.prompt_tokens is not None:
            self._seen.append((snapshot.lately.prompt_tokens, snapshot.lately.first_tokens))
        if self._first is None:
            self._first = snapshot
        if snapshot.uptime_s - self._first.uptime_s < _BLOCK_S:
            return ()
        self._close(self._first, snapshot)
        return tuple(self._shifts(snapshot.time)) if len(self._rates) == 2 * _BLOCKS else ()

    def _close(self, first: NodeSnapshot, last: NodeSnapshot) -> None:
        self._rates.append((last.requests.total - first.requests.total) / (last.uptime_s - first.uptime_s))
        weights = sum(count for _, count in self._seen)
        self._prompts.append(sum(mean * count for mean, count in self._seen) / weights if weights else None)
        self._first, self._seen = last, []

    def _shifts(self, time: float) -> Iterator[Change]:
        rates = list(self._rates)
        before, now = _minutes(rates)
        enough = max(sum(before), sum(now)) * _BLOCK_S >= _REQUESTS
        if enough and material(before, now):
            self._rates.clear()
            yield _said(time, "Requests come at", before, now, " per second", ".1f")
        lengths = list(self._prompts)
        old, new = ([one for one in half if one is not None] for half in _minutes(lengths))
        if enough and min(len(old), len(new)) >= _BLOCKS // 2 and material(old, new):
            self._prompts.extend([None] * (2 * _BLOCKS))
            yield _said(time, "Prompts have", old, new, " tokens", ",.0f")


def material(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether two rows of blocks differ by more than comes and goes by itself, and by enough to matter."""
    old, new = _mean(before), _mean(now)
    if max(old, new) < _RATIO * min(old, new) or old == new:
        return False
    return abs(new - old) >= _ERRORS * math.hypot(_error(before), _error(now))


def _minutes(blocks: list[T]) -> tuple[list[T], list[T]]:
    return blocks[:_BLOCKS], blocks[_BLOCKS:]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Of their mean."""
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _said(time: float, what: str, before: Sequence[float], now: Sequence[float], unit: str, form: str) -> Change:
    old, new = f"{_mean(before):{form}}", f"{_mean(now):{form}}"
    sentence = f"{what} {new}{unit} over the last minute, {old} in the one before."
    return Change(time=time, kind=ChangeKind.TRAFFIC, sentence=sentence, before=old + unit, after=new + unit)
