"""What goes into a simulated engine and comes out of it, and what it needs of the world around it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Protocol

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's arguments, as far as they matter here."""

    max_batched_tokens: int = 8192
    max_running: int = 256
    kv_blocks: int = 4096
    block_tokens: int = 16
    max_model_len: int = 131_072
    block_bytes: int = 1 << 20  # of all ranks together


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A leg of one sequence. ``digests``: of each full block of the prompt, and of what will be answered, where that is known already."""

    key: str
    request: str = ""  # the router's key, where it is another one
    silent: bool = False  # it is nobody's whom the router knows
    phase: str  # prefill, decode or whole
    prompt_tokens: int
    output_tokens: int
    digests: SequenceOf[int] = ()
    consumers: int = 1
    ttl_s: float = 60.0
    offer: Offer | None = None  # of a decode leg: where its prompt's KV is

    @property
    def name(self) -> str:
        """As the router knows it."""
        return self.request or self.key


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """KV that is held for somebody. ``slot`` and ``generation``: its place in the producer's lease table."""

    producer: str
    epoch: int
    lease: str
    tokens: int
    blocks: tuple[int, ...]
    slot: int
    generation: int


class Work(msgspec.Struct):
    """What one step has to do."""

    chunks: list[tuple[int, int]] = []  # of prompts: tokens, and how many of the same prompt were there before
    prompt_tokens: int = 0
    prompt_context: int = 0  # tokens that these prompts have by the end of the step
    decodes: int = 0  # sequences, one token each
    decode_context: int = 0  # KV tokens that these read, their own included
    attended: int = 0  # by the prompts' tokens: see ``channel.Step``


class State(msgspec.Struct, frozen=True):
    """Of an engine, after a step or between two: see ``channel.Step``."""

    running: int
    waiting: int
    fetching: int
    kv_free: int
    leased: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a leg ended. A prefill leg's ``offer`` is None where nothing could be held."""

    ask: Ask
    ended_ns: int
    first_token_ns: int | None
    offer: Offer | None = None
    lost: bool = False


class Physics(Protocol):
    """How long things take here."""

    def step_ns(self, work: Work, now_ns: int) -> int: ...


class Fetch(Protocol):
    """KV on its way."""

    def cancel(self) -> None: ...


class Fabric(Protocol):
    """What is between engines."""

    def pull(self, offer: Offer, consumer: str, size_bytes: int, done: Callable[[int, str | None], None]) -> Fetch:
        """``done`` is called with the time at which copying began, and what went wrong."""
        ...


class Sequence:
    """One leg inside the engine."""

    __slots__ = ("aborted", "ask", "blocks", "computed", "fetch", "fetched", "first_ns", "joined", "said", "scheduled")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.blocks: list[int] = []
        self.computed = 0  # tokens; of one that decodes, when it joined
        self.said = 0  # output tokens; likewise
        self.joined = -1  # the number of the step with which it began to decode; -1: it does not
        self.first_ns: int | None = None
        self.scheduled = False
        self.aborted = False
        self.fetch: Fetch | None = None
        self.fetched = ask.offer is None

    @property
    def total(self) -> int:
        return self.ask.prompt_tokens + self.said
