"""What is asked of whom, and how often. Pure.

Two phases: closed loops first, in every repetition; then open loops at shares of what the reference peer held in the closed ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from bench.load import Plan
from bench.peers.contestants import PREFILL, Contestant, Kind

OUTPUT_TOKENS: Final = 32
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
    requests_min: int = 20  # or five per client, if that is more
    open_s: float = 60.0  # an open loop takes so long
    open_requests_min: int = 40  # or as long as so many requests take
    streams: int = 64  # through a frontend
    stream_s: float = 20.0
    settle_s: float = 8.0


FULL: Final = Scale()
QUICK: Final = Scale(
    prompts=(256,),
    clients=(1,),
    shares=(0.6,),
    repetitions=1,
    requests_min=5,
    open_s=1.0,
    open_requests_min=5,
    streams=8,
    stream_s=3.0,
    settle_s=2.0,
)


def closed(contestant: Contestant, scale: Scale) -> tuple[Load, ...]:
    """Its closed loops. An engine that only prefills is asked for one token, by as many clients as there are at most."""
    if contestant.kind is Kind.FRONTEND:
        return ()
    if contestant == PREFILL:
        return tuple(Load(prompt_tokens=n, output_tokens=1, concurrency=max(scale.clients)) for n in scale.prompts)
    return tuple(Load(prompt_tokens=n, concurrency=clients) for n in scale.prompts for clients in scale.clients)


def opened(contestant: Contestant, scale: Scale, rates: dict[int, float]) -> tuple[Load, ...]:
    """Its open loops, of those prompts for which a capacity is known."""
    if contestant.kind is Kind.FRONTEND or contestant == PREFILL:
        return ()
    known = [tokens for tokens in scale.prompts if tokens in rates]
    return tuple(Load(prompt_tokens=tokens, share=share) for tokens in known for share in scale.shares)


def capacities(held: Iterable[tuple[Load, float]]) -> dict[int, float]:
    """Requests per second by prompt tokens: medians of what the reference held with as many clients as it had at most."""
    by_prompt: dict[int, dict[int, list[float]]] = {}
    for load, requests_s in held:
        if load.concurrency is not None and requests_s > 0:
            by_prompt.setdefault(load.prompt_tokens, {}).setdefault(load.concurrency, []).append(requests_s)
    return {tokens: statistics.median(found[max(found)]) for tokens, found in sorted(by_prompt.items())}


def plan(load: Load, scale: Scale, model: str, seed: int, rates: dict[int, float]) -> Plan:
    """The same for every contestant of a repetition."""
    rate = None if load.share is None else load.share * rates[load.prompt_tokens]
    if rate is None:
        requests = max(scale.requests_min, 5 * (load.concurrency or 1))
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


def warming(measured: Plan, scale: Scale) -> Plan:
    """Comes before, with prompts of its own: two per client; before an open loop, what an engine takes at once."""
    clients = measured.concurrency if measured.rate is None else min(4, max(scale.clients))
    return msgspec.structs.replace(
        measured, requests=2 * clients, concurrency=clients, rate=None, seed=measured.seed + _WARMING_SEEDS
    )


def seed(loads: Sequence[Load], load: Load, repetition: int) -> int:
    """No two loads of a repetition have a prompt in common."""
    return repetition * len(loads) + loads.index(load)
