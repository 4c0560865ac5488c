"""What is asked of whom, and how often. Pure.

Two phases: closed loops first; then open loops at shares of what the reference peer held in the closed ones, of those alone that a budget
is about.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from bench.load import Plan
from bench.peers.contestants import PREFILL, SPLIT, TUNED, Contestant, Kind

OUTPUT_TOKENS: Final = 32
PACE_MS: Final = 8.0  # of a stream from a simulated engine, from token to token
PROMPTS: Final = (256, 2048)
CLIENTS: Final = (1, 4, 16)
SHARES: Final = (0.3, 0.6, 0.8)
_WARMING_SEEDS: Final = 1 << 20


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of load: a closed loop of ``concurrency`` clients, or an open one at ``share`` of a capacity."""

    prompt_tokens: int
    output_tokens: int = OUTPUT_TOKENS
    concurrency: int | None = None
    share: float | None = None

    @property
    def key(self) -> str:
        """For names of files."""
        how = f"c{self.concurrency}" if self.share is None else f"open{self.share * 100:.0f}"
        return f"{self.prompt_tokens}-{self.output_tokens}-{how}"

    @property
    def title(self) -> str:
        how = f"{self.concurrency} at once" if self.share is None else f"open loop at {self.share:g} of what NIXL holds"
        return f"Prompt {self.prompt_tokens}, output {self.output_tokens}, {how}"


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. Results of one scale are not mixed with those of another."""

    prompts: tuple[int, ...] = PROMPTS
    clients: tuple[int, ...] = CLIENTS
    shares: tuple[float, ...] = SHARES
    repetitions: int = 3
    requests: tuple[tuple[int, ...], ...] = ((60, 160, 400), (30, 60, 100))
    """Of a closed loop, by ``prompts`` and ``clients``: half a minute to two."""
    open_s: float = 40.0  # an open loop takes so long
    open_requests_min: int = 40  # or as long as so many requests take
    first_requests: int = 240  # for the time to first token through a frontend, several times
    streams: int = 64  # through a frontend
    stream_s: float = 20.0
    settle_s: float = 8.0


FULL: Final = Scale()
QUICK: Final = Scale(
    prompts=(256,),
    clients=(1,),
    shares=(0.6,),
    repetitions=1,
    requests=((5,),),
    open_s=1.0,
    open_requests_min=5,
    first_requests=20,
    streams=8,
    stream_s=3.0,
    settle_s=2.0,
)


def closed(
    contestant: Contestant, scale: Scale, repetition: int = 0, prompts: Sequence[int] | None = None
) -> tuple[Load, ...]:
    """Its closed loops, with ``prompts`` or all.

    An engine that only prefills is asked for one token, by as many clients as there are at most.
    A peer as it comes is asked once, and not by most clients: it stands beside the tuned one, and takes minutes for some answers.
    """
    if contestant.kind is Kind.FRONTEND or (contestant.as_it_comes and repetition):
        return ()
    clients, tokens = scale.clients, OUTPUT_TOKENS
    if contestant == PREFILL:
        clients, tokens = (max(clients),), 1
    elif contestant.as_it_comes:
        clients = clients[:-1] or clients
    return tuple(
        Load(prompt_tokens=n, output_tokens=tokens, concurrency=several)
        for n in (scale.prompts if prompts is None else prompts)
        for several in clients
    )


def opened(
    contestant: Contestant, scale: Scale, rates: dict[int, float], prompts: Sequence[int] | None = None
) -> tuple[Load, ...]:
    """Its open loops, of those prompts for which a capacity is known."""
    if contestant not in (SPLIT, TUNED):
        return ()
    known = [tokens for tokens in (scale.prompts if prompts is None else prompts) if tokens in rates]
    return tuple(Load(prompt_tokens=tokens, share=share) for tokens in known for share in scale.shares)


def capacities(held: Iterable[tuple[Load, float]], scale: Scale) -> dict[int, float]:
    """Requests per second by prompt tokens: medians of what the reference held with as many clients as there are at most.

    None of a prompt that was not measured in every repetition: open loops would go on at a rate that nobody held. ``held`` is what it
    held without an error.
    """
    by_prompt: dict[int, list[float]] = {}
    for load, requests_s in held:
        if load.concurrency == max(scale.clients) and requests_s > 0:
            by_prompt.setdefault(load.prompt_tokens, []).append(requests_s)
    return {
        tokens: statistics.median(found)
        for tokens, found in sorted(by_prompt.items())
        if len(found) == scale.repetitions
    }


def plan(load: Load, scale: Scale, model: str, seed: int, rates: dict[int, float]) -> Plan:
    """The same for every contestant of a repetition."""
    rate = None if load.share is None else load.share * rates[load.prompt_tokens]
    if rate is None:
        requests = scale.requests[scale.prompts.index(load.prompt_tokens)][scale.clients.index(load.concurrency or 1)]
    else:
        requests = max(scale.open_requests_min, round(rate * scale.open_s))
    return Plan(
        model=model,
        requests=requests,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        concurrency=load.concurrency or 1,
        rate=rate,
        seed=seed,
    )


def first(scale: Scale, model: str) -> list[Plan]:
    """What all are asked when they have just started, before anything is measured."""
    clients = max(scale.clients)
    return [
        Plan(
            model=model,
            requests=clients,
            prompt_tokens=tokens,
            output_tokens=OUTPUT_TOKENS,
            concurrency=clients,
            seed=2 * _WARMING_SEEDS,
        )
        for tokens in scale.prompts
    ]


def warming(measured: Plan, scale: Scale) -> Plan:
    """Comes before, with prompts of its own: one per client; before an open loop, what an engine takes at once."""
    clients = measured.concurrency if measured.rate is None else min(4, max(scale.clients))
    return msgspec.structs.replace(
        measured, requests=clients, concurrency=clients, rate=None, seed=measured.seed + _WARMING_SEEDS
    )


def seed(load: Load, scale: Scale, repetition: int) -> int:
    """No two loads of a repetition have a prompt in common, and all contestants get the same."""
    asked = msgspec.structs.replace(load, output_tokens=OUTPUT_TOKENS)
    every = [*closed(SPLIT, scale), *opened(SPLIT, scale, dict.fromkeys(scale.prompts, 1.0))]
    return repetition * len(every) + every.index(asked)
