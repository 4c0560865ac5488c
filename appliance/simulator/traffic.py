"""What clients ask of a simulated node, and when. Seeded: the same description gives the same requests.

Lengths are lognormal within bounds, gaps between requests of a gamma distribution. The named kinds are fitted (mean and standard
deviation of the logarithms; coefficient of variation of the gaps) to an hour each of three services: two of the Azure Public Dataset,
AzureLLMInferenceTrace 2023 (used in Splitwise, ISCA '24), and Mooncake's conversations (FAST '25). A trace file of either format can be
replayed whole instead (``traces``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from appliance.config import Count, Positive
from appliance.errors import ConfigError
from appliance.simulator.request import Asked
from appliance.simulator.traces import MOST_TOKENS, Arrival, replay

_MOST_REQUESTS: Final = 3_000_000  # of a scenario: each is held in memory


class Lengths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lognormal: ``median`` tokens, ``sigma`` of the logarithm (0: all alike), within ``least`` and ``most``."""

    median: Annotated[float, msgspec.Meta(ge=1, le=MOST_TOKENS)]
    sigma: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    least: Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)] = 1
    most: Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)] = 1_000_000

    def draw(self, chance: random.Random) -> int:
        return round(min(max(self.median * math.exp(chance.gauss(0, self.sigma)), self.least), self.most))


class Fit(msgspec.Struct, frozen=True):
    """A published trace, in few numbers. ``burstiness``: see ``Traffic``."""

    prompt: Lengths
    output: Lengths
    burstiness: float


FITTED: Final = {
    "azure-conversation": Fit(
        Lengths(median=760, sigma=0.985, least=2, most=14_000),
        Lengths(median=151, sigma=0.859, least=1, most=1_000),
        burstiness=1.09,
    ),
    "azure-code": Fit(
        Lengths(median=1095, sigma=1.36, least=3, most=7_500),
        Lengths(median=16, sigma=0.847, least=1, most=2_000),
        burstiness=13.2,
    ),
    "mooncake-conversation": Fit(
        Lengths(median=6227, sigma=1.2, least=891, most=126_000),
        Lengths(median=208, sigma=1.36, least=1, most=2_000),
        burstiness=1.0,  # its times are in steps of three seconds, and tell nothing of shorter gaps
    ),
}
"""By name."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests per second and their lengths; or a trace, which has both."""

    rate: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0  # requests per second, on average; 0: nobody asks
    burstiness: Annotated[float, msgspec.Meta(ge=0.01, le=100)] | None = (
        None  # coefficient of variation of the gaps; 1: Poisson. None: the kind's, or 1
    )
    swing: Annotated[float, msgspec.Meta(ge=0, le=1)] = (
        0.0  # share by which the rate goes up and down over a ``period_s``
    )
    period_s: Positive = 86_400.0
    kind: str = ""  # one of FITTED
    prompt: Lengths | None = None  # None: the kind's, or a median of 1,000
    output: Lengths | None = None  # None: the kind's, or a median of 200
    turns: Annotated[int, msgspec.Meta(ge=1, le=1000)] = (
        1  # of each conversation; each one's prompt is all before, and new
    )
    pause_s: Positive = 5.0  # from one turn to the next, at least; as much again on average
    clients: Count = 16  # that take turns in asking
    trace: str = ""  # a file; see ``replay``
    speed: Positive = 1.0  # of a trace

    def fit(self) -> Fit:
        """Raises ``ConfigError`` for a kind that isn't."""
        if self.kind and self.kind not in FITTED:
            raise ConfigError(f"traffic.kind {self.kind!r} is not one: there are {', '.join(FITTED)}")
        usual = FITTED[self.kind] if self.kind else Fit(Lengths(median=1000), Lengths(median=200), 1.0)
        burstiness = usual.burstiness if self.burstiness is None else self.burstiness
        return Fit(self.prompt or usual.prompt, self.output or usual.output, burstiness)

    def check(self, duration_s: float) -> None:
        """All that can be wrong with it but its trace. Raises ``ConfigError``."""
        fit = self.fit()
        for name, lengths in (("prompt", fit.prompt), ("output", fit.output)):
            if not lengths.least <= lengths.median <= lengths.most:
                raise ConfigError(
                    f"traffic.{name}: median {lengths.median:g} is not from least {lengths.least} to most {lengths.most}"
                )
        if self.trace:
            if self.kind or self.prompt or self.output or self.turns > 1:
                raise ConfigError(
                    "traffic.trace has lengths of its own: leave kind, prompt, output and turns out, or it"
                )
            return
        made = self.rate * (duration_s + self.lead_s)
        if made > _MOST_REQUESTS:
            raise ConfigError(
                f"traffic makes about {made:.3g} requests, and at most {_MOST_REQUESTS:,} are possible:"
                " lower rate, duration_s, turns or pause_s"
            )

    @property
    def lead_s(self) -> float:
        """Before the beginning, so that conversations are in all of their turns by then."""
        return (self.turns - 1) * 2 * self.pause_s


def arrivals(traffic: Traffic, seed: int, duration_s: float, block_tokens: int, directory: Path) -> Iterator[Arrival]:
    """In order of time. ``directory`` is what a trace's path is relative to. Raises ``ConfigError``."""
    traffic.check(duration_s)
    if traffic.trace:
        return replay(directory / traffic.trace, traffic.speed, duration_s, block_tokens)
    return iter(sorted(_made(traffic, seed, duration_s, block_tokens), key=lambda arrival: arrival[0]))


def _made(traffic: Traffic, seed: int, duration_s: float, block_tokens: int) -> Iterator[Arrival]:
    chance = random.Random(f"traffic {seed}")
    fit = traffic.fit()
    for number, at_s in enumerate(_times(traffic, fit.burstiness, chance, duration_s)):
        client = f"client {number % traffic.clients}"
        yield from _conversation(
            traffic, (fit.prompt, fit.output), chance, at_s, duration_s, (seed << 24) + number, client, block_tokens
        )


def _times(traffic: Traffic, burstiness: float, chance: random.Random, duration_s: float) -> Iterator[float]:
    """When conversations begin: also before there is anybody to hear them, so that the rate is there from the beginning.

    Gaps are of a gamma distribution, stretched by the present rate.
    """
    if traffic.rate <= 0:
        return
    shape = 1 / burstiness**2
    mean_s = traffic.turns / traffic.rate
    now_s = -traffic.lead_s
    while True:
        wave = 1 + traffic.swing * math.sin(2 * math.pi * now_s / traffic.period_s)
        now_s += chance.gammavariate(shape, mean_s / shape) / max(wave, 0.01)
        if now_s >= duration_s:
            return
        yield now_s


def _conversation(
    traffic: Traffic,
    lengths: tuple[Lengths, Lengths],
    chance: random.Random,
    at_s: float,
    duration_s: float,
    number: int,
    client: str,
    block_tokens: int,
) -> Iterator[Arrival]:
    """``number`` is the conversation's; no other of any seed has it."""
    before = 0
    for _ in range(traffic.turns):
        prompt, output = before + lengths[0].draw(chance), lengths[1].draw(chance)
        digests = _own_digests(number, (prompt + output) // block_tokens) if traffic.turns > 1 else ()
        if at_s >= 0:
            yield at_s, Asked(prompt_tokens=prompt, output_tokens=output, digests=digests, client=client)
        before = prompt + output
        at_s += traffic.pause_s + chance.expovariate(1 / traffic.pause_s)
        if at_s >= duration_s:
            return


def _own_digests(conversation: int, blocks: int) -> range:
    return range(conversation << 32, (conversation << 32) + blocks)
