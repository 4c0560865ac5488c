"""Who is measured. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec


class Kind(StrEnum):
    """How it is started and loaded."""

    VLLM = "vllm"  # plain engines; the load client takes turns among them
    NIXL = "nixl"  # a prefill and a decode engine of vLLM with its NIXL connector, behind ``proxy``
    APPLIANCE = "appliance"
    FRONTEND = "frontend"  # something between clients and simulated engines: what it costs per token


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the tables. ``key`` is what ``--only`` takes, and files are named by."""

    key: str
    title: str
    kind: Kind
    engines: int = 1  # of plain vLLM, the cores shared out evenly
    share: int = 1  # it gets the first of so many parts of the cores
    layout: str = ""  # of the appliance
    thread_delay_us: int = 0  # for which NIXL's progress thread sleeps between two looks; 0: it spins
    as_it_comes: bool = False  # without what we do to our own engines
    requires: str = ""  # the environment, as ``requirements/peers-NAME.txt``; empty: this checkout's own


VLLM: Final = Contestant(key="vllm", title="vLLM, one engine on all cores", kind=Kind.VLLM)
REPLICAS: Final = Contestant(key="replicas", title="vLLM, two replicas, round robin", kind=Kind.VLLM, engines=2)
PREFILL: Final = Contestant(
    key="prefill", title="vLLM, one engine on half of the cores, one token", kind=Kind.VLLM, share=2
)
TUNED: Final = Contestant(
    key="nixl-tuned",
    title="vLLM + NIXL 1p1d, tuned",
    kind=Kind.NIXL,
    engines=2,
    thread_delay_us=500,
    requires="nixl",
)
STOCK: Final = Contestant(
    key="nixl-stock", title="vLLM + NIXL 1p1d, stock", kind=Kind.NIXL, engines=2, as_it_comes=True, requires="nixl"
)
AGGREGATED: Final = Contestant(key="1b", title="appliance 1b", kind=Kind.APPLIANCE, layout="1b")
PAIR: Final = Contestant(key="2b", title="appliance 2b", kind=Kind.APPLIANCE, layout="2b")
SPLIT: Final = Contestant(key="1p1d", title="appliance 1p1d", kind=Kind.APPLIANCE, layout="1p1d")
RELAY: Final = Contestant(key="relay", title="raw relay of two sockets", kind=Kind.FRONTEND)
SUPERVISOR: Final = Contestant(key="supervisor", title="this supervisor", kind=Kind.FRONTEND)
DYNAMO: Final = Contestant(key="dynamo", title="Dynamo's frontend", kind=Kind.FRONTEND, requires="dynamo")

CONTESTANTS: Final = (
    *(VLLM, REPLICAS, PAIR, AGGREGATED, PREFILL),
    *(SPLIT, TUNED, STOCK),
    *(RELAY, SUPERVISOR, DYNAMO),
)
TOGETHER: Final = (PREFILL, SPLIT, TUNED)  # whose ratios count are measured one after the other
PEERS: Final = (VLLM, REPLICAS, TUNED, STOCK)  # that serve real answers
OURS: Final = (SPLIT, PAIR, AGGREGATED)
BY_KEY: Final = {one.key: one for one in CONTESTANTS}


def chosen(only: Sequence[str]) -> tuple[Contestant, ...]:
    """In the order of ``CONTESTANTS``; all of them where nobody is named. Raises ``ValueError`` for one that there isn't."""
    if unknown := sorted(set(only) - set(BY_KEY)):
        raise ValueError(f"no such peers: {', '.join(unknown)}; there are {', '.join(BY_KEY)}")
    return tuple(one for one in CONTESTANTS if not only or one.key in only)


def turns(contestants: Sequence[Contestant], repetition: int) -> tuple[Contestant, ...]:
    """Each repetition begins with another one, so that none is always the first or follows the same; ``TOGETHER`` stay so."""
    blocks = [
        tuple(block)
        for _, block in itertools.groupby(contestants, lambda one: TOGETHER if one in TOGETHER else one.key)
    ]
    if repetition % 2:
        blocks = [block[::-1] for block in blocks[::-1]]
    first = repetition % max(1, len(blocks))
    return tuple(one for block in (*blocks[first:], *blocks[:first]) for one in block)
