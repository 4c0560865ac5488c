"""What a plan rests on: the traffic, the engines, and how long things take on them. Whoever plans says so; nothing here looks it up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from appliance.records import Demand, Role

Chunk = tuple[float, float]  # (tokens computed in this step, tokens of the same prompt that were there before)


class Estimate(msgspec.Struct, frozen=True):
    """Seconds, and how far off these may be: a standard deviation, as a share of them. None: nobody knows."""

    seconds: float
    error: float | None = None


class StepTime(Protocol):
    """How long a step takes: learnt from steps, or worked out from a data sheet."""

    def __call__(self, chunks: Sequence[Chunk], sequences: float, context: float) -> Estimate | None:
        """None where that can't be told.

        Args:
            chunks: of prompts.
            sequences: that decode, one token each.
            context: tokens that these attend to, all together.
        """
        ...


class CopyTime(Protocol):
    """How long it takes to hand a prompt of so many tokens over to another engine."""

    def __call__(self, tokens: float) -> Estimate | None: ...


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Of an engine in one role."""

    token_budget: int  # of a step
    places: int  # requests that it runs at once


class Engines(msgspec.Struct, frozen=True, kw_only=True):
    """Those of the node: all alike but for the settings of their roles. ``copy`` None: no hand-off has been seen yet."""

    count: int
    step: StepTime
    copy: CopyTime | None = None
    kv_tokens: int  # that one engine keeps
    settings: dict[Role, Settings]
    tensor_parallel: int = 1


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """``[slo]``"""

    ttft_s: float
    itl_s: float
    share: float = 0.95


class Unknown(Exception):
    """A step that nobody can tell the time of."""


_NOT_KNOWN: Final = "how long a step of {} takes is not known yet"


class Clock:
    """Steps' times. All raise ``Unknown``."""

    def __init__(self, step: StepTime) -> None:
        self._step = step

    def seconds(self, chunks: Sequence[Chunk], sequences: float = 0.0, context: float = 0.0) -> float:
        return self.estimate(chunks, sequences, context).seconds

    def estimate(self, chunks: Sequence[Chunk], sequences: float = 0.0, context: float = 0.0) -> Estimate:
        found = self._step(chunks, sequences, context)
        if found is None:
            tokens = sum(chunk[0] for chunk in chunks)
            what = [f"{tokens:.0f} prompt tokens"] * bool(chunks) + [f"{sequences:.0f} sequences"] * bool(sequences)
            raise Unknown(_NOT_KNOWN.format(" and ".join(what)))
        return found


class Lengths:
    """A demand's prompts and answers, in the few figures that predictions need. Tokens."""

    def __init__(self, demand: Demand) -> None:
        self.prompts = [tokens * (1 - demand.hit_share) for tokens in demand.prompt_tokens]  # that are computed
        self.found = [tokens * demand.hit_share for tokens in demand.prompt_tokens]
        self.prompt = _mean(self.prompts)
        self.answers = demand.output_tokens
        self.answer = _mean(self.answers)
        half = _mean([tokens * tokens for tokens in self.answers]) / (2 * self.answer)
        self.context = _mean(demand.prompt_tokens) + half  # of one that decodes, at a moment at random
        square = _mean([tokens * tokens for tokens in self.prompts]) / (self.prompt * self.prompt)
        self.spread = max(0.0, square - 1)  # cv²; of prompts that are all alike rounding may leave less than nothing

    def batch(self, prompts: float) -> list[Chunk]:
        """So many of them, short and long ones, with as many tokens, and as much attention, as so many have on average."""
        if prompts <= 1:
            return [(self.prompt * prompts, _mean(self.found) + self.prompt * (1 - prompts) / 2)]
        count = round(prompts)
        places = [int((number + 0.5) * len(self.prompts) / count) for number in range(count)]
        chosen = [self.prompts[place] for place in places]
        mean = _mean(chosen)
        spread = _mean([tokens * tokens for tokens in chosen]) / (mean * mean) - 1
        stretch = math.sqrt(self.spread / spread) if spread > 1e-6 else 1.0
        tokens = [max(1.0, mean + (tokens - mean) * stretch) for tokens in chosen]
        scale = prompts * self.prompt / sum(tokens)
        return [(one * scale, self.found[place]) for one, place in zip(tokens, places, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
