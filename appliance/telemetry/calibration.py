"""What engines made of their calibration, beside what they should have, and beside their like. Pure but for its memory."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from appliance.channel import Step
from appliance.records import CalibrationSnapshot

SLOW: Final = 1.15  # times what its like take: beyond it an engine is not well
_Shape = tuple[int, int]  # prompt tokens, decode tokens
_LEAST: Final = 2  # steps of a shape


class Made(msgspec.Struct, frozen=True):
    """A step of a calibration. ``expected_s``: by what was known before, if that is enough to say who is well."""

    step: Step
    expected_s: float | None

    @property
    def seconds(self) -> float:
        return (self.step.end_ns - self.step.start_ns) * 1e-9


def compared(made: Mapping[str, Sequence[Made]]) -> dict[str, CalibrationSnapshot]:
    """By engine; ``made`` is of engines of one kind."""
    medians = {name: _medians(steps) for name, steps in made.items()}
    return {
        name: CalibrationSnapshot(
            steps=len(steps),
            slowdown=_slowdown(steps),
            against_like=_against(medians[name], [other for its, other in medians.items() if its != name]),
            like=tuple(its for its, other in medians.items() if its != name and other.keys() & medians[name].keys()),
        )
        for name, steps in made.items()
        if steps
    }


def _medians(made: Iterable[Made]) -> dict[_Shape, float]:
    shapes: dict[_Shape, list[float]] = defaultdict(list)
    for one in made:
        shapes[one.step.prompt_tokens, one.step.decode_tokens].append(one.seconds)
    return {shape: statistics.median(seconds) for shape, seconds in shapes.items() if len(seconds) >= _LEAST}


def _slowdown(made: Sequence[Made]) -> float | None:
    """Of steps that there was an expectation of: the worse of prompts and of decoding, as a fault may be of one only."""
    ratios: dict[bool, list[float]] = defaultdict(list)
    for one in made:
        if one.expected_s:
            ratios[one.step.prompt_tokens == 0].append(one.seconds / one.expected_s)
    return max((statistics.median(values) for values in ratios.values() if len(values) >= _LEAST), default=None)


def _against(mine: Mapping[_Shape, float], others: Sequence[Mapping[_Shape, float]]) -> float | None:
    """Times what its like take for the same, likewise."""
    ratios = []
    for decoding in (False, True):
        took_s = like_s = 0.0
        for shape, seconds in mine.items():
            known = [other[shape] for other in others if shape in other]
            if known and (shape[0] == 0) is decoding:
                took_s, like_s = took_s + seconds, like_s + statistics.median(known)
        if like_s > 0:
            ratios.append(took_s / like_s)
    return max(ratios, default=None)
