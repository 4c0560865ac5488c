"""What travels in ``kv_transfer_params``, and how an engine reads it.

It comes from the router and from peers, through vLLM, into hooks that must not raise (an exception there ends EngineCore). So
reading never fails: what can't be read is None, and the prompt is then simply computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any

import msgspec

Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # as the channel can carry


Sequences = tuple[tuple[Number, ...], ...]  # token ids


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill leg: keep the KV for ``consumers`` pulls, ``ttl_s`` seconds at the longest, under the id ``request``."""

    request: str
    do_remote_decode: bool
    consumers: Number = 1
    ttl_s: float = 60.0


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """Decode leg: where the KV of a prompt lies. ``blocks`` has ids per KV group, 0 = not kept; ``prompt`` is ``prompt_digest``.

    ``tee`` and ``forced`` are the router's, as those of ``Whole``.
    """

    request: str
    do_remote_prefill: bool
    engine: str
    epoch: Number
    slot: Number
    generation: Number
    tokens: Number
    prompt: str
    blocks: tuple[tuple[Number, ...], ...]
    tee: Number = 0
    forced: Sequences = ()


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """A request that runs on one engine; the key is for its timeline.

    ``tee``: of how many sequences each output token is to be said (``OutputTokens``). ``forced``: what these begin with.
    """

    request: str
    tee: Number = 0
    forced: Sequences = ()


def read(params: Any) -> Offer | Ticket | Whole | None:
    """What the router asks for; None if it asks for nothing that we know."""
    if not isinstance(params, dict):
        return None
    kind: type[Offer | Ticket | Whole] = Whole
    if params.get("do_remote_decode"):
        kind = Offer
    elif params.get("do_remote_prefill"):
        kind = Ticket
    try:
        found = msgspec.convert(params, kind)
    except (ValueError, OverflowError):
        return None
    return found if _sensible(found) else None


def _sensible(params: Offer | Ticket | Whole) -> bool:
    if isinstance(params, Offer):
        return params.consumers > 0 and params.ttl_s > 0
    if isinstance(params, Ticket):
        return params.tokens > 0
    return True


def prompt_digest(token_ids: Sequence[int]) -> str:
    """Tells prompts apart: both legs render the same text, but a chat template may have looked at the clock in between."""
    return blake2b(array("I", token_ids), digest_size=16).hexdigest()


def ticket_params(ticket: Ticket) -> dict[str, Any]:
    """The ticket as vLLM returns it with the prefill leg's answer."""
    params: dict[str, Any] = msgspec.to_builtins(ticket)
    return params
